"""What a network is given: nulls for what is absent, and the pictures that it sees beside x."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from guided_diffusion_jax.models.signals import Conditioned, listed
from guided_diffusion_jax.typing import Conditions, Images


def filled(network: Conditioned, conditions: Conditions, x: Images) -> Conditions:
    """The conditions with the null, for all samples, of each kind that the network takes and that is None."""
    b, h, w, _ = x.shape
    nulls = {}
    if network.num_classes:
        nulls["label"] = jnp.full(b, network.num_classes, jnp.int32)
    if network.attribute_sizes:
        nulls["attributes"] = jnp.zeros((b, len(network.attribute_sizes)), jnp.int32)
    if network.text is not None:
        nulls["text"] = network.text.null(b)
    if network.style is not None:
        nulls["style"] = network.style.null(b)
    if network.map_channels:
        nulls["map"] = jnp.zeros((b, h, w, network.map_channels))
    if network.known_channels:
        nulls["known"] = jnp.zeros((b, h, w, network.known_channels))
    absent = {kind: null for kind, null in nulls.items() if getattr(conditions, kind) is None}
    return dataclasses.replace(conditions, **absent)


def with_pictures(network: Conditioned, conditions: Conditions, x: Images) -> Float[Array, "b h w d"]:
    """X beside the map, where `inject` does not name it, and beside the known picture and 1 where it is known, else 0.

    The conditions must be `filled`.
    """
    beside = [x]
    if network.map_channels and not listed(network, "map"):
        beside.append(resized(conditions.map, *x.shape[1:3]))
    if network.known_channels:
        known = conditions.known
        beside += [known, jnp.any(known != 0, axis=-1, keepdims=True).astype(known.dtype)]
    return jnp.concatenate(beside, axis=-1) if len(beside) > 1 else x


def enlarged(picture: Images, height: int, width: int) -> Float[Array, "b {height} {width} c"]:
    """Bilinear between the centres of pixels (half-pixel convention), without antialiasing: as ADM's upsampler does."""
    b, _, _, c = picture.shape
    return jax.image.resize(picture, (b, height, width, c), "bilinear", antialias=False)


def resized(picture: Images, height: int, width: int) -> Float[Array, "b {height} {width} c"]:
    """Larger as `enlarged`, smaller by a triangle filter as wide as the step, so that no pixel is lost."""
    b, _, _, c = picture.shape
    return jax.image.resize(picture, (b, height, width, c), "linear", antialias=True)
