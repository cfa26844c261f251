"""Encoders of prompts: from bytes, learned with the network, or from the features of a pre-trained encoder."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.models.attention import attention
from guided_diffusion_jax.models.checks import check_whole
from guided_diffusion_jax.models.embeddings import Encoding
from guided_diffusion_jax.models.layers import KERNEL_INIT, dense

NUM_CONVS = 2
"""Convolutions over neighbouring bytes before the Transformer: they recognise words by their letters."""


class ByteEncoder(nn.Module):
    """The UTF-8 bytes of a prompt: convolutions, then a Transformer, all learned from scratch.

    The Transformer has its norms first (Xiong et al. 2020). A learned start token, which is never masked, comes before
    the bytes. The pooled vector is the maximum over all tokens, as of convolutions over words (Kim 2014). Zeros are
    padding and have no influence, so an encoding does not depend on the length that the prompt is padded to.

    Attributes:
        width: of the tokens.
        depth: layers of self-attention and MLP.
        heads: of an attention; divides `width`.
        length: the most bytes of a prompt; each has its learned position.
        dtype: of the matmuls; norms and softmax are float32.
    """

    width: int = 64
    depth: int = 2
    heads: int = 4
    length: int = 64
    dtype: DTypeLike = jnp.float32

    input_dtype = np.uint8

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return (self.length,)

    @nn.compact
    def __call__(self, text: Integer[Array, "b n"]) -> Encoding:
        """The prompts' tokens, float32: `[b n+1 width]`. Raises `InputError` for more than `length` bytes."""
        n = text.shape[1]
        require(
            n <= self.length,
            f"conditions.text has {n} bytes, but the encoder reads {self.length}; cut it, or train with a larger "
            "model.text_length.",
        )
        init = nn.initializers.normal(1.0)
        words = nn.Embed(256, self.width, dtype=self.dtype, embedding_init=init, name="bytes")(text.astype(jnp.int32))
        positions = self.param("positions", nn.initializers.normal(0.1), (self.length, self.width), jnp.float32)
        h = words.astype(jnp.float32)
        for i in range(NUM_CONVS):
            h = ByteConvBlock(dtype=self.dtype, name=f"conv_{i}")(h, text != 0)
        h = with_start(self, h + positions[:n])
        mask = jnp.pad(text != 0, ((0, 0), (1, 0)), constant_values=True)
        for i in range(self.depth):
            h = Layer(self.heads, dtype=self.dtype, name=f"layer_{i}")(h, mask)
        h = nn.LayerNorm(name="norm")(h)
        return Encoding(jnp.max(h, axis=1, where=mask[..., None], initial=-jnp.inf), h, mask)

    def check(self, part: str) -> None:
        """Raises `InputError` for settings that cannot work; `part` is their prefix in messages."""
        for key in ("width", "depth", "heads", "length"):
            check_whole(getattr(self, key), f"{part}_{key}", least=1)
        require(
            self.width % self.heads == 0,
            f"{part}_width={self.width} is not divisible by its {self.heads} heads; "
            f"use {-(-self.width // self.heads) * self.heads}.",
        )


class FeatureEncoder(nn.Module):
    """Features of prompts by a frozen, pre-trained encoder: a matrix brings the rows to the network's width.

    Rows of zeros are padding. A learned start token comes first; the pooled vector is the start token and the mean of
    all rows.

    Attributes:
        features: of a row.
        width: of the tokens.
        length: rows of a prompt, where data are padded to it; any number can be read.
        dtype: of the matmul.
    """

    features: int
    width: int = 64
    length: int = 64
    dtype: DTypeLike = jnp.float32

    input_dtype = np.float32

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.length, self.features

    @nn.compact
    def __call__(self, text: Float[Array, "b n {self.features}"]) -> Encoding:
        """The prompts' tokens, float32: `[b n+1 width]`."""
        present = jnp.any(text != 0, axis=-1)
        rows = dense(self.width, dtype=self.dtype, name="project")(text).astype(jnp.float32)
        h = with_start(self, nn.LayerNorm(name="norm")(rows))
        mask = jnp.pad(present, ((0, 0), (1, 0)), constant_values=True)
        return Encoding(jnp.mean(h, axis=1, where=mask[..., None]), h, mask)

    def check(self, part: str) -> None:
        """Raises `InputError` for settings that cannot work; `part` is their prefix in messages."""
        for key in ("features", "width", "length"):
            check_whole(getattr(self, key), f"{part}_{key}", least=1)


class ContextEncoder(nn.Module):
    """Features of prompts by a frozen, pre-trained encoder, as they are, for cross-attention: nothing is learned.

    All rows count, also those of padding, as in Stable Diffusion (Rombach et al. 2022).

    Attributes:
        features: of a row.
        length: rows of a prompt, where data are padded to it; any number can be read.
    """

    features: int
    length: int = 77

    input_dtype = np.float32

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.length, self.features

    def __call__(self, text: Float[Array, "b n {self.features}"]) -> Encoding:
        return Encoding(tokens=text)

    def check(self, part: str) -> None:
        """Raises `InputError` for settings that cannot work; `part` is their prefix in messages."""
        for key in ("features", "length"):
            check_whole(getattr(self, key), f"{part}_{key}", least=1)


def with_start(module: nn.Module, tokens: Float[Array, "b n d"]) -> Float[Array, "b n+1 d"]:
    """A learned token, a parameter "start" of the module, before the others."""
    start = module.param("start", nn.initializers.normal(1.0), tokens.shape[-1:], jnp.float32)
    first = jnp.broadcast_to(start, (tokens.shape[0], 1, tokens.shape[-1]))
    return jnp.concatenate([first, tokens], axis=1)


class ByteConvBlock(nn.Module):
    """h + silu(convolution of norm(h)) over seven bytes; padding is zeros."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b n d"], present: Bool[Array, "b n"]) -> Float[Array, "b n d"]:
        h_or_zero = jnp.where(present[..., None], nn.LayerNorm(name="norm")(h), 0.0)
        return h + nn.silu(
            nn.Conv(h.shape[-1], (7,), dtype=self.dtype, kernel_init=KERNEL_INIT, name="conv")(h_or_zero)
        )


class Layer(nn.Module):
    """h + attention(norm(h)), then h + mlp(norm(h)), the MLP four times as wide, with GELU."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b n d"]:
        d = h.shape[-1]
        qkv = dense(3 * d, dtype=self.dtype, name="qkv")(nn.LayerNorm(name="attention_norm")(h))
        h += dense(d, dtype=self.dtype, name="project")(attention(qkv, self.heads, mask))
        hidden = dense(4 * d, dtype=self.dtype, name="hidden")(nn.LayerNorm(name="mlp_norm")(h))
        return h + dense(d, dtype=self.dtype, name="out")(nn.gelu(hidden))
