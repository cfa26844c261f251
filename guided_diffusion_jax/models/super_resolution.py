"""Super-resolution: a U-Net that also sees the small image."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.models.placement import enlarge
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.typing import Conditions


class SuperResolution(nn.Module):
    """A U-Net on x beside the condition `low_res`, enlarged to x's size (Saharia et al. 2021; ADM's upsampler).

    Attributes:
        unet: the U-Net.
        low_res_size: height of the small images in training; 0 is a quarter of the output's. The network takes any.
    """

    unet: UNet
    low_res_size: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"] | Int[Array, " b"],
        conditions: Conditions,
        *,
        train: bool = False,
    ) -> Float[Array, "b h w d"]:
        """The U-Net's raw output, float32. Raises `InputError` without the condition `low_res`."""
        low_res = conditions.get("low_res")
        if low_res is None:
            raise InputError("the condition low_res is missing: a super-resolution network needs the small image.")
        x = jnp.concatenate([x, enlarge(jnp.asarray(low_res), *x.shape[1:3])], axis=-1)
        return self.unet(x, time, conditions, train=train)

    @nn.nowrap
    def low_res_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(h, w, c) of the small images."""
        h, w, c = image_shape
        size = self.low_res_size or max(h // 4, 1)
        return size, size * w // h, c

    @nn.nowrap
    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises `InputError` for settings that cannot work with images `(h, w, c)`, before any compilation."""
        self.unet.check(image_shape)
        require(
            0 <= self.low_res_size < image_shape[0],
            f"data.low_res_size={self.low_res_size} must lie in [0, data.image_size={image_shape[0]}).",
        )
