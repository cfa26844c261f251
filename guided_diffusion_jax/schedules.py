"""Noise schedules, and which of their levels a sampler visits.

A schedule is a function from the number of training steps T to a table of `Level`, row t = 0 the least noisy:
alpha_bar_t = prod_{s <= t} (1 - beta_s), alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar). It is computed in NumPy
float64 and rounded once, at the end.

Taking fewer steps is choosing rows. A `trajectory` is the chosen rows from the noisiest down, closed by the clean
level (alpha = 1, sigma = 0), so that step i leads from row i to row i + 1, whatever lies between.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.typing import Level, per_sample


def _table(alpha_bar: np.ndarray, dtype) -> Level:
    time = np.arange(len(alpha_bar), dtype=np.float64)
    return _each(lambda column: column.astype(dtype), (np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), time))


def _from_betas(betas: np.ndarray, dtype) -> Level:
    """Of betas below 1. Those of the linear schedules are in proportion to 1 / T, so that a small T takes them past."""
    steps, largest = len(betas), float(betas.max())
    require(
        largest < 1,
        f"diffusion.num_steps={steps} makes this schedule's largest beta {largest:.3g}, which must stay below 1; use "
        f"at least {math.floor(steps * largest + 1e-6) + 1} steps, or diffusion.schedule='cosine'",
    )
    return _table(np.cumprod(1 - betas), dtype)


def _from_alpha_bar(alpha_bar: Callable[[np.ndarray], np.ndarray], num_steps: int, dtype) -> Level:
    """The steps between t/T and (t+1)/T of a continuous alpha_bar, each beta at most 0.999 (Nichol & Dhariwal 2021)."""
    values = alpha_bar(np.arange(num_steps + 1, dtype=np.float64) / num_steps)
    return _from_betas(np.minimum(1 - values[1:] / values[:-1], 0.999), dtype)


def linear(num_steps: int = 1000, dtype=np.float32) -> Level:
    """DDPM's betas, evenly from 1e-4 to 0.02 at T = 1000 (Ho et al. 2020), times 1000 / T for other T.

    >>> table = linear()
    >>> float(table.alpha[-1] ** 2)  # nothing is left of the picture: alpha_bar = 4e-5
    4.035...e-05
    """
    scale = 1000 / num_steps
    return _from_betas(np.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=np.float64), dtype)


def scaled_linear(num_steps: int = 1000, dtype=np.float32) -> Level:
    """Latent diffusion's betas, even in their square root, from 0.00085 to 0.012 (Rombach et al. 2022)."""
    scale = 1000 / num_steps
    roots = np.linspace(math.sqrt(scale * 0.00085), math.sqrt(scale * 0.012), num_steps, dtype=np.float64)
    return _from_betas(roots**2, dtype)


def cosine(num_steps: int = 1000, dtype=np.float32) -> Level:
    """alpha_bar(t) = cos(pi/2 (t + 0.008) / 1.008)**2 (Nichol & Dhariwal 2021, eq. 17)."""
    return _from_alpha_bar(lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2, num_steps, dtype)


def sigmoid(num_steps: int = 1000, dtype=np.float32) -> Level:
    """alpha_bar(t) = logistic(3 - 6t), shifted and scaled to go from 1 to 0 (Jabri et al. 2022; Chen 2023)."""

    def alpha_bar(t):
        def logistic(a):
            return 1 / (1 + np.exp(-a))

        return (logistic(3 - 6 * t) - logistic(-3)) / (logistic(3) - logistic(-3))

    return _from_alpha_bar(alpha_bar, num_steps, dtype)


SCHEDULES = {"linear": linear, "scaled_linear": scaled_linear, "cosine": cosine, "sigmoid": sigmoid}


def at(table: Level, index: Int[Array, "..."]) -> Level:
    """The rows `index` of a table: one level for a scalar, one level per sample for `[b]` (see `Level`)."""
    alpha, sigma, time = (jnp.asarray(column)[index] for column in table)
    return Level(per_sample(alpha), per_sample(sigma), time)


def logsnr(level: Level) -> Array:
    """ln(alpha**2 / sigma**2); falls as noise grows, infinite at the clean level."""
    return 2 * (jnp.log(level.alpha) - jnp.log(level.sigma))


def select(steps: str, num_steps: int) -> np.ndarray:
    """Which of the T training steps a sampler takes, rising, as guided-diffusion's `timestep_respacing` says it.

    Args:
        steps: "ddim50": every k-th step from 0, for the smallest k that leaves just 50 (Song et al. 2021);
            "250": 250 steps evenly from the first to the last, both included, rounded; "10,20,30": the same within
            each of so many equal sections, the least noisy first (Nichol & Dhariwal 2021).
        num_steps: T.

    Raises:
        InputError: more steps than there are, or a stride that does not exist.

    >>> select("ddim4", 10).tolist(), select("4", 10).tolist(), select("3,1", 10).tolist()
    ([0, 3, 6, 9], [0, 3, 6, 9], [0, 2, 4, 5])
    """
    if steps.startswith("ddim"):
        count = _positive(steps.removeprefix("ddim"), steps)
        for stride in range(1, num_steps + 1):
            if len(range(0, num_steps, stride)) == count:
                return np.arange(0, num_steps, stride)
        whole = len(range(0, num_steps, math.ceil(num_steps / count)))
        raise InputError(f"steps='{steps}': no stride leaves just {count} of {num_steps} steps; use 'ddim{whole}'")
    counts = [_positive(part, steps) for part in steps.split(",")]
    size, extra = divmod(num_steps, len(counts))
    chosen, start = [], 0
    for i, count in enumerate(counts):
        section = size + (i < extra)
        require(count <= section, f"steps='{steps}' asks for {count} of {section} steps; use at most {section}")
        spacing = (section - 1) / max(1, count - 1)
        # The position is summed, not multiplied: the reference rounds these very floats, ties included.
        position = 0.0
        for _ in range(count):
            chosen.append(start + round(position))
            position += spacing
        start += section
    return np.array(sorted(set(chosen)))


def _positive(text: str, steps: str) -> int:
    valid = text.strip().isdecimal() and int(text) > 0
    require(valid, f"steps='{steps}' is no step selection; use e.g. '250', 'ddim50', '10,20,30' or 'logsnr20'")
    return int(text)


def trajectory(table: Level, steps: str) -> Level:
    """The levels from the noisiest down to the clean one that a sampler visits: `[n + 1]` rows for n steps.

    Args:
        table: all T levels of a schedule.
        steps: as for `select`, or "logsnr20": 20 levels evenly spaced in logsnr from the last row of the table to the
            first, between whose rows they are interpolated; their `time` is fractional.
    """
    if steps.startswith("logsnr"):
        return _evenly_in_logsnr(table, _positive(steps.removeprefix("logsnr"), steps))
    rows = select(steps, len(table.time))[::-1]
    return _close(_each(lambda column: column[rows], table))


def _evenly_in_logsnr(table: Level, count: int) -> Level:
    rows = 2 * (np.log(table.alpha.astype(np.float64)) - np.log(table.sigma.astype(np.float64)))
    targets = np.linspace(rows[-1], rows[0], count)
    alpha_bar = 1 / (1 + np.exp(-targets))
    time = np.interp(-targets, -rows, table.time)
    levels = (np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), time)
    return _close(_each(lambda column: column.astype(table.alpha.dtype), levels))


def _close(levels: Level) -> Level:
    clean = _each(lambda entry: np.full(1, entry, levels.alpha.dtype), (1, 0, 0))
    return _each(np.append, levels, clean)


def _each(function: Callable[..., Any], *columns: Iterable[Any]) -> Level:
    return Level(*map(function, *columns))


def pad(levels: Level, length: int) -> Level:
    """The trajectory with its last row repeated to `length` rows; the walk ends where the rows stop changing.

    Trajectories of one length share one compiled sampler.
    """
    rows = len(levels.time)
    require(rows <= length, f"a trajectory of {rows - 1} steps does not fit in {length - 1}; raise the maximum")
    return _each(lambda column: np.pad(column, (0, length - rows), mode="edge"), levels)


def num_steps(levels: Level) -> Int[Array, ""]:
    """How many steps a trajectory has: rows that differ from the next one. Padding has none."""
    alpha, sigma = jnp.asarray(levels.alpha), jnp.asarray(levels.sigma)
    return jnp.sum((alpha[1:] != alpha[:-1]) | (sigma[1:] != sigma[:-1]))
