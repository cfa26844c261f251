"""Steering: rules that make a `Denoiser`, or wrap one and give back another.

    classifier-free   eps = (1 + w) eps_cond - w eps_null                      (Ho & Salimans 2022, eq. 6)
    composed          eps = eps_null + sum_k (1 + w_k) (eps_k - eps_null)      (Liu et al. 2022, section 3)
    classifier        eps = eps - w sigma grad_x log p(y given x)              (Dhariwal & Nichol 2021, algorithm 2)

All weights count from the plain model: w = 0 leaves it as it is. Other libraries' `guidance_scale` is 1 + w.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.prediction import from_eps, from_x0
from guided_diffusion_jax.typing import (
    ConditionalDenoiser,
    Conditions,
    Denoiser,
    Gradient,
    Images,
    Level,
    Prediction,
    per_sample,
)

LogProb = Callable[[Images, Level], Float[Array, " b"]]
"""Noisy images and their level to log p(y given x) of each sample, for the y that is wanted."""


def conditional(denoise: ConditionalDenoiser, conditions: Conditions) -> Denoiser:
    """The plain conditional model."""
    return lambda x, level: denoise(x, level, conditions)


def classifier_free(
    denoise: ConditionalDenoiser, conditions: Conditions, null: Conditions, weight: ArrayLike
) -> Denoiser:
    """Classifier-free guidance, both branches in one forward of twice the batch: `composed` of one.

    Args:
        denoise: the network, trained with conditions dropped.
        conditions: what to steer towards, `[b ...]`.
        null: what to steer away from: the same with every kind at its null value, or a negative prompt.
        weight: w; 0 is the plain conditional model and -1 the unconditional one, both exactly. As for `composed`.
    """
    return composed(denoise, (conditions,), null, (weight,))


def composed(
    denoise: ConditionalDenoiser, conditions: Sequence[Conditions], null: Conditions, weights: Sequence[ArrayLike]
) -> Denoiser:
    """K conditions at once, each with its own weight, in one forward of K + 1 times the batch.

    With all w_k = 0 this is the score of p(x) prod_k p(x given c_k) / p(x): all that each condition says of x, as if
    they were independent given x (Liu et al. 2022). x0 and eps are the same affine function of each other in all
    branches, and the factors sum to 1: combining either combines the other. A learned variance is the mean of the
    conditional branches'. With K = 0 it is the plain model of `null`, whatever that holds.

    Args:
        denoise: the network, trained with conditions dropped.
        conditions: K branches, `[b ...]` each, of the same kinds; a kind that one is not about is at its null there
            (see `conditions.only`).
        null: what to steer away from. At its null value in every kind it is the unconditional model; a condition in
            its place is what others call a negative prompt.
        weights: w_k of each branch: one for all, one per sample `[b]`, or one per pixel `[b h w 1]` (see `regional`).
            -1 takes the branch out of x0 and eps exactly; below it steers away (see `negated`).

    Raises:
        InputError: not one weight a condition, or branches of different kinds.
    """
    require(
        len(weights) == len(conditions), f"{len(weights)} weights for {len(conditions)} conditions; give one for each"
    )
    branches = (*conditions, null)
    kinds = {jax.tree.structure(branch) for branch in branches}
    require(
        len(kinds) == 1,
        "the branches of a composition have different kinds of conditions; give what is absent at its null",
    )
    batch = jax.tree.map(lambda *values: jnp.concatenate(values), *branches)
    of_conditions = [1 + per_sample(weight) for weight in weights]
    factors = [*of_conditions, 1 - sum(of_conditions)]
    repeat = functools.partial(_repeat, times=len(branches))

    def guided(x: Images, level: Level):
        prediction = denoise(repeat(x), jax.tree.map(repeat, level), batch)
        x0, eps = (_dot(factors, jnp.split(value, len(branches))) for value in prediction[:2])
        fraction = prediction.variance_fraction
        if fraction is not None:
            parts = jnp.split(fraction, len(branches))[: max(1, len(conditions))]
            fraction = sum(parts[1:], parts[0]) / len(parts)
        return Prediction(x0, eps, fraction)

    return guided


def _repeat(a, times: int):
    """Samples `[b ...]` become `[times * b ...]`; what all samples share stays."""
    return a if jnp.ndim(a) == 0 else jnp.concatenate([a] * times)


def _dot(factors, values):
    return sum(factor * value for factor, value in zip(factors, values, strict=True))


def negated(weight: ArrayLike) -> ArrayLike:
    """The weight that steers away from a condition as strongly as w steers towards it: 1 + w' = -(1 + w)."""
    return -2 - weight


def regional(weight: ArrayLike, mask: Float[Array, "b h w 1"]) -> Float[Array, "b h w 1"]:
    """The weight of a condition for a part of the picture: w where the mask is 1 and off (-1) where it is 0.

    Regions may overlap and their edges may be soft: 1 + w is scaled by the mask.
    """
    return (1 + per_sample(weight)) * mask - 1


def needed(
    conditions: Sequence[Conditions], null: Conditions, weights: Sequence[ArrayLike]
) -> tuple[tuple[Conditions, ...], Conditions, tuple[ArrayLike, ...]]:
    """A composition with the same x0 and eps without the branches that it can spare.

    Those are the conditions whose weight is -1 all over, and the null where one condition is left with w = 0: the
    plain conditional and unconditional models (K = 0) cost one forward of the batch. The weights must be known, not
    traced.
    """
    kept = [pair for pair in zip(conditions, weights, strict=True) if np.any(np.asarray(pair[1]) != -1)]
    if len(kept) == 1 and not np.any(kept[0][1]):
        return (), kept[0][0], ()
    return tuple(condition for condition, _ in kept), null, tuple(weight for _, weight in kept)


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
        weight: w, traced; scalar, `[b]` or `[b h w 1]`.
        interval: first and last `time` at which it acts, traced, each a scalar or `[b]`; None is all
            (Kynkaanniemi et al. 2024 found guidance of use in the middle of the noise levels only).
    """

    def scaled(x: Images, level: Level) -> Images:
        if interval is None:
            return per_sample(weight) * gradient(x, level)
        first, last = interval
        inside = (first <= level.time) & (level.time <= last)
        return jnp.where(per_sample(inside), per_sample(weight), 0.0) * gradient(x, level)

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


def inpaint(denoise: Denoiser, known: Images, mask: Float[Array, "b h w 1"]) -> Denoiser:
    """Completes a picture with a model that was not trained to: where it is known, the predicted x0 is replaced by it.

    It comes last, after `clip_x0`, which else would clip what is known. eps stays consistent, so in the known part
    the sampler takes the very steps of the forward process of the known picture, backwards: DDIM at eta = 0 keeps
    eps = (x_T - alpha_T known) / sigma_T and goes through alpha_t known + sigma_t eps (Song et al. 2021, section 4.1),
    DDPM with its small variance draws from q(x_nxt given x_now, known). Both end at the known picture, exactly. The
    replacement of Lugmayr et al. (2022, eq. 8) differs: it draws the known part anew at every level, so that its noise
    is not the noise of the level before. What they have in common is that the unknown part sees only the noisy known
    one: it is drawn from an approximation of the conditional law, and can fall short of what the known part asks for.

    Args:
        denoise: any denoiser, guided or not.
        known: a picture in [-1, 1]; without meaning where the mask is 0, but finite.
        mask: 1 where it is known, 0 where it is not; in between, mask * known + (1 - mask) * x0.
    """

    def completed(x: Images, level: Level):
        prediction = denoise(x, level)
        x0 = mask * known + (1 - mask) * prediction.x0
        return from_x0(x, x0, level)._replace(variance_fraction=prediction.variance_fraction)

    return completed
