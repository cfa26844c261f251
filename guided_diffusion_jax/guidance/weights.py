"""Guidance weights: constants, schedules over time and intervals, all traced."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from guided_diffusion_jax.typing import AnyArray, Level, per_sample


class WeightSchedule(NamedTuple):
    """Weight that changes over time: linear between points, constant beyond the first and the last.

    Attributes:
        times: `Level.time` of the points, rising, `[k]`.
        weights: w at each, `[k]`.
    """

    times: AnyArray
    weights: AnyArray


Weight = ArrayLike | WeightSchedule
"""w of a rule: a scalar, one per sample `[b]`, one per pixel `[b h w 1]`, or a schedule; 0 is the plain model."""


Interval = Sequence[ArrayLike]
"""Where guidance acts; see `inside`."""


def weight_at(weight: Weight, level: Level, interval: Interval | None = None) -> Array:
    """The weight at a level, in a shape that multiplies images; 0 outside the interval.

    Args:
        weight: any.
        level: one for all samples, or one per sample.
        interval: see `inside`; None is everywhere.
    """
    if isinstance(weight, WeightSchedule):
        weight = jnp.interp(level.time, weight.times, weight.weights)
    weight = per_sample(weight)
    return weight if interval is None else jnp.where(inside(level, interval), weight, 0.0)


def inside(level: Level, interval: Interval | None) -> Array:
    """Whether guidance acts at a level, in a shape that multiplies images (Kynkaanniemi et al. 2024, section 3).

    Args:
        level: one for all samples, or one per sample.
        interval: first and last `time`, and after them the lowest and the highest noise sigma / alpha (EDM's sigma),
            each a scalar or `[b]`; both must hold. None is everywhere.
    """
    if interval is None:
        return jnp.ones((), bool)
    first, last, *noise = interval
    acts = per_sample((first <= level.time) & (level.time <= last))
    if noise:
        low, high = map(per_sample, noise)
        alpha = jnp.asarray(level.alpha)
        sigma = jnp.where(alpha > 0, level.sigma / jnp.where(alpha > 0, alpha, 1), jnp.inf)
        acts = acts & (low <= sigma) & (sigma <= high)
    return acts


def regional(weight: ArrayLike, mask: Float[Array, "b h w 1"]) -> Float[Array, "b h w 1"]:
    """Weight of a condition for a part of the image: w where the mask is 1 and off (-1) where it is 0.

    Regions may overlap and their edges may be soft: 1 + w is scaled by the mask.
    """
    return (1 + per_sample(weight)) * mask - 1


def negated(weight: ArrayLike) -> ArrayLike:
    """Weight that steers away from a condition as strongly as w steers towards it: 1 + w' = -(1 + w)."""
    return -2 - weight


def weight_text(weight: float | int) -> str:
    """A weight as short text that no other weight has, for labels and file names.

    >>> weight_text(2.0), weight_text(0.5), weight_text(0.1234567), weight_text(-1)
    ('2', '0.5', '0.1234567', '-1')
    """
    short = f"{weight:g}"
    return short if float(short) == weight else repr(float(weight))
