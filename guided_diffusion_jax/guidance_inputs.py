"""From what a user gives as guidance (rules, a worse model, intervals) to a chain of rules and an interval."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from guided_diffusion_jax import checks
from guided_diffusion_jax import guidance as rules
from guided_diffusion_jax.codecs import Codec
from guided_diffusion_jax.conditions import ConditionSpec
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.guidance import Chain, Contrast, Guidance, chain, replacing
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.typing import ConditionalDenoiser


def interval_array(
    interval: tuple[float | int, float | int] | None, sigma_interval: tuple[float | int, float | int] | None = None
) -> Float[np.ndarray, " 4"]:
    """First and last time at which guidance acts, lowest and highest sigma / alpha; everywhere for None.

    Raises:
        InputError: something else than two finite numbers, or an empty interval.
    """
    times = _bounds("interval", interval, (-np.inf, np.inf), "the first and the last time of guidance")
    noise = _bounds(
        "sigma_interval", sigma_interval, (0, np.inf), "the lowest and the highest sigma / alpha of guidance"
    )
    return np.array([*times, *noise], np.float32)


def _bounds(name: str, interval: Any, everywhere: tuple[Any, Any], words: str) -> tuple[Any, Any]:
    if interval is None:
        return everywhere
    two = isinstance(interval, Sequence | np.ndarray) and not isinstance(interval, str) and len(interval) == 2
    require(two, f"{name}={checks.shown(interval)} must be two numbers: {words}")
    first, last = (checks.real(name, bound) for bound in interval)
    require(first <= last, f"{name}={interval} is empty; give {words}")
    return first, last


def make_rule(
    specs: Mapping[str, ConditionSpec], codec: Codec, process: Process, guidance: Any = None, autoguidance: Any = None
) -> tuple[Chain, float]:
    """Chain of rules, and the weight where none is given.

    That is 1; or 0, the plain conditional model, where a contrast (autoguidance, pag, seg) is named without a combiner:
    it then guides alone.

    Args:
        specs: conditions that the model takes.
        codec: of the model.
        process: of the model.
        guidance: see `guidance.chain`; None is classifier-free guidance.
        autoguidance: another pipeline, for the rule of this name, which is added where it is not named.
    """
    several = guidance is None or (isinstance(guidance, list | tuple) and not isinstance(guidance, Guidance))
    asked = (guidance or ()) if several else (guidance,)
    made = chain(asked)
    without_combiner = len(made) > len(asked)
    if autoguidance is not None:
        worse = replacing(second_denoiser(specs, codec, process, autoguidance))
        made = made if any(map(_waits, made)) else (made[0], rules.autoguidance(), *made[1:])
        made = tuple(dataclasses.replace(rule, worse=worse) if _waits(rule) else rule for rule in made)  # type: ignore[arg-type]
    require(not any(map(_waits, made)), "guidance: autoguidance needs another network; give autoguidance=gd.load(...)")
    alone = without_combiner and any(isinstance(rule, Contrast) for rule in made)
    return made, 0.0 if alone else 1.0


def _waits(rule: Any) -> bool:
    """Whether it is an autoguidance whose network is given apart."""
    return isinstance(rule, Contrast) and rule.worse is None


def second_denoiser(
    specs: Mapping[str, ConditionSpec], codec: Codec, process: Process, other: Any
) -> ConditionalDenoiser:
    """Denoiser of another pipeline, for autoguidance.

    Raises:
        InputError: it is none, or it takes other images, conditions or noise levels.
    """
    require(hasattr(other, "denoiser"), f"autoguidance={checks.shown(other)} must be a pipeline: gd.load(...)")
    mine, its = codec.shape, other.codec.shape
    require(mine == its, f"autoguidance: its images are {its}, and the model's {mine}; give a model of the same data")
    for name in specs.keys() | other.specs.keys():
        same = specs.get(name) == other.specs.get(name)
        require(
            same, f"autoguidance: the two models differ in the condition {name}; give a model of the same conditions"
        )
    same = len(other.process.levels.time) == process.num_steps and all(
        np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(other.process.levels, process.levels, strict=True)
    )
    require(same, "autoguidance: the two models have other noise levels; give one of the same schedule")
    return other.denoiser
