"""KID, the kernel distance of two sets of features, which has no bias however few pictures there are.

MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y), the means over pairs of different pictures (Gretton et al. 2012,
lemma 6), with the kernel k(x, y) = (x.y / d + 1)^3 (Binkowski et al. 2018, section 4). A constant added to k cancels,
so that k - 1 is what is summed: it is zero for rows of zeros, which fill up blocks.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation.moments import Features, require_finite


class Kid(NamedTuple):
    """The distance over random subsets.

    Attributes:
        mean: of the subsets' MMD^2; it may be slightly below 0 where both sets are alike.
        std: of the subsets' MMD^2 (over n), which is not the error of the mean: subsets overlap.
        size: pictures of a subset.
    """

    mean: float
    std: float
    size: int


def kernel_distance(
    x: Features, y: Features, subsets: int = 100, subset_size: int = 1000, seed: int = 2020, block: int = 1024
) -> Kid:
    """KID as it is published: the mean over subsets drawn without replacement, the same number from either set.

    Args:
        x: features of one set.
        y: of the other, of the same encoder.
        subsets: how many are drawn.
        subset_size: pictures in each. Where a set has fewer, it is the number of the smaller set, and `Kid.size` says
            so; `std` then tells little, because the subsets are nearly the same.
        seed: of the draws; the default draws the subsets that torch-fidelity does.
        block: rows that are multiplied at once.

    Raises:
        InputError: a set has fewer than 2 pictures, features are not finite or differ in width, or `subsets` is 0.
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


def mmd2(x: Features, y: Features, block: int = 1024) -> float:
    """The unbiased estimate of MMD^2 from all pairs; `x` and `y` may differ in number.

    Kernels are float32 on the device, of `block` x `block` pairs at a time; sums of blocks are float64.

    Raises:
        InputError: as `kernel_distance` does.
    """
    _check(x, y)
    n, m = len(x), len(y)
    block = min(block, max(n, m))
    within_x = (_total(x, x, block) - _diagonal(x)) / (n * (n - 1))
    within_y = (_total(y, y, block) - _diagonal(y)) / (m * (m - 1))
    return within_x + within_y - 2 * _total(x, y, block) / (n * m)


def _check(x: Features, y: Features) -> None:
    fewest = min(len(x), len(y))
    require(fewest > 1, f"KID of a set of {fewest} pictures is undefined; give 2 pictures at least")
    require(
        x.shape[1] == y.shape[1],
        f"features of {x.shape[1]} and {y.shape[1]} numbers cannot be compared; use one encoder for both",
    )
    require_finite(x)
    require_finite(y)


def _diagonal(x: Features) -> float:
    x = np.asarray(x)
    z = np.einsum("nd,nd->n", x, x, dtype=np.float64) / x.shape[1]
    return float(((z + 1) ** 3 - 1).sum())


def _total(x: Features, y: Features, block: int) -> float:
    """The sum of k - 1 over all pairs."""
    sums = _row_sums(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), block)
    return float(np.asarray(sums).sum(dtype=np.float64))


@partial(jax.jit, static_argnames="block")
def _row_sums(x: Float32[Array, "n d"], y: Float32[Array, "m d"], block: int) -> Float32[Array, "p q block"]:
    """The sums of k - 1 of each row of `x` with each block of `y`."""

    def sums(rows: Array, others: Array) -> Array:
        z = jnp.matmul(rows, others.T, precision=jax.lax.Precision.HIGHEST) / x.shape[1]
        return jnp.sum(z * (z * (z + 3) + 3), axis=1)

    columns = _blocks(y, block)
    return jax.lax.map(lambda rows: jax.lax.map(lambda others: sums(rows, others), columns), _blocks(x, block))


def _blocks(x: Float32[Array, "n d"], block: int) -> Float32[Array, "p block d"]:
    return jnp.pad(x, ((0, -len(x) % block), (0, 0))).reshape(-1, block, x.shape[1])
