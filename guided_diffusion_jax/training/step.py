"""One update, as a pure function of the state and a batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from guided_diffusion_jax.losses import Losses, Timesteps
from guided_diffusion_jax.samplers import sample_keys
from guided_diffusion_jax.samplers.noise import fold
from guided_diffusion_jax.training import ema
from guided_diffusion_jax.training.state import TrainState

QUARTERS = 4


class Metrics(NamedTuple):
    """Of one update. The loss by noise level is kept as sums and counts, so that steps can be averaged.

    Attributes:
        loss: mean over the batch, weighted where t is not uniform.
        grad_norm: of the gradient, before it is clipped.
        param_norm: of the parameters after the update.
        quarter_sums: of the loss and of each of `Losses.figures` the weighted sum over the samples in each quarter of
            0 .. T-1, `[4]`.
        quarter_count: how many samples fell into it, the sum of their weights.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    param_norm: Float[Array, ""]
    quarter_sums: dict[str, Array]
    quarter_count: Float[Array, " 4"]


LossFunction = Callable[..., Losses]
"""`(params, keys, batch)`, one key per sample, to the losses of the batch's samples; with `Timesteps` also `t=`."""

OF_STEPS = 2**31 - 1
"""Folded into a sample's key for the choice of t; far from what a loss function splits off."""


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    *,
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    num_steps: int,
    timesteps: Timesteps | None = None,
) -> tuple[TrainState, Metrics]:
    """One update of the parameters and their average.

    Sample i of the step's whole batch draws its noise from `fold_in(fold_in(key, step), i)`.

    Args:
        state: before it.
        batch: of all devices.
        loss_function: of the batch's samples.
        optimizer: as the state was created with.
        ema_decay: of the average, in [0, 1).
        num_steps: T.
        timesteps: as the state was created with; None leaves the choice of t to the loss function.
    """
    keys = sample_keys(jax.random.fold_in(state.key, state.step), jnp.arange(len(batch["image"])))

    weight = jnp.ones(len(keys))
    if timesteps is not None:
        t, weight = timesteps.sample(state.timesteps, fold(keys, OF_STEPS))
        loss_function = functools.partial(loss_function, t=t)

    def mean_loss(params):
        losses = loss_function(state.frozen | params, keys, batch)
        return jnp.mean(weight * losses.loss), losses

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
    if timesteps is not None:
        moved = dataclasses.replace(moved, timesteps=timesteps.update(state.timesteps, losses.t, losses.loss))
    in_quarter = weight[:, None] * jax.nn.one_hot(losses.t * QUARTERS // num_steps, QUARTERS)
    return moved, Metrics(
        loss=loss,
        grad_norm=optax.tree.norm(gradient),
        param_norm=optax.tree.norm(params),
        quarter_sums={name: figure @ in_quarter for name, figure in {"loss": losses.loss, **losses.figures}.items()},
        quarter_count=in_quarter.sum(0),
    )
