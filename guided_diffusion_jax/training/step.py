"""One update, as a pure function of the state and a batch."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from guided_diffusion_jax.losses import Losses
from guided_diffusion_jax.samplers import sample_keys
from guided_diffusion_jax.training import ema
from guided_diffusion_jax.training.state import TrainState
from guided_diffusion_jax.typing import Keys, Params

QUARTERS = 4


class Metrics(NamedTuple):
    """Of one update. The loss by noise level is kept as sums and counts, so that steps can be averaged.

    Attributes:
        loss: mean over the batch.
        grad_norm: of the gradient, before it is clipped.
        param_norm: of the parameters after the update.
        quarter_loss: sum of the losses of the samples in each quarter of 0 .. T-1.
        quarter_count: how many samples fell into it.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    param_norm: Float[Array, ""]
    quarter_loss: Float[Array, " 4"]
    quarter_count: Float[Array, " 4"]


LossFunction = Callable[[Params, Keys, dict[str, Array]], Losses]
"""Parameters, one key per sample and a batch to the losses of its samples."""


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    *,
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    num_steps: int,
) -> tuple[TrainState, Metrics]:
    """One update of the parameters and their average.

    Sample i of the step's whole batch draws its noise from `fold_in(fold_in(key, step), i)`.
    """
    keys = sample_keys(jax.random.fold_in(state.key, state.step), jnp.arange(len(batch["image"])))

    def mean_loss(params):
        losses = loss_function(params, keys, batch)
        return jnp.mean(losses.loss), losses

    (loss, losses), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    moved = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        ema=ema.update(state.ema, params, ema_decay, state.step),
        opt_state=opt_state,
    )
    in_quarter = jax.nn.one_hot(losses.t * QUARTERS // num_steps, QUARTERS)
    return moved, Metrics(
        loss=loss,
        grad_norm=optax.tree.norm(gradient),
        param_norm=optax.tree.norm(params),
        quarter_loss=losses.loss @ in_quarter,
        quarter_count=in_quarter.sum(0),
    )
