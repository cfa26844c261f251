"""Settings and stages of a U-Net: the modules are built from this plan and the converters walk along it."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclasses.dataclass(unsafe_hash=True)
class Backbone:
    """Settings that U-Nets and classifiers have in common.

    Attributes:
        width: channels at multiplier 1; the embeddings have 4 * width.
        channel_mult: each level's multiple of `width`; a level has half the size of the one before.
        num_res_blocks: residual blocks a level (the decoder has one more).
        attention_resolutions: heights of the feature maps, in pixels, whose blocks have self-attention. The middle always
            has it.
        head_width: channels of an attention head; 0 means `num_heads` heads, whatever their width.
        num_heads: used where `head_width` is 0.
        dropout: share of activations that a residual block drops in training.
        time_injection: how the embedding enters a block, "scale_shift" or "add".
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
    time_injection: str = "scale_shift"
    resample: str = "block"
    dtype: DTypeLike = jnp.float32
    remat: bool = False


@dataclasses.dataclass(unsafe_hash=True)
class UNetSettings(Backbone):
    """Settings of a U-Net: a backbone and the conditions that it takes.

    A condition's encoding enters as a part of the blocks' vector (label, attributes, text, reference_image), by
    cross-attention (text, reference_image) or as features added to the blocks' inputs (control_image). One that
    `condition_resolutions` names does so in the blocks of exactly those resolutions. By default a vector enters
    everywhere, cross-attention is at `attention_resolutions` and the lowest resolution, and a control image enters
    beside the network's input.

    Attributes:
        num_classes: 0 is no label; labels are 0 .. num_classes - 1 and the null is num_classes.
        attribute_sizes: for each attribute its number of values; () is no attributes.
        text: an encoder of `models.text`; None is no text.
        reference: an `ImageEncoder`; None is no reference image.
        control_channels: of the control image; 0 is none.
        masked_channels: of the masked image, which enters beside the network's input; 0 is none.
        condition_resolutions: pairs of a condition and resolutions, such as (("control_image", (16,)), ("text", (8,))).
        class_fusion: how the time's vector and the sum of the conditions' are joined, "add" or "concat".
        extra: settings of condition types registered from outside, such as (("hue", True),).
    """

    num_classes: int = 0
    attribute_sizes: tuple[int, ...] = ()
    text: nn.Module | None = None
    reference: nn.Module | None = None
    control_channels: int = 0
    masked_channels: int = 0
    condition_resolutions: tuple[tuple[str, tuple[int, ...]], ...] = ()
    class_fusion: str = "add"
    extra: tuple[tuple[str, Any], ...] = ()


S = TypeVar("S", bound=Backbone)


def settings_of(module: Any, kind: type[S]) -> S:
    """A module's settings of this kind alone, to be shared by its parts."""
    return kind(**{field.name: getattr(module, field.name) for field in dataclasses.fields(kind)})


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


def level_channels(backbone: Backbone) -> tuple[int, ...]:
    """Channels of each level, as whole numbers."""
    return tuple(int(mult * backbone.width) for mult in backbone.channel_mult)


def heads(backbone: Backbone, channels: int) -> int:
    """Attention heads for this many channels."""
    return channels // backbone.head_width if backbone.head_width else backbone.num_heads


def resolutions(backbone: Backbone, image_size: int) -> tuple[int, ...]:
    """Heights of the feature maps in pixels, one a level, from the largest to the smallest."""
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
