"""The training step, whole: noise, loss, gradient, AdamW and the average; and what its options cost and save."""

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.cases import Case, Ratio, Results, measurement, ratio
from benchmarks.timing import Spread, chain_length, compiled, take_turns
from guided_diffusion_jax import sharding
from guided_diffusion_jax.commands import build, networks
from guided_diffusion_jax.training import state

STEP = "training step"
NO_OPTIONS = "no compiler options / with"
OTHER_DTYPE = {"float32": "bfloat16", "bfloat16": "float32"}


def run(case: Case, budget: float) -> Results:
    """Times the step as `--mode=train` compiles it, and in turns with it the step with one thing changed."""
    mesh = sharding.mesh()
    image = np.clip(np.random.default_rng(1).standard_normal((case.batch, *networks.image_shape(case.config))), -1, 1)
    batch = sharding.put_batch({"image": image.astype(np.float32), "label": case.labels()}, mesh)

    def start():
        fresh = state.create(case.params(), build.optimizer(case.config, "train"), jax.random.key(0))
        return jax.device_put(fresh, sharding.replicated(mesh))

    dtype, on_cpu = case.config.model.dtype, jax.default_backend() == "cpu"
    variants = {"remat / none": sharding.data_parallel(_step(_changed(case.config, remat=True)), mesh)}
    if on_cpu and sharding.compiler_options():
        variants[NO_OPTIONS] = jax.jit(_step(case.config), donate_argnums=0)
    if not on_cpu:
        other = OTHER_DTYPE[dtype]
        variants[f"{other} / {dtype}"] = sharding.data_parallel(_step(_changed(case.config, dtype=other)), mesh)

    steps = {STEP: sharding.data_parallel(_step(case.config), mesh)}
    steps.update({_program(variant): step for variant, step in variants.items()})
    programs = {name: compiled(step, start(), batch) for name, step in steps.items()}
    length = chain_length()
    times = take_turns({name: _chain(p.call, start(), batch, length) for name, p in programs.items()}, budget)

    ratios = [ratio(case, f"{STEP}'s time: {variant}", times, _program(variant), STEP) for variant in variants]
    for variant in variants:
        if variant == NO_OPTIONS:
            continue
        memory = programs[_program(variant)].program_bytes / programs[STEP].program_bytes
        ratios.append(Ratio(case.name, f"{STEP}'s memory: {variant}", Spread(memory, memory, memory), 1))
    return Results([measurement(case, name, p, times, length) for name, p in programs.items()], ratios)


def _program(variant: str) -> str:
    """What the changed step of "remat / none" is called: "training step, remat"."""
    return f"{STEP}, {variant.split(' / ')[0]}"


def _step(config: ConfigDict) -> Callable:
    loss_function = build.loss_function(networks.unet(config), config)
    return build.step(config, "train", loss_function, build.optimizer(config, "train"))


def _changed(config: ConfigDict, **model) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    changed.model.update(model)
    return changed


def _chain(step: Callable, current: state.TrainState, batch, length: int) -> Callable:
    """A call that takes so many updates from wherever the last one has stopped."""

    def call():
        nonlocal current
        for _ in range(length):
            current, metrics = step(current, batch)
        return metrics

    return call
