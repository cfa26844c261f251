"""What multistep solvers share: a memory of earlier predictions, and the weights of a polynomial through them.

The probability flow is two quadratures, of x0 over s = alpha / sigma or of eps over r = sigma / alpha:

    d(x / sigma) = x0 ds,    d(x / alpha) = eps dr

A solver puts a polynomial through the last predictions m_0 (now), m_1, m_2, ... and integrates it exactly. With places
u_j of the predictions on a scale where `now` is 0 and `nxt` is 1, and moments J_q of u**q under the measure, a step is
DDIM's, which has m_0 alone, and a correction

    x_nxt = alpha_nxt x0 + sigma_nxt eps + factor sum_j w_j (m_j - m_0),    sum_j w_j u_j**q = J_q for q = 1, 2, ...

Where a step starts without any signal (alpha = 0), its correction is left out.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int

from guided_diffusion_jax.trajectories import num_steps
from guided_diffusion_jax.typing import Images, Level


class Memory(NamedTuple):
    """What a multistep solver remembers.

    Attributes:
        values: earlier predictions, the latest first.
        places: where on its scale the solver made them.
        done: number of earlier predictions that can be used: of levels with a signal.
        total: `done` after the last step.
    """

    values: tuple[Images, ...]
    places: tuple[Array, ...]
    done: Int[Array, ""]
    total: Int[Array, ""]


def start(x: Images, levels: Level, count: int) -> Memory:
    """Memory of `count` predictions before the first step."""
    alpha = jnp.asarray(levels.alpha)
    without_signal = (alpha[0] == 0).astype(jnp.int32)
    steps = num_steps(levels).astype(jnp.int32)
    places = (jnp.zeros((), alpha.dtype),) * count
    return Memory((jnp.zeros_like(x),) * count, places, -without_signal, steps - without_signal)


def remember(memory: Memory, value: Images, place: Array) -> Memory:
    """Memory after a step that started with this prediction."""
    values, places = (value, *memory.values[:-1]), (place, *memory.places[:-1])
    return Memory(values, places, memory.done + 1, memory.total)


def final_order(lower_order_final: bool | int) -> np.int32:
    """Highest order of the last step, as data; the step before it has one more, and so on. False is no limit."""
    return np.int32(lower_order_final or 99)


def order_of_step(memory: Memory, order: ArrayLike, final: ArrayLike) -> Int[Array, ""]:
    """Order of this step: what there are predictions for, and what `final_order` leaves."""
    left = memory.total - memory.done - 1
    return jnp.minimum(jnp.minimum(order, left + final), jnp.maximum(memory.done, 0) + 1).astype(jnp.int32)


def nodes(memory: Memory, now: Array, step: Array) -> list[Array]:
    """u_1, u_2, ... of the predictions in memory; where there is none, any value that differs from the others."""
    return [jnp.where(j < memory.done, (memory.places[j] - now) / step, -1.0 - j) for j in range(len(memory.places))]


def weights(u: Sequence[Array], moments: Sequence[Array]) -> list[Array]:
    """w_j with sum_j w_j u_j**q = J_q for q = 1 .. n (Bjorck & Pereyra 1970)."""
    n, w = len(u), list(moments)
    for k in range(n - 1):
        for i in range(n - 1, k, -1):
            w[i] = w[i] - u[k] * w[i - 1]
    for k in range(n - 2, -1, -1):
        for i in range(k + 1, n):
            w[i] = w[i] / (u[i] - u[i - k - 1])
        for i in range(k, n - 1):
            w[i] = w[i] - w[i + 1]
    return [w[i] / u[i] for i in range(n)]


def select(order: Int[Array, ""], by_order: Sequence[Sequence[Array]]) -> list[Array]:
    """Weights of this order out of those of orders 2, 3, ...; 0 for what it does not use, and for order 1."""
    most = max(map(len, by_order))
    padded = [[*some, *[jnp.zeros_like(some[0])] * (most - len(some))] for some in by_order]
    zero = jnp.zeros_like(by_order[0][0])
    return [sum((jnp.where(order == i + 2, w[j], 0.0) for i, w in enumerate(padded)), zero) for j in range(most)]


def correction(memory: Memory, value: Images, w: Sequence[Array]) -> Images:
    """sum_j w_j (m_j - m_0); predictions without weight may be anything."""
    return sum((w_j * (m - value) for w_j, m in zip(w, memory.values, strict=False)), jnp.zeros_like(value))


# --- scales


def half_logsnr(level: Level) -> Array:
    """Lambda = ln(alpha / sigma); 0 where it is infinite."""
    finite = (level.alpha > 0) & (level.sigma > 0)
    return jnp.log(jnp.where(finite, level.alpha, 1)) - jnp.log(jnp.where(finite, level.sigma, 1))


def noise_ratio(level: Level) -> Array:
    """R = sigma / alpha; 0 where it is infinite."""
    return jnp.where(level.alpha > 0, level.sigma / jnp.where(level.alpha > 0, level.alpha, 1), 0)


def logsnr_step(now: Level, nxt: Level) -> tuple[Array, Bool[Array, ""]]:
    """Step h of lambda, and whether it is finite; 1 where not."""
    finite = (now.alpha > 0) & (nxt.sigma > 0)
    h = half_logsnr(nxt) - half_logsnr(now)
    usable = finite & (h != 0)
    return jnp.where(usable, h, 1.0), usable


def exponential_moments(h: Array, count: int) -> list[Array]:
    """J_q = h int_0^1 exp(-(1 - u) h) u**q du, q = 0 .. count: of x0 over alpha / sigma, in units of alpha_nxt.

    With -h they are those of eps over sigma / alpha in units of sigma_nxt, up to their sign; with 2 h those of the
    reverse SDE.
    """
    moments: list[Array] = [-jnp.expm1(-h)]
    for q in range(1, count + 1):
        moments.append(1 - q / h * moments[-1])
    return moments


def exponential_weights(u: Sequence[Array], h: Array, order: Array, half: ArrayLike, curvature: ArrayLike):
    """Weights of orders up to 3 on the scale of lambda.

    Args:
        u: places of two predictions.
        h: of `exponential_moments`.
        order: of this step.
        half: of a second-order step, J_0 / 2 stands for J_1: the midpoint types of DPM-Solver, UniPC's bh2.
        curvature: factor of J_2.
    """
    j0, j1, j2 = exponential_moments(h, 2)
    second = weights(u[:1], [jnp.where(half, j0 / 2, j1)])
    return select(order, [second, weights(u[:2], [j1, jnp.asarray(curvature * j2)])])


def exponential_options(
    order: int, half: bool, lower_order_final: bool | int, curvature: Any
) -> dict[str, np.ndarray | np.generic]:
    """Options of `exponential_step` as data."""
    return {
        "order": np.int32(order),
        "half": np.bool_(half),
        "final": final_order(lower_order_final),
        "curvature": np.float32(curvature),
    }


def exponential_step(
    value: Images, base: Images, scale: Array, sign: int, now: Level, nxt: Level, memory: Memory, *,
    order: ArrayLike, half: ArrayLike, final: ArrayLike, curvature: ArrayLike,
) -> tuple[Images, Memory]:  # fmt: skip
    """Step with a polynomial in lambda through the last predictions.

    Args:
        value: the prediction at `now`.
        base: DDIM's step.
        scale: alpha_nxt where x0 is interpolated, sigma_nxt for eps.
        sign: 1 for x0, -1 for eps (see `exponential_moments`).
        now: level where the step begins.
        nxt: level where it ends.
        memory: of earlier predictions.
        order: of the solver.
        half: see `exponential_weights`.
        final: see `final_order`.
        curvature: see `exponential_weights`.
    """
    h, usable = logsnr_step(now, nxt)
    here = half_logsnr(now)
    order = order_of_step(memory, jnp.where(usable, order, 1), final)
    w = exponential_weights(nodes(memory, here, h), sign * h, order, half, curvature)
    return base + scale * correction(memory, value, w), remember(memory, value, here)
