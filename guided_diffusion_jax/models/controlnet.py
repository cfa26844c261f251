"""ControlNet (Zhang et al. 2023): a branch beside a trained U-Net that learns to follow a control image."""

import dataclasses
import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int

from guided_diffusion_jax.conditions import condition_specs, fill_nulls
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.models.checks import check_whole
from guided_diffusion_jax.models.conditioner import Conditioner
from guided_diffusion_jax.models.encoder import Encoder
from guided_diffusion_jax.models.layers import conv3x3, dense
from guided_diffusion_jax.models.placement import Conditioning, Placement, resize
from guided_diffusion_jax.models.plan import Backbone, UNetSettings, encoder_plan, level_channels, settings_of
from guided_diffusion_jax.models.unet import Skips, UNet
from guided_diffusion_jax.typing import Conditions, Params

ZEROS = nn.initializers.zeros


class ControlBranch(nn.Module):
    """A second encoder that also sees the control image; a matrix that is zero at first follows each of its outputs."""

    settings: Backbone

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        conditioning: Conditioning,
        control_image: Float[Array, "b h2 w2 m"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "b h3 w3 d"], Skips]:
        """Summands for the middle's output and for the skips of the other encoder."""
        net = self.settings
        h = resize(control_image, *x.shape[1:3])
        for i in range(2):
            h = nn.silu(conv3x3(net.width, dtype=net.dtype, name=f"hint_{i}")(h))
        hint = conv3x3(level_channels(net)[0], dtype=net.dtype, kernel_init=ZEROS, name="hint_out")(h)
        middle, skips = Encoder(net, name="encoder")(x, conditioning, train=train, hint=hint)

        def project(h: Array, name: str) -> Array:
            return dense(h.shape[-1], dtype=net.dtype, kernel_init=ZEROS, name=name)(h)

        return project(middle, "middle"), tuple(project(skip, f"skip_{i}") for i, skip in enumerate(skips))


class HintEncoder(nn.Module):
    """A control image to features of the latents' size: a convolution, then two a step, the second halving the size.

    The last convolution is zero at first (Zhang et al. 2023, section 3.3).

    Attributes:
        channels: of the first convolution, and after each step.
        features: of the output.
        dtype: of the convolutions.
    """

    channels: tuple[int, ...]
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w m"]) -> Float[Array, "b h2 w2 {self.features}"]:
        h = nn.silu(conv3x3(self.channels[0], dtype=self.dtype, name="input_conv")(image))
        for i, (before, after) in enumerate(itertools.pairwise(self.channels)):
            h = nn.silu(conv3x3(before, dtype=self.dtype, name=f"conv_{2 * i}")(h))
            h = nn.silu(conv3x3(after, dtype=self.dtype, stride=2, name=f"conv_{2 * i + 1}")(h))
        return conv3x3(self.features, dtype=self.dtype, kernel_init=ZEROS, name="output_conv")(h)


class ControlNetModel(nn.Module, UNetSettings):
    """A ControlNet apart from the U-Net that it steers, with a conditioner of its own, as for latent diffusion.

    It gives what `UNet` takes as `added`. Those of several are summed.

    Attributes:
        hint_channels: of its `HintEncoder`, which halves the control image for each beyond the first.
        image_channels: of the control image, whose values lie in [0, 1].

    The others are those of `UNetSettings`.
    """

    hint_channels: tuple[int, ...] = (16, 32, 96, 256)
    image_channels: int = 3

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"] | Int[Array, " b"],
        conditions: Conditions,
        control_image: Float[Array, "b h2 w2 m"],
        *,
        scale: Float[ArrayLike, "..."] = 1.0,
        train: bool = False,
    ) -> tuple[Float[Array, "b h3 w3 d"], Skips]:
        """Summands for the middle's output and the skips.

        They are times `scale`: a number, or `[n]`, one for each, the middle last, or `[b n]`.
        """
        net = settings_of(self, UNetSettings)
        given = fill_nulls(conditions, condition_specs(net, (x.shape[1], x.shape[2], x.shape[3])), x.shape[0])
        emb, encodings = Conditioner(net, name="embedding")(time, given)
        conditioning = Placement(net, name="placement")(emb, encodings, x.shape[1])
        hint = HintEncoder(self.hint_channels, level_channels(net)[0], net.dtype, name="hint")(control_image)
        middle, skips = Encoder(net, name="encoder")(x, conditioning, train=train, hint=hint)
        scales = jnp.asarray(scale, jnp.float32)
        scales = jnp.broadcast_to(scales, (*scales.shape[:-1], len(skips) + 1))[..., None, None, None]

        def project(h: Array, name: str, i: int) -> Array:
            return dense(h.shape[-1], dtype=net.dtype, kernel_init=ZEROS, name=name)(h) * scales[
                ..., i, :, :, :
            ].astype(h.dtype)

        added = tuple(project(skip, f"skip_{i}", i) for i, skip in enumerate(skips))
        return project(middle, "middle", -1), added

    @property
    def summands(self) -> int:
        """How many summands there are."""
        return len(list(encoder_plan(self, 1 << (len(self.channel_mult) - 1)))) + 1

    @property
    def factor(self) -> int:
        """Pixels of the control image for a latent, in height and in width."""
        return 2 ** (len(self.hint_channels) - 1)


def controlnet_of(unet: UNet, **options: Any) -> ControlNetModel:
    """A ControlNet with the settings of the latents' U-Net that it steers; `options` are its own."""
    fields = dataclasses.asdict(settings_of(unet, Backbone)) | {"text": unet.text, "text_time": unet.text_time}
    return ControlNetModel(**fields, **options)


class ControlledUNet(nn.Module):
    """A U-Net of latent diffusion and its ControlNets, whose summands are added up.

    Beside the U-Net's conditions it takes "control_hints" `[b k h w c]` in [0, 1], an image for each ControlNet,
    "control_scales" `[b k n]` of its summands, and "control_times" `[b k 2]`, first and last time at which it acts.

    Attributes:
        unet: the U-Net.
        controlnets: of the same kind of latents and text; all their control images have one size.
    """

    unet: UNet
    controlnets: tuple[ControlNetModel, ...]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"] | Int[Array, " b"],
        conditions: Conditions,
        *,
        train: bool = False,
    ) -> Float[Array, "b h w d"]:
        """The U-Net's raw output, float32."""
        hints, scales, times = (jnp.asarray(conditions[f"control_{name}"]) for name in ("hints", "scales", "times"))
        added = []
        for i, net in enumerate(self.controlnets):
            acts = (times[:, i, 0] <= time) & (time <= times[:, i, 1])
            added.append(net(x, time, conditions, hints[:, i], scale=scales[:, i] * acts[:, None], train=train))
        together = jax.tree.map(lambda *summands: functools.reduce(jnp.add, summands), *added)
        return self.unet(x, time, conditions, train=train, added=together)

    @nn.nowrap
    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `InputError` for settings that cannot work with latents `(h, w, c)`."""
        require(
            len({(net.factor, net.image_channels, net.summands) for net in self.controlnets}) == 1,
            "the ControlNets have control images of different sizes or channels; use those of one base model",
        )
        self.unet.check(image_shape)


def guess_scales(count: int, scale: Float[ArrayLike, ""] = 1.0) -> Float[Array, " {count}"]:
    """Scales that grow from a tenth to all towards the middle, for control without a prompt ("guess mode")."""
    return jnp.asarray(scale) * jnp.logspace(-1, 0, count)


class ControlNet(nn.Module):
    """A U-Net and a branch that adds to its skips and its middle what a control image asks for.

    A fresh branch adds nothing, and no branch adds anything to a sample without a control image: the output is the
    U-Net's then. The branch gets the U-Net's conditioning, so that its other conditions work as before. To train it,
    begin with `branch_from` and keep the U-Net's parameters, "unet", as they are; the branch's are "controlnet".

    Attributes:
        unet: the U-Net; it takes no control image itself.
        control_channels: of the control image.
    """

    unet: UNet
    control_channels: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"] | Int[Array, " b"],
        conditions: Conditions,
        *,
        train: bool = False,
    ) -> Float[Array, "b h w d"]:
        """The U-Net's raw output, float32, with the branch's summands."""
        image = conditions.get("control_image")
        image = jnp.zeros((*x.shape[:3], self.control_channels)) if image is None else jnp.asarray(image)
        x, conditioning = self.unet.condition(x, time, conditions)
        middle, skips = self.unet.encoder(x, conditioning, train=train)
        branch = ControlBranch(settings_of(self.unet, Backbone), name="controlnet")
        added = branch(x, conditioning, image, train=train)
        present = jnp.any(image != 0, axis=(1, 2, 3))[:, None, None, None]
        h, skips = jax.tree.map(lambda own, more: own + more * present.astype(more.dtype), (middle, skips), added)
        return self.unet.decoder(h, skips, conditioning, train=train)

    @nn.nowrap
    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `InputError` for settings that cannot work with images `(h, w, c)`, before any compilation.

        >>> ControlNet(UNet(width=32, head_width=16, control_channels=1), control_channels=1).check((32, 32, 3))
        Traceback (most recent call last):
        guided_diffusion_jax.errors.InputError: model.control_channels=1 of the U-Net, but the control image is the
        branch's; use 0.
        """
        check_whole(self.control_channels, "model.control_channels", least=1)
        channels = self.unet.control_channels
        require(
            channels == 0,
            f"model.control_channels={channels} of the U-Net, but the control image is the branch's; use 0.",
        )
        self.unet.check(image_shape)


def branch_from(base: Params, branch: Params) -> Params:
    """A branch's parameters with its encoder a copy of a trained U-Net's, where its training begins.

    Args:
        base: the U-Net's parameters.
        branch: the branch's, fresh.
    """
    return {**branch, "encoder": jax.tree.map(jnp.array, base["encoder"])}
