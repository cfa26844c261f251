"""`--mode=evaluate`: how good a trained run is, in numbers, on images that it has not seen."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from guided_diffusion_jax import guidance, schedules, writing
from guided_diffusion_jax.commands import build, kinds, networks, sample
from guided_diffusion_jax.commands.evaluate import judging, scoring, sweep
from guided_diffusion_jax.commands.evaluate.scoring import Scorer
from guided_diffusion_jax.conditions import null_like
from guided_diffusion_jax.data.dataset import Dataset as Source
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.evaluation import likelihood
from guided_diffusion_jax.samplers import sample_keys
from guided_diffusion_jax.training import distributed, parallel
from guided_diffusion_jax.typing import Level, Params


class Subject(NamedTuple):
    """A trained run that is evaluated; `params` are averaged, and `pictures` is `evaluate.count`, 0 for the usual."""

    config: ConfigDict
    workdir: epath.Path
    params: Params
    data: Source
    pictures: int


def run(config: ConfigDict, workdir: epath.Path) -> dict[str, Any]:
    """Computes `evaluate.metrics` with the newest averaged parameters, prints them and writes `evaluate.json`.

    Instead, `evaluate.samples` has the pictures of a file scored, for which no run is needed, and
    `evaluate_NAME.json` written; and `evaluate.sweep` has a run scored at several weights (see `sweep.run`).

    Raises:
        InputError: before anything is compiled, for whatever in the config cannot work.
    """
    e = config.evaluate
    require(len(e.metrics) > 0, f"evaluate.metrics is empty; choose of {', '.join(METRICS)}")
    metrics = {name: choose(METRICS, name, "evaluate.metrics") for name in e.metrics}
    require(e.count >= 0, f"evaluate.count={e.count} must not be negative; 0 is all images")
    require(e.batch_size >= 1, f"evaluate.batch_size={e.batch_size} must be at least 1")
    data = build.source(config, e.split)
    config = build.resolve(config, data)
    if e.samples:
        return score_file(config, workdir, data)
    if sweep.asked(config):
        sample.checked(config, workdir)
        sweep.check(config, workdir, data)
        return {"sweep": sweep.run(config, workdir, Scorer(config, data, workdir))}
    for name in metrics:
        CHECKS[name](config, data)

    params, step = sample.averaged(networks.network(sample.checked(config, workdir)), config, workdir)
    print(f"{workdir}: step {step}, {data.name}", flush=True)
    subject = Subject(config, workdir, params, data, e.count)
    found = {name: metric(subject) for name, metric in metrics.items()}
    count = e.count or len(data)
    result = {"checkpoint_step": step, "count": count, "evaluate": e.to_dict(), "run": str(workdir), "metrics": found}
    write(workdir / "evaluate.json", result)
    return result


def score_file(config: ConfigDict, workdir: epath.Path, data: Source) -> dict[str, Any]:
    """Scores the pictures of `evaluate.samples`, whoever made them."""
    e = config.evaluate
    file = scoring.opened(config, data)
    scores = Scorer(config, data, workdir).scores_of(file)
    scoring.show(scores)
    result = {"count": scores["count"], "evaluate": e.to_dict(), "metrics": {"scores": scores}}
    write(workdir / f"evaluate_{file.path.stem}.json", result)
    return result


def write(path: epath.Path, result: dict[str, Any]) -> None:
    """Writes what was found, whole or not at all, and says where."""
    if distributed.leads():
        path.parent.mkdir(parents=True, exist_ok=True)
        writing.as_json(path, result)
    print(f"{path}", flush=True)


def process(config: ConfigDict) -> Level:
    """The levels that the bound goes through: all T, or those that `evaluate.steps` selects."""
    levels = build.table(config)
    rows = schedules.select(config.evaluate.steps or str(len(levels.time)), len(levels.time))
    require(len(rows) >= 2, "the likelihood needs at least 2 steps; raise diffusion.num_steps or evaluate.steps")
    return Level(*(column[rows] for column in levels))


def bits_per_dimension(config: ConfigDict, params: Params, data: Source, count: int) -> dict[str, Any]:
    """The variational bound, given the conditions, with its terms; image i draws with `fold_in(key(seed), i)`."""
    network, levels, mesh = networks.network(config), process(config), build.mesh(config, "train")
    conditions_of = kinds.of_batch(config)
    apply = parallel.gathering(mesh)(networks.applied(network))
    prediction = config.diffusion.prediction
    learned = config.diffusion.variance == "learned_range"

    def measure(params: Params, batch: dict[str, Any]) -> likelihood.Bound:
        keys = sample_keys(jax.random.key(config.seed), batch["number"])
        # Nothing of the picture itself may be told.
        conditions = dataclasses.replace(conditions_of(batch, keys), known=None)
        if config.train.condition_dropout == 1:  # it never saw a condition
            conditions = null_like(conditions, config.model.num_classes)
        denoise = conditional_denoiser(functools.partial(apply, params), prediction, learned)
        clipped = guidance.clip_x0(guidance.conditional(denoise, conditions))
        bound = likelihood.bits_per_dimension(clipped, keys, batch["image"], levels, config.diffusion.variance)
        return likelihood.weighted_sum(bound, batch["weight"])

    compiled: Callable[[Params, Any], likelihood.Bound] = jax.jit(
        measure, out_shardings=parallel.whole(mesh), compiler_options=parallel.compiler_options()
    )
    size = parallel.filled(min(config.evaluate.batch_size, count), mesh.size)
    batches = likelihood.numbered(data, count, size, jax.process_index(), jax.process_count())
    bound = likelihood.mean_over(
        lambda batch: compiled(params, parallel.put_batch(batch, mesh)), _shown(batches, -(-count // size)), count
    )
    quarters = likelihood.by_quarter(np.asarray(bound.vb))
    total, prior = float(bound.total), float(bound.prior)
    terms = ", ".join(f"q{i + 1} {value:.4f}" for i, value in enumerate(quarters))
    print(f"bits/dim {total:.4f}: prior {prior:.4f}, steps by quarter of t {terms}", flush=True)
    by_step = {name: getattr(bound, name).tolist() for name in ("vb", "x0_mse", "eps_mse")}
    return {
        "total": total,
        "prior": prior,
        "vb_by_quarter": quarters,
        "by_step": {"time": np.asarray(levels.time).tolist(), **by_step},
    }


def _shown(batches: Iterator[dict[str, Any]], number: int) -> Iterator[dict[str, Any]]:
    yield from tqdm(batches, total=number, desc="bits/dim", unit=" batches", disable=None, leave=False)


def _check_count(config: ConfigDict, data: Source) -> None:
    """Of what is measured on the split's own images."""
    count = config.evaluate.count
    require(count <= len(data), f"evaluate.count={count}, but {data.name} has {len(data)} images; 0 is all of them")


def _check_bpd(config: ConfigDict, data: Source) -> None:
    _check_count(config, data)
    process(config)


def _check_judge(config: ConfigDict, data: Source) -> None:
    _check_count(config, data)
    judging.check(config)


def _check_scores(config: ConfigDict, data: Source) -> None:
    scoring.check(config, data)
    scoring.count_of(config, data)


def _bpd(of: Subject) -> dict[str, Any]:
    return bits_per_dimension(of.config, of.params, of.data, of.pictures or len(of.data))


def _judge(of: Subject) -> dict[str, Any]:
    return judging.judge(of.config, of.params, of.data, of.pictures or len(of.data))


def _scores(of: Subject) -> dict[str, Any]:
    scorer = Scorer(of.config, of.data, of.workdir)
    return scoring.of_run(of.config, of.workdir, of.params, scorer, scoring.count_of(of.config, of.data))


METRICS: dict[str, Callable[[Subject], dict[str, Any]]] = {"bpd": _bpd, "judge": _judge, "scores": _scores}

CHECKS: dict[str, Callable[[ConfigDict, Source], None]] = {
    "bpd": _check_bpd,
    "judge": _check_judge,
    "scores": _check_scores,
}
"""What each metric asks of a resolved config, before any of them is computed."""
