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
        attention_resolutions: heights of the feature maps, in pixels, with self-attention; the middle always has it.
        head_width: channels of an attention head; 0 means `num_heads` heads, whatever their width.
        num_heads: used where `head_width` is 0; one number for all levels, or one for each.
        transformer_depth: layers of the spatial transformer after each block, one number a level; then
            `attention_resolutions` is not used. () is self-attention and cross-attention of single layers, as in ADM.
        middle_depth: layers of the spatial transformer of the middle, where there are transformers.
        dropout: share of activations that a residual block drops in training.
        time_injection: how the embedding enters a block, "scale_shift" or "add".
        resample: what halves and doubles the size: "conv", "block" (a residual block, as in BigGAN) or "conv_same" (a
            convolution that pads on the far sides only where it halves).
        norm_groups: of the group normalisations.
        norm_eps: added to their variance.
        dtype: of convolutions and matmuls; parameters, norms and softmax stay float32.
        remat: compute the blocks again in the backward pass instead of keeping their activations.
    """

    width: int = 128
    channel_mult: tuple[int | float, ...] = (1, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16, 8)
    head_width: int = 64
    num_heads: int | tuple[int, ...] = 4
    transformer_depth: tuple[int, ...] = ()
    middle_depth: int = 0
    dropout: float = 0.0
    time_injection: str = "scale_shift"
    resample: str = "block"
    norm_groups: int = 32
    norm_eps: float = 1e-5
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
        text_time: a `TextTimeEmbedding` of pooled text and numbers (sizes); None is none.
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
    text_time: nn.Module | None = None
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
        level: 0 has the image's size.
        heads: of the attention that follows a block; None is no attention.
        depth: layers of the spatial transformer that follows a block instead; 0 is none.
    """

    name: str
    kind: str
    channels: int
    pixels: int
    level: int
    heads: int | None = None
    depth: int = 0


def level_channels(backbone: Backbone) -> tuple[int, ...]:
    """Channels of each level, as whole numbers."""
    # A multiple such as 40 / 24 may give a number just below a whole one.
    return tuple(int(mult * backbone.width + 1e-6) for mult in backbone.channel_mult)


def heads(backbone: Backbone, level: int) -> int:
    """Attention heads of a level."""
    if backbone.head_width:
        return level_channels(backbone)[level] // backbone.head_width
    return backbone.num_heads if isinstance(backbone.num_heads, int) else backbone.num_heads[level]


def resolutions(backbone: Backbone, image_size: int) -> tuple[int, ...]:
    """Heights of the feature maps in pixels, one a level, from the largest to the smallest."""
    return tuple(image_size >> level for level in range(len(backbone.channel_mult)))


def encoder_plan(backbone: Backbone, image_size: int) -> Iterator[Stage]:
    """From the image to the smallest map; the output of each of these stages is a skip connection."""
    channels = level_channels(backbone)
    yield Stage("input_conv", "conv", channels[0], image_size, 0)
    for level, c in enumerate(channels):
        pixels = image_size >> level
        for i in range(backbone.num_res_blocks):
            yield Stage(f"down_{level}_{i}", "block", c, pixels, level, *_attention_at(backbone, level, pixels))
        if level < len(channels) - 1:
            yield Stage(f"down_{level}_resample", "down", c, pixels // 2, level)


def middle_plan(backbone: Backbone, image_size: int) -> Iterator[Stage]:
    """Two blocks at the smallest map, the first always with attention."""
    level = len(backbone.channel_mult) - 1
    c, pixels = level_channels(backbone)[level], image_size >> level
    yield Stage("middle_0", "block", c, pixels, level, heads(backbone, level), backbone.middle_depth)
    yield Stage("middle_1", "block", c, pixels, level)


def decoder_plan(backbone: Backbone, image_size: int) -> Iterator[Stage]:
    """Back to the image's size; each "block" takes the last skip that is left, beside the current activation."""
    for level, c in reversed(list(enumerate(level_channels(backbone)))):
        pixels = image_size >> level
        for i in range(backbone.num_res_blocks + 1):
            yield Stage(f"up_{level}_{i}", "block", c, pixels, level, *_attention_at(backbone, level, pixels))
        if level > 0:
            yield Stage(f"up_{level}_resample", "up", c, pixels * 2, level)


def _attention_at(backbone: Backbone, level: int, pixels: int) -> tuple[int | None, int]:
    """Heads and depth of the attention of a level's blocks."""
    if backbone.transformer_depth:
        depth = backbone.transformer_depth[level]
        return heads(backbone, level) if depth else None, depth
    return heads(backbone, level) if pixels in backbone.attention_resolutions else None, 0
