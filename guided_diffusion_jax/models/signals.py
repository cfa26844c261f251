"""What the blocks of a network are told, and where: the conditions that it takes and the heights that they enter at."""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from guided_diffusion_jax.models.plan import Backbone, heights


class Tokens(NamedTuple):
    """What an encoder of sentences or pictures says. The first token is always there, so "nothing" is a value as well.

    Attributes:
        values: one vector a token.
        mask: False where there is no token; it has no influence then.
        pooled: one vector for the whole.
    """

    values: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    pooled: Float[Array, "b d"]


class Signal(NamedTuple):
    """What the blocks at one height of feature maps are told besides their input.

    Attributes:
        emb: time and conditions in one vector of 4 * width.
        tokens: what cross-attention looks at; None is no cross-attention.
        mask: of the tokens, as in `Tokens`.
        map: features of what shall be where, as large as the block's input; None is no map.
    """

    emb: Float[Array, "b e"]
    tokens: Float[Array, "b n d"] | None = None
    mask: Bool[Array, "b n"] | None = None
    map: Float[Array, "b h w m"] | None = None


Signals = Mapping[int, Signal]
"""One signal for each height of feature maps, in pixels."""

KINDS = ("label", "attributes", "text", "style", "map")
"""The kinds of conditions that `inject` may name."""


class Conditioned(Backbone):
    """A backbone and the kinds of conditions that it takes.

    Where a kind enters: as a part of the blocks' vector (label, attributes, text, style), by cross-attention (text,
    style) or as features added to the blocks' inputs (map). A kind that `inject` names does so in the blocks of exactly
    those heights. One that it does not name has its default place: the vector everywhere, cross-attention at
    `attention_resolutions` and the smallest height, and a map beside the network's input.

    Attributes:
        num_classes: 0 is no label; labels are 0 .. num_classes - 1 and the null is num_classes.
        attribute_sizes: for each attribute its number of values; () is no attributes.
        text: an encoder of `models.text`; None is no text.
        style: an `ImageEncoder`; None is no style.
        map_channels: of the map; 0 is no map.
        known_channels: of the picture to be completed, which enters beside the network's input; 0 is none.
        inject: pairs of a height in pixels and the kinds that enter there, such as ((16, ("map",)), (8, ("text",))).
        fusion: how the time's vector and the sum of the others are joined, "add" or "concat".
    """

    num_classes: int = 0
    attribute_sizes: tuple[int, ...] = ()
    text: nn.Module | None = None
    style: nn.Module | None = None
    map_channels: int = 0
    known_channels: int = 0
    inject: tuple[tuple[int, tuple[str, ...]], ...] = ()
    fusion: str = "add"


def encoders(network: Conditioned) -> dict[str, nn.Module]:
    """The encoders that the network has, by kind."""
    both = {"text": network.text, "style": network.style}
    return {kind: encoder for kind, encoder in both.items() if encoder is not None}


def taken(network: Conditioned) -> tuple[str, ...]:
    """Those of `KINDS` that the network takes."""
    takes = (network.num_classes, network.attribute_sizes, network.text, network.style, network.map_channels)
    return tuple(kind for kind, value in zip(KINDS, takes, strict=True) if value)


def listed(network: Conditioned, kind: str) -> tuple[int, ...]:
    """The heights that `inject` names for a kind; none is its default place."""
    return tuple(pixels for pixels, kinds in network.inject if kind in kinds)


def vector_heights(network: Conditioned, kind: str, image_size: int) -> tuple[int, ...]:
    """Where a kind is part of the vector."""
    return listed(network, kind) or heights(network, image_size)


def token_heights(network: Conditioned, kind: str, image_size: int) -> tuple[int, ...]:
    """Where a kind is looked at by cross-attention."""
    every = heights(network, image_size)
    attending = tuple(pixels for pixels in every if pixels in network.attention_resolutions or pixels == every[-1])
    return listed(network, kind) or attending
