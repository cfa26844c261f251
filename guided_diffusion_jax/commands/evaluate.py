"""`--mode=evaluate`: likelihood, condition adherence and scores of a trained run, or scores of a file of images."""

from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import writing
from guided_diffusion_jax.commands import build
from guided_diffusion_jax.commands.run_pipeline import RunPipeline, adherence_examples
from guided_diffusion_jax.data.source import Source
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.evaluation import adherence, likelihood, metrics, scorer, sweep
from guided_diffusion_jax.training import distributed


def run(config: ConfigDict, workdir: epath.Path) -> dict[str, Any]:
    """Computes `evaluate.metrics` of a run, prints them and writes `evaluate.json`.

    Instead, `evaluate.samples` scores the images of a file, without a run, and writes `evaluate_NAME.json`; and
    `evaluate.sweep` scores a run at several weights and writes `sweep.json` and some images in `sweep/`.

    Raises:
        InputError: for wrong settings, before anything is compiled.
    """
    e = config.evaluate
    require(len(e.metrics) > 0, f"evaluate.metrics is empty; choose of {', '.join(EVALUATIONS)}")
    chosen = {name: choose(EVALUATIONS, name, "evaluate.metrics") for name in e.metrics}
    require(e.count >= 0, f"evaluate.count={e.count} must not be negative; 0 is all images")
    require(e.batch_size >= 1, f"evaluate.batch_size={e.batch_size} must be at least 1")
    data = build.source(config, e.split)
    config = build.resolve(config, data)
    if e.samples:
        check_scores(config, data)
        file = scorer.open_samples(e.samples, data)
        scores = make_scorer(config, data, workdir).scores_of_file(file)
        print(metrics.summary(scores))
        return write(workdir / f"evaluate_{file.path.stem}.json", config, {"scores": scores}, count=scores["count"])
    values = {key: numbers(e.sweep[key], key) for key in ("weight", "classifier_weight")}
    steps = [part.strip() for part in e.sweep.steps.split(",")] if e.sweep.steps else [config.sample.steps]
    if any(values.values()) or e.sweep.steps:
        check_scores(config, data)
        values["weight"] = values["weight"] or (() if values["classifier_weight"] else (config.sample.guidance.weight,))
        pipe = RunPipeline(config, workdir, data)
        pipe.check_sweep(**values, steps=steps)
        rows = sweep.sweep(
            pipe, make_scorer(config, data, workdir), **values, steps=steps, request=pipe.request,
            unguided_weight=pipe.unguided_weight, image_dir=workdir / "sweep",
        )  # fmt: skip
        if distributed.leads():
            writing.as_json(workdir / "sweep.json", rows)
        return {"sweep": rows}
    if "scores" in chosen:
        check_scores(config, data)
    pipe = RunPipeline(config, workdir, data)
    pipe.check(chosen)
    print(f"{workdir}: step {pipe.step}, {data.name}", flush=True)
    found = {name: evaluation(pipe, config, data, workdir) for name, evaluation in chosen.items()}
    return write(workdir / "evaluate.json", config, found, checkpoint_step=pipe.step, count=e.count or len(data))


def make_scorer(config: ConfigDict, data: Source, workdir: epath.Path | None = None) -> scorer.Scorer:
    """Scorer of `config.evaluate`, with the training split as its reference."""
    e = config.evaluate
    options = {"features": e.features, "feature_weights": e.weights, "reference": e.reference}
    return scorer.Scorer(data, build.source(config), **options, batch_size=e.batch_size, cache_dir=workdir)


def check_scores(config: ConfigDict, data: Source) -> None:
    """Raises `InputError` for features, a reference or a count that cannot be used."""
    e = config.evaluate
    scorer.check(data, features=e.features, feature_weights=e.weights, reference=e.reference)
    count, least = e.count or len(data), metrics.FEWEST
    require(count >= least, f"{count} images are too few to be scored; evaluate.count must be {least} at least")


def numbers(text: str, key: str) -> tuple[float, ...]:
    """Numbers of a setting of the sweep, "0,1,2"."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        require(False, f"evaluate.sweep.{key}={text!r} must be numbers with commas between them, e.g. 0,0.5,1,2,4,8")
        raise


def write(path: epath.Path, config: ConfigDict, found: dict[str, Any], **about: Any) -> dict[str, Any]:
    """Writes and returns the results."""
    result = {**about, "evaluate": config.evaluate.to_dict(), "run": str(path.parent), "metrics": found}
    if distributed.leads():
        path.parent.mkdir(parents=True, exist_ok=True)
        writing.as_json(path, result)
    print(f"{path}", flush=True)
    return result


def _bpd(pipe: RunPipeline, config: ConfigDict, data: Source, workdir: epath.Path) -> dict[str, Any]:
    e = config.evaluate
    options = {"count": e.count, "batch_size": e.batch_size, "seed": config.seed, "mesh": pipe.mesh}
    found = likelihood.evaluate(pipe.denoiser, pipe.params, data, pipe.bound_levels(), pipe.variance, **options)
    print(likelihood.summary(found), flush=True)
    return found


def _adherence(pipe: RunPipeline, config: ConfigDict, data: Source, workdir: epath.Path) -> dict[str, Any]:
    count, conditions = config.evaluate.count or len(data), pipe.judged
    images = pipe.generate(pipe.request_for(count, conditions).prune_branches())
    shares = adherence.adherence(images, adherence_examples(config, count), conditions, config.data.attributes)
    print("\n".join(f"  {name}: {share:.3f}" for name, share in shares.items()))
    return {"conditions": conditions, "shares": shares}


def _scores(pipe: RunPipeline, config: ConfigDict, data: Source, workdir: epath.Path) -> dict[str, Any]:
    found, _ = sweep.measure(pipe, pipe.request().prune_branches(), make_scorer(config, data, workdir))
    print(metrics.summary(found))
    return found


EVALUATIONS: dict[str, Callable[..., dict[str, Any]]] = {"bpd": _bpd, "adherence": _adherence, "scores": _scores}
