"""ADM's U-Net (Dhariwal & Nichol 2021), with its numbers when given its weights (see `interop.adm`)."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.models.checks import check_backbone, check_conditions, check_whole
from guided_diffusion_jax.models.embeddings import Embedding
from guided_diffusion_jax.models.encoder import Encoder, run_stage
from guided_diffusion_jax.models.inputs import filled, with_pictures
from guided_diffusion_jax.models.layers import GroupNorm, conv3x3
from guided_diffusion_jax.models.plan import Backbone, decoder_plan, shared_settings
from guided_diffusion_jax.models.signals import Conditioned, Signals
from guided_diffusion_jax.typing import Conditions


class Encoded(NamedTuple):
    """What the first half of a U-Net hands to the second.

    Attributes:
        h: the middle's output.
        skips: the output of each stage of the encoder, in order.
        signals: what the blocks at each height are told.
    """

    h: Float[Array, "b h w c"]
    skips: tuple[Float[Array, "b _ _ _"], ...]
    signals: Signals


class Decoder(Backbone):
    """From the middle and the skips back to an image of `out_channels`, float32; zero at initialisation."""

    out_channels: int = 3

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b h w c"],
        skips: tuple[Float[Array, "b _ _ _"], ...],
        signals: Signals,
        *,
        train: bool,
    ) -> Float[Array, "b h2 w2 {self.out_channels}"]:
        left = list(skips)
        for stage in decoder_plan(self, skips[0].shape[1]):
            if stage.kind == "block":
                h = jnp.concatenate([h, left.pop()], axis=-1)
            h = run_stage(self, stage, h, signals, train=train)
        h = nn.silu(GroupNorm(name="output_norm")(h))
        zeros = nn.initializers.zeros
        return conv3x3(self.out_channels, dtype=self.dtype, kernel_init=zeros, name="output_conv")(h).astype(
            jnp.float32
        )


class UNet(Conditioned):
    """A U-Net of residual blocks and self-attention that is told the time and the conditions that it takes.

    Attributes:
        out_channels: of the output; twice the image's for a learned variance.

    The others are `Conditioned`'s and `Backbone`'s. `check` tells whether settings can work for a size of images.
    """

    out_channels: int = 3

    def setup(self) -> None:
        """Three parts, so that `encode` and `decode` can be had apart."""
        self.embedding = Embedding(**shared_settings(self, Conditioned))
        self.encoder = Encoder(**shared_settings(self))
        self.decoder = Decoder(out_channels=self.out_channels, **shared_settings(self))

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"] | Int[Array, " b"],
        conditions: Conditions,
        *,
        train: bool = False,
    ) -> Float[Array, "b h w {self.out_channels}"]:
        """The network's raw output, float32. `train` turns dropout on, which needs the random stream "dropout"."""
        return self.decode(self.encode(x, time, conditions, train=train), train=train)

    def encode(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"] | Int[Array, " b"],
        conditions: Conditions,
        *,
        train: bool = False,
    ) -> Encoded:
        """The first half; what it gives may be added to before it goes to `decode`."""
        conditions = filled(self, conditions, x)
        signals = self.embedding(time, conditions, x.shape[1])
        h, skips = self.encoder(with_pictures(self, conditions, x), signals, train=train)
        return Encoded(h, skips, signals)

    def decode(self, encoded: Encoded, *, train: bool = False) -> Float[Array, "b h w {self.out_channels}"]:
        """The second half."""
        return self.decoder(*encoded, train=train)


def check(unet: UNet, image_size: int) -> None:
    """Raises `InputError` for settings that cannot work with images of this height and width, before any compilation.

    >>> check(UNet(width=32, channel_mult=(1, 2, 2), head_width=16), 30)
    Traceback (most recent call last):
    guided_diffusion_jax.errors.InputError: data.image_size=30 is not divisible by 4, the U-Net's factor for 3 levels;
    use 28 or 32.
    """
    check_whole(unet.out_channels, "model.out_channels", least=1)
    check_backbone(unet, image_size)
    check_conditions(unet, image_size)
