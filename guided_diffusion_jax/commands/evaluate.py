"""`--mode=evaluate`: how good a trained run is, in numbers, on images that it has not seen."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from guided_diffusion_jax import guidance, schedules
from guided_diffusion_jax.commands import build, judging, kinds, networks, sample
from guided_diffusion_jax.conditions import null_like
from guided_diffusion_jax.data.source import Source
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.evaluation import likelihood
from guided_diffusion_jax.samplers import sample_keys
from guided_diffusion_jax.training import parallel
from guided_diffusion_jax.typing import Level, Params


def run(config: ConfigDict, workdir: epath.Path) -> dict[str, Any]:
    """Computes `evaluate.metrics` with the newest averaged parameters, prints them and writes `evaluate.json`.

    Raises:
        InputError: before anything is compiled, for whatever in the config cannot work.
    """
    e = config.evaluate
    require(len(e.metrics) > 0, f"evaluate.metrics is empty; choose of {', '.join(METRICS)}")
    metrics = {name: choose(METRICS, name, "evaluate.metrics") for name in e.metrics}
    require(e.count >= 0, f"evaluate.count={e.count} must not be negative; 0 is all images")
    require(e.batch_size >= 1, f"evaluate.batch_size={e.batch_size} must be at least 1")
    data = build.source(config, e.split)
    require(e.count <= len(data), f"evaluate.count={e.count}, but {data.name} has {len(data)} images; 0 is all of them")
    config = build.resolve(config, data)
    for name in metrics:
        CHECKS[name](config)

    params, step = sample.averaged(networks.network(sample.checked(config, workdir)), config, workdir)
    count = e.count or len(data)
    print(f"{workdir}: step {step}, {count:,} images of {data.name}", flush=True)
    found = {name: metric(config, params, data, count) for name, metric in metrics.items()}
    result = {"checkpoint_step": step, "count": count, "evaluate": e.to_dict(), "run": str(workdir), "metrics": found}
    beside = workdir / "evaluate.json.tmp"
    beside.write_text(json.dumps(result, indent=2) + "\n")
    beside.replace(workdir / "evaluate.json")
    print(f"{workdir / 'evaluate.json'}", flush=True)
    return result


def process(config: ConfigDict) -> Level:
    """The levels that the bound goes through: all T, or those that `evaluate.steps` selects."""
    levels = build.table(config)
    rows = schedules.select(config.evaluate.steps or str(len(levels.time)), len(levels.time))
    require(len(rows) >= 2, "the likelihood needs at least 2 steps; raise diffusion.num_steps or evaluate.steps")
    return Level(*(column[rows] for column in levels))


def bits_per_dimension(config: ConfigDict, params: Params, data: Source, count: int) -> dict[str, Any]:
    """The variational bound, given the conditions, with its terms; image i draws with `fold_in(key(seed), i)`."""
    network, levels, mesh = networks.network(config), process(config), parallel.data_mesh()
    conditions_of = kinds.of_batch(config)
    apply, prediction = networks.applied(network), config.diffusion.prediction
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
        measure, out_shardings=parallel.replicated(mesh), compiler_options=parallel.compiler_options()
    )
    devices = jax.device_count()
    size = -(-min(config.evaluate.batch_size, count) // devices) * devices
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


METRICS = {"bpd": bits_per_dimension, "judge": judging.judge}

CHECKS: dict[str, Callable[[ConfigDict], Any]] = {"bpd": process, "judge": judging.check}
"""What each metric asks of a resolved config, before any of them is computed."""
