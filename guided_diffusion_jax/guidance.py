"""Steering: rules that make a `Denoiser`, or wrap one and give back another.

    classifier-free   eps = (1 + w) eps_cond - w eps_null            (Ho & Salimans 2022, eq. 6)
    classifier        eps = eps - w sigma grad_x log p(y given x)    (Dhariwal & Nichol 2021, algorithm 2)

Both weights count from the plain model: w = 0 leaves it as it is. Other libraries' `guidance_scale` is 1 + w.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from guided_diffusion_jax.prediction import from_eps, from_x0
from guided_diffusion_jax.typing import ConditionalDenoiser, Conditions, Denoiser, Gradient, Images, Level, per_sample

LogProb = Callable[[Images, Level], Float[Array, " b"]]
"""Noisy images and their level to log p(y given x) of each sample, for the y that is wanted."""


def conditional(denoise: ConditionalDenoiser, conditions: Conditions) -> Denoiser:
    """The plain conditional model."""
    return lambda x, level: denoise(x, level, conditions)


def classifier_free(
    denoise: ConditionalDenoiser, conditions: Conditions, null: Conditions, weight: ArrayLike
) -> Denoiser:
    """Classifier-free guidance, both branches in one forward of twice the batch.

    x0 and eps are the same affine function of each other in both branches, and the factors sum to 1: combining either
    combines the other. A learned variance is the conditional branch's.

    Args:
        denoise: the network, trained with conditions dropped.
        conditions: what to steer towards, `[b ...]`.
        null: the same with every kind at its null value.
        weight: w; 0 is the plain conditional model and -1 the unconditional one, both exactly. Scalar or `[b]`.
    """
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), conditions, null)
    w = per_sample(weight)

    def guided(x: Images, level: Level):
        prediction = denoise(_twice(x), jax.tree.map(_twice, level), both)
        of_condition = jax.tree.map(lambda a: a[: len(x)], prediction)
        of_null = jax.tree.map(lambda a: a[len(x) :], prediction)
        return of_condition._replace(
            x0=(1 + w) * of_condition.x0 - w * of_null.x0, eps=(1 + w) * of_condition.eps - w * of_null.eps
        )

    return guided


def _twice(a):
    """Samples `[b ...]` become `[2b ...]`; what all samples share stays."""
    return a if jnp.ndim(a) == 0 else jnp.concatenate([a, a])


def gradient(log_prob: LogProb, *, rematerialise: bool = False) -> Gradient:
    """The gradient of log p(y given x) with respect to x, `[b h w c]`, of each sample from its own value alone.

    Args:
        log_prob: any differentiable `(x, level) -> [b]`: a noise-aware classifier's, a user's energy, a similarity.
        rematerialise: compute its activations again in the backward pass instead of keeping them.
    """
    function = jax.checkpoint(log_prob) if rematerialise else log_prob
    return lambda x, level: jax.grad(lambda x: jnp.sum(function(x, level)))(x)


def weighted(gradient: Gradient, weight: ArrayLike, interval: tuple[ArrayLike, ArrayLike] | None = None) -> Gradient:
    """The gradient times w, and zero outside an interval.

    Args:
        gradient: of one attribute.
        weight: w, traced; scalar or `[b]`.
        interval: first and last `time` at which it acts, traced, each a scalar or `[b]`; None is all
            (Kynkaanniemi et al. 2024 found guidance of use in the middle of the noise levels only).
    """

    def scaled(x: Images, level: Level) -> Images:
        if interval is None:
            return per_sample(weight) * gradient(x, level)
        first, last = interval
        inside = (first <= level.time) & (level.time <= last)
        return per_sample(jnp.where(inside, weight, 0.0)) * gradient(x, level)

    return scaled


def total(gradients: Sequence[Gradient]) -> Gradient:
    """Several attributes at once: independent given x, their log-probabilities add, and so do the gradients."""
    return lambda x, level: sum((one(x, level) for one in gradients), jnp.zeros_like(x))


def classifier(denoise: Denoiser, gradient: Gradient, weight: ArrayLike = 1.0) -> Denoiser:
    """Classifier guidance: shifts eps against the gradient of log p(y given x).

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


def clip_x0(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Keeps the predicted clean image in the range of images, and eps consistent with it."""

    def clipped(x: Images, level: Level):
        prediction = denoise(x, level)
        x0 = jnp.clip(prediction.x0, low, high)
        return from_x0(x, x0, level)._replace(variance_fraction=prediction.variance_fraction)

    return clipped
