"""Standard errors: how far a metric lies from its value for infinitely many images, from one set of them."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

HALVES = 20
"""Random halves that are compared."""


def half_sample_error(
    metric: Callable[[Float[np.ndarray, "m d"]], float],
    features: Float[np.ndarray, "n d"],
    halves: int = HALVES,
    seed: int = 0,
) -> float:
    """Standard error of a smooth metric of n generated images; the reference counts as exact.

    The delete-d jackknife (Shao & Wu 1989, section 2) with d = n / 2: its variance is (n - d) / d = 1 times that of the
    metric over random halves without replacement. Unlike a bootstrap it repeats no image, which metrics of covariances
    and of neighbours would take for a narrower distribution.

    Args:
        metric: of some of the rows.
        features: of the generated images, at least 4.
        halves: number of halves.
        seed: of their choice.
    """
    random = np.random.default_rng(seed)
    count = len(features) // 2
    values = [metric(features[random.permutation(len(features))[:count]]) for _ in range(halves)]
    return float(np.std(values, ddof=1))


def share_error(share: float, count: float | int) -> float:
    """Standard error of a share of so many images, sqrt(p (1 - p) / n).

    >>> share_error(0.5, 100)
    0.05
    """
    return float(np.sqrt(max(share * (1 - share), 0) / count))
