"""The levels that a sampler visits: rows of a schedule's table, or points between them, from noise down to data.

A `trajectory` is closed by the clean level (alpha = 1, sigma = 0), so that step i leads from row i to row i + 1. All
`SPACINGS` give one; what they choose are positions in the table, or ratios sigma / alpha. A level between two rows lies
on the chord through them at the wanted ratio, and where both rows have the same alpha**2 + sigma**2, on the circle:
exact on straight paths (rectified flow, variance exploding) and on variance-preserving ones.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from guided_diffusion_jax import checks
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.typing import Level

Steps = int | Sequence[int]
"""Number of steps, or their numbers in equal sections of the training steps, the least noisy section first."""

MOST_STEPS = 100_000
"""Levels of a trajectory, which may lie between the rows of a table."""


def trajectory(levels: Level, steps: Steps, spacing: str = "linspace", *, end: str = "clean", **options: Any) -> Level:
    """Levels from the noisiest down to the last one that a sampler visits: `[n + 1]` rows for n steps.

    Args:
        levels: all T levels of a schedule, the least noisy first.
        steps: how many steps; or several numbers, for equal sections of the training steps, the least noisy first
            ("linspace" only).
        spacing: a key of `SPACINGS`.
        end: "clean": the last step leads to alpha = 1, sigma = 0; "first_level": to the least noisy training level, as
            diffusers' `set_alpha_to_one=False` and `final_sigmas_type="sigma_min"` have it.
        **options: of the spacing.

    Raises:
        InputError: more steps than there are, a stride that does not exist, or an unknown spacing or option.

    >>> from guided_diffusion_jax.schedules import cosine
    >>> trajectory(cosine(10), 4).time.tolist(), trajectory(cosine(10), 4, "stride").time.tolist()
    ([9.0, 6.0, 3.0, 0.0, 0.0], [9.0, 6.0, 3.0, 0.0, 0.0])
    >>> trajectory(cosine(10), (3, 1)).time.tolist()
    [5.0, 4.0, 2.0, 0.0, 0.0]
    """
    choose_rows = choose(SPACINGS, spacing, "spacing")
    checks.options(f"spacing={spacing!r}", choose_rows, options, skip=2)
    counts = tuple(steps) if isinstance(steps, Sequence | np.ndarray) else (steps,)
    valid = len(counts) > 0 and all(
        isinstance(count, int | np.integer) and not isinstance(count, bool) and count >= 1 for count in counts
    )
    require(valid, f"steps={steps!r} must be a whole number of at least 1, or several of them, one for each section")
    require(max(counts) <= MOST_STEPS, f"steps={checks.shown(steps)} is too many; use at most {MOST_STEPS}")
    require(
        spacing == "linspace" or len(counts) == 1, f"steps={steps!r} has sections, which spacing='linspace' alone has"
    )
    rows = choose_rows(levels, counts if spacing == "linspace" else int(counts[0]), **options)
    last = choose(ENDS, end, "end")(levels)
    if np.isclose(last.sigma, rows.sigma[-1], rtol=1e-6, atol=0):  # it is there already: no step of a rounding
        last = Level(*(column[-1] for column in rows))
    return close(rows, last)


def _clean(levels: Level) -> Level:
    return Level(1, 0, 0)


def _first_level(levels: Level) -> Level:
    return Level(*(column[0] for column in levels))


ENDS: dict[str, Callable[[Level], Level]] = {"clean": _clean, "first_level": _first_level}
"""Choices of `end`: a schedule's table to the last level of a trajectory."""


def close(levels: Level, last: Level) -> Level:
    """Trajectory of these rows and a last one."""
    return Level(*(np.append(column, np.asarray(end, column.dtype)) for column, end in zip(levels, last, strict=True)))


# --- positions in the table


def linspace(levels: Level, steps: Steps, *, rounded: bool = True, endpoint: bool = True) -> Level:
    """Rows evenly from the first to the last, both included.

    Args:
        levels: all T levels of a schedule.
        steps: number of steps, or several for equal sections.
        rounded: rows of the table; else fractional positions (diffusers' Euler, Heun and LMS).
        endpoint: the least noisy row is one of them; else it is where one more step would start (diffusers'
            DPM-Solver, UniPC and DEIS).
    """
    counts, num_rows = tuple(steps) if isinstance(steps, Sequence) else (steps,), len(levels.time)
    if rounded and endpoint:
        return at_position(levels, section_rows(counts, num_rows)[::-1])
    require(len(counts) == 1, f"steps={steps!r} has sections, which are rows of the table with both ends")
    start = 0 if endpoint else 1
    positions = np.linspace(0, num_rows - 1, counts[0] + start)[start:][::-1]
    return at_position(levels, np.round(positions) if rounded else positions)


def stride(levels: Level, steps: int) -> Level:
    """Every k-th row from the least noisy one: DDIM's, and guided-diffusion's "ddimN"."""
    return at_position(levels, stride_rows(steps, len(levels.time))[::-1])


def leading(levels: Level, steps: int, *, offset: int = 0, endpoint: bool = True) -> Level:
    """Multiples of T // n, shifted by `offset` (Stable Diffusion's 1).

    Args:
        levels: all T levels of a schedule.
        steps: number of steps.
        offset: added to each row.
        endpoint: as in `linspace`.
    """
    num_rows, rows = len(levels.time), steps + (not endpoint)
    require(rows <= num_rows, f"steps={steps} of {num_rows} training steps is too many; use at most {num_rows}")
    positions = np.arange(rows)[rows - steps :] * (num_rows // rows) + checks.integer("offset", offset)
    inside = positions[0] >= 0 and positions[-1] < num_rows
    require(bool(inside), f"offset={offset} leaves the {num_rows} training steps")
    return at_position(levels, positions[::-1])


def trailing(levels: Level, steps: int) -> Level:
    """Every (T / n)-th row from the noisiest one, which is always visited (Lin et al. 2023)."""
    num_rows = len(levels.time)
    require(steps <= num_rows, f"steps={steps} of {num_rows} training steps is too many; use at most {num_rows}")
    return at_position(levels, np.round(num_rows - np.arange(steps) * (num_rows / steps)) - 1)


def quadratic(levels: Level, steps: int) -> Level:
    """Positions with even square roots, from the last row to the first (Song et al. 2021, appendix D.2)."""
    return at_position(levels, np.linspace(math.sqrt(len(levels.time) - 1), 0, steps) ** 2)


def times(levels: Level, steps: int, *, times: Sequence[float | int]) -> Level:
    """Levels at a list of times, noisiest first; `steps` is not used.

    "Align your steps" (Sabour et al. 2024) publishes such lists.
    """
    given = checks.reals("times", list(times)).astype(np.float64)
    least, most = float(levels.time[0]), float(levels.time[-1])
    inside = given.ndim == 1 and len(given) > 0 and bool(((given >= least) & (given <= most)).all())
    require(inside, f"times={checks.shown(times)} must be a list of times in {least:g} .. {most:g}, noisiest first")
    _require_falling("times", given)
    return at_position(levels, np.interp(given, levels.time, np.arange(len(levels.time))))


# --- ratios sigma / alpha


def logsnr(
    levels: Level, steps: int, *, sigma_min: float | int | None = None, sigma_max: float | int | None = None
) -> Level:
    """Evenly in logsnr, which is exponential in sigma / alpha.

    A last row without any signal has no finite logsnr: the first step starts there, the others at the row above.

    Args:
        levels: all T levels of a schedule.
        steps: number of steps.
        sigma_min: the last sigma / alpha before the end; by default the least noisy row's.
        sigma_max: the first; by default the noisiest row's.
    """
    require(len(levels.time) > 1 or steps == 1, "spacing='logsnr' needs a table of at least 2 levels")
    if levels.alpha[-1] > 0 or sigma_max is not None:
        low, high = _range(levels, sigma_min, sigma_max)
        return at_ratio(levels, np.exp(np.linspace(math.log(high), math.log(low), steps)))
    noisiest = Level(*(column[-1:] for column in levels))
    if steps == 1:
        return noisiest
    others = logsnr(Level(*(column[:-1] for column in levels)), steps - 1, sigma_min=sigma_min)
    return Level(*(np.append(one, other) for one, other in zip(noisiest, others, strict=True)))


def karras(
    levels: Level,
    steps: int,
    *,
    rho: float | int = 7.0,
    sigma_min: float | int | None = None,
    sigma_max: float | int | None = None,
) -> Level:
    """Evenly in (sigma / alpha)**(1 / rho) (Karras et al. 2022, eq. 5).

    Args:
        levels: all T levels of a schedule.
        steps: number of steps.
        rho: 1 is even in sigma / alpha; the larger, the more steps near the data.
        sigma_min: as in `logsnr`.
        sigma_max: as in `logsnr`.
    """
    low, high = (end ** (1 / _positive("rho", rho)) for end in _range(levels, sigma_min, sigma_max))
    return at_ratio(levels, np.linspace(high, low, steps) ** rho)


def beta(
    levels: Level,
    steps: int,
    *,
    a: float | int = 0.6,
    b: float | int = 0.6,
    sigma_min: float | int | None = None,
    sigma_max: float | int | None = None,
) -> Level:
    """Quantiles of a beta distribution of sigma / alpha: more steps at both ends (Lee et al. 2024).

    Args:
        levels: all T levels of a schedule.
        steps: number of steps.
        a: first parameter of the distribution.
        b: second parameter.
        sigma_min: as in `logsnr`.
        sigma_max: as in `logsnr`.
    """
    from scipy.special import betaincinv  # slow to import

    low, high = _range(levels, sigma_min, sigma_max)
    quantiles = betaincinv(_positive("a", a), _positive("b", b), np.linspace(1, 0, steps))
    return at_ratio(levels, low + quantiles * (high - low))


def sigmas(levels: Level, steps: int, *, sigmas: Sequence[float | int]) -> Level:
    """Levels with a list of ratios sigma / alpha, noisiest first; `steps` is not used."""
    given = checks.reals("sigmas", list(sigmas)).astype(np.float64)
    valid = given.ndim == 1 and len(given) > 0 and bool((given > 0).all())
    require(valid, f"sigmas={checks.shown(sigmas)} must be a list of positive numbers, noisiest first")
    _require_falling("sigmas", given)
    return at_ratio(levels, given)


SPACINGS: dict[str, Callable[..., Level]] = {
    "linspace": linspace,
    "stride": stride,
    "logsnr": logsnr,
    "leading": leading,
    "trailing": trailing,
    "quadratic": quadratic,
    "karras": karras,
    "exponential": logsnr,
    "beta": beta,
    "times": times,
    "sigmas": sigmas,
}
"""Choices of `spacing`: name to a function `(levels, steps, **options)` that gives the rows before the last level."""


def _range(levels: Level, sigma_min: float | int | None, sigma_max: float | int | None) -> tuple[float, float]:
    """Least and largest sigma / alpha of a spacing, the table's where they are not given."""
    require(
        sigma_max is not None or bool(levels.alpha[-1] > 0),
        "spacing: the noisiest level has no signal (alpha = 0), so that sigma / alpha has no range; give sigma_max",
    )
    low, high = float(levels.sigma[0]) / float(levels.alpha[0]), math.inf
    if levels.alpha[-1] > 0:
        high = float(levels.sigma[-1]) / float(levels.alpha[-1])
    low = low if sigma_min is None else _positive("sigma_min", sigma_min)
    high = high if sigma_max is None else _positive("sigma_max", sigma_max)
    require(low < high or len(levels.time) == 1, f"sigma_min={low:g} must be less than sigma_max={high:g}")
    return low, high


def _positive(name: str, value: float | int) -> float:
    require(checks.real(name, value) > 0, f"{name}={value} must be positive")
    return float(value)


def _require_falling(name: str, values: np.ndarray) -> None:
    require(bool((np.diff(values) < 0).all()), f"{name}={checks.shown(values.tolist())} must fall: noisiest first")


# --- levels between the rows


def at_position(levels: Level, position: Any) -> Level:
    """Levels at positions 0 .. T-1 of a table, which may be fractional.

    sigma / alpha is linear between two rows of a variance-preserving table, as in k-diffusion, and alpha and sigma
    themselves are on others.
    """
    position = np.asarray(position, np.float64)
    lower = np.floor(position).astype(int)
    if (position == lower).all():
        return Level(*(np.asarray(column)[lower] for column in levels))
    alpha, sigma, time = (np.asarray(column, np.float64) for column in levels)
    mixed = [np.interp(position, np.arange(len(time)), column) for column in (alpha, sigma, time)]
    if not _on_circle(alpha, sigma).all():
        return _as(levels, *mixed)
    signal = alpha > 0
    ratio = np.interp(position, np.flatnonzero(signal), sigma[signal] / alpha[signal])
    ratio = np.where(position > np.flatnonzero(signal)[-1], mixed[1] / np.maximum(mixed[0], 1e-300), ratio)
    return at_ratio(levels, ratio)._replace(time=mixed[2].astype(np.asarray(levels.time).dtype))


def at_ratio(levels: Level, ratio: Any) -> Level:
    """Levels of a table with these ratios sigma / alpha; `time` is interpolated linearly in their logarithm."""
    rows = Level(*(np.asarray(column, np.float64)[::-1] for column in levels))
    if len(rows.time) == 1:
        return Level(*(np.repeat(np.asarray(column), np.size(ratio)) for column in levels))
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha, sigma, time = between(rows, -np.log(np.asarray(ratio, np.float64)), np)
    return _as(levels, alpha, sigma, np.round(time, 9))  # so that a row's own ratio gives its time, not 2e-15


def between(rows: Level, half_logsnr: Any, xp: Any = jnp) -> Level:
    """Levels with these logarithms of alpha / sigma, between rows that go from the noisiest down.

    Args:
        rows: `[n]`; the first may have alpha = 0, the last sigma = 0.
        half_logsnr: any shape.
        xp: `numpy` or `jax.numpy`.
    """
    alpha, sigma, time = (xp.asarray(column) for column in rows)
    known = xp.log(alpha) - xp.log(sigma)
    lower = xp.clip(xp.searchsorted(known, half_logsnr, side="right") - 1, 0, len(known) - 2)
    upper, ratio = lower + 1, xp.exp(half_logsnr)
    d_alpha, d_sigma = alpha[upper] - alpha[lower], sigma[upper] - sigma[lower]
    slope = d_alpha - ratio * d_sigma
    share = xp.where(slope != 0, (ratio * sigma[lower] - alpha[lower]) / xp.where(slope != 0, slope, 1), 0)
    new_alpha, new_sigma = alpha[lower] + share * d_alpha, sigma[lower] + share * d_sigma
    on_circle = _on_circle(alpha, sigma, xp)
    scale = xp.sqrt((alpha[lower] ** 2 + sigma[lower] ** 2) / (new_alpha**2 + new_sigma**2))
    scale = xp.where(on_circle[lower] & on_circle[upper], scale, 1)
    inner = xp.isfinite(known[lower]) & xp.isfinite(known[upper])
    in_log = (half_logsnr - known[lower]) / xp.where(inner, known[upper] - known[lower], 1)
    weight = xp.clip(xp.where(inner, in_log, share), 0, 1)
    return Level(scale * new_alpha, scale * new_sigma, time[lower] + weight * (time[upper] - time[lower]))


def _on_circle(alpha: Any, sigma: Any, xp: Any = np) -> Any:
    """Which rows have the same alpha**2 + sigma**2 as the first."""
    square = alpha**2 + sigma**2
    return xp.abs(square - square[0]) <= 1e-6 * square[0]


def _as(levels: Level, *columns: Any) -> Level:
    return Level(*(column.astype(np.asarray(levels.alpha).dtype) for column in columns))


# --- rows of sections


def stride_rows(steps: int, num_steps: int) -> np.ndarray:
    """Every k-th training step from 0, for the smallest k that leaves exactly `steps` of them (Song et al. 2021).

    guided-diffusion calls it "ddimN".
    """
    for stride in range(1, num_steps + 1):
        if len(range(0, num_steps, stride)) == steps:
            return np.arange(0, num_steps, stride)
    near = len(range(0, num_steps, math.ceil(num_steps / steps)))
    require(False, f"steps={steps}: no stride leaves exactly that many of {num_steps} training steps; use {near}")
    raise AssertionError


def section_rows(counts: Sequence[int], num_steps: int) -> np.ndarray:
    """So many steps in each of equal sections, evenly from its first to its last, rounded (Nichol & Dhariwal 2021)."""
    size, extra = divmod(num_steps, len(counts))
    rows, start = [], 0
    for i, count in enumerate(counts):
        section = size + (i < extra)
        require(count <= section, f"steps={count} of {section} training steps is too many; use at most {section}")
        spacing = (section - 1) / max(1, count - 1)
        # The position is summed, not multiplied: the reference rounds these very floats, ties included.
        position = 0.0
        for _ in range(count):
            rows.append(start + round(position))
            position += spacing
        start += section
    return np.array(sorted(set(rows)))


# --- length


def pad(levels: Level, length: int) -> Level:
    """Trajectory with its last row repeated to `length` rows; sampling ends where the rows stop changing.

    Trajectories of one length share one compiled sampler.
    """
    rows = len(levels.time)
    require(rows <= length, f"steps={rows - 1} is more than the {length - 1} training steps; use at most {length - 1}")
    return Level(*(np.pad(column, (0, length - rows), mode="edge") for column in levels))


def num_steps(levels: Level) -> Int[Array, ""]:
    """Number of steps of a trajectory: up to the last row that differs from the one before. Padding has none."""
    return _last_move(levels, jnp)


def count_steps(levels: Level) -> int:
    """`num_steps` of levels in the host's memory: nothing is compiled for it."""
    return int(_last_move(levels, np))


def _last_move(levels: Level, xp: Any) -> Any:
    alpha, sigma = xp.asarray(levels.alpha), xp.asarray(levels.sigma)
    moves = (alpha[1:] != alpha[:-1]) | (sigma[1:] != sigma[:-1])
    return xp.max(xp.where(moves, xp.arange(1, len(alpha)), 0), initial=0)
