"""The Frechet distance of two sets of features: FID with Inception's pooled ones, sFID with its spatial ones.

|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), Heusel et al. 2017 eq. 6. With any factors S = R R^T, the trace of
(S1 S2)^(1/2) is the sum of the singular values of R1^T R2: no square root of a matrix that is not symmetric, nothing
complex, and directions in which a set does not vary, as when it has fewer pictures than features, fall away exactly.
"""

import numpy as np
from jaxtyping import Float

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation.moments import Gaussian


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """FID, sFID or FD, 0 at least; whatever the features' unit is, squared.

    Raises:
        InputError: they are of features of different widths.
    """
    require(
        len(a.mean) == len(b.mean),
        f"features of {len(a.mean)} and {len(b.mean)} numbers cannot be compared; use one encoder for both",
    )
    both = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * both
    return max(float(distance), 0.0)


def biased(count: int, features: int) -> bool:
    """Whether the covariance of so few pictures is singular: their distance then tells little but their number.

    The bias falls as 1 / count whatever the pictures are, so that distances of different counts are never comparable;
    KID has none and is the figure to read (Binkowski et al. 2018, section 4).
    """
    return count <= features


def _factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """R with R R^T = covariance, of as many columns as the rank."""
    values, vectors = np.linalg.eigh(covariance)
    # What rounding leaves of a zero, eps * largest, would count with its root, 1e-8, in every missing direction.
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
