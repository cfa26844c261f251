"""Where encoded conditions enter a U-Net: at which resolutions, or beside its input."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from guided_diffusion_jax.conditions import CONDITIONS
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.models.embeddings import Encoding, add_all
from guided_diffusion_jax.models.layers import conv3x3, dense
from guided_diffusion_jax.models.plan import UNetSettings, resolutions
from guided_diffusion_jax.typing import Images


class BlockConditioning(NamedTuple):
    """Inputs of the blocks at one resolution besides the feature map.

    Attributes:
        vector: time and conditions in one vector of 4 * width; None in an autoencoder.
        tokens: what cross-attention looks at; None is no cross-attention.
        mask: of the tokens, as in `Encoding`.
        map: features as large as the block's input, which are added to it; None is none.
    """

    vector: Float[Array, "b e"] | None = None
    tokens: Float[Array, "b n d"] | None = None
    mask: Bool[Array, "b n"] | None = None
    map: Float[Array, "b h w m"] | None = None


Conditioning = Mapping[int, BlockConditioning]
"""One for each resolution (height of feature maps, in pixels)."""


class AddFusion(nn.Module):
    """The sum of the time's and the conditions' vectors `[b e]` (Dhariwal & Nichol 2021)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, time: Float[Array, "b e"], conditions: Float[Array, "b e"]) -> Float[Array, "b e"]:
        return time + conditions


class ConcatFusion(nn.Module):
    """Both vectors `[b e]` side by side through Dense, SiLU, Dense, so that they may interact before the blocks."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, time: Float[Array, "b e"], conditions: Float[Array, "b e"]) -> Float[Array, "b e"]:
        both = jnp.concatenate([time, conditions], axis=-1)
        hidden = dense(time.shape[-1], dtype=self.dtype, name="hidden")(both)
        return dense(time.shape[-1], dtype=self.dtype, name="out")(nn.silu(hidden))


FUSIONS: dict[str, type[nn.Module]] = {"add": AddFusion, "concat": ConcatFusion}
"""Choices of `model.class_fusion`."""


class MapFeatures(nn.Module):
    """A map, resized to a resolution, through a 3x3 convolution and SiLU."""

    pixels: int
    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w m"]) -> Float[Array, "b {self.pixels} w2 {self.channels}"]:
        _, h, w, _ = image.shape
        small = resize(image, self.pixels, w * self.pixels // h)
        return nn.silu(conv3x3(self.channels, dtype=self.dtype, name="conv")(small))


class Placement(nn.Module):
    """The conditioning of the blocks at each resolution.

    The vector of a resolution is the time's, fused with the sum of those that enter there; the time's alone where none
    does.
    """

    settings: UNetSettings

    @nn.compact
    def __call__(
        self, time: Float[Array, "b e"], encodings: Mapping[str, Encoding], image_size: int
    ) -> dict[int, BlockConditioning]:
        net = self.settings
        fuse = choose(FUSIONS, net.class_fusion, "model.class_fusion")(dtype=net.dtype, name="fusion")
        listed = dict(net.condition_resolutions)
        tokens_at = token_resolutions(net, image_size)

        @functools.cache  # most resolutions have the same
        def fused(names: tuple[str, ...]) -> Array:
            vectors = [vector for name in names if (vector := encodings[name].vector) is not None]
            return fuse(time, add_all(vectors)) if vectors else time

        def conditioning(pixels: int) -> BlockConditioning:
            names = tuple(name for name in encodings if pixels in listed.get(name, (pixels,)))
            attended: list[Any] = [
                encoding
                for name, encoding in encodings.items()
                if encoding.tokens is not None and pixels in listed.get(name, tokens_at)
            ]
            features = [
                MapFeatures(pixels, net.width, net.dtype, name=f"{name}_{pixels}")(encoding.map)
                for name, encoding in encodings.items()
                if encoding.map is not None and pixels in listed.get(name, ())
            ]
            return BlockConditioning(
                fused(names),
                jnp.concatenate([encoding.tokens for encoding in attended], axis=1) if attended else None,
                joint_mask(attended),
                jnp.concatenate(features, axis=-1) if features else None,
            )

        return {pixels: conditioning(pixels) for pixels in resolutions(net, image_size)}


def token_resolutions(net: UNetSettings, image_size: int) -> tuple[int, ...]:
    """Resolutions of cross-attention by default: those of self-attention or transformers, and the lowest."""
    every = resolutions(net, image_size)
    attending = net.attention_resolutions
    if net.transformer_depth:
        attending = tuple(pixels for pixels, depth in zip(every, net.transformer_depth, strict=True) if depth)
    return tuple(pixels for pixels in every if pixels in attending or pixels == every[-1])


def joint_mask(encodings: Sequence[Encoding]) -> Bool[Array, "b n"] | None:
    """The masks of the encodings' tokens side by side; None where none has a mask."""
    if all(encoding.mask is None for encoding in encodings):
        return None
    return jnp.concatenate(
        [jnp.ones(e.tokens.shape[:2], bool) if e.mask is None else e.mask for e in encodings if e.tokens is not None],
        axis=1,
    )


def beside_input(
    net: UNetSettings, x: Images, conditions: Mapping[str, Array], encodings: Mapping[str, Encoding]
) -> Float[Array, "b h w d"]:
    """X beside the maps that `condition_resolutions` does not name and the images that have no encoder.

    Beside each of the latter is 1 where it is given, 0 where it is null.
    """
    listed = dict(net.condition_resolutions)
    parts = [x]
    for name, encoding in encodings.items():
        if encoding.map is not None and name not in listed:
            parts.append(resize(encoding.map, *x.shape[1:3]))
    for name, value in conditions.items():
        if CONDITIONS[name].encoder is None:
            parts += [value, jnp.any(value != 0, axis=-1, keepdims=True).astype(value.dtype)]
    return jnp.concatenate(parts, axis=-1) if len(parts) > 1 else x


def enlarge(image: Images, height: int, width: int) -> Float[Array, "b {height} {width} c"]:
    """Bilinear between the centres of pixels (half-pixel convention), without antialiasing: as ADM's upsampler does."""
    b, _, _, c = image.shape
    return jax.image.resize(image, (b, height, width, c), "bilinear", antialias=False)


def resize(image: Images, height: int, width: int) -> Float[Array, "b {height} {width} c"]:
    """Larger as `enlarge`, smaller by a triangle filter as wide as the step, so that no pixel is lost."""
    b, _, _, c = image.shape
    return jax.image.resize(image, (b, height, width, c), "linear", antialias=True)
