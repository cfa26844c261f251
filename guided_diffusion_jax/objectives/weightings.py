"""Weights of the squared error by noise level, each a function of the level, right for everything a network predicts.

With x given, what a network predicts is an affine function of x0 whose slope is d = target(1, -alpha / sigma), since
eps = (x - alpha x0) / sigma. So its squared error is d**2 times that of x0:

    eps alpha**2 / sigma**2    v (alpha**2 + sigma**2)**2 / sigma**2    velocity (1 + alpha / sigma)**2

A weighting says what the squared error of x0 is multiplied by; `of_prediction` divides that by d**2. What is trained is
this weight times the density of the levels that `timesteps` draws.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from guided_diffusion_jax import checks
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.prediction import c_noise
from guided_diffusion_jax.typing import Images, Level

Weighting = Callable[[Level], Array]
"""A level to the weight of the squared error, of the shape of `Level.alpha`."""

Target = Callable[[Images, Images, Level], Images]


def snr(level: Level) -> Array:
    """alpha**2 / sigma**2."""
    return (level.alpha / level.sigma) ** 2


def min_snr(level: Level, *, gamma: float = 5.0) -> Array:
    """min(snr, gamma) of the error of x0 (Hang et al. 2023)."""
    return jnp.minimum(snr(level), gamma)


def p2(level: Level, *, gamma: float = 1.0, k: float = 1.0) -> Array:
    """1 / (k + snr)**gamma of the error of eps, snr times that of the error of x0 (Choi et al. 2022)."""
    return snr(level) / (k + snr(level)) ** gamma


def edm(level: Level, *, sigma_data: float = 0.5) -> Array:
    """(sigma**2 + sigma_data**2) / (sigma sigma_data)**2 of the error of x0, for alpha = 1 (Karras et al. 2022)."""
    return snr(level) + 1 / sigma_data**2


def sigmoid(level: Level, *, bias: float = -1.0) -> Array:
    """logistic(bias - logsnr) of the error of eps (Kingma & Gao 2023; Hoogeboom et al. 2024)."""
    return snr(level) * jax.nn.sigmoid(bias - jnp.log(snr(level)))


WEIGHTINGS: dict[str, Callable[..., Array] | None] = {
    "none": None,
    "min_snr": min_snr,
    "p2": p2,
    "edm": edm,
    "sigmoid": sigmoid,
    "learned": edm,
}
"""Choices of `train.loss_weighting`: the weight of the squared error of x0 at a level, with options of its own.

"none" is the plain squared error of what the network predicts; "learned" is EDM's, divided by what `uncertainty`
learns.
"""


def create(name: str, target: Target, **options: float) -> Weighting | None:
    """Weight of the squared error of a prediction; None for "none".

    Args:
        name: a key of `WEIGHTINGS`.
        target: of the `Parametrization` whose error is weighted.
        options: of that weighting.

    Raises:
        InputError: there is no such weighting, or it has no such option.
    """
    weighting = choose(WEIGHTINGS, name, "train.loss_weighting")
    checks.options(f"train.loss_weighting={name!r}", weighting, options, skip=1)
    require(options.get("sigma_data", 1) > 0, "train.loss_weighting_options: sigma_data must be positive")
    return None if weighting is None else of_prediction(lambda level: weighting(level, **options), target)


def of_prediction(weighting: Weighting, target: Target) -> Weighting:
    """Weight of the squared error of what a network predicts, from that of x0."""

    def weight(level: Level) -> Array:
        level = level._replace(alpha=jnp.maximum(level.alpha, 1e-6))  # the limit where alpha is 0
        slope = target(jnp.ones_like(level.alpha), -level.alpha / level.sigma, level)
        return weighting(level) / slope**2

    return weight


def weighted(target: Target, weighting: Weighting | None) -> Target:
    """Target whose squared error is the weighted one."""
    if weighting is None:
        return target
    return lambda x0, eps, level: jnp.sqrt(weighting(level)) * target(x0, eps, level)


FREQUENCIES = 16


def init_uncertainty() -> dict[str, Array]:
    """Parameters of `uncertainty`, which is 0 at first."""
    return {"cos": jnp.zeros(FREQUENCIES), "sin": jnp.zeros(FREQUENCIES)}


def uncertainty(params: Mapping[str, Any], level: Level) -> Float[Array, "..."]:
    """u, the logarithm of the loss that is to be expected at a level: a Fourier series in ln(sigma / alpha) / 4.

    Trained by exp(-u) loss + u, whose least value is at exp(u) = E[loss]: then all levels count alike (Karras et al.
    2024).
    """
    angles = jnp.multiply.outer(c_noise(level), jnp.arange(FREQUENCIES))
    return jnp.cos(angles) @ params["cos"] + jnp.sin(angles) @ params["sin"]
