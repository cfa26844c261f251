"""CFG-Zero* (Fan et al. 2025): the null branch at its best scale, and first steps that do not move."""

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import ArrayLike

from guided_diffusion_jax.guidance.apg import dot
from guided_diffusion_jax.guidance.base import Guidance
from guided_diffusion_jax.guidance.cfg import check_count, variance_fraction
from guided_diffusion_jax.guidance.rules import Combiner, option
from guided_diffusion_jax.guidance.weights import weight_at
from guided_diffusion_jax.prediction import from_velocity


def cfg_zero(zero_steps: ArrayLike = 1) -> Combiner:
    """CFG-Zero* (Fan et al. 2025, algorithm 1), on the velocity u = eps - x0.

        u = u_cond + w (u_cond - s u_null),  s = <u_cond, u_null> / |u_null|**2

    and u = 0 at the first levels. The paper is about flows; u is the velocity of any process after its scaling by
    1 / (alpha + sigma), which makes a flow of it, so that u = 0 leaves x / (alpha + sigma) where it is. Where s = 1 it
    is CFG. Several conditions add, each with its own s.

    Args:
        zero_steps: number of first levels of a trajectory with u = 0; 0 is none.
    """
    return Combiner(Partial(_guidance, zero_steps=option("cfg_zero: zero_steps", zero_steps, 0)), "cfg_zero", (0,))


def _guidance(weights, interval, *, zero_steps):
    return Guidance(Partial(_init), Partial(_combine, weights=tuple(weights), interval=interval, zero_steps=zero_steps))


def _init(x):
    """The time of the evaluation before, and the number of levels so far."""
    return jnp.full(x.shape[:1], -jnp.inf), jnp.zeros(x.shape[:1])


def _combine(branches, x, level, memory, *, weights, interval, zero_steps):
    check_count(branches, weights)
    before, count = memory
    time = jnp.broadcast_to(jnp.asarray(level.time, jnp.float32), before.shape)
    count = count + (time != before)
    *conditional, null = [branch.eps - branch.x0 for branch in branches]
    u, square = null, dot(null, null)
    for one, weight in zip(conditional, weights, strict=True):
        scale = dot(one, null) / jnp.where(square > 0, square, 1.0)
        u = u + (one - null) + weight_at(weight, level, interval) * (one - scale * null)
    u = jnp.where((count <= zero_steps).reshape(-1, 1, 1, 1), 0.0, u)
    return from_velocity(x, u, level)._replace(variance_fraction=variance_fraction(branches)), (time, count)
