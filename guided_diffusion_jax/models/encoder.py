"""A U-Net's first half, from the image to the middle. Classifiers and control branches are made of it as well."""

import functools
from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.models.attention import CrossAttention, SelfAttention
from guided_diffusion_jax.models.layers import ConvResampler, GroupNorm, ResBlock, conv3x3, dense
from guided_diffusion_jax.models.placement import BlockConditioning, Conditioning
from guided_diffusion_jax.models.plan import Backbone, Stage, encoder_plan, heads, middle_plan
from guided_diffusion_jax.models.transformer import SpatialTransformer


class Block(nn.Module):
    """A residual block, then self-attention where the stage has heads, then cross-attention where there are tokens.

    In a network of spatial transformers, one of them does both where the stage has a depth, and else there is none.
    Features of a map are added to its input first, by a matrix that is zero at first.

    Attributes:
        settings: of the network.
        stage: its line in the plan.
    """

    settings: Backbone
    stage: Stage

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], conditioning: BlockConditioning, *, train: bool
    ) -> Float[Array, "b h w {self.stage.channels}"]:
        dtype = self.settings.dtype
        if conditioning.map is not None:
            x = x + dense(x.shape[-1], dtype=dtype, kernel_init=nn.initializers.zeros, name="map")(conditioning.map)
        h = res_block(self.settings, self.stage, "same", name="res")(x, conditioning.vector, train=train)
        tokens, mask, norm = conditioning.tokens, conditioning.mask, norm_of(self.settings)
        if self.stage.depth and self.stage.heads is not None:
            transformer = SpatialTransformer(
                self.stage.depth, self.stage.heads, self.settings.norm_groups, dtype, name="transformer"
            )
            return transformer(h, tokens, mask)
        if self.stage.heads is not None:
            h = SelfAttention(self.stage.heads, norm, dtype, name="attention")(h)
        if tokens is not None and not self.settings.transformer_depth:
            cross = CrossAttention(heads(self.settings, self.stage.level), norm, dtype, name="cross_attention")
            h = cross(h, tokens, mask)
        return h


def norm_of(settings: Backbone) -> Callable[..., GroupNorm]:
    """The group normalisation of a network."""
    return functools.partial(GroupNorm, settings.norm_groups, settings.norm_eps)


def res_block(settings: Backbone, stage: Stage, direction: str, *, name: str) -> ResBlock:
    """A residual block; up or down, as in BigGAN, it changes the size."""
    return ResBlock(
        stage.channels,
        direction,
        settings.time_injection,
        settings.dropout,
        norm_of(settings),
        settings.dtype,
        name=name,
    )


def _conv_resampler(settings: Backbone, stage: Stage) -> nn.Module:
    return ConvResampler(stage.channels, stage.kind, dtype=settings.dtype, name=stage.name)


def _same_resampler(settings: Backbone, stage: Stage) -> nn.Module:
    return ConvResampler(stage.channels, stage.kind, (0, 1), settings.dtype, name=stage.name)


def _block_resampler(settings: Backbone, stage: Stage) -> nn.Module:
    return res_block(settings, stage, stage.kind, name=stage.name)


RESAMPLERS: dict[str, Callable[[Backbone, Stage], nn.Module]] = {
    "conv": _conv_resampler,
    "block": _block_resampler,
    "conv_same": _same_resampler,
}
"""Choices of `model.resample`: what changes the size between two levels."""


def run_stage(
    settings: Backbone, stage: Stage, h: Float[Array, "b h w c"], conditioning: Conditioning, *, train: bool
) -> Float[Array, "b h2 w2 d"]:
    """Makes the stage's module inside the calling one and applies it, remembering only its input if `remat` is on.

    A block gets the conditioning of its output's resolution, what changes the size only the vector of it.
    """

    def call(module: nn.Module, h: Array, conditioning: BlockConditioning | Array | None) -> Array:
        return module(h, conditioning, train=train)

    run = nn.remat(call) if settings.remat else call
    given = conditioning[stage.pixels]
    if stage.kind == "block":
        return run(Block(settings, stage, name=stage.name), h, given)
    return run(choose(RESAMPLERS, settings.resample, "model.resample")(settings, stage), h, given.vector)


class Encoder(nn.Module):
    """The input convolution, the downward stages and the middle.

    The output of each stage before the middle is kept, in order: skip connections for a decoder, features for a
    classifier, and what a control branch adds to.
    """

    settings: Backbone

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        conditioning: Conditioning,
        *,
        train: bool,
        hint: Float[Array, "b h w d"] | None = None,
    ) -> tuple[Float[Array, "b h2 w2 e"], tuple[Float[Array, "b _ _ _"], ...]]:
        """The middle's output and the skips. A hint is added to the input convolution's output."""
        first, *stages = encoder_plan(self.settings, x.shape[1])
        h = conv3x3(first.channels, dtype=self.settings.dtype, name=first.name)(x)
        if hint is not None:
            h = h + hint
        skips = [h]
        for stage in stages:
            h = run_stage(self.settings, stage, h, conditioning, train=train)
            skips.append(h)
        for stage in middle_plan(self.settings, x.shape[1]):
            h = run_stage(self.settings, stage, h, conditioning, train=train)
        return h, tuple(skips)
