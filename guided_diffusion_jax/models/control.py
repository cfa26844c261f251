"""ControlNet (Zhang et al. 2023): a branch beside a trained U-Net that learns to obey a map and begins as nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.models import unet as unets
from guided_diffusion_jax.models.checks import check_whole
from guided_diffusion_jax.models.encoder import Encoder
from guided_diffusion_jax.models.inputs import filled, resized, with_pictures
from guided_diffusion_jax.models.layers import conv3x3, dense
from guided_diffusion_jax.models.plan import Backbone, level_channels, shared_settings
from guided_diffusion_jax.models.signals import Signals
from guided_diffusion_jax.models.unet import Encoded, UNet
from guided_diffusion_jax.typing import Conditions, Params

ZEROS = nn.initializers.zeros


class Branch(Backbone):
    """A second encoder that also sees the map; a matrix that is zero at first follows each of its outputs."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], signals: Signals, picture: Float[Array, "b h2 w2 m"], *, train: bool
    ) -> tuple[Float[Array, "b h3 w3 d"], tuple[Float[Array, "b _ _ _"], ...]]:
        """What is to be added to the middle's output and to the skips of the other encoder."""
        h = resized(picture, *x.shape[1:3])
        for i in range(2):
            h = nn.silu(conv3x3(self.width, dtype=self.dtype, name=f"hint_{i}")(h))
        hint = conv3x3(level_channels(self)[0], dtype=self.dtype, kernel_init=ZEROS, name="hint_out")(h)
        middle, skips = Encoder(**shared_settings(self), name="encoder")(x, signals, train=train, hint=hint)

        def project(h: Array, name: str) -> Array:
            return dense(h.shape[-1], dtype=self.dtype, kernel_init=ZEROS, name=name)(h)

        return project(middle, "middle"), tuple(project(skip, f"skip_{i}") for i, skip in enumerate(skips))


class Controlled(nn.Module):
    """A U-Net and a branch that adds to its skips and its middle what a map asks for.

    A fresh branch adds nothing, and no branch adds anything to a sample without a map: the output is the U-Net's then.
    The branch hears the U-Net's signals, so that its other conditions work as before. To train it, begin with
    `branch_from` and hold the U-Net's parameters, "unet", still.

    Attributes:
        unet: the U-Net; it takes no map itself.
        map_channels: of `conditions.map`.
    """

    unet: UNet
    map_channels: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"] | Int[Array, " b"],
        conditions: Conditions,
        *,
        train: bool = False,
    ) -> Float[Array, "b h w d"]:
        """The U-Net's raw output, float32, under the branch's influence. A map of None is none for all samples."""
        picture = conditions.map
        if picture is None:
            picture = jnp.zeros((*x.shape[:3], self.map_channels))
        encoded = self.unet.encode(x, time, conditions, train=train)
        seen = with_pictures(self.unet, filled(self.unet, conditions, x), x)
        branch = Branch(**shared_settings(self.unet), name="branch")
        middle, skips = branch(seen, encoded.signals, picture, train=train)
        there = jnp.any(picture != 0, axis=(1, 2, 3))[:, None, None, None]
        sums = [
            own + added * there.astype(added.dtype)
            for own, added in zip((encoded.h, *encoded.skips), (middle, *skips), strict=True)
        ]
        return self.unet.decode(Encoded(sums[0], tuple(sums[1:]), encoded.signals), train=train)


def branch_from(base: Params, branch: Params) -> Params:
    """A branch's parameters with its encoder a copy of a trained U-Net's, where its training begins.

    Args:
        base: the U-Net's parameters.
        branch: the branch's, fresh.
    """
    return {**branch, "encoder": jax.tree.map(jnp.array, base["encoder"])}


def check(controlled: Controlled, image_size: int) -> None:
    """Raises `InputError` for settings that cannot work with images of this height and width, before any compilation.

    >>> check(Controlled(UNet(width=32, head_width=16, map_channels=1), map_channels=1), 32)
    Traceback (most recent call last):
    guided_diffusion_jax.errors.InputError: model.map_channels=1, but the map is the control branch's; use 0.
    """
    check_whole(controlled.map_channels, "control.map_channels", least=1)
    channels = controlled.unet.map_channels
    require(channels == 0, f"model.map_channels={channels}, but the map is the control branch's; use 0.")
    unets.check(controlled.unet, image_size)
