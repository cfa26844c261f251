"""Autoencoders of latent diffusion: to give images back, and latents near N(0, 1) (Rombach et al. 2022, sec. 3.1)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.models.autoencoder import AutoencoderKL, init_params
from guided_diffusion_jax.objectives.base import Losses, Objective
from guided_diffusion_jax.objectives.partition import merge
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.random import LATENT_STREAM, fold, standard_normal
from guided_diffusion_jax.typing import Images


def autoencoder(
    model: AutoencoderKL, process: Process, image_shape: tuple[int, int, int], *, kl_weight: float = 1e-6
) -> Objective:
    """Objective of an autoencoder: mean absolute error of the pixels and a little of the KL divergence.

    Rombach et al. sum both over an image; here that sum is divided by the number of its pixels and channels, so that
    the learning rate does not depend on the size. Figures: "l1" of pixels in [-1, 1], "kl" in nats of an image, "psnr"
    in dB.

    Args:
        model: the network.
        process: of the diffusion model; not used.
        image_shape: (h, w, c) of the images.
        kl_weight: beta, of the KL divergence of an image, against the sum of its pixels' errors.

    Raises:
        InputError: `kl_weight` is negative.
    """
    require(kl_weight >= 0, f"autoencoder.kl_weight={kl_weight} must be 0 or more; 1e-6 is that of Stable Diffusion")

    def losses(params, ema, frozen, keys, batch, t=None) -> Losses:
        images, variables = batch["image"], {"params": merge(params, frozen)}
        posterior: Any = model.apply(variables, images, train=True, method="encode")
        noise = standard_normal(fold(keys, LATENT_STREAM), posterior.mean.shape[1:])
        z = posterior.mean + posterior.std * noise
        restored: Any = model.apply(variables, z, train=True, method="decode")
        l1, kl = jnp.mean(jnp.abs(restored - images), axis=(1, 2, 3)), posterior.kl()
        figures = {"l1": l1, "kl": kl, "psnr": psnr(images, jax.lax.stop_gradient(restored))}
        return Losses(l1 + kl_weight / images[0].size * kl, None, figures)

    return Objective(init=lambda key: init_params(model, key), loss=losses)


def psnr(images: Images, others: Images) -> Float[Array, " b"]:
    """Peak signal-to-noise ratio in dB, 10 log10(4 / mean squared error) of images in [-1, 1]."""
    return 10 * jnp.log10(4 / jnp.mean((images - others) ** 2, axis=(1, 2, 3)))
