"""Codecs: between images and what the model sees, pixels themselves or latents of an autoencoder."""

from collections.abc import Callable
from typing import NamedTuple

from jax.tree_util import Partial

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
