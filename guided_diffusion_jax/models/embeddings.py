"""What the blocks are told besides the picture: the time and the class, as one vector of 4 * width numbers."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.models.layers import dense
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
    """Labels `[b]` in 0 .. num_classes to `[b features]`; row num_classes is the null, for classifier-free guidance.

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
    """The sum of time's and class's vectors `[b e]` (Dhariwal & Nichol 2021)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, time: Float[Array, "b e"], label: Float[Array, "b e"]) -> Float[Array, "b e"]:
        return time + label


class ConcatFusion(nn.Module):
    """Both vectors `[b e]` side by side through Dense, SiLU, Dense, so that they may interact before the blocks."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, time: Float[Array, "b e"], label: Float[Array, "b e"]) -> Float[Array, "b e"]:
        both = jnp.concatenate([time, label], axis=-1)
        hidden = dense(time.shape[-1], dtype=self.dtype, name="hidden")(both)
        return dense(time.shape[-1], dtype=self.dtype, name="out")(nn.silu(hidden))


FUSIONS: dict[str, type[nn.Module]] = {"add": AddFusion, "concat": ConcatFusion}
"""Choices of `model.fusion`."""


class Embedding(nn.Module):
    """Time and conditions to the one vector `[b 4*width]` that every block receives.

    With `num_classes` = 0 there is no class embedding and `conditions.label` is ignored; otherwise a label of None
    stands for the null in every sample.
    """

    width: int
    num_classes: int
    fusion: str = "add"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, time: Float[Array, " b"] | Int[Array, " b"], conditions: Conditions
    ) -> Float[Array, "b {4*self.width}"]:
        embedded = TimeEmbedding(self.width, dtype=self.dtype, name="time")(time)
        if self.num_classes == 0:
            return embedded
        label = conditions.label
        if label is None:
            label = jnp.full(time.shape, self.num_classes, jnp.int32)
        rows = ClassEmbedding(self.num_classes, 4 * self.width, dtype=self.dtype, name="label")(label)
        return choose(FUSIONS, self.fusion, "model.fusion")(dtype=self.dtype, name="fusion")(embedded, rows)
