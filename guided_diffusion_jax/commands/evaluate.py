"""`--mode=evaluate`: likelihood, condition adherence and scores of a trained run, or scores of images of any origin."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.checks import real
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.evaluation import adherence, likelihood, measurements, metrics, scorer, sweep
from guided_diffusion_jax.evaluation.numbers import number as as_text
from guided_diffusion_jax.experiment import build, runs, sampling
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.runtime import distributed


def run(config: ConfigDict, workdir: epath.Path) -> dict[str, Any]:
    """Computes `evaluate.metrics` of a run, prints them and adds them to `evaluate.json`.

    Instead, `evaluate.samples` scores the images of a file or a folder, without a run, and adds to
    `evaluate_NAME.json`; and `evaluate.sweep` scores a run at several weights and writes `sweep.json` and some images
    in `sweep/`.

    Raises:
        InputError: for wrong settings, before anything is compiled.
    """
    e = config.evaluate
    require(len(e.metrics) > 0, f"evaluate.metrics is empty; choose of {', '.join(EVALUATIONS)}")
    chosen = {name: choose(EVALUATIONS, name, "evaluate.metrics") for name in e.metrics}
    require(e.count >= 0, f"evaluate.count={e.count} must not be negative; 0 is all images")
    require(e.batch_size >= 1, f"evaluate.batch_size={e.batch_size} must be at least 1")
    data = open_split(config)
    if e.samples:
        check_scores(config, data)
        file = scorer.open_samples(e.samples, data)
        scores = make_scorer(config, data, workdir).scores_of_file(file)
        print(metrics.summary(scores))
        return write(workdir / f"evaluate_{file.name}.json", config, {"scores": scores}, count=scores["count"])
    if any(e.sweep.values()):
        return {"sweep": run_sweep(config, workdir, data)}
    if "scores" in chosen:
        check_scores(config, data)
    for name in {"bpd", "adherence"} & set(chosen):
        require(
            e.count <= len(data), f"evaluate.count={e.count}, but {data.name} has {len(data)} images; 0 is all ({name})"
        )
    pipe = runs.pipeline(config, workdir)
    if "adherence" in chosen:
        adherence.check(data, e.conditions)
    print(f"{workdir}: step {pipe.step}, {data.name}", flush=True)
    found = {name: evaluation.measure(pipe, config, data, workdir) for name, evaluation in chosen.items()}
    return write(workdir / "evaluate.json", config, found, checkpoint_step=pipe.step, count=e.count or len(data))


def open_split(config: ConfigDict) -> Dataset:
    """The data set's split `evaluate.split`.

    Raises:
        InputError: it cannot be opened; where only the split is missing, the message names the training split.
    """
    split = config.evaluate.split
    try:
        return build.dataset(config, split)
    except InputError as error:
        if split == "train":
            raise
        build.dataset(config)
        raise InputError(
            f"evaluate.split={split}: {error}; or measure on the training images with evaluate.split=train"
        ) from error


def run_sweep(
    config: ConfigDict, workdir: epath.Path, data: Dataset, scored: scorer.Scorer | None = None
) -> list[dict[str, Any]]:
    """Scores and costs at each point of `evaluate.sweep`; writes `sweep.json`."""
    e, s, g = config.evaluate, config.sample, config.sample.guidance
    check_scores(config, data)
    weights, by_classifier = (
        tuple(real(f"evaluate.sweep.{key}", value) for value in e.sweep[key]) for key in ("weight", "classifier_weight")
    )
    if not weights and not by_classifier:
        weights = (g.weight,)
    pipe, null_trained = runs.pipeline(config, workdir), config.train.cfg_dropout > 0
    if weights:
        require(bool(pipe.specs), "evaluate.sweep.weight is of CFG, but this run has no conditions")
        require(
            null_trained or not any(weights),
            f"evaluate.sweep.weight={weights}: this run was trained with train.cfg_dropout=0, so it has no "
            "unconditional model; use 0 alone, or evaluate.sweep.classifier_weight",
        )
    if by_classifier:
        pipe.classifier("label")
    count = e.count or min(len(data), metrics.MOST)

    def request(**wishes: Any) -> Any:
        return runs.evaluation_request(config, pipe, data, count, **wishes)

    rows = sweep.sweep(
        pipe, scored or make_scorer(config, data, workdir), weight=weights, classifier_weight=by_classifier,
        steps=tuple(e.sweep.steps) or (s.steps,), request=request, unguided_weight=-1.0 if null_trained else 0.0,
        image_dir=workdir / "sweep",
    )  # fmt: skip
    if distributed.is_main_process():
        sampled = config.sample.to_dict() | {
            "guidance": g.to_dict() | dict.fromkeys(("weight", "classifier_weight")),
            "steps": None,
        }
        how = {"split": e.split, "seed": config.seed, "sample": sampled}
        said = measurements.add_points(workdir / "sweep.json", rows, checkpoint_step=pipe.step, settings=how)
        print("".join(f"{line}\n" for line in said), end="", flush=True)
    return rows


def make_scorer(config: ConfigDict, data: Dataset, workdir: epath.Path | None = None) -> scorer.Scorer:
    """Scorer of `config.evaluate`, with the training split as its reference."""
    e = config.evaluate
    options = {"features": e.features, "feature_weights": e.feature_weights, "reference": e.reference}
    return scorer.Scorer(data, build.dataset(config), **options, batch_size=e.batch_size, cache_dir=workdir)


def check_scores(config: ConfigDict, data: Dataset) -> None:
    """Raises `InputError` for features, a reference or a count that cannot be used."""
    e = config.evaluate
    scorer.check(data, features=e.features, feature_weights=e.feature_weights, reference=e.reference)
    count, least = e.count or len(data), metrics.FEWEST
    require(count >= least, f"{count} images are too few to be scored; evaluate.count must be {least} at least")


def write(
    path: epath.Path, config: ConfigDict, found: dict[str, Any], checkpoint_step: int | None = None, **about: Any
) -> dict[str, Any]:
    """Adds the results to a file, and returns its content."""
    sections = {part: config[part].to_dict() for part in ("evaluate", "sample")}
    values = {f"{part}.{key}": value for part, section in sections.items() for key, value in section.items()}
    values["seed"] = config.seed
    new = [
        measurements.Measurement(name, checkpoint_step, _settings(values, name), value) for name, value in found.items()
    ]
    call = {**about, "evaluate": config.evaluate.to_dict(), "run": str(path.parent)}
    call |= {} if checkpoint_step is None else {"checkpoint_step": checkpoint_step}
    if not distributed.is_main_process():
        return {**call, "metrics": found}
    path.parent.mkdir(parents=True, exist_ok=True)
    content, said = measurements.add(path, new, **call)
    others = len(content["measurements"]) - len(new)
    print(*said, f"{path}" + f" (beside {others} earlier)" * (others > 0), sep="\n", flush=True)
    return content


def _settings(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Those that a measurement depends on: of given images, only how they are scored."""
    keys = EVALUATIONS[name].settings
    if values["evaluate.samples"]:
        keys = ("evaluate.samples", *(key for key in keys if key.startswith("evaluate.")))
    return {key: value for key, value in values.items() if key.startswith(keys)}


def _bpd(pipe: Pipeline, config: ConfigDict, data: Dataset, workdir: epath.Path) -> dict[str, Any]:
    e = config.evaluate
    found = likelihood.evaluate_pipeline(
        pipe, data, steps=e.bound_steps, count=e.count, batch_size=e.batch_size, seed=config.seed,
        unconditional=config.train.cfg_dropout == 1,
    )  # fmt: skip
    print(likelihood.summary(found), flush=True)
    return found


def _adherence(pipe: Pipeline, config: ConfigDict, data: Dataset, workdir: epath.Path) -> dict[str, Any]:
    count = config.evaluate.count or len(data)
    conditions = tuple(config.evaluate.conditions) or tuple(name for name in pipe.specs if name != "masked_image")
    request = pipe.request_for(
        data, np.arange(count), conditions, weight=config.sample.guidance.weight, **sampling.solver_wishes(config)
    )
    images = pipe.generate(request.prune_branches())
    d = config.data
    examples = adherence.examples(
        d.name, config.evaluate.split, d.image_size, d.data_dir, count,
        caption_has=d.caption_has, caption_lacks=d.caption_lacks,
    )  # fmt: skip
    shares = adherence.adherence(images, examples, conditions, d.attributes)
    print(f"{count:,} images; share that shows what it was conditioned on:")
    print("\n".join(f"  {name}: {as_text(share)}" for name, share in shares.items()), flush=True)
    return {"conditions": conditions, "shares": shares}


def _scores(pipe: Pipeline, config: ConfigDict, data: Dataset, workdir: epath.Path) -> dict[str, Any]:
    count = config.evaluate.count or min(len(data), metrics.MOST)
    request = runs.evaluation_request(config, pipe, data, count)
    found, _ = sweep.measure(pipe, request.prune_branches(), make_scorer(config, data, workdir))
    print(metrics.summary(found))
    return found


class Evaluation(NamedTuple):
    """One of `evaluate.metrics`.

    Attributes:
        measure: (pipeline, configuration, data set, folder of the run) -> results.
        settings: keys, or beginnings of keys, on which the results depend.
    """

    measure: Callable[..., dict[str, Any]]
    settings: tuple[str, ...]


_OF_DATA = ("seed", "evaluate.split", "evaluate.count")
EVALUATIONS: dict[str, Evaluation] = {
    "bpd": Evaluation(_bpd, (*_OF_DATA, "evaluate.bound_steps", "sample.ema")),
    "adherence": Evaluation(_adherence, (*_OF_DATA, "evaluate.conditions", "sample.")),
    "scores": Evaluation(_scores, (*_OF_DATA, "evaluate.feature", "evaluate.reference", "sample.")),
}
