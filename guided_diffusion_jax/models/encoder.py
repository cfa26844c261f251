"""A U-Net's first half, from the image to the middle. Classifiers and control branches are made of it as well."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.models.attention import SelfAttention
from guided_diffusion_jax.models.layers import ConvResampler, ResBlock, conv3x3
from guided_diffusion_jax.models.plan import Backbone, Stage, encoder_plan, middle_plan


class Block(nn.Module):
    """A residual block, followed by self-attention where the stage has heads.

    Attributes:
        stage: its line in the plan.
        injection: how the embedding enters.
        dropout: share of activations dropped in training.
        dtype: of convolutions and matmuls.
    """

    stage: Stage
    injection: str = "scale_shift"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b h w {self.stage.channels}"]:
        res = ResBlock(
            self.stage.channels, injection=self.injection, dropout=self.dropout, dtype=self.dtype, name="res"
        )
        h = res(x, emb, train=train)
        if self.stage.heads is not None:
            h = SelfAttention(self.stage.heads, dtype=self.dtype, name="attention")(h)
        return h


def make_block(backbone: Backbone, stage: Stage) -> nn.Module:
    """The module of a "block" stage."""
    return Block(stage, injection=backbone.injection, dropout=backbone.dropout, dtype=backbone.dtype, name=stage.name)


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
    backbone: Backbone, stage: Stage, h: Float[Array, "b h w c"], emb: Float[Array, "b e"], *, train: bool
) -> Float[Array, "b h2 w2 d"]:
    """Makes the stage's module inside the calling one and applies it, remembering only its input if `remat` is on."""

    def call(module: nn.Module, h: Array, emb: Array) -> Array:
        return module(h, emb, train=train)

    make = make_block if stage.kind == "block" else choose(RESAMPLERS, backbone.resample, "model.resample")
    return (nn.remat(call) if backbone.remat else call)(make(backbone, stage), h, emb)


class Encoder(Backbone):
    """The input convolution, the downward stages and the middle.

    The output of each stage before the middle is kept, in order: skip connections for a decoder, features for a
    classifier, and what a control branch adds to.
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b e"], *, train: bool
    ) -> tuple[Float[Array, "b h2 w2 d"], tuple[Float[Array, "b _ _ _"], ...]]:
        first, *stages = encoder_plan(self, x.shape[1])
        h = conv3x3(first.channels, dtype=self.dtype, name=first.name)(x)
        skips = [h]
        for stage in stages:
            h = run_stage(self, stage, h, emb, train=train)
            skips.append(h)
        for stage in middle_plan(self, x.shape[1]):
            h = run_stage(self, stage, h, emb, train=train)
        return h, tuple(skips)
