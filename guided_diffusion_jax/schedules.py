"""Noise schedules.

A schedule is a function from the number of training steps T to a table of `Level`, row t = 0 the least noisy. The
variance-preserving ones have alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar) with
alpha_bar_t = prod_{s <= t} (1 - beta_s); nothing below relies on that. Tables are computed in NumPy float64 and rounded
once, at the end. `trajectories` chooses the levels that a sampler visits.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.trajectories import num_steps, pad, section_rows, stride_rows, trajectory
from guided_diffusion_jax.typing import Level, per_sample

__all__ = [
    "SCHEDULES", "at", "cosine", "create", "edm", "linear", "logsnr", "num_steps", "pad", "position", "rectified_flow",
    "rescaled_to_zero_snr", "scaled_linear", "section_rows", "shifted", "sigmoid", "stride_rows", "table",
    "trajectory",
]  # fmt: skip


def table(alpha: np.ndarray, sigma: np.ndarray, dtype=np.float32) -> Level:
    """Table of levels with times 0 .. T-1, from alpha and sigma `[T]`, the least noisy first.

    Raises:
        InputError: values that are no levels, or a signal-to-noise ratio that does not fall.
    """
    alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
    valid = alpha.ndim == 1 and alpha.shape == sigma.shape and len(alpha) > 0
    require(valid, f"alpha and sigma have shapes {alpha.shape} and {sigma.shape}; they must be [T], with T at least 1")
    positive = bool((alpha >= 0).all() and (sigma > 0).all() and np.isfinite(alpha).all() and np.isfinite(sigma).all())
    require(positive, "alpha must be >= 0 and sigma > 0 at every training step, and both finite")
    require(bool((np.diff(alpha / sigma) < 0).all()), "alpha / sigma must fall from each row to the next")
    return Level(*(column.astype(dtype) for column in (alpha, sigma, np.arange(len(alpha), dtype=np.float64))))


def _from_betas(betas: np.ndarray, dtype) -> Level:
    """Variance-preserving table. The betas of the linear schedules grow as 1 / T: a small T takes them past 1."""
    steps, largest = len(betas), float(betas.max())
    require(
        largest < 1,
        f"diffusion.num_steps={steps} makes this schedule's largest beta {largest:.3g}, which must stay below 1; use "
        f"at least {math.floor(steps * largest + 1e-6) + 1} steps, or diffusion.schedule='cosine'",
    )
    alpha_bar = np.cumprod(1 - betas)
    return table(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), dtype)


def _from_alpha_bar(alpha_bar: Callable[[np.ndarray], np.ndarray], num_steps: int, dtype) -> Level:
    """Steps from t/T to (t+1)/T of a continuous alpha_bar, each beta at most 0.999 (Nichol & Dhariwal 2021)."""
    values = alpha_bar(np.arange(num_steps + 1, dtype=np.float64) / num_steps)
    return _from_betas(np.minimum(1 - values[1:] / values[:-1], 0.999), dtype)


def linear(num_steps: int = 1000, dtype=np.float32) -> Level:
    """Betas of DDPM, evenly from 1e-4 to 0.02 at T = 1000 (Ho et al. 2020), times 1000 / T for other T.

    >>> levels = linear()
    >>> float(levels.alpha[-1] ** 2)  # almost nothing is left of the image: alpha_bar = 4e-5
    4.035...e-05
    """
    scale = 1000 / num_steps
    return _from_betas(np.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=np.float64), dtype)


def scaled_linear(num_steps: int = 1000, dtype=np.float32) -> Level:
    """Betas of latent diffusion, even in their square root, from 0.00085 to 0.012 (Rombach et al. 2022)."""
    scale = 1000 / num_steps
    roots = np.linspace(math.sqrt(scale * 0.00085), math.sqrt(scale * 0.012), num_steps, dtype=np.float64)
    return _from_betas(roots**2, dtype)


def cosine(num_steps: int = 1000, dtype=np.float32) -> Level:
    """Cosine schedule: alpha_bar(t) = cos(pi/2 (t + 0.008) / 1.008)**2 (Nichol & Dhariwal 2021, eq. 17)."""
    return _from_alpha_bar(lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2, num_steps, dtype)


def sigmoid(num_steps: int = 1000, dtype=np.float32) -> Level:
    """Sigmoid schedule: alpha_bar(t) = logistic(3 - 6t), from 1 to 0 by a shift and scale (Jabri et al. 2022)."""

    def alpha_bar(t):
        def logistic(a):
            return 1 / (1 + np.exp(-a))

        return (logistic(3 - 6 * t) - logistic(-3)) / (logistic(3) - logistic(-3))

    return _from_alpha_bar(alpha_bar, num_steps, dtype)


def rectified_flow(num_steps: int = 1000, dtype=np.float32) -> Level:
    """Straight paths: sigma = (t + 1) / T, alpha = 1 - sigma (Liu et al. 2022; Lipman et al. 2022)."""
    sigma = np.arange(1, num_steps + 1, dtype=np.float64) / num_steps
    return table(1 - sigma, sigma, dtype)


def edm(
    num_steps: int = 1000, dtype=np.float32, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Level:
    """Variance exploding: alpha = 1, sigma even in its rho-th root (Karras et al. 2022, eq. 5).

    Every k-th row is the paper's schedule of fewer steps.
    """
    roots = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps, dtype=np.float64)[::-1]
    return table(np.ones(num_steps), roots**rho, dtype)


SCHEDULES: dict[str, Callable[..., Level]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "rectified_flow": rectified_flow,
    "edm": edm,
}


def create(
    name: str, num_steps: int = 1000, *, shift: float = 1.0, zero_terminal_snr: bool = False, dtype=np.float32
) -> Level:
    """Table of a schedule by name, shifted by `shifted` and then rescaled by `rescaled_to_zero_snr`.

    Raises:
        InputError: an unknown name, or an option that the schedule cannot have.
    """
    levels = choose(SCHEDULES, name, "diffusion.schedule")(num_steps, dtype=np.float64)
    if shift != 1:
        levels = shifted(levels, shift)
    if zero_terminal_snr:
        levels = rescaled_to_zero_snr(levels)
    return Level(*(column.astype(dtype) for column in levels))


def shifted(levels: Level, by: float) -> Level:
    """Table with alpha / sigma divided by `by` at every row: logsnr - 2 ln(by).

    Images of d pixels need d / 64 times the noise that images of 64 pixels need to hide as much (Hoogeboom et al.
    2023, section 3.1). On straight paths it is sigma -> by sigma / (1 + (by - 1) sigma) (Esser et al. 2024, eq. 23).

    Raises:
        InputError: `by` is not positive; or levels that are neither on a circle (variance preserving), nor on a
            straight path (rectified flow), nor have alpha = 1 (variance exploding).

    >>> float(shifted(rectified_flow(10), 3.0).sigma[4])  # of 0.5
    0.75
    """
    require(by > 0 and math.isfinite(by), f"diffusion.shift={by} must be positive; 1 is none")
    alpha, sigma = np.asarray(levels.alpha, np.float64), np.asarray(levels.sigma, np.float64)
    norms = (lambda a, s: np.hypot(a, s), lambda a, s: a + s, lambda a, s: a)
    norm = next((norm for norm in norms if np.allclose(norm(alpha, sigma), 1, rtol=0, atol=1e-6)), None)
    if norm is None:
        raise InputError(
            "diffusion.shift needs variance-preserving levels, a rectified flow, or alpha = 1; these are none of them"
        )
    size = norm(alpha, by * sigma)
    return table(alpha / size, by * sigma / size, np.asarray(levels.alpha).dtype)._replace(time=levels.time)


def rescaled_to_zero_snr(levels: Level) -> Level:
    """Variance-preserving table whose last row is pure noise (Lin et al. 2023, algorithm 1).

    alpha is shifted to end at 0 and scaled to begin as before. A network that predicts eps tells nothing of the image
    at that row: train it to predict v or x0.

    Raises:
        InputError: levels that are not variance preserving, or fewer than 2.
    """
    alpha, sigma = np.asarray(levels.alpha, np.float64), np.asarray(levels.sigma, np.float64)
    require(
        len(alpha) > 1 and bool(np.allclose(np.hypot(alpha, sigma), 1, rtol=0, atol=1e-6)),
        "diffusion.zero_terminal_snr needs at least 2 variance-preserving levels, as of diffusion.schedule='cosine'",
    )
    alpha = np.where(sigma < alpha, np.sqrt(np.maximum(1 - sigma**2, 0)), alpha)  # keeps the digits of a small sigma
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    return table(alpha, np.sqrt(1 - alpha**2), np.asarray(levels.alpha).dtype)._replace(time=levels.time)


def at(levels: Level, index: Int[ArrayLike, "..."] | Float[ArrayLike, "..."]) -> Level:
    """Rows `index` of a table: one level for a scalar, one level per sample for `[b]` (see `Level`).

    Real numbers in [0, T-1] give levels between the rows, and at whole numbers the rows: between two points of a
    circle (variance preserving) evenly along its arc, else evenly along the chord. That is exact for rectified flow
    and for alpha_bar = cos(a + b t)**2.

    >>> at(rectified_flow(10), jnp.float32(1.5)).sigma.item(), at(rectified_flow(10), 1).sigma.item()
    (0.25, 0.20000000298023224)
    """
    index = jnp.asarray(index)
    if not jnp.issubdtype(index.dtype, jnp.floating):
        alpha, sigma, time = (jnp.asarray(column)[index] for column in levels)
        return Level(per_sample(alpha), per_sample(sigma), time)
    lower, upper = _neighbours(levels, jnp.floor(index).astype(jnp.int32))
    share = index - lower
    a, b = at(levels, lower), at(levels, upper)
    angle = jnp.where(_is_circle(levels), _angle(a, b), 0.0)
    of_a, of_b = _arc(per_sample(1 - share), angle), _arc(per_sample(share), angle)
    return Level(
        of_a * a.alpha + of_b * b.alpha, of_a * a.sigma + of_b * b.sigma, (1 - share) * a.time + share * b.time
    )


def position(levels: Level, ratio: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """Real index of the level with a ratio sigma / alpha, the inverse of `at`; the ends where there is none such."""
    alpha, sigma = jnp.asarray(levels.alpha), jnp.asarray(levels.sigma)
    ratio = jnp.minimum(ratio, 1e30)  # infinity has no direction
    lower, upper = _neighbours(levels, jnp.searchsorted(sigma / alpha, ratio, side="right") - 1)
    a, b = (Level(alpha[row], sigma[row], row) for row in (lower, upper))
    here = Level(jnp.ones_like(ratio), ratio, ratio)
    # Along the arc by angles; along the chord where alpha ratio = sigma.
    of_arc = _angle(a, here) / jnp.maximum(_angle(a, b), jnp.finfo(ratio.dtype).tiny)
    ahead, behind = ratio * a.alpha - a.sigma, b.sigma - ratio * b.alpha
    of_chord = ahead / jnp.maximum(ahead + behind, jnp.finfo(ratio.dtype).tiny)
    return lower + jnp.clip(jnp.where(_is_circle(levels), of_arc, of_chord), 0, 1) * (upper - lower)


def _neighbours(levels: Level, row: Int[Array, "..."]) -> tuple[Array, Array]:
    last = len(levels.time) - 1
    lower = jnp.clip(row, 0, max(last - 1, 0))
    return lower, jnp.minimum(lower + 1, last)


def _is_circle(levels: Level) -> Array:
    square = jnp.asarray(levels.alpha) ** 2 + jnp.asarray(levels.sigma) ** 2
    return jnp.all(jnp.abs(square - 1) <= 1e-6)


def _angle(a: Level, b: Level) -> Array:
    """Angle between the directions (alpha, sigma) of two levels, by the cross and the dot product."""
    return jnp.arctan2(a.alpha * b.sigma - a.sigma * b.alpha, a.alpha * b.alpha + a.sigma * b.sigma)


def _arc(share: Array, angle: Array) -> Array:
    """Factor of one end of an arc, sin(share angle) / sin(angle): `share` of a chord as the angle goes to 0."""
    wide = angle > 1e-4
    angle = jnp.where(wide, angle, 1.0)
    return jnp.where(wide, jnp.sin(share * angle) / jnp.sin(angle), share)


def logsnr(level: Level) -> Array:
    """Natural logarithm of alpha**2 / sigma**2; falls as noise grows, infinite at the clean level."""
    return 2 * (jnp.log(level.alpha) - jnp.log(level.sigma))
