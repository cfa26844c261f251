"""Averages of the parameters with power functions as profiles, and any length of them after training.

The average of length sigma_rel weights the parameters of time tau by p(tau) ~ tau**gamma on [0, t] (Karras et al. 2024,
section 3.1). sigma_rel is the standard deviation of that profile, as a share of the training so far, whatever t:

    sigma_rel**2 = (gamma + 1) / ((gamma + 2)**2 (gamma + 3))
    average(t) = beta average(t - 1) + (1 - beta) theta(t),  beta = (1 - 1 / t)**(gamma + 1)

Snapshots of a few lengths, taken at many times, are vectors whose combinations come near the profile of any other
length and time: `coefficients` solves for the nearest (their appendix C).
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.training import leafwise
from guided_diffusion_jax.typing import Params

FOLDER = "power_ema"
"""Folder of a run with a snapshot for each checkpoint, which outlives it."""

LONGEST = 0.28
"""Lengths lie in (0, 0.28]; gamma = 0, the plain mean of all steps, has sigma_rel = 0.2887."""


def exponent(sigma_rel: float) -> float:
    """Gamma of the profile with this relative standard deviation.

    >>> round(exponent(0.05), 2), round(exponent(0.10), 2)
    (16.97, 6.94)
    """
    s = sigma_rel**-2
    return float(np.roots([1, 7, 16 - s, 12 - s]).real.max())


def check(lengths: Sequence[float], key: str) -> None:
    """Raises `InputError` for lengths that no profile has, or that are given twice."""
    for length in lengths:
        require(0 < length <= LONGEST, f"{key}: sigma_rel={length} must lie in (0, {LONGEST}], e.g. 0.05 and 0.1")
    require(len(set(lengths)) == len(lengths), f"{key}={tuple(lengths)} has a length twice")


def init(params: Params, lengths: Sequence[float]) -> dict[str, Params] | None:
    """Averages before the first step; None for no lengths."""
    return {f"profile_{i}": jax.tree.map(jnp.zeros_like, params) for i in range(len(lengths))} or None


def update(
    averages: Mapping[str, Params], params: Params, lengths: Sequence[float], step: Int[Array, ""]
) -> dict[str, Params]:
    """Averages after step t = 1, 2, .., which left these parameters; at t = 1 they are these."""

    def share(length: float) -> Array:
        return -jnp.expm1((exponent(length) + 1) * jnp.log1p(-1 / step))

    pairs = zip(averages.items(), lengths, strict=True)
    return {name: leafwise.average(params, average, share(length)) for (name, average), length in pairs}


def coefficients(stored: Sequence[tuple[int, float]], wanted: tuple[int, float]) -> Float[np.ndarray, " n"]:
    """Factors, which sum to 1, of stored averages to come as near as can be to the profile of another.

    Least squares between profiles, in float64 (Karras et al. 2024, appendix C). A stored average is found exactly.

    Args:
        stored: (step, sigma_rel) of each.
        wanted: (step, sigma_rel), not after the last of them.
    """
    t, gamma = np.array([(step, exponent(length)) for step, length in (*stored, wanted)], np.float64).T
    dots = _dot(t[:, None], gamma[:, None], t[None], gamma[None])
    size = np.sqrt(np.diag(dots))  # profiles of size 1 are better conditioned
    dots = dots / np.outer(size, size)
    n, sums = len(stored), size[-1] / size[:-1]
    system = np.block([[dots[:n, :n], sums[:, None]], [sums[None], np.zeros((1, 1))]])
    solution = np.linalg.lstsq(system, np.append(dots[:n, n], 1.0), rcond=1e-14)[0]
    return solution[:n] * sums


def _dot(t1: np.ndarray, gamma1: np.ndarray, t2: np.ndarray, gamma2: np.ndarray) -> np.ndarray:
    """Integral of the product of two profiles (gamma + 1) tau**gamma / t**(gamma + 1), each on its [0, t]."""
    later, gamma_later = np.maximum(t1, t2), np.where(t1 < t2, gamma2, gamma1)
    ratio = np.minimum(t1, t2) / later
    return (gamma1 + 1) * (gamma2 + 1) / (gamma1 + gamma2 + 1) * ratio**gamma_later / later
