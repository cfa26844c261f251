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
from jaxtyping import Array, Int

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.trajectories import num_steps, pad, section_rows, stride_rows, trajectory
from guided_diffusion_jax.typing import Level, per_sample

__all__ = [
    "SCHEDULES", "at", "cosine", "linear", "logsnr", "num_steps", "pad", "rectified_flow", "scaled_linear",
    "section_rows", "sigmoid", "stride_rows", "table", "trajectory",
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


SCHEDULES: dict[str, Callable[..., Level]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "rectified_flow": rectified_flow,
}


def at(levels: Level, index: Int[Array, "..."]) -> Level:
    """Rows `index` of a table: one level for a scalar, one level per sample for `[b]` (see `Level`)."""
    alpha, sigma, time = (jnp.asarray(column)[index] for column in levels)
    return Level(per_sample(alpha), per_sample(sigma), time)


def logsnr(level: Level) -> Array:
    """Natural logarithm of alpha**2 / sigma**2; falls as noise grows, infinite at the clean level."""
    return 2 * (jnp.log(level.alpha) - jnp.log(level.sigma))
