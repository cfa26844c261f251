"""Encodings of conditions, and the embeddings of time, classes and attributes."""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from guided_diffusion_jax.models.layers import dense


class Encoding(NamedTuple):
    """An encoded condition: one or more of these parts, the others None.

    Attributes:
        vector: one vector per sample. Without tokens it is added to the time's, and has as many numbers.
        tokens: what cross-attention looks at. The first is always there, so that "absent" is a value as well.
        mask: False where there is no token; such tokens have no influence. None: all are there.
        map: an image or features of any size, for each place of the image.
    """

    vector: Float[Array, "b e"] | None = None
    tokens: Float[Array, "b n d"] | None = None
    mask: Bool[Array, "b n"] | None = None
    map: Float[Array, "b h w m"] | None = None


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
    """Labels `[b]` in 0 .. num_classes to vectors `[b features]`: a table of num_classes + 1 rows.

    One row is the null, for classifier-free guidance: the last for a label, the first for an attribute.
    The rows begin as N(0, 1), as torch's nn.Embedding in guided-diffusion does.
    """

    num_classes: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, label: Int[Array, " b"]) -> Encoding:
        rows = self.num_classes + 1
        embed = nn.Embed(rows, self.features, dtype=self.dtype, embedding_init=nn.initializers.normal(1.0), name="rows")
        return Encoding(vector=embed(label))


class AttributeEmbedding(nn.Module):
    """Values `[b k]` of k attributes to the sum of one `ClassEmbedding` each."""

    sizes: tuple[int, ...]
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, attributes: Int[Array, "b k"]) -> Encoding:
        tables = [ClassEmbedding(n, self.features, self.dtype, name=f"table_{i}") for i, n in enumerate(self.sizes)]
        vectors = [table(attributes[:, i]).vector for i, table in enumerate(tables)]
        return Encoding(vector=add_all(vectors))  # type: ignore[arg-type]


class TextTimeEmbedding(nn.Module):
    """Pooled text and numbers such as sizes to a vector: Dense, SiLU, Dense of the text beside the numbers' sinusoids.

    The micro-conditioning of SDXL (Podell et al. 2023, section 2.2): its numbers are the original height and width, the
    top and left of the crop, and the target height and width, in pixels.

    Attributes:
        pooled: features of the pooled text.
        features: of the output; 4 * width of the U-Net.
        frequencies: features of the sinusoids of one number.
        numbers: how many there are.
        dtype: of the matmuls.
    """

    pooled: int
    features: int
    frequencies: int = 256
    numbers: int = 6
    dtype: DTypeLike = jnp.float32

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample: the pooled text, then the numbers."""
        return (self.pooled + self.numbers,)

    @nn.compact
    def __call__(self, text_time: Float[Array, "b n"]) -> Encoding:
        text, numbers = text_time[:, : self.pooled], text_time[:, self.pooled :]
        sinusoids = timestep_embedding(numbers.reshape(-1), self.frequencies).reshape(len(text), -1)
        joined = jnp.concatenate([text, sinusoids], axis=-1)
        hidden = dense(self.features, dtype=self.dtype, name="hidden")(joined)
        return Encoding(vector=dense(self.features, dtype=self.dtype, name="out")(nn.silu(hidden)))


class ImageMap(nn.Module):
    """A control image, as it is."""

    def __call__(self, image: Float[Array, "b h w m"]) -> Encoding:
        return Encoding(map=image)


def add_all(vectors: list[Float[Array, "b e"]]) -> Float[Array, "b e"]:
    """The sum of one vector or more."""
    return functools.reduce(jnp.add, vectors)
