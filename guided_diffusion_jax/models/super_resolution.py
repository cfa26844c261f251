"""An upsampler: a U-Net that also sees the small picture."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.models.inputs import enlarged
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.typing import Conditions


class SuperResolution(nn.Module):
    """A U-Net on x beside `conditions.low_res`, enlarged to x's size (Saharia et al. 2021; ADM's upsampler)."""

    unet: UNet

    @property
    def num_classes(self) -> int:
        """The U-Net's."""
        return self.unet.num_classes

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"] | Int[Array, " b"],
        conditions: Conditions,
        *,
        train: bool = False,
    ) -> Float[Array, "b h w d"]:
        """The U-Net's raw output, float32. Raises `InputError` where `conditions.low_res` is None."""
        low_res = conditions.low_res
        if low_res is None:
            raise InputError(
                "conditions.low_res=None, but a super-resolution network needs the small picture; give it."
            )
        both = jnp.concatenate([x, enlarged(low_res, *x.shape[1:3])], axis=-1)
        return self.unet(both, time, conditions, train=train)
