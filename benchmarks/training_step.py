"""The whole training step (noise, loss, gradient, AdamW, EMA), and what its options cost and save."""

from collections.abc import Callable
from typing import Any

import jax

from benchmarks.cases import Case, Ratio, Results, measurement, ratio
from benchmarks.timing import Spread, chain_length, compiled, take_turns
from guided_diffusion_jax import sharding
from guided_diffusion_jax.training.state import TrainState

STEP = "training step"
NO_OPTIONS = "no compiler options / with"
OTHER_DTYPE = {"float32": "bfloat16", "bfloat16": "float32"}


def run(case: Case, budget: float) -> Results:
    """Times the step as `--mode=train` compiles it, alternately with the step with one thing changed."""
    trainer = case.trainer()
    batch = case.batch_on(trainer.mesh)
    variants = _variants(case)
    steps = {STEP: trainer.compiled_step, **{_program(variant): step for variant, step in variants.items()}}
    programs = {name: compiled(step, case.start(trainer), batch) for name, step in steps.items()}
    length = chain_length()
    turns = {name: _chain(p.call, case.start(trainer), batch, length) for name, p in programs.items()}
    times = take_turns(turns, budget)

    ratios = [ratio(case, f"{STEP}'s time: {variant}", times, _program(variant), STEP) for variant in variants]
    for variant in variants:
        if variant == NO_OPTIONS:
            continue
        memory = programs[_program(variant)].program_bytes / programs[STEP].program_bytes
        ratios.append(Ratio(case.name, f"{STEP}'s memory: {variant}", Spread(memory, memory, memory), 1))
    return Results([measurement(case, name, p, times, length) for name, p in programs.items()], ratios)


def _variants(case: Case) -> dict[str, Any]:
    """Jitted steps with one thing changed, by their names in ratios."""
    variants: dict[str, Any] = {"remat / none": case.trainer(remat=True).compiled_step}
    if jax.default_backend() != "cpu":
        dtype = case.config.model.dtype
        other = OTHER_DTYPE[dtype]
        variants[f"{other} / {dtype}"] = case.trainer(dtype=other).compiled_step
    elif sharding.compiler_options():
        variants[NO_OPTIONS] = jax.jit(case.trainer().step(), donate_argnums=0)
    return variants


def _program(variant: str) -> str:
    """Name of the changed step of "remat / none": "training step, remat"."""
    return f"{STEP}, {variant.split(' / ')[0]}"


def _chain(step: Callable, current: TrainState, batch: Any, length: int) -> Callable:
    """Call that makes `length` updates, from where the last call stopped."""

    def call():
        nonlocal current
        for _ in range(length):
            current, metrics = step(current, batch)
        return metrics

    return call
