"""Which pictures lie among the others: precision, recall, density, coverage, and the nearest neighbours of each.

A set's manifold is the union of balls around its pictures, each as wide as the way to its k-th nearest neighbour in the
set. All distances come in blocks of rows. They are float32 matrix products, |x|^2 + |y|^2 - 2 x.y, in which whatever
all features have in common would cancel and take the digits with it: it is subtracted first. Distances to neighbours,
which decide the balls and tell copies, are then computed once more as they are defined, in float64.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation.moments import Features, require_finite


class Manifold(NamedTuple):
    """How two sets lie among each other, as shares of pictures, 0 .. 1; density may exceed 1.

    Attributes:
        precision: generated ones inside the real manifold (Kynkaanniemi et al. 2019, eq. 2).
        recall: real ones inside the generated manifold (the same).
        density: real balls around a generated one, over k (Naeem et al. 2020, section 3).
        coverage: real ones whose ball holds a generated one (the same).
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Neighbours(NamedTuple):
    """The nearest of the data to each query, nearest first.

    Attributes:
        row: its number in the data.
        distance: Euclidean.
    """

    row: Int[np.ndarray, "n k"]
    distance: Float[np.ndarray, "n k"]


def manifold(real: Features, generated: Features, k: int = 3, block: int = 256) -> Manifold:
    """The four figures.

    Balls are closed for precision and recall and open for density and coverage, as in their authors' code. That matters
    only where one picture is in both sets.

    Args:
        real: features of the reference.
        generated: those of the samples, of the same encoder; as many are usual, because all figures depend on both
            numbers.
        k: neighbours; 3 is usual for precision and recall, 5 for density and coverage.
        block: rows that are compared with all others at once: 4 bytes * block * n of memory.

    Raises:
        InputError: features are not finite or differ in width, or a set has no k neighbours.
    """
    for name, features in (("real", real), ("generated", generated)):
        require(
            1 <= k < len(features),
            f"k={k} neighbours among {len(features)} {name} pictures; use 1 to {len(features) - 1}, or more pictures",
        )
    real, generated = _centred(real, generated)
    # A picture is its own nearest neighbour, at distance 0.
    real_radius = nearest(real, real, k + 1, block).distance[:, -1].astype(np.float32)
    generated_radius = nearest(generated, generated, k + 1, block).distance[:, -1].astype(np.float32)
    precise, balls, _ = map(np.asarray, _inside(generated, real, real_radius**2, block))
    recalled, _, closest = map(np.asarray, _inside(real, generated, generated_radius**2, block))
    return Manifold(
        precision=float(precise.mean()),
        recall=float(recalled.mean()),
        density=float(balls.mean() / k),
        coverage=float((closest < real_radius**2).mean()),
    )


def nearest(queries: Features, data: Features, k: int, block: int = 256, span: int = 65536) -> Neighbours:
    """The k nearest rows of `data` to each query: with the training set's features, what a sample may be a copy of.

    Args:
        queries: features of N pictures.
        data: features to search, of the same encoder; they stay on the host but for `span` rows.
        k: how many.
        block: queries that are compared at once.
        span: rows of the data that are compared at once: 4 bytes * block * span of memory.

    Raises:
        InputError: features are not finite or differ in width, or there are fewer than k rows to search.
    """
    require(1 <= k <= len(data), f"k={k} nearest of {len(data)} pictures; use 1 to {len(data)}")
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


def _centred(a: Features, b: Features) -> tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "m d"]]:
    """Both less the mean of the second, which changes no distance."""
    require(
        a.shape[1] == b.shape[1],
        f"features of {a.shape[1]} and {b.shape[1]} numbers cannot be compared; use one encoder for both",
    )
    require_finite(a)
    require_finite(b)
    a, b = np.asarray(a), np.asarray(b)
    centre = b.mean(0, dtype=np.float64).astype(b.dtype)
    return (a - centre).astype(np.float32), (b - centre).astype(np.float32)


def _distances(
    queries: Float32[np.ndarray, "n d"], data: Float32[np.ndarray, "m d"], row: Int[np.ndarray, "n k"]
) -> Float[np.ndarray, "n k"]:
    """From each query to its rows of the data, without cancellation."""
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
    """The rows of the k smallest distances, up to rounding."""
    return jax.lax.map(lambda x: jax.lax.top_k(-_squared(x, data), k)[1], queries, batch_size=block)


@partial(jax.jit, static_argnames="block")
def _inside(
    points: Float32[Array | np.ndarray, "n d"],
    centres: Float32[Array | np.ndarray, "m d"],
    squared_radius: Float32[Array | np.ndarray, " m"],
    block: int,
) -> tuple[Bool[Array, " n"], Int[Array, " n"], Float32[Array, " n"]]:
    """Of each point: whether any closed ball holds it, how many open ones do, its smallest squared distance."""

    def one(x: Array) -> tuple[Array, Array, Array]:
        squared = _squared(x, centres)
        return jnp.any(squared <= squared_radius), jnp.sum(squared < squared_radius), jnp.min(squared)

    return jax.lax.map(one, points, batch_size=block)
