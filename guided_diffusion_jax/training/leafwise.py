"""Operations on every leaf of a tree, each held once for each shape of a leaf by the program that calls them.

A network has hundreds of leaves of a few dozen shapes. Written out for each leaf, its optimizer alone is two thirds of
a training step's program; as functions that are called it is a line a leaf. XLA inlines them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epy
from jaxtyping import Array, ArrayLike, Float

with epy.lazy_imports():  # a fifth of a second; sampling knows optimizers by name alone
    import optax


def average(new: Any, old: Any, share: ArrayLike) -> Any:
    """`optax.incremental_update`: share new + (1 - share) old."""
    rest = 1.0 - share
    return jax.tree.map(lambda new, old: _weighted(new, old, share, rest), new, old)


@jax.jit
def _weighted(new: Array, old: Array, share: ArrayLike, rest: ArrayLike) -> Array:
    return jnp.asarray(share * new + rest * old)


def norm(tree: Any) -> Float[Array, ""]:
    """`optax.tree.norm`: the square root of the sum of all squares.

    Vectors are summed as one, because a program of hundreds of small sums runs and compiles more slowly.
    """
    leaves = jax.tree.leaves(tree)
    vectors = [jnp.ravel(leaf) for leaf in leaves if jnp.ndim(leaf) < 2]
    arrays = [leaf for leaf in leaves if jnp.ndim(leaf) >= 2]
    joined = [jnp.concatenate(vectors)] if vectors else []
    return jnp.sqrt(functools.reduce(_add_squares, joined + arrays, jnp.zeros(())))


@jax.jit
def _add_squares(total: Float[Array, ""], leaf: Array) -> Float[Array, ""]:
    return total + jnp.sum(jnp.square(leaf))


def clip_by_norm(limit: float) -> "optax.GradientTransformation":
    """`optax.clip_by_global_norm`: one factor for all leaves, min(1, limit / norm)."""

    def clip(updates: Any, params: Any = None) -> Any:
        factor = jnp.minimum(1.0, limit / norm(updates))
        return jax.tree.map(lambda leaf: _scaled(factor, leaf), updates)

    return optax.stateless(clip)


@jax.jit
def _scaled(factor: Float[Array, ""], leaf: Array) -> Array:
    return (factor * leaf).astype(leaf.dtype)


def elementwise(optimizer: "optax.GradientTransformation") -> "optax.GradientTransformation":
    """The same optimizer, whose update is called for one leaf after the other.

    Args:
        optimizer: for which an element's update depends on that element and on counts alone: no norms, no factors of
            a matrix, no masks. In its state are trees like the parameters', and what is the same for all leaves.
    """
    of_leaf: Callable = jax.jit(optimizer.update)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        like: Any = jax.tree.structure(updates)

        def is_like(node: Any) -> bool:
            return bool(like == jax.tree.structure(node))

        whole: Any
        parts, whole = jax.tree.flatten(state, is_leaf=is_like)
        columns = [like.flatten_up_to(part) if is_like(part) else [part] * like.num_leaves for part in parts]
        rows = zip(jax.tree.leaves(updates), jax.tree.leaves(params), *columns, strict=True)
        done = [of_leaf(gradient, whole.unflatten(row), leaf) for gradient, leaf, *row in rows]
        moved = zip(*(whole.flatten_up_to(after) for _, after in done), strict=True)
        after = [
            like.unflatten(column) if is_like(part) else column[0] for part, column in zip(parts, moved, strict=True)
        ]
        return like.unflatten([step for step, _ in done]), whole.unflatten(after)

    return optax.GradientTransformation(optimizer.init, update)
