"""DDPM's ancestral sampling: draws x_nxt from the posterior of the predicted x0 (Ho et al. 2020, algorithm 2)."""

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from guided_diffusion_jax import random
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.gaussian import VARIANCES, Gaussian, min_posterior_variance, posterior_mean, variance
from guided_diffusion_jax.samplers.base import Sampler
from guided_diffusion_jax.typing import Denoiser, Gradient, Images, Level


def ddpm(variance: str = "fixed_small", gradient: Gradient | None = None) -> Sampler:
    """DDPM's sampler, over all T levels or fewer.

    Args:
        variance: "fixed_small", "fixed_large" or "learned_range", see `gaussian.variance`.
        gradient: w grad log p(y given x) at x and its level, which shifts the mean by the variance times itself:
            classifier guidance as guided-diffusion's ancestral sampler has it (Dhariwal & Nichol 2021, algorithm 1).
    """
    make = choose(_WITH_VARIANCE, variance, "diffusion.variance")
    return make(None if gradient is None else _as_data(gradient))


def _as_data(gradient: Gradient) -> Partial:
    return gradient if isinstance(gradient, Partial) else Partial(gradient)


def _init(x: Images, levels: Level) -> Float[Array, ""]:
    return min_posterior_variance(levels)


def _sampler_with(name: str):
    def step(denoise, keys, x, now, nxt, floor, *, gradient=None):
        p = model_gaussian(denoise, x, now, nxt, floor, name)
        mean = p.mean if gradient is None else p.mean + p.variance * gradient(x, now)
        std = jnp.where(nxt.sigma > 0, jnp.exp(0.5 * p.log_variance), 0.0)
        return mean + std * random.standard_normal(keys, x.shape[1:]), floor

    def make(gradient: Partial | None) -> Sampler:
        return Sampler(
            init=Partial(_init),
            step=Partial(step, gradient=gradient),
            order=0,
            with_gradient=Partial(guided) if gradient is None else None,
        )

    def guided(gradient: Gradient) -> Sampler:
        return make(_as_data(gradient))

    return make


_WITH_VARIANCE = {name: _sampler_with(name) for name in VARIANCES}
"""One step function for each variance, so that a sampler made twice compiles once."""


def model_gaussian(
    denoise: Denoiser, x: Images, now: Level, nxt: Level, floor: Float[Array, ""], name: str
) -> Gaussian:
    """p(x_nxt given x_now): the posterior at the predicted x0 with the model's variance (Ho et al. 2020, eq. 1)."""
    prediction = denoise(x, now)
    return Gaussian(
        posterior_mean(x, prediction.x0, now, nxt), *variance(name, now, nxt, floor, prediction.variance_fraction)
    )
