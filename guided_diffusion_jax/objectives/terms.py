"""Terms of the losses, one value a sample, from a prediction and the noisy images that it is of.

The variational bound on -log p(x0) is a sum over the steps (Ho et al. 2020, eq. 5; here t counts from 0)

    L = L_T + sum_t L_t
    L_T = KL(q(x_T given x0) || N(0, s**2))                           `prior_term`
    L_t = KL(q(x_nxt given x_now, x0) || p(x_nxt given x_now))      `vlb_term`, t > 0
    L_0 = -log p(x0 given x_now), p cut into 256 grey levels        `vlb_term`, t = 0

with s**2 = alpha_T**2 + sigma_T**2, which is 1 on variance-preserving levels, all in bits per dimension: nats, averaged
over pixels and channels, by ln 2.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from guided_diffusion_jax.gaussian import (
    discretised_log_likelihood,
    kl,
    min_posterior_variance,
    posterior_mean,
    q_gaussian,
    q_sample,
    second_moment,
    variance,
)
from guided_diffusion_jax.schedules import at
from guided_diffusion_jax.typing import Images, Level, Prediction

PerSample = Float[Array, " b"]

Target = Callable[[Images, Images, Level], Images]
"""Clean images, noise and level to what a network is trained towards: the `target` of a `Parametrization`."""


class NoisyImages(NamedTuple):
    """Noisy images, with the clean images and the noise that they are made of.

    Attributes:
        x0: clean images.
        eps: their noise.
        x: alpha x0 + sigma eps at `now`.
        now: the level of each sample, or of all.
        nxt: the level after its step; clean for the last step, t = 0.
        floor: the process's `min_posterior_variance`, used in place of the last step's 0.
    """

    x0: Images
    eps: Images
    x: Images
    now: Level
    nxt: Level
    floor: Float[Array, ""]


def add_noise(x0: Images, eps: Images, t: Int[Array, "..."] | Float[Array, "..."], table: Level) -> NoisyImages:
    """Images at step t of a process.

    Args:
        x0: clean images in [-1, 1].
        eps: standard normal.
        t: rows of the table, one per sample or one for all; 0 is the least noisy. Real numbers are levels between
            them (see `schedules.at`), whose step leads one row down, and below row 1 to the clean level.
        table: the rows of a schedule that the process visits, least noisy first: all of them, or fewer
            (`schedules.select`).
    """
    closed = zip(table, (1, 0, 0), strict=True)
    rows = Level(*(jnp.append(jnp.full(1, clean, column.dtype), column) for column, clean in closed))
    now = at(rows, t + 1)
    floor = min_posterior_variance(Level(*(column[::-1] for column in rows)))
    return NoisyImages(x0, eps, q_sample(x0, eps, now), now, at(rows, jnp.where(t < 1, 0, t)), floor)


def squared_error(prediction: Prediction, noisy: NoisyImages, target: Target) -> PerSample:
    """Mean squared error in what the network predicts (Ho et al. 2020, eq. 14)."""
    predicted = target(prediction.x0, prediction.eps, noisy.now)
    return jnp.mean((predicted - target(noisy.x0, noisy.eps, noisy.now)) ** 2, axis=(1, 2, 3))


def vlb_term(prediction: Prediction, noisy: NoisyImages, variance_name: str) -> PerSample:
    """L_t, the term of the variational bound at the samples' steps, in bits per dimension.

    Args:
        prediction: of the network.
        noisy: what it predicts.
        variance_name: the model's variance, a key of `gaussian.VARIANCES`.
    """
    now, nxt, floor = noisy.now, noisy.nxt, noisy.floor
    mean = posterior_mean(noisy.x, prediction.x0, now, nxt)
    _, log_variance = variance(variance_name, now, nxt, floor, prediction.variance_fraction)
    q_mean = posterior_mean(noisy.x, noisy.x0, now, nxt)
    _, q_log_variance = variance("fixed_small", now, nxt, floor)
    divergence = kl(q_mean, q_log_variance, mean, log_variance)
    decoding = -discretised_log_likelihood(noisy.x0, mean, 0.5 * log_variance)
    return _bits_per_dimension(jnp.where(nxt.sigma > 0, divergence, decoding))


def prior_term(x0: Images, last: Level) -> PerSample:
    """L_T, what the noisiest level still tells of the images, in bits per dimension; no network can change it."""
    q = q_gaussian(x0, last)
    log_prior = jnp.log(second_moment(last)) * jnp.ones_like(q.log_variance)
    return _bits_per_dimension(kl(q.mean, q.log_variance, jnp.zeros_like(log_prior), log_prior))


def _bits_per_dimension(nats: Images) -> PerSample:
    return jnp.mean(nats, axis=(1, 2, 3)) / math.log(2)


def hybrid(
    prediction: Prediction, noisy: NoisyImages, target: Target, variance_name: str, weight: ArrayLike
) -> PerSample:
    """L_simple + weight * L_t where the variance is learned (Nichol & Dhariwal 2021, eq. 16), L_simple where it is not.

    L_t trains the variance alone: the mean gets no gradient from it.
    """
    error = squared_error(prediction, noisy, target)
    if prediction.variance_fraction is None:
        return error
    frozen = prediction._replace(x0=jax.lax.stop_gradient(prediction.x0))
    return error + weight * vlb_term(frozen, noisy, variance_name)


LOSSES: dict[str, Callable[[Prediction, NoisyImages, Target, str, ArrayLike], PerSample]] = {
    "mse": lambda p, noisy, target, variance_name, steps: hybrid(p, noisy, target, variance_name, 1.0),
    "rescaled_mse": lambda p, noisy, target, variance_name, steps: hybrid(
        p, noisy, target, variance_name, jnp.asarray(steps) / 1000
    ),
    "kl": lambda p, noisy, target, variance_name, steps: vlb_term(p, noisy, variance_name),
    "rescaled_kl": lambda p, noisy, target, variance_name, steps: (
        jnp.asarray(steps) * vlb_term(p, noisy, variance_name)
    ),
}
"""The losses of guided-diffusion: prediction, noisy images, target, variance, number S of steps to one value a sample.

At a uniform t the mean of S L_t is the bound without its prior term: "rescaled_kl" estimates it, "kl" a S-th of it, and
"rescaled_mse" adds it with the paper's lambda = 0.001.
"""
