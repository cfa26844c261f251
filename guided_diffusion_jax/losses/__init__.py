"""What a network is trained on: denoising and variational objectives, and which noise levels they are asked at."""

from guided_diffusion_jax.losses.classification import classification
from guided_diffusion_jax.losses.objectives import Losses, objective
from guided_diffusion_jax.losses.terms import LOSSES, Noised, hybrid, noised, prior_term, squared_error, vlb_term
from guided_diffusion_jax.losses.timesteps import TIMESTEPS, Timesteps, loss_second_moment, uniform, uniform_steps

__all__ = [
    "LOSSES",
    "TIMESTEPS",
    "Losses",
    "Noised",
    "Timesteps",
    "classification",
    "hybrid",
    "loss_second_moment",
    "noised",
    "objective",
    "prior_term",
    "squared_error",
    "uniform",
    "uniform_steps",
    "vlb_term",
]
