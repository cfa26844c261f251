"""A U-Net's first half, from the image to the middle. Classifiers and control branches are made of it as well."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.models.attention import CrossAttention, SelfAttention
from guided_diffusion_jax.models.layers import ConvResampler, ResBlock, conv3x3, dense
from guided_diffusion_jax.models.plan import Backbone, Stage, encoder_plan, heads, middle_plan
from guided_diffusion_jax.models.signals import Signal, Signals


class Block(nn.Module):
    """A residual block, then self-attention where the stage has heads, then cross-attention where there are tokens.

    A map's features come in before it all, by a matrix that is zero at first.

    Attributes:
        stage: its line in the plan.
        cross_heads: of the cross-attention.
        injection: how the embedding enters.
        dropout: share of activations dropped in training.
        dtype: of convolutions and matmuls.
    """

    stage: Stage
    cross_heads: int = 1
    injection: str = "scale_shift"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], signal: Signal, *, train: bool
    ) -> Float[Array, "b h w {self.stage.channels}"]:
        if signal.map is not None:
            zeros = nn.initializers.zeros
            x = x + dense(x.shape[-1], dtype=self.dtype, kernel_init=zeros, name="map")(signal.map)
        res = ResBlock(
            self.stage.channels, injection=self.injection, dropout=self.dropout, dtype=self.dtype, name="res"
        )
        h = res(x, signal.emb, train=train)
        if self.stage.heads is not None:
            h = SelfAttention(self.stage.heads, dtype=self.dtype, name="attention")(h)
        if signal.tokens is not None and signal.mask is not None:
            cross = CrossAttention(self.cross_heads, dtype=self.dtype, name="cross_attention")
            h = cross(h, signal.tokens, signal.mask)
        return h


def make_block(backbone: Backbone, stage: Stage) -> nn.Module:
    """The module of a "block" stage."""
    return Block(
        stage,
        heads(backbone, stage.channels),
        injection=backbone.injection,
        dropout=backbone.dropout,
        dtype=backbone.dtype,
        name=stage.name,
    )


def make_conv_resampler(backbone: Backbone, stage: Stage) -> nn.Module:
    """A convolution that changes the size."""
    return ConvResampler(stage.channels, stage.kind, dtype=backbone.dtype, name=stage.name)


def make_block_resampler(backbone: Backbone, stage: Stage) -> nn.Module:
    """A residual block that changes the size, as in BigGAN."""
    return ResBlock(
        stage.channels,
        stage.kind,
        injection=backbone.injection,
        dropout=backbone.dropout,
        dtype=backbone.dtype,
        name=stage.name,
    )


RESAMPLERS: dict[str, Callable[[Backbone, Stage], nn.Module]] = {
    "conv": make_conv_resampler,
    "block": make_block_resampler,
}
"""Choices of `model.resample`: what changes the size between two levels."""


def run_stage(
    backbone: Backbone, stage: Stage, h: Float[Array, "b h w c"], signals: Signals, *, train: bool
) -> Float[Array, "b h2 w2 d"]:
    """Makes the stage's module inside the calling one and applies it, remembering only its input if `remat` is on.

    It is told the signal of its output's height: all of it if it is a block, the vector if it changes the size.
    """

    def call(module: nn.Module, h: Array, told: Signal | Array) -> Array:
        return module(h, told, train=train)

    run = nn.remat(call) if backbone.remat else call
    signal = signals[stage.pixels]
    if stage.kind == "block":
        return run(make_block(backbone, stage), h, signal)
    return run(choose(RESAMPLERS, backbone.resample, "model.resample")(backbone, stage), h, signal.emb)


class Encoder(Backbone):
    """The input convolution, the downward stages and the middle.

    The output of each stage before the middle is kept, in order: skip connections for a decoder, features for a
    classifier, and what a control branch adds to.
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        signals: Signals,
        *,
        train: bool,
        hint: Float[Array, "b h w d"] | None = None,
    ) -> tuple[Float[Array, "b h2 w2 e"], tuple[Float[Array, "b _ _ _"], ...]]:
        """The middle's output and the skips. A hint is added to the input convolution's output."""
        first, *stages = encoder_plan(self, x.shape[1])
        h = conv3x3(first.channels, dtype=self.dtype, name=first.name)(x)
        if hint is not None:
            h = h + hint
        skips = [h]
        for stage in stages:
            h = run_stage(self, stage, h, signals, train=train)
            skips.append(h)
        for stage in middle_plan(self, x.shape[1]):
            h = run_stage(self, stage, h, signals, train=train)
        return h, tuple(skips)
