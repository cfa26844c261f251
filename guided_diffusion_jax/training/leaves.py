"""Names and shapes of a state's leaves, and whether a checkpoint has the same."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from guided_diffusion_jax.errors import require


def shapes(tree: Any) -> dict[str, Any]:
    """Shape of every leaf by name, e.g. "params/head/kernel"; of what is no array it is None, as in `tree`."""
    return {_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def check(saved: Mapping[str, Any], like: Any, checkpoint: str) -> None:
    """Raises `InputError` for the first leaf that is missing, foreign or of another shape.

    Orbax reports it deep inside a restore and in its own words, or drops it silently.

    Args:
        saved: `shapes` of the checkpoint.
        like: what is to be restored; the shapes of random keys are not compared.
        checkpoint: what it is called in the message.
    """
    problem = next(_differences(saved, like), "")
    require(
        not problem,
        f"{checkpoint} belongs to another architecture: {problem}; use the run's own config or another --workdir.",
    )


def _differences(saved: Mapping[str, Any], like: Any) -> Iterator[str]:
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    for name, leaf in leaves.items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        here = f"has shape {tuple(leaf.shape)} here"
        if name not in saved:
            yield f"{name} is missing there and {here}"
        elif saved[name] is not None and tuple(saved[name]) != tuple(leaf.shape):
            yield f"{name} has shape {tuple(saved[name])} there and {here}"
    for name in sorted(saved.keys() - leaves.keys()):
        if saved[name] is not None:
            yield f"{name} has shape {tuple(saved[name])} there and is no part of the model here"


def _name(path: tuple) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
