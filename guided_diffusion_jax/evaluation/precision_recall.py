"""Precision, recall, density and coverage of generated images, and nearest neighbours.

The manifold of a set is the union of balls around its images; a ball's radius is the distance to the k-th nearest
neighbour within the set. Distances are float32 matrix products, |x|^2 + |y|^2 - 2 x.y, in blocks of rows; a common
offset of all features would cancel and cost digits, so it is subtracted first. Distances to neighbours, which set the
radii and identify copies, are then recomputed by definition, in float64.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation.moments import FeatureArray, require_finite, require_same_width


class Prdc(NamedTuple):
    """Shares of images, 0 .. 1; density may exceed 1.

    Attributes:
        precision: generated images inside the real manifold (Kynkaanniemi et al. 2019, eq. 2).
        recall: real images inside the generated manifold (the same).
        density: mean number of real balls around a generated image, over k (Naeem et al. 2020, section 3).
        coverage: real images whose ball contains a generated image (the same).
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Neighbours(NamedTuple):
    """Nearest rows of the data to each query, nearest first.

    Attributes:
        row: index into the data.
        distance: Euclidean.
    """

    row: Int[np.ndarray, "n k"]
    distance: Float[np.ndarray, "n k"]


def prdc(generated: FeatureArray, reference: FeatureArray, k: int = 3, block: int = 256) -> Prdc:
    """Precision, recall, density and coverage at one k.

    Balls are closed for precision and recall and open for density and coverage, as in their authors' code; it matters
    only if an image is in both sets.

    Args:
        generated: features of the samples.
        reference: features of real images, from the same extractor. Use equal counts: all four depend on both.
        k: neighbours; usually 3 for precision and recall, 5 for density and coverage.
        block: rows compared with all others at a time: 4 bytes * block * n of memory.

    Raises:
        InputError: features are not finite or differ in width, or a set has no k neighbours.
    """
    for name, features in (("real", reference), ("generated", generated)):
        require(
            1 <= k < len(features),
            f"k={k} neighbours among {len(features)} {name} images; use 1 to {len(features) - 1}, or more images",
        )
    real, generated = _centred(reference, generated)
    # An image is its own nearest neighbour, at distance 0.
    real_radius = nearest(real, real, k + 1, block).distance[:, -1].astype(np.float32)
    generated_radius = nearest(generated, generated, k + 1, block).distance[:, -1].astype(np.float32)
    inside_real, balls, _ = map(np.asarray, _inside(generated, real, real_radius**2, block))
    inside_generated, _, closest = map(np.asarray, _inside(real, generated, generated_radius**2, block))
    return Prdc(
        precision=float(inside_real.mean()),
        recall=float(inside_generated.mean()),
        density=float(balls.mean() / k),
        coverage=float((closest < real_radius**2).mean()),
    )


def nearest(queries: FeatureArray, data: FeatureArray, k: int, block: int = 256, span: int = 65536) -> Neighbours:
    """The k nearest rows of `data` to each query: with training features, what a sample may be a copy of.

    Args:
        queries: features of N images.
        data: features to search, from the same extractor; only `span` rows at a time are put on the device.
        k: number of neighbours.
        block: queries compared at a time.
        span: rows of the data compared at a time: 4 bytes * block * span of memory.

    Raises:
        InputError: features are not finite or differ in width, or the data has fewer than k rows.
    """
    require(1 <= k <= len(data), f"k={k} nearest of {len(data)} images; use 1 to {len(data)}")
    queries, data = _centred(queries, data)
    best = Neighbours(np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0)))
    for start in range(0, len(data), span):
        part = data[start : start + span]
        row = np.asarray(_closest(queries, part, min(k, len(part)), block), np.int64)
        best = _merged(best, Neighbours(start + row, _distances(queries, part, row)), k)
    return best


def _merged(a: Neighbours, b: Neighbours, k: int) -> Neighbours:
    row, distance = (np.concatenate(pair, axis=1) for pair in zip(a, b, strict=True))
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return Neighbours(np.take_along_axis(row, order, 1), np.take_along_axis(distance, order, 1))


def _centred(a: FeatureArray, b: FeatureArray) -> tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "m d"]]:
    """Both sets minus the mean of the second, which changes no distance."""
    require_same_width(a.shape[1], b.shape[1])
    require_finite(a)
    require_finite(b)
    a, b = np.asarray(a), np.asarray(b)
    centre = b.mean(0, dtype=np.float64).astype(b.dtype)
    return (a - centre).astype(np.float32), (b - centre).astype(np.float32)


def _distances(
    queries: Float32[np.ndarray, "n d"], data: Float32[np.ndarray, "m d"], row: Int[np.ndarray, "n k"]
) -> Float[np.ndarray, "n k"]:
    """Distance of each query to its rows of the data, without cancellation."""
    distance = np.empty(row.shape)
    for start in range(0, len(queries), 1024):
        block = slice(start, start + 1024)
        distance[block] = np.linalg.norm(queries[block, None].astype(np.float64) - data[row[block]], axis=-1)
    return distance


def _squared(x: Float32[Array, " d"], data: Float32[Array | np.ndarray, "m d"]) -> Float32[Array, " m"]:
    product = jnp.matmul(data, x, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(x**2) + jnp.sum(data**2, axis=1) - 2 * product, 0)


@partial(jax.jit, static_argnames=("k", "block"))
def _closest(
    queries: Float32[Array | np.ndarray, "n d"], data: Float32[Array | np.ndarray, "m d"], k: int, block: int
) -> Int[Array, "n k"]:
    """Rows of the k smallest distances, up to rounding."""
    return jax.lax.map(lambda x: jax.lax.top_k(-_squared(x, data), k)[1], queries, batch_size=block)


@partial(jax.jit, static_argnames="block")
def _inside(
    points: Float32[Array | np.ndarray, "n d"],
    centres: Float32[Array | np.ndarray, "m d"],
    squared_radius: Float32[Array | np.ndarray, " m"],
    block: int,
) -> tuple[Bool[Array, " n"], Int[Array, " n"], Float32[Array, " n"]]:
    """For each point: whether a closed ball contains it, how many open balls do, its smallest squared distance."""

    def one(x: Array) -> tuple[Array, Array, Array]:
        squared = _squared(x, centres)
        return jnp.any(squared <= squared_radius), jnp.sum(squared < squared_radius), jnp.min(squared)

    return jax.lax.map(one, points, batch_size=block)
