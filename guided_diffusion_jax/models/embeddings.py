"""From the time and the conditions to the signals of the blocks; vectors have 4 * width numbers."""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.models.inputs import resized
from guided_diffusion_jax.models.layers import conv3x3, dense
from guided_diffusion_jax.models.plan import heights
from guided_diffusion_jax.models.signals import (
    Conditioned,
    Signal,
    Signals,
    encoders,
    listed,
    token_heights,
    vector_heights,
)
from guided_diffusion_jax.typing import Conditions


def timestep_embedding(
    time: Float[Array, " b"] | Int[Array, " b"], dim: int, max_period: float = 10_000
) -> Float[Array, "b {dim}"]:
    """Cosines, then sines, of `time` at dim // 2 frequencies that fall from 1 towards 1 / max_period.

    f_k = exp(-ln(max_period) k / (dim // 2)) for k = 0 .. dim // 2 - 1 (Vaswani et al. 2017, section 3.5, in the order
    of OpenAI's guided-diffusion). Fractions of a step are legal. One column of zeros is appended where `dim` is odd.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = time.astype(jnp.float32)[:, None] * frequencies[None, :]
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


class TimeEmbedding(nn.Module):
    """Time `[b]` to `[b 4*width]`: sinusoids of `width`, Dense, SiLU, Dense (Ho et al. 2020, appendix B)."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, time: Float[Array, " b"] | Int[Array, " b"]) -> Float[Array, "b e"]:
        hidden = dense(4 * self.width, dtype=self.dtype, name="hidden")(timestep_embedding(time, self.width))
        return dense(4 * self.width, dtype=self.dtype, name="out")(nn.silu(hidden))


class ClassEmbedding(nn.Module):
    """Labels `[b]` in 0 .. num_classes to `[b features]`: a table of num_classes + 1 rows.

    One row is the null, for classifier-free guidance: the last for a label, the first for an attribute.
    The rows begin as N(0, 1), as torch's nn.Embedding in guided-diffusion does.
    """

    num_classes: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, label: Int[Array, " b"]) -> Float[Array, "b e"]:
        rows = self.num_classes + 1
        embed = nn.Embed(rows, self.features, dtype=self.dtype, embedding_init=nn.initializers.normal(1.0), name="rows")
        return embed(label)


class AddFusion(nn.Module):
    """The sum of the time's and the conditions' vectors `[b e]` (Dhariwal & Nichol 2021)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, time: Float[Array, "b e"], told: Float[Array, "b e"]) -> Float[Array, "b e"]:
        return time + told


class ConcatFusion(nn.Module):
    """Both vectors `[b e]` side by side through Dense, SiLU, Dense, so that they may interact before the blocks."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, time: Float[Array, "b e"], told: Float[Array, "b e"]) -> Float[Array, "b e"]:
        both = jnp.concatenate([time, told], axis=-1)
        hidden = dense(time.shape[-1], dtype=self.dtype, name="hidden")(both)
        return dense(time.shape[-1], dtype=self.dtype, name="out")(nn.silu(hidden))


FUSIONS: dict[str, type[nn.Module]] = {"add": AddFusion, "concat": ConcatFusion}
"""Choices of `model.fusion`."""


class MapFeatures(nn.Module):
    """A map, resized to a height of feature maps, through a 3x3 convolution and SiLU."""

    pixels: int
    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, picture: Float[Array, "b h w m"]) -> Float[Array, "b {self.pixels} w2 {self.channels}"]:
        _, h, w, _ = picture.shape
        small = resized(picture, self.pixels, w * self.pixels // h)
        return nn.silu(conv3x3(self.channels, dtype=self.dtype, name="conv")(small))


class Embedding(Conditioned):
    """The signal of each height of feature maps.

    A height's vector is the time's, fused with the sum of those that enter there; the time's alone where none does.
    """

    @nn.compact
    def __call__(self, time: Float[Array, " b"] | Int[Array, " b"], conditions: Conditions, image_size: int) -> Signals:
        """The conditions must be `inputs.filled`."""
        width, features = self.width, 4 * self.width
        embedded = TimeEmbedding(width, dtype=self.dtype, name="time")(time)
        tokens = {kind: encode(getattr(conditions, kind)) for kind, encode in encoders(self).items()}

        vectors = {}
        if self.num_classes:
            rows = ClassEmbedding(self.num_classes, features, dtype=self.dtype, name="label")
            vectors["label"] = rows(conditions.label)
        if self.attribute_sizes:
            tables = [
                ClassEmbedding(size, features, dtype=self.dtype, name=f"attribute_{i}")(conditions.attributes[:, i])
                for i, size in enumerate(self.attribute_sizes)
            ]
            vectors["attributes"] = sum_of(tables)
        for kind, said in tokens.items():
            vectors[kind] = dense(features, dtype=self.dtype, name=f"pooled_{kind}")(said.pooled)

        fuse = choose(FUSIONS, self.fusion, "model.fusion")(dtype=self.dtype, name="fusion")

        @functools.cache  # most heights are told the same
        def emb(kinds: tuple[str, ...]) -> Array:
            return fuse(embedded, sum_of([vectors[kind] for kind in kinds])) if kinds else embedded

        def signal(pixels: int) -> Signal:
            kinds = tuple(kind for kind in vectors if pixels in vector_heights(self, kind, image_size))
            seen = [said for kind, said in tokens.items() if pixels in token_heights(self, kind, image_size)]
            features = None
            if pixels in listed(self, "map"):
                features = MapFeatures(pixels, width, dtype=self.dtype, name=f"map_{pixels}")(conditions.map)
            return Signal(
                emb(kinds),
                jnp.concatenate([said.values for said in seen], axis=1) if seen else None,
                jnp.concatenate([said.mask for said in seen], axis=1) if seen else None,
                features,
            )

        return {pixels: signal(pixels) for pixels in heights(self, image_size)}


def sum_of(vectors: list[Float[Array, "b e"]]) -> Float[Array, "b e"]:
    """The sum of one vector or more."""
    return functools.reduce(jnp.add, vectors)
