"""The spatial transformer of latent diffusion (Rombach et al. 2022, appendix E.2.1)."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from guided_diffusion_jax.models.attention import MultiHeadAttention
from guided_diffusion_jax.models.layers import GroupNorm, dense, layer_norm


class GEGLU(nn.Module):
    """out(value * gelu(gate)), both from one matrix to 2 * 4 c channels; the exact GELU (Shazeer 2020)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        c = x.shape[-1]
        value, gate = jnp.split(dense(8 * c, dtype=self.dtype, name="hidden")(x), 2, axis=-1)
        return dense(c, dtype=self.dtype, name="out")(value * nn.gelu(gate, approximate=False))


class TransformerLayer(nn.Module):
    """h + self_attention(norm(h)), then h + cross_attention(norm(h), tokens), then h + feed_forward(norm(h)).

    Attributes:
        heads: divides the channels of the input.
        dtype: of the matmuls.
    """

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, h: Float[Array, "b n c"], tokens: Float[Array, "b m d"] | None, mask: Bool[Array, "b m"] | None
    ) -> Float[Array, "b n c"]:
        attention = functools.partial(MultiHeadAttention, self.heads, use_bias=False, dtype=self.dtype)
        x = layer_norm(name="norm_self")(h)
        h = h + attention(name="self_attention")(x, x)
        if tokens is not None:
            h = h + attention(name="cross_attention")(layer_norm(name="norm_cross")(h), tokens, mask)
        return h + GEGLU(dtype=self.dtype, name="feed_forward")(layer_norm(name="norm_feed_forward")(h))


class SpatialTransformer(nn.Module):
    """x + project_out(layers(project_in(norm(x)))) over the positions of a feature map; the identity at first.

    Attributes:
        depth: number of layers.
        heads: divides the channels of the input.
        groups: of the norm of the input, whose eps is 1e-6.
        dtype: of the matmuls.
    """

    depth: int
    heads: int
    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], tokens: Float[Array, "b m d"] | None, mask: Bool[Array, "b m"] | None
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        positions = GroupNorm(self.groups, 1e-6, name="norm")(x).reshape(b, h * w, c)
        positions = dense(c, dtype=self.dtype, name="project_in")(positions)
        for i in range(self.depth):
            positions = TransformerLayer(self.heads, self.dtype, name=f"layer_{i}")(positions, tokens, mask)
        project = dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="project_out")
        return x + project(positions).reshape(b, h, w, c)
