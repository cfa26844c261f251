"""CLIP's text encoder (Radford et al. 2021), as OpenAI's ViT-L/14 and OpenCLIP's ViT-H/14 and ViT-bigG/14 have it."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.models.attention import MultiHeadAttention
from guided_diffusion_jax.models.layers import dense, layer_norm


def quick_gelu(x: Array) -> Array:
    """X sigmoid(1.702 x): the approximation of GELU that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """X Phi(x), exact."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}
"""Choices of `ClipText.activation`."""


class TextFeatures(NamedTuple):
    """Features of prompts.

    Attributes:
        states: the embeddings and each layer's output, without the final norm; SDXL's context is `states[-2]`.
        last: the final norm of the last state, or of the one before that is asked for: the context of Stable Diffusion
            1 and 2.
        pooled: the final norm of the last state at the end token.
        projected: the pooled features in CLIP's space that images share; None without a projection.
    """

    states: tuple[Float[Array, "b n d"], ...]
    last: Float[Array, "b n d"]
    pooled: Float[Array, "b d"]
    projected: Float[Array, "b p"] | None


class ClipLayer(nn.Module):
    """h + attention(norm(h)), each token looking back only, then h + mlp(norm(h))."""

    heads: int
    hidden: int
    activation: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        x = layer_norm(name="norm_attention")(h)
        h = h + MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")(x, x, is_causal=True)
        x = dense(self.hidden, dtype=self.dtype, name="hidden")(layer_norm(name="norm_mlp")(h))
        activation = choose(ACTIVATIONS, self.activation, "activation")
        return h + dense(h.shape[-1], dtype=self.dtype, name="out")(activation(x))


class ClipText(nn.Module):
    """A Transformer over the tokens of a prompt; padding is read like everything else.

    Attributes:
        vocabulary: number of tokens.
        width: of the features.
        depth: number of layers.
        heads: of an attention; divides `width`.
        hidden: width of the MLP.
        length: the most tokens of a prompt; each has its learned position.
        activation: "quick_gelu" or "gelu".
        projection: features of `TextFeatures.projected`; 0 is no projection.
        end: number of the end token, at whose first place features are pooled; None is the largest number of a prompt.
        dtype: of the matmuls; norms and softmax are float32.
    """

    vocabulary: int = 49408
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    length: int = 77
    activation: str = "quick_gelu"
    projection: int = 0
    end: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Integer[Array, "b n"], *, skip: int = 0) -> TextFeatures:
        """Features of prompts, float32. `skip` layers at the end are left out of `last` ("clip skip")."""
        init = nn.initializers.normal(0.02)
        words = nn.Embed(self.vocabulary, self.width, dtype=jnp.float32, embedding_init=init, name="tokens")(tokens)
        positions = self.param("positions", init, (self.length, self.width), jnp.float32)
        states = [words + positions[: tokens.shape[1]]]
        for i in range(self.depth):
            layer = ClipLayer(self.heads, self.hidden, self.activation, self.dtype, name=f"layer_{i}")
            states.append(layer(states[-1]))
        norm = layer_norm(name="norm")
        ends = jnp.argmax(tokens if self.end is None else tokens == self.end, axis=-1)
        last = norm(states[-1])
        pooled = last[jnp.arange(len(tokens)), ends]
        projected = None
        if self.projection:
            projected = dense(self.projection, dtype=self.dtype, use_bias=False, name="project")(pooled)
            projected = projected.astype(jnp.float32)
        return TextFeatures(tuple(states), norm(states[-1 - skip]) if skip else last, pooled, projected)
