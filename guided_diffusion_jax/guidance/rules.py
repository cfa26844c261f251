"""What a chain of guidance is made of: a combiner, then what adds to its prediction, then what adjusts it.

Each is data: its numbers are leaves of a pytree, its name and its functions are static.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from guided_diffusion_jax import checks
from guided_diffusion_jax.samplers import no_memory

NOTHING = Partial(no_memory)


def _data(*static: str) -> Callable[[type], type]:
    """Decorator that makes a frozen dataclass a pytree; these of its fields are static."""

    def decorate(cls: type) -> type:
        fields = [field.name for field in dataclasses.fields(cls) if field.name not in static]
        return jax.tree_util.register_dataclass(cls, fields, list(static))

    return decorate


@_data("name", "prunes")
@dataclasses.dataclass(frozen=True)
class Combiner:
    """Rule that makes one prediction of the branches. It is the first of a chain.

    Attributes:
        make: `make(weights, interval) -> Guidance`, one weight a condition.
        name: in messages.
        prunes: weights that take a branch out of the result, so that it need not be computed: 0 the null, where there
            is one condition; -1 the condition.
    """

    make: Any
    name: str = "a combiner of your own"
    prunes: tuple[int, ...] = ()


@_data("name")
@dataclasses.dataclass(frozen=True)
class Contrast:
    """Rule that steers away from a worse model, which is one more branch: D + w (D_1 - D_worse).

    D_1 is the model with the first branch's conditions, and D_worse the worse one with the same.

    Attributes:
        worse: `worse(denoise) -> ConditionalDenoiser`, from the model's own; None is given later.
        weight: w; a number or a `WeightSchedule`.
        name: in messages.
    """

    worse: Any
    weight: Any
    name: str = "a contrast of your own"


@_data("name", "place", "needs_conditions")
@dataclasses.dataclass(frozen=True)
class Adjuster:
    """Rule that changes the combined prediction.

    Attributes:
        adjust: `adjust(branches, prediction, x, level, memory) -> (prediction, memory)`.
        init: `init(x) -> memory`.
        name: in messages.
        place: "adjust", or "limit" for what comes after, a limit of the values.
        needs_conditions: whether it reads the conditional branches, which are then computed at a weight of -1 too.
    """

    adjust: Any
    init: Any = NOTHING
    name: str = "an adjuster of your own"
    place: str = "adjust"
    needs_conditions: bool = True


@_data("name")
@dataclasses.dataclass(frozen=True)
class LossGradient:
    """Rule that lowers a loss of the predicted clean image, by its gradient through the model.

    Attributes:
        loss: `loss(x0) -> [b]`.
        weight: w; a number or a `WeightSchedule`.
        name: in messages.
    """

    loss: Any
    weight: Any
    name: str = "reconstruction"


Rule = Combiner | Contrast | Adjuster | LossGradient


def option(name: str, value: Any, least: float | int = -np.inf, most: float | int = np.inf) -> Any:
    """The value of a numeric option as float32; arrays, traced ones too, and schedules are taken as they are.

    Raises:
        InputError: no number, or one that is not in [least, most].
    """
    if isinstance(value, tuple) or hasattr(value, "dtype"):
        return value
    endless = least > -np.inf and value == most == np.inf  # an amount without a bound, not a weight
    return np.float32(value if endless else checks.real(name, value, least, most))


def as_partial(function: Any, **options: Any) -> Partial:
    """Function with its options as data."""
    return function if isinstance(function, Partial) and not options else Partial(function, **options)
