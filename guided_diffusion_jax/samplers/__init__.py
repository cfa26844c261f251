"""Samplers: each a small file with an `(init, step)` pair, all run by one loop."""

from guided_diffusion_jax.samplers.ddim import ddim
from guided_diffusion_jax.samplers.ddpm import ddpm
from guided_diffusion_jax.samplers.loop import Sampler, film, sample
from guided_diffusion_jax.samplers.noise import prior, sample_keys

__all__ = ["Sampler", "ddim", "ddpm", "film", "prior", "sample", "sample_keys"]
