"""Everything that training changes, in one pytree: what a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from guided_diffusion_jax.typing import Params


@flax.struct.dataclass
class TrainState:
    """The state after `step` updates.

    Attributes:
        step: how many updates made it.
        params: the network's parameters.
        ema: their moving average.
        opt_state: the optimiser's.
        key: constant; step and sample numbers are folded into it.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: Any
    key: Key[Array, ""]


def create(params: Params, optimizer: optax.GradientTransformation, key: Key[Array, ""]) -> TrainState:
    """The state before the first update; the average starts at the parameters."""
    # A copy: two leaves that are one buffer cannot both be donated.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.int32(0), params, ema, optimizer.init(params), key)


def adam(
    learning_rate: float, warmup_steps: int, weight_decay: float, grad_clip: float
) -> optax.GradientTransformation:
    """AdamW with a linear warm-up and, for `grad_clip` > 0, the gradient's global norm cut to that."""
    rate = optax.linear_schedule(0.0, learning_rate, warmup_steps) if warmup_steps else learning_rate
    clip = optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity()
    return optax.chain(clip, optax.adamw(rate, weight_decay=weight_decay))
