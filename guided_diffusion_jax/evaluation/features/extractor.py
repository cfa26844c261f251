"""The interface of feature extractors: a function from 8-bit images to the numbers that metrics compare."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from guided_diffusion_jax.errors import require


class Features(NamedTuple):
    """Outputs of a network for a batch of images, float32.

    Attributes:
        pool: `[b d]`, one vector per image: for FID, KID, precision and recall.
        spatial: `[b s]`, a flattened map that keeps positions, for sFID; None if a network has none.
        logits: `[b k]` of the network's classes, for the inception score; None if a network has none.
    """

    pool: Float[Array, "b d"]
    spatial: Float[Array, "b s"] | None = None
    logits: Float[Array, "b k"] | None = None


class Extractor(NamedTuple):
    """A feature network.

    Attributes:
        name: of the network and its weights, stored with results.
        apply: 8-bit images `[b h w 1]` or `[b h w 3]`, values 0 .. 255, to features. It is compiled, may be called
            inside `jit`, and treats each image alone, so a batch sharded over devices gives sharded features.
    """

    name: str
    apply: Callable[[UInt8[Array, "b h w c"]], Features]


def bind(features: Callable[[Any, Array], Features], params: Any) -> Callable[[Array], Features]:
    """`features` compiled, with its parameters bound as a pytree, so that an outer `jit` has no large constants."""

    @jax.jit
    def exact(params: Any, images: UInt8[Array, "b h w c"]) -> Features:
        with jax.default_matmul_precision("highest"):  # accelerators would round, which changes the metrics
            return features(params, images)

    return jax.tree_util.Partial(exact, params)


def rgb(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
    """8-bit images as float32 in 0 .. 255, grey images as three equal channels.

    Raises:
        InputError: for another type than uint8, or another number of channels than 1 and 3.
    """
    require(images.dtype == jnp.uint8, f"images of {images.dtype} have no features; give uint8, 0 .. 255")
    channels = images.shape[-1]
    require(channels in (1, 3), f"images of {channels} channels have no features; give 1 (grey) or 3 (RGB)")
    return jnp.broadcast_to(images.astype(jnp.float32), (*images.shape[:-1], 3))
