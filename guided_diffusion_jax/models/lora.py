"""LoRA (Hu et al. 2022): a low-rank change of a network's matrices and convolutions, as a tree of its own."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, Key

from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.models.checks import check_whole
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.typing import Conditions, Params

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

LAYERS: dict[str, Callable[[Path], bool]] = {
    "attention": lambda path: any(part.endswith("attention") for part in path),
    "transformer": lambda path: any(part.endswith(("attention", "feed_forward")) for part in path),
    "text": lambda path: any(part.endswith(("attention", "feed_forward", "text")) for part in path),
    "all": lambda path: True,
}
"""Choices of `layers`: which kernels of a U-Net are changed, by their paths; "text" adds its own text encoder."""


def merge(params: Params, lora: Lora, scale: Float[ArrayLike, ""] = 1.0, dtype: DTypeLike | None = None) -> Params:
    """Parameters with each kernel W at W + scale * down @ up (Hu et al. 2022, eq. 3).

    Pure: within a compiled program the scale is one of its inputs. Several are merged one after another.

    Args:
        params: of the network.
        lora: factors by path.
        scale: of the change.
        dtype: of the changed kernels; None is that of each kernel, which rounds a small change away in half precision.

    Raises:
        InputError: there is no kernel at a path.
    """
    flat = dict(flatten_dict(params))
    for path, factors in lora.items():
        require(path in flat, f"the LoRA changes {'/'.join(path)}, which the network does not have")
        change = jnp.matmul(factors.down.astype(jnp.float32), factors.up.astype(jnp.float32))
        flat[path] = (flat[path].astype(jnp.float32) + scale * change).astype(dtype or flat[path].dtype)
    return unflatten_dict(flat)


@contextlib.contextmanager
def adapted(lora: Lora, scale: Float[ArrayLike, ""] = 1.0) -> Iterator[None]:
    """Within it, networks that are applied compute W x + scale * up(down(x)) where a kernel W has factors.

    The same as with `merge`d parameters, but W needs no gradient, and a change that is small beside W is not lost where
    the product is in bfloat16. Paths are those from the network that is applied.
    """

    def add(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        out, module = call(*args, **kwargs), context.module
        factors = lora.get((*module.path, "kernel")) if context.method_name == "__call__" else None
        if factors is None:
            return out
        # The same layer with fewer outputs: a convolution keeps its strides and its padding.
        narrow: Any = module.clone(features=factors.up.shape[0], use_bias=False, name=None)
        low = narrow.apply({"params": {"kernel": factors.down}}, *args, **kwargs)
        return out + (scale * (low @ factors.up.astype(low.dtype))).astype(out.dtype)

    with nn.intercept_methods(add):
        yield


def to_params(lora: Lora) -> Params:
    """Factors as a nested dict, as parameters that are trained."""
    return unflatten_dict({(*path, name): side for path, pair in lora.items() for name, side in pair._asdict().items()})


def from_params(params: Params) -> dict[Path, Factors]:
    """The inverse of `to_params`."""
    flat = flatten_dict(params)
    return {path[:-1]: Factors(value, flat[*path[:-1], "up"]) for path, value in flat.items() if path[-1] == "down"}


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
    require(bool(kernels), "no kernel is chosen to be changed")
    sizes = [rank * math.prod(kernel.shape[:-1]) for kernel in kernels.values()]
    # One draw for all: a program with a draw for each of some hundred matrices takes long to compile.
    drawn = jnp.split(jax.random.uniform(key, (sum(sizes),), minval=-1.0, maxval=1.0), np.cumsum(sizes)[:-1])

    def fresh(values: Array, kernel: Any) -> Factors:
        shape = (*kernel.shape[:-1], rank)
        return Factors(values.reshape(shape) / math.sqrt(math.prod(shape[:-1])), jnp.zeros((rank, kernel.shape[-1])))

    return {path: fresh(values, kernel) for values, (path, kernel) in zip(drawn, kernels.items(), strict=True)}


class LoraUNet(nn.Module):
    """A U-Net whose chosen kernels are changed by factors, which are trained while its own parameters stay.

    Fresh factors change nothing. Its parameters are "unet" and "lora".

    Attributes:
        unet: the U-Net.
        rank: of every change.
        alpha: the changes are times alpha / rank; 0 is the rank.
        layers: a key of `LAYERS`.
    """

    unet: UNet
    rank: int = 4
    alpha: float = 0.0
    layers: str = "attention"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"] | Int[Array, " b"],
        conditions: Conditions,
        *,
        train: bool = False,
    ) -> Float[Array, "b h w d"]:
        """The changed U-Net's raw output, float32."""

        def fresh(key: Key[Array, ""]) -> Params:
            plain = self.unet.clone(parent=None, name=None)
            params = jax.eval_shape(plain.init, key, x, time, conditions)["params"]
            return to_params(init(key, params, self.rank, choose(LAYERS, self.layers, "model.lora_layers")))

        # `param` would trace `fresh` in each call, to compare shapes.
        learned = self.param("lora", fresh) if self.is_initializing() else self.get_variable("params", "lora")
        with adapted(from_params({"unet": learned}), self.alpha / self.rank if self.alpha else 1.0):
            return self.unet(x, time, conditions, train=train)

    @nn.nowrap
    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `InputError` for settings that cannot work with images `(h, w, c)`, before any compilation."""
        check_whole(self.rank, "model.lora_rank", least=1)
        choose(LAYERS, self.layers, "model.lora_layers")
        self.unet.check(image_shape)
