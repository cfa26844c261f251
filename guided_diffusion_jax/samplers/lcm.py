"""Multistep consistency sampling, for latent consistency models and the LoRA weights that make one."""

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from guided_diffusion_jax import random
from guided_diffusion_jax.samplers.base import Sampler, no_memory
from guided_diffusion_jax.typing import per_sample


def lcm(timestep_scaling: float | int = 10.0, sigma_data: float | int = 0.5) -> Sampler:
    """Sampler of consistency models, whose prediction at any level is a sample (Luo et al. 2023, algorithm 3).

        x0 = c_skip x + c_out x0_predicted,    x_nxt = alpha_nxt x0 + sigma_nxt noise
        c_skip = sigma_data**2 / (s**2 + sigma_data**2),  c_out = s / sqrt(s**2 + sigma_data**2),  s = scaling * time

    With a model that was not distilled, it draws blurred images.

    Args:
        timestep_scaling: of the time that the network is told; the boundary x0 = x is at time 0.
        sigma_data: standard deviation of the data.
    """
    options = {"timestep_scaling": np.float32(timestep_scaling), "sigma_data": np.float32(sigma_data)}
    return Sampler(init=Partial(no_memory), step=Partial(_step, **options), order=0)


def _step(denoise, keys, x, now, nxt, memory, *, timestep_scaling, sigma_data):
    scaled = per_sample(timestep_scaling * now.time)
    total = scaled**2 + sigma_data**2
    x0 = sigma_data**2 / total * x + scaled / jnp.sqrt(total) * denoise(x, now).x0
    return nxt.alpha * x0 + nxt.sigma * random.standard_normal(keys, x.shape[1:]), memory
