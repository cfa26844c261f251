"""Classifier guidance: the gradient of log p(y given x) of any differentiable function (Dhariwal & Nichol 2021)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from guided_diffusion_jax.guidance.weights import Interval, Weight, weight_at
from guided_diffusion_jax.prediction import from_eps
from guided_diffusion_jax.typing import Denoiser, Gradient, Images, Level, per_sample

LogProb = Callable[[Images, Level], Float[Array, " b"]]
"""Noisy images and their level to log p(y given x) of each sample, for the y that is wanted."""


def gradient(log_prob: LogProb, *, rematerialize: bool = False) -> Gradient:
    """Gradient of log p(y given x) with respect to x, `[b h w c]`, of each sample from its own value alone.

    Args:
        log_prob: any differentiable `(x, level) -> [b]`: a noise-aware classifier's, a user's energy, a similarity.
        rematerialize: compute its activations again in the backward pass instead of storing them.
    """
    function = jax.checkpoint(log_prob) if rematerialize else log_prob
    return lambda x, level: jax.grad(lambda x: jnp.sum(function(x, level)))(x)


def weighted(gradient: Gradient, weight: Weight, interval: Interval | None = None) -> Gradient:
    """Gradient times w(level), zero outside an interval; see `weights.inside`."""
    return lambda x, level: weight_at(weight, level, interval) * gradient(x, level)


def total(gradients: Sequence[Gradient]) -> Gradient:
    """Gradient of several attributes at once: independent given x, their log-probabilities add."""
    return lambda x, level: sum((one(x, level) for one in gradients), jnp.zeros_like(x))


def classifier(denoise: Denoiser, gradient: Gradient, weight: ArrayLike = 1.0) -> Denoiser:
    """Denoiser with eps - w sigma grad_x log p(y given x) for eps (Dhariwal & Nichol 2021, algorithm 2).

    `samplers.ddpm(gradient=...)` shifts the mean instead, as guided-diffusion's ancestral sampler does.

    Args:
        denoise: any denoiser, guided or not, of a conditional or an unconditional model.
        gradient: `[b h w c]` and its level to `[b h w c]`; see `gradient`, `weighted`, `total`.
        weight: w; scalar or `[b]`.
    """

    def guided(x: Images, level: Level):
        prediction = denoise(x, level)
        eps = prediction.eps - per_sample(weight) * level.sigma * gradient(x, level)
        return from_eps(x, eps, level)._replace(variance_fraction=prediction.variance_fraction)

    return guided
