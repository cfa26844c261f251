"""Objectives on latents: a sample of the posterior that an autoencoder gave for each image."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from guided_diffusion_jax.objectives.base import Losses, Objective
from guided_diffusion_jax.random import LATENT_STREAM, fold, standard_normal
from guided_diffusion_jax.typing import Keys


def sample_latents(moments: Float[Array, "b h w z2"], keys: Keys, scaling_factor: float) -> Float[Array, "b h w z"]:
    """Samples of posteriors, times the scaling factor, each from its own key.

    Args:
        moments: mean and standard deviation, side by side on the last axis.
        keys: of the samples.
        scaling_factor: what the model sees is the latents times this number.
    """
    mean, std = jnp.split(moments, 2, axis=-1)
    return scaling_factor * (mean + std * standard_normal(fold(keys, LATENT_STREAM), mean.shape[1:]))


def on_latents(objective: Objective, scaling_factor: float) -> Objective:
    """The same objective, for batches whose "image" is the posterior of latents (Rombach et al. 2022, section 3.1).

    Args:
        objective: of a model that sees latents `[b h w z]`.
        scaling_factor: what the model sees is the latents times this number.

    Returns:
        An objective whose batches have as "image" mean and standard deviation, `[b h w 2z]`. Each sample draws its
        latents from its own key.
    """

    def losses(params, ema, frozen, keys, batch, **chosen) -> Losses:
        latents = sample_latents(batch["image"], keys, scaling_factor)
        return objective.loss(params, ema, frozen, keys, {**batch, "image": latents}, **chosen)

    return objective._replace(loss=losses)
