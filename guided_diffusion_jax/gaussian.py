"""The Gaussians of a diffusion process: q(x_t given x0), q(x_nxt given x_now, x0), and the model's p.

All are functions of the pair (now, nxt), so a process with fewer steps needs no other code. With beta the variance
that the step from `nxt` up to `now` adds,

    beta       = sigma_now**2 - (alpha_now / alpha_nxt)**2 sigma_nxt**2
    q(x_nxt)   = N(mean, beta_tilde),  beta_tilde = beta sigma_nxt**2 / sigma_now**2
    mean       = (alpha_nxt beta x0 + (alpha_now / alpha_nxt) sigma_nxt**2 x) / sigma_now**2

(Ho et al. 2020, eq. 6 and 7, for any alpha and sigma; Kingma et al. 2021, appendix A). On variance-preserving levels
beta = 1 - alpha_now**2 / alpha_nxt**2.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.typing import Images, Level


class Gaussian(NamedTuple):
    """Diagonal Gaussian. Where `variance` is 0, `log_variance` is that of the smallest variance of the process."""

    mean: Images
    variance: Array
    log_variance: Array


def beta(now: Level, nxt: Level) -> Array:
    """Variance of the step from `nxt` up to `now`, >= 0; 0 where they are equal.

    The difference of squares is a product of a difference and a sum that keep their digits in float32 at both ends of
    a schedule.
    """
    up, down = now.sigma * nxt.alpha, now.alpha * nxt.sigma
    return (up - down) * (up + down) / nxt.alpha**2


def log_beta(now: Level, nxt: Level) -> Array:
    """Natural logarithm of beta; -inf where it is 0."""
    share = (now.alpha / nxt.alpha) ** 2 * second_moment(nxt) / second_moment(now)
    return _log_of_rest(share, beta(now, nxt), second_moment(now))


def second_moment(level: Level) -> Array:
    """E[x**2] = alpha**2 + sigma**2 of data with E[x0**2] = 1; exactly 1 on variance-preserving levels."""
    square = level.alpha**2 + level.sigma**2
    return jnp.where(jnp.abs(square - 1) <= 4 * jnp.finfo(square.dtype).eps, 1.0, square)


def unit_scale(level: Level) -> Array:
    """Factor of x before it enters a classifier: 1 unless x grows with the noise (variance exploding)."""
    return 1 / jnp.sqrt(jnp.maximum(second_moment(level), 1))


def _log_of_rest(share: Array, rest: Array, total: Array) -> Array:
    """Logarithm of `rest` = (1 - share) total, which keeps its digits where the share is nearly 0."""
    return jnp.where(share < 0.5, jnp.log1p(-jnp.minimum(share, 0.5)) + jnp.log(total), jnp.log(rest))


def q_sample(x0: Images, eps: Images, level: Level) -> Images:
    """x_t = alpha x0 + sigma eps (Ho et al. 2020, eq. 4)."""
    return level.alpha * x0 + level.sigma * eps


def q_gaussian(x0: Images, level: Level) -> Gaussian:
    """q(x_t given x0) = N(alpha x0, sigma**2)."""
    total = second_moment(level)
    log_variance = _log_of_rest(level.alpha**2 / total, level.sigma**2, total)
    return Gaussian(level.alpha * x0, level.sigma**2, log_variance)


def posterior_coefficients(now: Level, nxt: Level) -> tuple[Array, Array]:
    """The factors of x0 and of x in the mean of q(x_nxt given x_now, x0) (Ho et al. 2020, eq. 7)."""
    of_x0 = nxt.alpha * beta(now, nxt) / now.sigma**2
    of_x = now.alpha / nxt.alpha * (nxt.sigma / now.sigma) ** 2
    return of_x0, of_x


def posterior_variance(now: Level, nxt: Level) -> Array:
    """beta_tilde, the variance of q(x_nxt given x_now, x0); 0 where `nxt` is clean."""
    return beta(now, nxt) * (nxt.sigma / now.sigma) ** 2


def posterior_mean(x: Images, x0: Images, now: Level, nxt: Level) -> Images:
    """The mean of q(x_nxt given x_now, x0)."""
    of_x0, of_x = posterior_coefficients(now, nxt)
    return of_x0 * x0 + of_x * x


def min_posterior_variance(levels: Level) -> Float[Array, ""]:
    """Smallest non-zero posterior variance of a trajectory.

    It is used in place of the last step's zero variance before taking the logarithm (guided-diffusion's
    `posterior_log_variance_clipped`).

    Args:
        levels: `[n]` rows from noisy to clean, padded or not; 0 where the trajectory has a single step.
    """
    pairs = Level(*(jnp.asarray(c)[:-1] for c in levels)), Level(*(jnp.asarray(c)[1:] for c in levels))
    variance = jnp.where((pairs[1].sigma > 0) & (pairs[0].sigma > pairs[1].sigma), posterior_variance(*pairs), jnp.inf)
    smallest = jnp.min(variance)
    return jnp.where(jnp.isfinite(smallest), smallest, 0.0)


def _fixed_small(now, nxt, floor, fraction):
    """beta_tilde: right where x0 is one known point."""
    variance = posterior_variance(now, nxt)
    return variance, jnp.log(jnp.where(nxt.sigma > 0, variance, floor))


def _fixed_large(now, nxt, floor, fraction):
    """Beta: right where x0 is itself a standard normal."""
    noisy = nxt.sigma > 0
    return jnp.where(noisy, beta(now, nxt), floor), jnp.where(noisy, log_beta(now, nxt), jnp.log(floor))


def _learned_range(now, nxt, floor, fraction):
    """Between the two, by the network's share of each (Nichol & Dhariwal 2021, eq. 15)."""
    _, low = _fixed_small(now, nxt, floor, fraction)
    log_variance = fraction * log_beta(now, nxt) + (1 - fraction) * low
    return jnp.exp(log_variance), log_variance


VARIANCES = {"fixed_small": _fixed_small, "fixed_large": _fixed_large, "learned_range": _learned_range}


def variance(
    name: str, now: Level, nxt: Level, floor: Float[Array, ""], fraction: Images | None = None
) -> tuple[Array, Array]:
    """Variance of the model's step from `now` to `nxt`, and its logarithm.

    Args:
        name: "fixed_small" (beta_tilde), "fixed_large" (beta) or "learned_range" (between, by `fraction`).
        now: the level before the step.
        nxt: the less noisy level after it.
        floor: `min_posterior_variance` of the whole trajectory; stands in for the last step's, which is 0.
        fraction: `Prediction.variance_fraction`; asked of learned_range only.
    """
    return choose(VARIANCES, name, "diffusion.variance")(now, nxt, floor, fraction)


def kl(mean1: Array, log_variance1: Array, mean2: Array, log_variance2: Array) -> Array:
    """KL(N1 || N2) between diagonal Gaussians, elementwise, in nats."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (jnp.expm1(ratio) - ratio + (mean1 - mean2) ** 2 * jnp.exp(-log_variance2))


def discretised_log_likelihood(x0: Array, mean: Array, log_std: Array) -> Array:
    """Log-probability, in nats, of an 8-bit pixel under a Gaussian cut into 256 bins (Ho et al. 2020, eq. 13).

    Args:
        x0: pixels in [-1, 1], on the grid of 2/255; the first bin reaches to -infinity, the last to infinity.
        mean: of the Gaussian, in the pixels' units.
        log_std: logarithm of its standard deviation.
    """
    centred, inverse_std = x0 - mean, jnp.exp(-log_std)
    upper = _approximate_cdf(inverse_std * (centred + 1 / 255))
    lower = _approximate_cdf(inverse_std * (centred - 1 / 255))
    probability = jnp.where(x0 < -0.999, upper, jnp.where(x0 > 0.999, 1 - lower, upper - lower))
    return jnp.log(jnp.maximum(probability, 1e-12))


def _approximate_cdf(z: Array) -> Array:
    """The standard normal's cdf by Page's tanh formula, as the reference likelihoods were computed."""
    return 0.5 * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (z + 0.044715 * z**3)))
