"""Frechet distance of two sets of features: FID with Inception's pooled features, sFID with its spatial ones.

|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), Heusel et al. 2017 eq. 6. With any factors S = R R^T, the trace of
(S1 S2)^(1/2) is the sum of the singular values of R1^T R2: no square root of a non-symmetric matrix, no complex
numbers, and directions without variance (fewer images than features) drop out exactly.
"""

import numpy as np
from jaxtyping import Float

from guided_diffusion_jax.evaluation.moments import FeatureArray, Gaussian, gaussian, moments, require_same_width


def frechet_distance(a: FeatureArray | Gaussian, b: FeatureArray | Gaussian) -> float:
    """Frechet distance, at least 0, of features `[n d]` or their normal distributions, in their unit squared.

    Raises:
        InputError: the features have different widths, are not finite, or are fewer than 2.
    """
    a, b = (of if isinstance(of, Gaussian) else gaussian(moments(of)) for of in (a, b))
    require_same_width(len(a.mean), len(b.mean))
    cross = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return max(float(distance), 0.0)


def biased(count: int, width: int) -> bool:
    """Whether the covariance of `count` images is singular: the distance then depends mostly on `count`.

    The bias falls as 1 / count, so distances of different counts are never comparable. KID has no bias
    (Binkowski et al. 2018, section 4).
    """
    return count <= width


def _factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """R with R R^T = covariance, with as many columns as the rank."""
    values, vectors = np.linalg.eigh(covariance)
    # Rounding leaves eps * largest of a zero eigenvalue, whose root, 1e-8, would count in every missing direction.
    nonzero = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, nonzero] * np.sqrt(values[nonzero])
