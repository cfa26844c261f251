"""Constraints on the predicted clean image: its range, and known pixels."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from guided_diffusion_jax.prediction import from_x0
from guided_diffusion_jax.typing import Denoiser, Images, Level


def clip_x0(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Keeps the predicted clean image in the range of images, and eps consistent with it."""

    def clipped(x: Images, level: Level):
        prediction = denoise(x, level)
        x0 = jnp.clip(prediction.x0, low, high)
        return from_x0(x, x0, level)._replace(variance_fraction=prediction.variance_fraction)

    return clipped


def inpaint(denoise: Denoiser, known: Images, mask: Float[Array, "b h w 1"]) -> Denoiser:
    """Denoiser that completes an image, with a model that was not trained to: known pixels replace the predicted x0.

    It comes last, after `clip_x0`, which else would clip what is known. eps stays consistent, so in the known part
    the sampler takes the very steps of the forward process of the known image, backwards: DDIM at eta = 0 keeps
    eps = (x_T - alpha_T known) / sigma_T and goes through alpha_t known + sigma_t eps (Song et al. 2021, section 4.1),
    DDPM with its small variance draws from q(x_nxt given x_now, known). Both end at the known image, exactly. The
    replacement of Lugmayr et al. (2022, eq. 8) differs: it draws the known part anew at every level, so that its noise
    is not the noise of the level before. What they have in common is that the unknown part sees only the noisy known
    one: it is drawn from an approximation of the conditional law, and can fall short of what the known part asks for.

    Args:
        denoise: any denoiser, guided or not.
        known: an image in [-1, 1]; without meaning where the mask is 0, but finite.
        mask: 1 where it is known, 0 where it is not; in between, mask * known + (1 - mask) * x0.
    """

    def completed(x: Images, level: Level):
        prediction = denoise(x, level)
        x0 = mask * known + (1 - mask) * prediction.x0
        return from_x0(x, x0, level)._replace(variance_fraction=prediction.variance_fraction)

    return completed
