"""Codecs: between images and what the model sees, pixels themselves or latents of an autoencoder."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.typing import Images


class Codec(NamedTuple):
    """Pair of functions between images and the model's space.

    Functions with parameters are `jax.tree_util.Partial`s that carry them, so that a compiled program takes the
    parameters as inputs.

    Attributes:
        encode: images `[b h w c]` in [-1, 1] to what the model sees, `[b *shape]`.
        decode: the way back.
        shape: (h, w, c) of what the model sees.
        limits: lowest and highest value of clean samples, to which predictions may be clipped; None is no limit.
        image_shape: (h, w, c) of the images; None where it is `shape`.
    """

    encode: Callable[[Images], Images]
    decode: Callable[[Images], Images]
    shape: tuple[int, int, int]
    limits: tuple[float, float] | None = (-1.0, 1.0)
    image_shape: tuple[int, int, int] | None = None


def _identity(images: Images) -> Images:
    return images


def pixels(shape: tuple[int, int, int]) -> Codec:
    """Codec of models that see the images themselves."""
    return Codec(Partial(_identity), Partial(_identity), shape)


def tiled(codec: Codec, tile: int, overlap: float = 0.25) -> Codec:
    """The codec that decodes large images in tiles (see `decode_in_tiles`).

    Args:
        codec: of latents.
        tile: pixels of a tile's side, a multiple of the pixels for a latent and at least two of them.
        overlap: of neighbouring tiles, as a share of them, in (0, 1).

    Raises:
        InputError: the codec is one of pixels, or tiles that do not fit.
    """
    require(codec.image_shape is not None, f"tile={tile} is for models of latents, and this one sees pixels")
    assert codec.image_shape is not None
    factor = codec.image_shape[0] // codec.shape[0]
    fits = tile % factor == 0 and tile >= 2 * factor and 0 < overlap < 1
    require(fits, f"tile={tile}, overlap={overlap}: a tile is a multiple of {factor}, {2 * factor} or more, and the "
            "overlap lies between 0 and 1")  # fmt: skip
    size = tile // factor
    shared = min(max(round(overlap * size), 1), size - 1)
    return codec._replace(decode=Partial(functools.partial(_decode_tiles, size, shared), codec.decode))


def _decode_tiles(tile: int, overlap: int, decode: Callable[[Array], Array], latents: Array) -> Array:
    return decode_in_tiles(decode, latents, tile, overlap)


def decode_in_tiles(
    decode: Callable[[Array], Array], latents: Float[Array, "b h w z"], tile: int, overlap: int
) -> Float[Array, "b h2 w2 c"]:
    """Decodes overlapping tiles one after the other, in the memory of one, and blends them linearly.

    Where normalisation or attention sees all of an image, a tile has other statistics than the whole, and the result
    is near that of the whole, not equal.

    Args:
        decode: latents to images, larger by a whole factor.
        latents: of the whole image.
        tile: height and width of a tile, in latents; along a shorter side all of it is one.
        overlap: of neighbouring tiles, in latents, 1 to tile - 1; the last ones may overlap more.
    """
    sizes = [min(tile, side) for side in latents.shape[1:3]]
    starts = [
        [*range(0, side - size, tile - overlap), side - size]
        for side, size in zip(latents.shape[1:3], sizes, strict=True)
    ]
    corners = list(itertools.product(*starts))
    h, w = sizes
    images = jax.lax.map(decode, jnp.stack([latents[:, y : y + h, x : x + w] for y, x in corners]))
    factor = images.shape[2] // h
    rising = [(np.arange(size * factor) + 0.5) / (overlap * factor) for size in sizes]
    down, across = (np.minimum(1, np.minimum(ramp, ramp[::-1])) for ramp in rising)
    weight = (down[:, None] * across)[:, :, None].astype(np.float32)
    total = jnp.zeros((len(latents), *(side * factor for side in latents.shape[1:3]), images.shape[-1]))
    weights = np.zeros((*total.shape[1:3], 1), np.float32)
    for image, (y, x) in zip(images, corners, strict=True):
        area = slice(y * factor, (y + h) * factor), slice(x * factor, (x + w) * factor)
        total, weights[area] = total.at[:, *area].add(weight * image), weights[area] + weight
    return total / weights
