"""The stages of a U-Net, written once: the modules are built from this plan and the converters walk along it."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike


class Backbone(nn.Module):
    """The settings that a U-Net, its encoder, its decoder, a classifier and a control branch have in common.

    Attributes:
        width: channels at multiplier 1; the embeddings have 4 * width.
        channel_mult: each level's multiple of `width`; a level has half the size of the one before.
        num_res_blocks: residual blocks a level (the decoder has one more).
        attention_resolutions: heights of the feature maps, in pixels, whose blocks attend. The middle always does.
        head_width: channels of an attention head; 0 means `num_heads` heads, whatever their width.
        num_heads: used where `head_width` is 0.
        dropout: share of activations that a residual block drops in training.
        injection: how the embedding enters a block, "scale_shift" or "add".
        resample: what halves and doubles the size, "conv" or "block" (a residual block, as in BigGAN).
        dtype: of convolutions and matmuls; parameters, norms and softmax stay float32.
        remat: compute the blocks again in the backward pass instead of keeping their activations.
    """

    width: int = 128
    channel_mult: tuple[int | float, ...] = (1, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16, 8)
    head_width: int = 64
    num_heads: int = 4
    dropout: float = 0.0
    injection: str = "scale_shift"
    resample: str = "block"
    dtype: DTypeLike = jnp.float32
    remat: bool = False


class Stage(NamedTuple):
    """One stage.

    Attributes:
        name: of its module.
        kind: "conv" (the input's), "block", "down" or "up".
        channels: of its output.
        pixels: height of its output.
        heads: of the attention that follows a block; None is no attention.
    """

    name: str
    kind: str
    channels: int
    pixels: int
    heads: int | None = None


def setting_names(kind: type[nn.Module]) -> tuple[str, ...]:
    """The names of the fields that a kind of module has, Flax's own left out."""
    return tuple(field.name for field in dataclasses.fields(kind) if field.name not in ("parent", "name"))


SETTINGS = setting_names(Backbone)
"""The names of `Backbone`'s own fields."""


def shared_settings(module: nn.Module, kind: type[nn.Module] = Backbone) -> dict[str, Any]:
    """The fields of `kind` with this module's values, to make another module of the same make."""
    return {name: getattr(module, name) for name in setting_names(kind)}


def level_channels(backbone: Backbone) -> tuple[int, ...]:
    """Channels of each level, as whole numbers."""
    return tuple(int(mult * backbone.width) for mult in backbone.channel_mult)


def heads(backbone: Backbone, channels: int) -> int:
    """Attention heads for this many channels."""
    return channels // backbone.head_width if backbone.head_width else backbone.num_heads


def heights(backbone: Backbone, image_size: int) -> tuple[int, ...]:
    """Of the feature maps, one a level, in pixels, from the largest to the smallest."""
    return tuple(image_size >> level for level in range(len(backbone.channel_mult)))


def encoder_plan(backbone: Backbone, image_size: int) -> Iterator[Stage]:
    """From the image to the smallest map; the output of each of these stages is a skip connection."""
    channels = level_channels(backbone)
    yield Stage("input_conv", "conv", channels[0], image_size)
    for level, c in enumerate(channels):
        pixels = image_size >> level
        for i in range(backbone.num_res_blocks):
            yield Stage(f"down_{level}_{i}", "block", c, pixels, _heads_at(backbone, c, pixels))
        if level < len(channels) - 1:
            yield Stage(f"down_{level}_resample", "down", c, pixels // 2)


def middle_plan(backbone: Backbone, image_size: int) -> Iterator[Stage]:
    """Two blocks at the smallest map, the first always with attention."""
    c = level_channels(backbone)[-1]
    pixels = image_size >> (len(backbone.channel_mult) - 1)
    yield Stage("middle_0", "block", c, pixels, heads(backbone, c))
    yield Stage("middle_1", "block", c, pixels)


def decoder_plan(backbone: Backbone, image_size: int) -> Iterator[Stage]:
    """Back to the image's size; each "block" takes the last skip that is left, beside the current activation."""
    for level, c in reversed(list(enumerate(level_channels(backbone)))):
        pixels = image_size >> level
        for i in range(backbone.num_res_blocks + 1):
            yield Stage(f"up_{level}_{i}", "block", c, pixels, _heads_at(backbone, c, pixels))
        if level > 0:
            yield Stage(f"up_{level}_resample", "up", c, pixels * 2)


def _heads_at(backbone: Backbone, channels: int, pixels: int) -> int | None:
    return heads(backbone, channels) if pixels in backbone.attention_resolutions else None
