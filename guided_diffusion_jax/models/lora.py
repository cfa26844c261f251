"""LoRA (Hu et al. 2022): a low-rank change of a network's matrices and convolutions, as a tree of its own."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, ArrayLike, Float, Key

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.typing import Params

Path = tuple[str, ...]


class Factors(NamedTuple):
    """A change of a kernel, `down @ up`; alpha / rank is part of `up`.

    Attributes:
        down: `[*before r]`: the kernel's shape without its last axis, and the rank.
        up: `[r o]`: zero when training begins.
    """

    down: Float[Array, "*before r"]
    up: Float[Array, "r o"]


Lora = Mapping[Path, Factors]
"""For paths of kernels in a network's parameters their factors."""


def merge(params: Params, lora: Lora, scale: Float[ArrayLike, ""] = 1.0) -> Params:
    """Parameters with each kernel W at W + scale * down @ up, in the kernel's precision (Hu et al. 2022, eq. 3).

    Pure: within a compiled program the scale is one of its inputs. Several are merged one after another.

    Raises:
        InputError: there is no kernel at a path.
    """
    flat = dict(flatten_dict(params))
    for path, factors in lora.items():
        require(path in flat, f"the LoRA changes {'/'.join(path)}, which the network does not have")
        change = jnp.matmul(factors.down.astype(jnp.float32), factors.up.astype(jnp.float32))
        flat[path] = (flat[path].astype(jnp.float32) + scale * change).astype(flat[path].dtype)
    return unflatten_dict(flat)


def init(key: Key[Array, ""], params: Params, rank: int, chosen: Callable[[Path], bool]) -> dict[Path, Factors]:
    """Fresh factors that change nothing: `up` is zero, `down` uniform within 1 / sqrt(fan_in).

    Args:
        key: of the draws.
        params: of the network, or their shapes.
        rank: of every change.
        chosen: predicate of paths; kernels where it is True are changed.
    """
    require(rank >= 1, f"rank={rank} must be 1 or more")
    kernels = {path: value for path, value in flatten_dict(params).items() if path[-1] == "kernel" and chosen(path)}
    draw = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return {
        path: Factors(draw(each, (*kernel.shape[:-1], rank), jnp.float32), jnp.zeros((rank, kernel.shape[-1])))
        for each, (path, kernel) in zip(jax.random.split(key, len(kernels)), kernels.items(), strict=True)
    }
