"""Attention of the positions of a feature map: to each other, and to tokens."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from guided_diffusion_jax.dot_product import dot_product_attention
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.models.layers import GroupNorm, dense


def attention(
    qkv: Float[Array, "b n c3"], heads: int, mask: Bool[Array, "b n"] | None = None
) -> Float[Array, "b n c3//3"]:
    """`dot_product_attention` of positions to each other.

    The channels of `qkv` lie in the order [q, k, v][head][channel]; those of the output in [head][channel]. Where the
    mask is False nobody looks.
    """
    b, n, channels = qkv.shape
    q, k, v = split_heads(qkv, heads)
    return dot_product_attention(q, k, v, mask).reshape(b, n, channels // 3)


def split_heads(qkv: Float[Array, "b n c3"], heads: int) -> Float[Array, "3 b n {heads} d"]:
    """Queries, keys and values of each head."""
    b, n, channels = qkv.shape
    return jnp.moveaxis(qkv.reshape(b, n, 3, heads, channels // (3 * heads)), 2, 0)


class SelfAttention(nn.Module):
    """x + project(attention(qkv(norm(x)))); the projection is zero at first, so it begins as the identity.

    Attributes:
        heads: divides the channels of the input.
        norm: of the input.
        dtype: of the matmuls.
    """

    heads: int
    norm: Callable[..., nn.Module] = GroupNorm
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        tokens = self.norm(name="norm")(x).reshape(b, h * w, c)
        qkv = dense(3 * c, dtype=self.dtype, name="qkv")(tokens)
        project = dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="project")
        out = project(self.attend(qkv, (h, w)))
        return x + out.reshape(b, h, w, c)

    def attend(self, qkv: Float[Array, "b n c3"], size: tuple[int, int]) -> Float[Array, "b n c3//3"]:
        """Attention of the positions of a map `(h, w)`, which `replaced_attention` may replace."""
        return attention(qkv, self.heads)


Attend = Callable[[Array, Array, Array, tuple[int, int]], Array]
"""Queries, keys, values `[b n heads c]` and the size `(h, w)` of the map to the output `[b n heads c]`."""


@contextlib.contextmanager
def replaced_attention(change: tuple[str, str, Attend] | None) -> Iterator[None]:
    """Self-attention done by another function in networks that are applied within.

    Args:
        change: who asks for it, a part of the layers' names ("" is all of them) and the function; None is no change.

    Raises:
        InputError: no self-attention with such a name was applied.
    """
    if change is None:
        yield
        return
    name, layers, attend = change
    found = []

    def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if not isinstance(module, SelfAttention) or context.method_name != "attend":
            return call(*args, **kwargs)
        found.append("/".join(module.path))
        if layers not in found[-1]:
            return call(*args, **kwargs)
        qkv, size = args
        q, k, v = split_heads(qkv, module.heads)
        out = attend(q, k, v, size)
        return out.reshape(*qkv.shape[:2], -1)

    with nn.intercept_methods(intercept):
        yield
    require(bool(found), f"guidance: {name} changes self-attention, and this model has none; leave {name} out")
    fits = any(layers in path for path in found)
    require(fits, f"guidance: {name}: layers={layers!r} is in no name of the attention layers {', '.join(found)}")


class CrossAttention(nn.Module):
    """x + project(attention(query(norm(x)), key_value(tokens))), each position asking all tokens that are not masked.

    The projection is zero at first, so it begins as the identity (Rombach et al. 2022, section 3.3).

    Attributes:
        heads: divides the channels of the input.
        norm: of the input.
        dtype: of the matmuls.
    """

    heads: int
    norm: Callable[..., nn.Module] = GroupNorm
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        positions = self.norm(name="norm")(x).reshape(b, h * w, c)
        q = dense(c, dtype=self.dtype, name="query")(positions).reshape(b, h * w, self.heads, -1)
        key_value = dense(2 * c, dtype=self.dtype, name="key_value")(tokens)
        k, v = jnp.moveaxis(key_value.reshape(b, -1, 2, self.heads, c // self.heads), 2, 0)
        project = dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="project")
        out = project(dot_product_attention(q, k, v, mask).reshape(b, h * w, c))
        return x + out.reshape(b, h, w, c)


class MultiHeadAttention(nn.Module):
    """out(attention(query(x), key(tokens), value(tokens))), four matrices (Vaswani et al. 2017, section 3.2).

    Attributes:
        heads: divides the channels of x.
        use_bias: of query, key and value; the output's matrix always has one.
        dtype: of the matmuls; the softmax is float32.
    """

    heads: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        tokens: Float[Array, "b m d"],
        mask: Bool[Array, "b m"] | None = None,
        *,
        is_causal: bool = False,
    ) -> Float[Array, "b n c"]:
        """Each position of `x` looks at the tokens that are not masked; if causal, at those up to its own place."""
        b, n, c = x.shape

        def project(source: Array, name: str) -> Array:
            projected = dense(c, dtype=self.dtype, use_bias=self.use_bias, name=name)(source)
            return projected.reshape(b, -1, self.heads, c // self.heads)

        q, k, v = project(x, "query"), project(tokens, "key"), project(tokens, "value")
        attended = dot_product_attention(q, k, v, mask, is_causal=is_causal)
        return dense(c, dtype=self.dtype, name="out")(attended.reshape(b, n, c))
