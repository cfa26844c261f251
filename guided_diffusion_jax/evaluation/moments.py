"""Mean and covariance of features that come batch by batch, in float64 on the host.

Nothing but the sums is kept, and the parts of several processes or folders merge to what all the features at once give.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from guided_diffusion_jax.errors import InputError, require

Features = Float[Array | np.ndarray, "_n _d"]
"""One row a picture: what an encoder says of N pictures, from the host or from devices."""


class Moments(NamedTuple):
    """What is known of the features so far; float64.

    Attributes:
        pictures: how many rows there were.
        mean: of them.
        scatter: the sum of (x - mean) (x - mean)^T, which is the covariance times (pictures - 1).
    """

    pictures: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]


class Gaussian(NamedTuple):
    """The normal distribution that stands for a set of features; float64."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


def require_finite(features: Features) -> None:
    """Raises `InputError` if a feature is not: comparisons with a NaN would quietly be false."""
    wrong = int(np.count_nonzero(~np.isfinite(np.asarray(features))))
    require(
        wrong == 0,
        f"{wrong} of {features.size} features are NaN or infinite; they must be finite: "
        "check the encoder's weights and that pictures are in its range",
    )


def moments(features: Features) -> Moments:
    """Those of one batch.

    Raises:
        InputError: there is no row, or a feature is not finite.
    """
    x = np.asarray(features, np.float64)
    require(len(x) > 0, "there are 0 features; give 1 picture at least")
    require_finite(x)
    mean = x.mean(0)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
    """Those of both sets of rows (Chan, Golub & LeVeque 1979, eq. 2.1): no difference of large sums is taken.

    Raises:
        InputError: they are of features of different widths.
    """
    require(len(a.mean) == len(b.mean), f"features of {len(a.mean)} and {len(b.mean)} numbers; use one encoder for all")
    pictures = a.pictures + b.pictures
    difference = b.mean - a.mean
    return Moments(
        pictures,
        a.mean + difference * (b.pictures / pictures),
        a.scatter + b.scatter + np.outer(difference, difference) * (a.pictures * b.pictures / pictures),
    )


def moments_of(batches: Iterable[Features]) -> Moments:
    """Those of all batches together, which are taken one after the other.

    Raises:
        InputError: as `moments` and `merge` do, or there is no batch.
    """
    total = None
    for batch in batches:
        total = moments(batch) if total is None else merge(total, moments(batch))
    if total is None:
        raise InputError("there are 0 batches of features; give 1 picture at least")
    return total


def gaussian(of: Moments) -> Gaussian:
    """Mean and unbiased covariance.

    Raises:
        InputError: there are fewer than 2 rows.
    """
    require(of.pictures > 1, f"the covariance of {of.pictures} picture is undefined; give 2 pictures at least")
    return Gaussian(of.mean, of.scatter / (of.pictures - 1))
