"""Objectives: what is trained, a file each, the network call included. `OBJECTIVES` is the table of them."""

from collections.abc import Callable

from guided_diffusion_jax.objectives.autoencoder import autoencoder
from guided_diffusion_jax.objectives.base import Losses, Objective, draw_noise
from guided_diffusion_jax.objectives.classifier import classification_losses, classifier
from guided_diffusion_jax.objectives.denoising import batch_conditions, denoising, denoising_losses, reduce_size
from guided_diffusion_jax.objectives.latents import on_latents, sample_latents
from guided_diffusion_jax.objectives.partition import flatten_params, merge, split, unflatten_params
from guided_diffusion_jax.objectives.terms import (
    LOSSES,
    NoisyImages,
    add_noise,
    hybrid,
    prior_term,
    squared_error,
    vlb_term,
)
from guided_diffusion_jax.objectives.timesteps import (
    TIMESTEPS,
    Timesteps,
    log_normal_sigma,
    logit_normal,
    loss_second_moment,
    stratified,
    uniform,
    uniform_steps,
)
from guided_diffusion_jax.objectives.weightings import WEIGHTINGS

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "denoising": denoising,
    "classifier": classifier,
    "autoencoder": autoencoder,
}
"""A name to a constructor `(model, process, image_shape, **options) -> Objective`."""

__all__ = [
    "LOSSES",
    "OBJECTIVES",
    "TIMESTEPS",
    "WEIGHTINGS",
    "Losses",
    "NoisyImages",
    "Objective",
    "Timesteps",
    "add_noise",
    "autoencoder",
    "batch_conditions",
    "classification_losses",
    "classifier",
    "denoising",
    "denoising_losses",
    "draw_noise",
    "flatten_params",
    "hybrid",
    "log_normal_sigma",
    "logit_normal",
    "loss_second_moment",
    "merge",
    "on_latents",
    "prior_term",
    "reduce_size",
    "sample_latents",
    "split",
    "squared_error",
    "stratified",
    "unflatten_params",
    "uniform",
    "uniform_steps",
    "vlb_term",
]
