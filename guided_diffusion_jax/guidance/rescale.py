"""Rescaled guidance (Lin et al. 2023): the contrast of the conditional prediction for a guided one."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import ArrayLike

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.guidance.cfg import unguided
from guided_diffusion_jax.guidance.rules import Adjuster, option
from guided_diffusion_jax.prediction import from_eps, from_v, from_x0
from guided_diffusion_jax.typing import Images, Level, Prediction


class _Quantity(NamedTuple):
    of: Callable[[Prediction, Level], Images]
    predict: Callable[[Images, Images, Level], Prediction]


QUANTITIES = {
    "x0": _Quantity(lambda prediction, level: prediction.x0, from_x0),
    "eps": _Quantity(lambda prediction, level: prediction.eps, from_eps),
    "v": _Quantity(lambda prediction, level: level.alpha * prediction.eps - level.sigma * prediction.x0, from_v),
}
"""What may be rescaled."""


def rescale(phi: ArrayLike = 0.7, of: str = "x0") -> Adjuster:
    """Rescaling of a guided prediction p (Lin et al. 2023, eq. 14 to 16).

        p = (phi std(p_cond) / std(p) + 1 - phi) p

    std is over all values of a sample, with n - 1. p_cond is the prediction without guidance: the conditional one, or
    the composition at weights 0.

    Args:
        phi: share of the rescaled prediction, 0 to 1; 0 is none.
        of: what p is: "x0", "eps" or "v". The paper rescales the network's output; so do other libraries, with eps in
            most of their models.
    """
    choose(QUANTITIES, of, "rescale: of")
    return Adjuster(Partial(_ADJUST[of], phi=option("rescale: phi", phi, 0, 1)), name="rescale")


def _adjust_of(quantity: _Quantity):
    def adjust(branches, prediction, x, level, memory, *, phi):
        p, reference = quantity.of(prediction, level), quantity.of(unguided(branches), level)
        factor = phi * _std(reference) / _std(p) + 1 - phi
        return quantity.predict(x, factor * p, level), memory

    return adjust


_ADJUST = {name: _adjust_of(quantity) for name, quantity in QUANTITIES.items()}


def _std(values):
    variance = jnp.var(values, axis=(1, 2, 3), ddof=1, keepdims=True)
    return jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
