"""Everything that training changes, in one pytree: what a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from guided_diffusion_jax.losses import Timesteps
from guided_diffusion_jax.typing import Params


@flax.struct.dataclass
class TrainState:
    """The state after `step` updates.

    Attributes:
        step: how many updates made it, int32.
        params: the network's parameters.
        ema: their moving average.
        opt_state: the optimiser's.
        key: a typed key, constant; step and sample numbers are folded into it.
        frozen: further parameters of the network, which stay as they are; beside `params` at the top of the tree.
        timesteps: what the choice of noise levels remembers; None where the loss draws them by itself.
        usual_norm: of the gradient, a running average; None where no spikes are looked for.
    """

    step: Any
    params: Params
    ema: Params
    opt_state: Any
    key: Any
    frozen: Params = flax.struct.field(default_factory=dict)
    timesteps: Any = None
    usual_norm: Any = None


def create(
    params: Params,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    timesteps: Timesteps | None = None,
    frozen: Params | None = None,
    spike: float = 0.0,
) -> TrainState:
    """The state before the first update; the average starts at the parameters. `spike` is `train_step`'s."""
    # A copy: two leaves that are one buffer cannot both be donated.
    ema = jax.tree.map(jnp.copy, params)
    remembered = None if timesteps is None else timesteps.init()
    usual_norm = jnp.float32(0) if spike else None
    return TrainState(jnp.int32(0), params, ema, optimizer.init(params), key, frozen or {}, remembered, usual_norm)


def adam(
    learning_rate: float, warmup_steps: int, weight_decay: float, grad_clip: float
) -> optax.GradientTransformation:
    """AdamW with a linear warm-up and, for `grad_clip` > 0, the gradient's global norm cut to that.

    Its state has the same structure for all values, so that a run may go on with others.
    """

    def rate(count):
        return learning_rate * jnp.minimum(1.0, (count + 1) / max(1, warmup_steps))

    clip = optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity()
    return optax.chain(clip, optax.adamw(rate, weight_decay=weight_decay))
