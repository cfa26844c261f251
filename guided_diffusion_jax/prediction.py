"""What networks predict, converted to one `Prediction` of x0 and eps.

With x = alpha x0 + sigma eps the conversions are

    eps        x0 = (x - sigma eps) / alpha
    x0         eps = (x - alpha x0) / sigma
    v          v = alpha eps - sigma x0      (Salimans & Ho 2022)
               x0 = (alpha x - sigma v) / (alpha**2 + sigma**2),  eps = (sigma x + alpha v) / (alpha**2 + sigma**2)
    velocity   u = eps - x0, dx/dsigma of a rectified flow with alpha = 1 - sigma (Liu et al. 2022, Lipman et al. 2022)
               x0 = (x - sigma u) / (alpha + sigma),  eps = (x + alpha u) / (alpha + sigma)

None of them assumes a relation between alpha and sigma. Where x does not determine a quantity (x0 from eps at
alpha = 0, eps from x0 at sigma = 0) that quantity is 0, so that all results are finite.
"""

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


class Parametrization(NamedTuple):
    """One choice of what a network predicts.

    Attributes:
        prediction: `(x, output, level) -> Prediction`, from noisy images and the network's output.
        target: `(x0, eps, level) -> images`, what the output is trained towards.
        input_scale: `level -> factor` of x before it enters the network (c_in of Karras et al. 2022); None is 1.
    """

    prediction: Callable[[Images, Images, Level], Prediction]
    target: Callable[[Images, Images, Level], Images]
    input_scale: Callable[[Level], Array] | None = None


PREDICTIONS: dict[str, Parametrization] = {
    "eps": Parametrization(from_eps, lambda x0, eps, level: eps),
    "x0": Parametrization(from_x0, lambda x0, eps, level: x0),
    "v": Parametrization(from_v, lambda x0, eps, level: level.alpha * eps - level.sigma * x0),
    "velocity": Parametrization(from_velocity, lambda x0, eps, level: eps - x0),
}
