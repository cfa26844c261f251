"""Everything that training changes, in one pytree: what a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from guided_diffusion_jax.objectives import Timesteps
from guided_diffusion_jax.objectives.partition import merge, network
from guided_diffusion_jax.training import leafwise
from guided_diffusion_jax.typing import Params


@flax.struct.dataclass
class TrainState:
    """State after `step` updates.

    Attributes:
        step: number of updates, int32.
        params: parameters that are trained.
        ema: their exponential moving average.
        opt_state: state of the optimizer.
        key: a typed key, constant; step and sample indices are folded into it.
        frozen: parameters that are not trained, a nested dict without the trained ones.
        timesteps: state of the choice of noise levels; None where the loss draws them by itself.
        grad_norm_ema: running average of the gradient's norm; None where no spikes are looked for.
        power_ema: averages of the trained parameters with power functions as profiles (`power_ema`); None for none.
    """

    step: Any
    params: Params
    ema: Params
    opt_state: Any
    key: Any
    frozen: Params = flax.struct.field(default_factory=dict)
    timesteps: Any = None
    grad_norm_ema: Any = None
    power_ema: Any = None

    def network(self, *, averaged: bool = True) -> Params:
        """Parameters of the whole network, the trained ones averaged or as they are."""
        return merge(network(self.ema if averaged else self.params), self.frozen)


def create(
    params: Params,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    timesteps: Timesteps | None = None,
    frozen: Params | None = None,
    grad_spike: float = 0.0,
    power_ema: Any = None,
) -> TrainState:
    """State before the first update; the average starts at the parameters. `grad_spike` is `train_step`'s."""
    # A copy: two leaves that are one buffer cannot both be donated.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        ema=ema,
        opt_state=optimizer.init(params),
        key=key,
        frozen=frozen or {},
        timesteps=None if timesteps is None else timesteps.init(),
        grad_norm_ema=jnp.float32(0) if grad_spike else None,
        power_ema=power_ema,
    )


def update_ema(ema: Params, params: Params, decay: float, step: Int[Array, ""], *, warmup: bool = True) -> Params:
    """Exponential moving average: d ema + (1 - d) params.

    With `warmup` d = min(decay, (1 + step) / (10 + step)), so that it forgets its start.
    """
    forgetting = jnp.minimum(decay, (1 + step) / (10 + step)) if warmup else decay
    return leafwise.average(params, ema, 1 - forgetting)
