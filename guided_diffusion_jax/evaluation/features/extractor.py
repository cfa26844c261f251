"""What every feature extractor is: a function from 8-bit pictures to the numbers that metrics compare."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from guided_diffusion_jax.errors import require


class Features(NamedTuple):
    """What a network says of pictures, float32.

    Attributes:
        pool: `[b d]`, one vector a picture: for FID, KID, precision and recall.
        spatial: `[b s]`, a flattened map that knows where things are, for sFID; None where a network has none.
        logits: `[b k]` of its classes, for the inception score; None where a network has none.
    """

    pool: Float[Array, "b d"]
    spatial: Float[Array, "b s"] | None = None
    logits: Float[Array, "b k"] | None = None


class Extractor(NamedTuple):
    """A network that metrics can use.

    Attributes:
        name: of the network and its weights, for results to say which features their figures are in.
        apply: 8-bit pictures `[b h w 1]` or `[b h w 3]`, values 0 .. 255, to features. It is compiled, may be called
            inside `jit`, and treats each picture alone, so a batch sharded over devices gives features sharded as well.
    """

    name: str
    apply: Callable[[UInt8[Array, "b h w c"]], Features]


def rgb(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
    """8-bit pictures as float32 in 0 .. 255, grey ones as three equal channels.

    Raises:
        InputError: for another type than uint8, or another number of channels than 1 and 3.
    """
    require(
        images.dtype == jnp.uint8,
        f"pictures of {images.dtype} have no features; give uint8, 0 .. 255",
    )
    channels = images.shape[-1]
    require(channels in (1, 3), f"pictures of {channels} channels have no features; give 1 (grey) or 3 (RGB)")
    return jnp.broadcast_to(images.astype(jnp.float32), (*images.shape[:-1], 3))
