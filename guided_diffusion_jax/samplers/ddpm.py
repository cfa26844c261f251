"""DDPM's ancestral sampling: draw x_nxt from the posterior of the predicted x0 (Ho et al. 2020, algorithm 2)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from guided_diffusion_jax.gaussian import Gaussian, posterior_mean, smallest_variance, variance
from guided_diffusion_jax.samplers import noise
from guided_diffusion_jax.samplers.loop import Sampler
from guided_diffusion_jax.typing import Denoiser, Gradient, Images, Level


def ddpm(variance: str = "fixed_small", gradient: Gradient | None = None) -> Sampler:
    """DDPM's sampler, over all T levels or fewer.

    Args:
        variance: "fixed_small", "fixed_large" or "learned_range", see `gaussian.variance`.
        gradient: w grad log p(y given x) at x and its level, which shifts the mean by the variance times itself:
            classifier guidance as guided-diffusion's ancestral sampler has it (Dhariwal & Nichol 2021, algorithm 1).
    """

    def step(denoise, keys, x, now, nxt, floor):
        p = model_gaussian(denoise, x, now, nxt, floor, variance)
        mean = p.mean if gradient is None else p.mean + p.variance * gradient(x, now)
        std = jnp.where(nxt.sigma > 0, jnp.exp(0.5 * p.log_variance), 0.0)
        return mean + std * noise.standard_normal(keys, x.shape[1:]), floor

    return Sampler(init=lambda x, levels: smallest_variance(levels), step=step)


def model_gaussian(
    denoise: Denoiser, x: Images, now: Level, nxt: Level, floor: Float[Array, ""], name: str
) -> Gaussian:
    """p(x_nxt given x_now), the posterior at the predicted x0 with the model's variance (Ho et al. 2020, eq. 1)."""
    prediction = denoise(x, now)
    return Gaussian(
        posterior_mean(x, prediction.x0, now, nxt), *variance(name, now, nxt, floor, prediction.variance_fraction)
    )
