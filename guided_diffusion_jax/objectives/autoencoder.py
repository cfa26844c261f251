"""Autoencoders of latent diffusion: to give images back, and latents near N(0, 1) (Rombach et al. 2022, sec. 3.1)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.models.autoencoder import AutoencoderKL, init_params
from guided_diffusion_jax.objectives.base import Losses, Objective
from guided_diffusion_jax.objectives.partition import merge
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.random import LATENT_STREAM, fold, standard_normal
from guided_diffusion_jax.typing import Images

PIXEL_LOSSES: dict[str, Callable[[Array], Array]] = {"l1": jnp.abs, "mse": jnp.square}
"""Errors of a pixel from its difference, by name."""


def autoencoder(
    model: AutoencoderKL,
    process: Process,
    image_shape: tuple[int, int, int],
    *,
    kl_weight: float = 1e-6,
    loss: str = "l1",
) -> Objective:
    """Objective of an autoencoder: the error of the pixels and a little of the KL divergence.

    Rombach et al. sum both over an image; here that sum is divided by the number of its pixels and channels, so that
    the learning rate does not depend on the size. Figures: "l1" of pixels in [-1, 1], "kl" in nats of an image, "psnr"
    in dB.

    Args:
        model: the network.
        process: of the diffusion model; not used.
        image_shape: (h, w, c) of the images.
        kl_weight: beta, of the KL divergence of an image, against the sum of its pixels' errors.
        loss: "l1", the absolute error, as Rombach et al.; or "mse", the squared one, which learns the colours of small
            objects on a plain ground sooner: "l1" gives every pixel of the ground the weight of an object's.

    Raises:
        InputError: `kl_weight` is negative, or there is no such loss.
    """
    error = choose(PIXEL_LOSSES, loss, "autoencoder.loss")
    require(kl_weight >= 0, f"autoencoder.kl_weight={kl_weight} must be 0 or more; 1e-6 is that of Stable Diffusion")

    def losses(params, ema, frozen, keys, batch, t=None) -> Losses:
        images, variables = batch["image"], {"params": merge(params, frozen)}
        posterior: Any = model.apply(variables, images, train=True, method="encode")
        noise = standard_normal(fold(keys, LATENT_STREAM), posterior.mean.shape[1:])
        z = posterior.mean + posterior.std * noise
        restored: Any = model.apply(variables, z, train=True, method="decode")
        off, kl = jnp.mean(error(restored - images), axis=(1, 2, 3)), posterior.kl()
        figures = {loss: off, "kl": kl, "psnr": psnr(images, jax.lax.stop_gradient(restored))}
        return Losses(off + kl_weight / images[0].size * kl, None, figures)

    return Objective(init=lambda key: init_params(model, key), loss=losses)


def psnr(images: Images, others: Images) -> Float[Array, " b"]:
    """Peak signal-to-noise ratio in dB, 10 log10(4 / mean squared error) of images in [-1, 1]."""
    return 10 * jnp.log10(4 / jnp.mean((images - others) ** 2, axis=(1, 2, 3)))
