"""Mean and covariance of features that come in batches, in float64 on the host.

Only the sums are stored, and the moments of several processes or folders merge to those of all features together.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from guided_diffusion_jax.errors import require

FeatureArray = Float[Array | np.ndarray, "_n _d"]
"""Features of N images, one row each, on the host or on devices."""


class Moments(NamedTuple):
    """Sums over the features so far, float64.

    Attributes:
        num_images: number of rows.
        mean: mean of the rows.
        scatter: sum of (x - mean) (x - mean)^T, the covariance times (num_images - 1).
    """

    num_images: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]


class Gaussian(NamedTuple):
    """Normal distribution fitted to a set of features, float64."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


def require_finite(features: FeatureArray) -> None:
    """Raises `InputError` if a feature is NaN or infinite; comparisons with NaN would silently be false."""
    wrong = int(np.count_nonzero(~np.isfinite(np.asarray(features))))
    require(
        wrong == 0,
        f"{wrong} of {features.size} features are NaN or infinite; they must be finite: "
        "check the extractor's weights and that images are in its range",
    )


def require_same_width(a: int, b: int) -> None:
    """Raises `InputError` if features of two sets have different widths."""
    require(a == b, f"features of widths {a} and {b} cannot be compared; use one extractor for both")


def moments(features: FeatureArray) -> Moments:
    """Moments of one batch. Raises `InputError` for an empty batch or a feature that is not finite."""
    x = np.asarray(features, np.float64)
    require(len(x) > 0, "there are 0 features; give 1 image at least")
    require_finite(x)
    mean = x.mean(0)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of both sets of rows (Chan, Golub & LeVeque 1979, eq. 2.1), without a difference of large sums.

    Raises:
        InputError: the features have different widths.
    """
    require_same_width(len(a.mean), len(b.mean))
    count = a.num_images + b.num_images
    difference = b.mean - a.mean
    return Moments(
        count,
        a.mean + difference * (b.num_images / count),
        a.scatter + b.scatter + np.outer(difference, difference) * (a.num_images * b.num_images / count),
    )


def gaussian(of: Moments) -> Gaussian:
    """Mean and unbiased covariance. Raises `InputError` for fewer than 2 rows."""
    require(of.num_images > 1, f"the covariance of {of.num_images} image is undefined; give 2 images at least")
    return Gaussian(of.mean, of.scatter / (of.num_images - 1))


class MomentAccumulator:
    """Moments of features that arrive batch by batch."""

    def __init__(self) -> None:
        self.total: Moments | None = None

    def add(self, features: FeatureArray) -> None:
        """Adds a batch. Raises `InputError` as `moments` and `merge` do."""
        batch = moments(features)
        self.total = batch if self.total is None else merge(self.total, batch)

    @property
    def count(self) -> int:
        """Number of rows so far."""
        return 0 if self.total is None else self.total.num_images

    def gaussian(self) -> Gaussian:
        """Normal distribution of all rows. Raises `InputError` for fewer than 2 rows."""
        require(self.total is not None, "there are 0 batches of features; give 1 image at least")
        assert self.total is not None
        return gaussian(self.total)
