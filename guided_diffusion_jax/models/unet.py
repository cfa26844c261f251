"""ADM's U-Net (Dhariwal & Nichol 2021), with its numbers when given its weights (see `interop.adm`)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.conditions import condition_specs, fill_nulls
from guided_diffusion_jax.models.checks import check_backbone, check_conditions, check_whole
from guided_diffusion_jax.models.conditioner import Conditioner
from guided_diffusion_jax.models.encoder import Encoder, norm_of, run_stage
from guided_diffusion_jax.models.layers import conv3x3
from guided_diffusion_jax.models.placement import Conditioning, Placement, beside_input
from guided_diffusion_jax.models.plan import Backbone, UNetSettings, decoder_plan, settings_of
from guided_diffusion_jax.typing import Conditions

Skips = tuple[Float[Array, "b _ _ _"], ...]
"""The output of each stage of an encoder, in order."""


class Decoder(nn.Module):
    """From the middle and the skips back to an image of `out_channels`, float32; zero at initialisation."""

    settings: Backbone
    out_channels: int

    @nn.compact
    def __call__(
        self, h: Float[Array, "b h w c"], skips: Skips, conditioning: Conditioning, *, train: bool
    ) -> Float[Array, "b h2 w2 {self.out_channels}"]:
        left = list(skips)
        for stage in decoder_plan(self.settings, skips[0].shape[1]):
            if stage.kind == "block":
                h = jnp.concatenate([h, left.pop()], axis=-1)
            h = run_stage(self.settings, stage, h, conditioning, train=train)
        h = nn.silu(norm_of(self.settings)(name="output_norm")(h))
        zeros, dtype = nn.initializers.zeros, self.settings.dtype
        return conv3x3(self.out_channels, dtype=dtype, kernel_init=zeros, name="output_conv")(h).astype(jnp.float32)


class UNet(nn.Module, UNetSettings):
    """A U-Net of residual blocks and self-attention, conditioned on the time and on what its settings say.

    Attributes:
        out_channels: of the output; twice the image's for a learned variance.

    The others are those of `UNetSettings` and `Backbone`.
    """

    out_channels: int = 3

    def setup(self) -> None:
        settings = settings_of(self, UNetSettings)
        self.embedding = Conditioner(settings)
        self.placement = Placement(settings)
        self.encoder = Encoder(settings)
        self.decoder = Decoder(settings, self.out_channels)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"] | Int[Array, " b"],
        conditions: Conditions,
        *,
        train: bool = False,
        added: tuple[Float[Array, "b _ _ _"], Skips] | None = None,
    ) -> Float[Array, "b h w {self.out_channels}"]:
        """The network's raw output, float32. `train` turns dropout on, which needs the random stream "dropout".

        `added` are summands for the middle's output and for the skips, as a `ControlNetModel` gives.
        """
        x, conditioning = self.condition(x, time, conditions)
        h, skips = self.encoder(x, conditioning, train=train)
        if added is not None:
            h, skips = jax.tree.map(jnp.add, (h, skips), added)
        return self.decoder(h, skips, conditioning, train=train)

    def condition(
        self, x: Float[Array, "b h w c"], time: Float[Array, " b"] | Int[Array, " b"], conditions: Conditions
    ) -> tuple[Float[Array, "b h w d"], Conditioning]:
        """The encoder's input and the conditioning of the blocks."""
        settings = settings_of(self, UNetSettings)
        given = fill_nulls(conditions, condition_specs(settings, (x.shape[1], x.shape[2], x.shape[3])), x.shape[0])
        emb, encodings = self.embedding(time, given)
        return beside_input(settings, x, given, encodings), self.placement(emb, encodings, x.shape[1])

    @nn.nowrap
    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `InputError` for settings that cannot work with images `(h, w, c)`, before any compilation.

        >>> UNet(width=32, channel_mult=(1, 2, 2), head_width=16).check((30, 30, 3))
        Traceback (most recent call last):
        guided_diffusion_jax.errors.InputError: data.image_size=30 is not divisible by 4, the U-Net's factor for 3
        levels; use 28 or 32.
        """
        check_whole(self.out_channels, "model.out_channels", least=1)
        check_backbone(self, image_shape)
        check_conditions(self, image_shape)
