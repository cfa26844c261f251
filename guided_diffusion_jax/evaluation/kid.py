"""KID, the kernel inception distance of two sets of features, which is unbiased for any number of images.

MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y), the means over pairs of different images (Gretton et al. 2012,
lemma 6), with the kernel k(x, y) = (x.y / d + 1)^3 (Binkowski et al. 2018, section 4). A constant added to k cancels,
so k - 1 is summed: it is zero for the rows of zeros that pad blocks.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation.moments import FeatureArray, require_finite, require_same_width


class Kid(NamedTuple):
    """KID over random subsets.

    Attributes:
        mean: mean MMD^2 of the subsets; may be slightly below 0 for equal distributions.
        std: standard deviation (over n) of the subsets' MMD^2. Not the error of the mean: subsets overlap.
        size: images per subset.
    """

    mean: float
    std: float
    size: int


def kid(
    x: FeatureArray, y: FeatureArray, subsets: int = 100, subset_size: int = 1000, seed: int = 2020, block: int = 1024
) -> Kid:
    """KID as published: mean MMD^2 over subsets drawn without replacement. Symmetric in the two sets.

    Args:
        x: features of one set.
        y: features of the other set, from the same extractor.
        subsets: number of subsets.
        subset_size: images per subset, reduced to the size of the smaller set (`Kid.size`); the subsets are then
            nearly the same and `std` means little.
        seed: of the subsets; the default draws those of torch-fidelity.
        block: rows multiplied at a time.

    Raises:
        InputError: a set has fewer than 2 images, features are not finite or differ in width, or `subsets` is 0.
    """
    require(subsets > 0, f"subsets={subsets} of KID; use 1 at least, 100 is the usual")
    require(subset_size > 1, f"subset_size={subset_size} of KID; use 2 at least, 1000 is the usual")
    _check(x, y)
    size = min(subset_size, len(x), len(y))
    random = np.random.RandomState(seed)
    sets = np.asarray(x), np.asarray(y)
    values = []
    for _ in range(subsets):
        part_x, part_y = (features[random.choice(len(features), size, replace=False)] for features in sets)
        values.append(mmd2(part_x, part_y, block))
    return Kid(float(np.mean(values)), float(np.std(values)), size)


def mmd2(x: FeatureArray, y: FeatureArray, block: int = 1024) -> float:
    """Unbiased estimate of MMD^2 from all pairs; `x` and `y` may differ in number. Raises `InputError` as `kid` does.

    Kernels are float32 on the device, `block` x `block` pairs at a time; sums of blocks are float64.
    """
    _check(x, y)
    n, m = len(x), len(y)
    block = min(block, max(n, m))
    within_x = (_total(x, x, block) - _diagonal(x)) / (n * (n - 1))
    within_y = (_total(y, y, block) - _diagonal(y)) / (m * (m - 1))
    return within_x + within_y - 2 * _total(x, y, block) / (n * m)


def _check(x: FeatureArray, y: FeatureArray) -> None:
    fewest = min(len(x), len(y))
    require(fewest > 1, f"KID of a set of {fewest} images is undefined; give 2 images at least")
    require_same_width(x.shape[1], y.shape[1])
    require_finite(x)
    require_finite(y)


def _diagonal(x: FeatureArray) -> float:
    x = np.asarray(x)
    z = np.einsum("nd,nd->n", x, x, dtype=np.float64) / x.shape[1]
    return float(((z + 1) ** 3 - 1).sum())


def _total(x: FeatureArray, y: FeatureArray, block: int) -> float:
    """Sum of k - 1 over all pairs."""
    sums = _row_sums(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), block)
    return float(np.asarray(sums).sum(dtype=np.float64))


@partial(jax.jit, static_argnames="block")
def _row_sums(x: Float32[Array, "n d"], y: Float32[Array, "m d"], block: int) -> Float32[Array, "p q block"]:
    """Sums of k - 1 of each row of `x` with each block of `y`."""

    def sums(rows: Array, others: Array) -> Array:
        z = jnp.matmul(rows, others.T, precision=jax.lax.Precision.HIGHEST) / x.shape[1]
        return jnp.sum(z * (z * (z + 3) + 3), axis=1)

    columns = _blocks(y, block)
    return jax.lax.map(lambda rows: jax.lax.map(lambda others: sums(rows, others), columns), _blocks(x, block))


def _blocks(x: Float32[Array, "n d"], block: int) -> Float32[Array, "p block d"]:
    return jnp.pad(x, ((0, -len(x) % block), (0, 0))).reshape(-1, block, x.shape[1])
