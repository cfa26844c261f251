"""What a network predicts, and what of it we want: eps, x0, v or the previous mean become one `Prediction`.

From x = alpha x0 + sigma eps and v = alpha eps - sigma x0 (Salimans & Ho 2022), with alpha**2 + sigma**2 = 1:

    x0 = (x - sigma eps) / alpha = alpha x - sigma v
    eps = (x - alpha x0) / sigma = sigma x + alpha v
"""

from jaxtyping import Array

from guided_diffusion_jax.typing import Images, Level, Prediction


def from_eps(x: Images, eps: Images, level: Level) -> Prediction:
    return Prediction((x - level.sigma * eps) / level.alpha, eps)


def from_x0(x: Images, x0: Images, level: Level) -> Prediction:
    """Needs sigma > 0: a clean image says nothing of the noise."""
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def from_v(x: Images, v: Images, level: Level) -> Prediction:
    return Prediction(level.alpha * x - level.sigma * v, level.sigma * x + level.alpha * v)


def from_previous(x: Images, mean: Images, level: Level, coefficients: tuple[Array, Array]) -> Prediction:
    """From a predicted mean of q(x_nxt given x, x0), solved for x0; `coefficients` as `gaussian` has them."""
    of_x0, of_x = coefficients
    return from_x0(x, (mean - of_x * x) / of_x0, level)


PREDICTIONS = {"eps": from_eps, "x0": from_x0, "v": from_v}

TARGETS = {
    "eps": lambda x0, eps, level: eps,
    "x0": lambda x0, eps, level: x0,
    "v": lambda x0, eps, level: level.alpha * eps - level.sigma * x0,
}
"""What a network of each kind is trained towards, from the clean images, the noise and the level."""
