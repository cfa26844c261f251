"""One update, as a pure function of the state and a batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from guided_diffusion_jax.losses import Losses, Timesteps
from guided_diffusion_jax.samplers import sample_keys
from guided_diffusion_jax.samplers.noise import fold
from guided_diffusion_jax.sharding import NO_COLLECTIVES, Collectives
from guided_diffusion_jax.training import ema
from guided_diffusion_jax.training.state import TrainState
from guided_diffusion_jax.typing import Params

QUARTERS = 4


class Metrics(NamedTuple):
    """Of one update. The loss by noise level is kept as sums and counts, so that steps can be averaged.

    Attributes:
        loss: mean over the batch, weighted where t is not uniform.
        grad_norm: of the gradient, before it is clipped.
        param_norm: of the parameters after the update.
        bad: whether the loss or gradient is not finite or a spike; the update was left out then.
        quarter_sums: of the loss and of each of `Losses.figures` the weighted sum over the samples in each quarter of
            0 .. T-1, `[4]`.
        quarter_count: how many samples fell into it, the sum of their weights.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    param_norm: Float[Array, ""]
    bad: Bool[Array, ""]
    quarter_sums: dict[str, Array]
    quarter_count: Float[Array, " 4"]


LossFunction = Callable[..., Losses]
"""`(params, keys, batch)`, one key per sample, to the losses of the batch's samples; with `Timesteps` also `t=`."""

OF_NORM = 0.01
"""How much of the running average of the gradient's norm is the newest."""

OF_STEPS = 2**31 - 1
"""Folded into a sample's key for the choice of t; far from what a loss function splits off."""


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    across: Collectives = NO_COLLECTIVES,
    *,
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    num_steps: int,
    timesteps: Timesteps | None = None,
    accumulate: int = 1,
    spike: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """One update of the parameters and their average.

    Sample i of the step's whole batch draws its noise from `fold_in(fold_in(key, step), i)`. Of a bad step, whose loss
    or gradient is not finite or whose gradient is a spike, nothing stays but its number.

    Args:
        state: before it.
        batch: this device's part of it.
        across: the devices.
        loss_function: of the batch's samples.
        optimizer: as the state was created with.
        ema_decay: of the average, in [0, 1).
        num_steps: T.
        timesteps: as the state was created with; None leaves the choice of t to the loss function.
        accumulate: in how many parts the gradient is computed, one after the other; divides the device's batch.
        spike: how many times its running average makes a gradient's norm a spike; 0 is never.
    """
    keys = sample_keys(jax.random.fold_in(state.key, state.step), across.sample_indices(len(batch["image"])))

    weight, chosen = jnp.ones(len(keys)), {}
    if timesteps is not None:
        t, weight = timesteps.sample(state.timesteps, fold(keys, OF_STEPS))
        chosen = {"t": t}
    losses, gradient = _gradient(loss_function, state, (keys, batch, weight, chosen), across, accumulate)
    losses, weight = across.gather((losses, weight))
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    moved = dataclasses.replace(
        state, params=params, ema=ema.update(state.ema, params, ema_decay, state.step), opt_state=opt_state
    )
    if timesteps is not None:
        moved = dataclasses.replace(moved, timesteps=timesteps.update(state.timesteps, losses.t, losses.loss))
    loss, norm, param_norm = jnp.mean(weight * losses.loss), optax.tree.norm(gradient), optax.tree.norm(params)
    bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(param_norm))
    if state.usual_norm is not None:
        bad |= norm > jnp.where(state.usual_norm > 0, spike * state.usual_norm, jnp.inf)
        usual = jnp.where(state.usual_norm > 0, optax.incremental_update(norm, state.usual_norm, OF_NORM), norm)
        moved = dataclasses.replace(moved, usual_norm=usual)
    kept = jax.tree.map(lambda new, old: jnp.where(bad, old, new), moved, state)
    in_quarter = weight[:, None] * jax.nn.one_hot(losses.t * QUARTERS // num_steps, QUARTERS)
    return dataclasses.replace(kept, step=state.step + 1), Metrics(
        loss=loss,
        grad_norm=norm,
        param_norm=param_norm,
        bad=bad,
        quarter_sums={name: figure @ in_quarter for name, figure in {"loss": losses.loss, **losses.figures}.items()},
        quarter_count=in_quarter.sum(0),
    )


def _gradient(
    loss_function: LossFunction, state: TrainState, samples: Any, across: Collectives, accumulate: int
) -> tuple[Losses, Params]:
    """The losses of all samples that are here and the gradient of the batch's weighted mean, a part at a time."""

    @across.gathering
    def mean_loss(params, keys, batch, weight, chosen):
        losses = loss_function(params, keys, batch, **chosen)
        return jnp.mean(weight * losses.loss), losses

    def gradient_of(part):
        return jax.grad(lambda params: mean_loss(state.frozen | params, *part), has_aux=True)(state.params)

    if accumulate == 1:
        gradient, losses = gradient_of(samples)
        return losses, across.mean(gradient)

    def add(total, part):
        gradient, losses = gradient_of(part)
        return optax.tree.add(total, gradient), losses

    # Every so-many-th sample is a part, so that a batch that is cut along its first axis stays where it is.
    parts = jax.tree.map(lambda a: a.reshape(-1, accumulate, *a.shape[1:]).swapaxes(0, 1), samples)
    # In a loop XLA's CPU backend takes 17 times as long for a convolution's gradient.
    unroll = jax.default_backend() == "cpu"
    total, losses = jax.lax.scan(add, optax.tree.zeros_like(state.params), parts, unroll=unroll)
    losses = jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), losses)
    return losses, across.mean(optax.tree.scale(1 / accumulate, total))
