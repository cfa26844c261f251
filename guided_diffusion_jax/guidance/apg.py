"""Adaptive projected guidance (Sadat et al. 2024): the part of the update that only makes x0 larger is left out."""

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from guided_diffusion_jax.guidance.base import Guidance
from guided_diffusion_jax.guidance.cfg import check_count, variance_fraction
from guided_diffusion_jax.guidance.rules import Combiner, option
from guided_diffusion_jax.guidance.weights import weight_at
from guided_diffusion_jax.prediction import from_x0
from guided_diffusion_jax.typing import Images


def apg(eta: ArrayLike = 0.0, norm_threshold: ArrayLike = np.inf, momentum: ArrayLike = -0.5) -> Combiner:
    """Adaptive projected guidance (Sadat et al. 2024, algorithm 1), on predictions of x0.

        d = x0_cond - x0_null + beta d_before,  d = d min(1, r / |d|)
        x0 = x0_cond + w (d - (1 - eta) d_parallel),  d_parallel = <d, x0_cond> / |x0_cond|**2 x0_cond

    Norms and products are those of a sample. With eta = 1, r = inf and beta = 0 it is CFG. Several conditions add, each
    with a direction and a memory of its own: x0 = x0_null + sum_k (x0_k - x0_null + w_k project(d_k)).

    Args:
        eta: share of the parallel part that stays.
        norm_threshold: r > 0. It grows with the square root of the number of values; the paper has 2.5 to 15.
        momentum: beta; negative values push away from the direction of the evaluations before.
    """
    options = {
        "eta": option("apg: eta", eta),
        "norm_threshold": option("apg: norm_threshold", norm_threshold, 1e-12),
        "momentum": option("apg: momentum", momentum, -1, 1),
    }
    return Combiner(Partial(_guidance, **options), "apg", prunes=(0,))


def _guidance(weights, interval, **options):
    init = Partial(_init, like=(0.0,) * len(weights))
    return Guidance(init, Partial(_combine, weights=tuple(weights), interval=interval, **options))


def _init(x, *, like):
    return tuple(jnp.zeros_like(x) for _ in like)


def _combine(branches, x, level, memory, *, weights, interval, eta, norm_threshold, momentum):
    check_count(branches, weights)
    *conditional, null = branches
    if not conditional:
        return null, memory
    x0, running = null.x0, []
    for branch, weight, before in zip(conditional, weights, memory, strict=True):
        direction = branch.x0 - null.x0
        running.append(direction + momentum * before)
        update = project(running[-1], branch.x0, eta, norm_threshold)
        x0 = x0 + direction + weight_at(weight, level, interval) * update
    return from_x0(x, x0, level)._replace(variance_fraction=variance_fraction(branches)), tuple(running)


def project(direction: Images, reference: Images, eta: ArrayLike, norm_threshold: ArrayLike) -> Images:
    """Direction of at most the length r, with the share eta of its part parallel to the reference."""
    square = dot(direction, direction)
    length = jnp.sqrt(jnp.where(square > 0, square, 1.0))  # a gradient may go through it
    direction = direction / jnp.maximum(1.0, length / norm_threshold)
    square = dot(reference, reference)
    parallel = dot(direction, reference) / jnp.where(square > 0, square, 1.0) * reference
    return direction - (1 - eta) * parallel


def dot(a: Images, b: Images) -> Float[Array, "b 1 1 1"]:
    """Product of each sample with its counterpart, over all of its values."""
    return jnp.sum(a * b, axis=(1, 2, 3), keepdims=True)
