"""What networks predict, converted to one `Prediction` of x0 and eps.

With x = alpha x0 + sigma eps the conversions are

    eps        x0 = (x - sigma eps) / alpha
    x0         eps = (x - alpha x0) / sigma
    v          v = alpha eps - sigma x0      (Salimans & Ho 2022)
               x0 = (alpha x - sigma v) / (alpha**2 + sigma**2),  eps = (sigma x + alpha v) / (alpha**2 + sigma**2)
    velocity   u = eps - x0, dx/dsigma of a rectified flow with alpha = 1 - sigma (Liu et al. 2022, Lipman et al. 2022)
               x0 = (x - sigma u) / (alpha + sigma),  eps = (x + alpha u) / (alpha + sigma)
    edm        F of x0 = c_skip x + c_out F(c_in x, c_noise), whose target and input have the variance 1 on data of the
               standard deviation sigma_data (Karras et al. 2022, table 1, here for any alpha). With
               s**2 = alpha**2 sigma_data**2 + sigma**2:
               c_skip = alpha sigma_data**2 / s**2,  c_out = sigma sigma_data / s,  c_in = 1 / s
               c_noise = ln(sigma / alpha) / 4

None of them assumes a relation between alpha and sigma. Where x does not determine a quantity (x0 from eps at
alpha = 0, eps from x0 at sigma = 0) that quantity is 0, so that all results are finite.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from guided_diffusion_jax.typing import Images, Level, Prediction


def from_eps(x: Images, eps: Images, level: Level) -> Prediction:
    """Prediction from the noise."""
    return Prediction(_divide(x - level.sigma * eps, level.alpha), eps)


def from_x0(x: Images, x0: Images, level: Level) -> Prediction:
    """Prediction from the clean images."""
    return Prediction(x0, _divide(x - level.alpha * x0, level.sigma))


def from_v(x: Images, v: Images, level: Level) -> Prediction:
    """Prediction from v = alpha eps - sigma x0."""
    square = level.alpha**2 + level.sigma**2
    return Prediction((level.alpha * x - level.sigma * v) / square, (level.sigma * x + level.alpha * v) / square)


def from_velocity(x: Images, velocity: Images, level: Level) -> Prediction:
    """Prediction from u = eps - x0."""
    total = level.alpha + level.sigma
    return Prediction((x - level.sigma * velocity) / total, (x + level.alpha * velocity) / total)


def _divide(numerator: Images, denominator: Array) -> Images:
    """The quotient, or 0 where the denominator is 0; its gradient is finite there too."""
    safe = jnp.where(denominator > 0, denominator, 1)
    return jnp.where(denominator > 0, numerator / safe, 0)


def from_edm(x: Images, output: Images, level: Level, *, sigma_data: float) -> Prediction:
    """Prediction from EDM's F, with neither x0 nor eps divided by alpha or sigma."""
    s = 1 / input_scale(level, sigma_data=sigma_data)
    x0 = (level.alpha * sigma_data**2 / s * x + level.sigma * sigma_data * output) / s
    eps = (level.sigma / s * x - level.alpha * sigma_data * output) / s
    return Prediction(x0, eps)


def edm_target(x0: Array, eps: Array, level: Level, *, sigma_data: float) -> Array:
    """(x0 - c_skip x) / c_out."""
    return (level.sigma / sigma_data * x0 - level.alpha * sigma_data * eps) * input_scale(level, sigma_data=sigma_data)


def input_scale(level: Level, *, sigma_data: float) -> Array:
    """c_in, which makes the variance of the input 1."""
    return 1 / jnp.sqrt((level.alpha * sigma_data) ** 2 + level.sigma**2)


def c_noise(level: Level) -> Array:
    """ln(sigma / alpha) / 4; finite at sigma = 0 and alpha = 0."""
    return jnp.log(jnp.maximum(level.sigma, 1e-5) / jnp.maximum(level.alpha, 1e-5)) / 4


class Parametrization(NamedTuple):
    """One choice of what a network predicts.

    Attributes:
        prediction: `(x, output, level) -> Prediction`, from noisy images and the network's output.
        target: `(x0, eps, level) -> images`, what the output is trained towards.
        input_scale: `level -> factor` of x before it enters the network (c_in of Karras et al. 2022); None is 1.
        input_time: `level -> time` that the network is given (c_noise of Karras et al. 2022); None is `Level.time`.
    """

    prediction: Callable[[Images, Images, Level], Prediction]
    target: Callable[[Images, Images, Level], Images]
    input_scale: Callable[[Level], Array] | None = None
    input_time: Callable[[Level], Array] | None = None


def edm(sigma_data: float = 0.5) -> Parametrization:
    """EDM's preconditioning for data of a standard deviation (Karras et al. 2022, table 1)."""
    return Parametrization(
        functools.partial(from_edm, sigma_data=sigma_data),
        functools.partial(edm_target, sigma_data=sigma_data),
        functools.partial(input_scale, sigma_data=sigma_data),
        c_noise,
    )


PREDICTIONS: dict[str, Parametrization] = {
    "eps": Parametrization(from_eps, lambda x0, eps, level: eps),
    "x0": Parametrization(from_x0, lambda x0, eps, level: x0),
    "v": Parametrization(from_v, lambda x0, eps, level: level.alpha * eps - level.sigma * x0),
    "velocity": Parametrization(from_velocity, lambda x0, eps, level: eps - x0),
    "edm": edm(),
}
