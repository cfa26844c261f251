"""The exponential moving average of the parameters, which is what samples are drawn with."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from guided_diffusion_jax.typing import Params


def update(ema: Params, params: Params, decay: float, step: Int[Array, ""]) -> Params:
    """Ema = d ema + (1 - d) params, with d = min(decay, (1 + step) / (10 + step)) so that it forgets its start."""
    return optax.incremental_update(params, ema, 1 - jnp.minimum(decay, (1 + step) / (10 + step)))
