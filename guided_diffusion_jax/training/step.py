"""One update, as a pure function of the state and a batch."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from guided_diffusion_jax.objectives import Losses, Objective, Timesteps
from guided_diffusion_jax.random import TIMESTEP_STREAM, fold, sample_keys
from guided_diffusion_jax.sharding import NO_COLLECTIVES, Collectives
from guided_diffusion_jax.training import leafwise, power_ema
from guided_diffusion_jax.training.state import TrainState, update_ema
from guided_diffusion_jax.typing import Params

QUARTERS = 4


class Metrics(NamedTuple):
    """Metrics of one update. The loss by noise level is stored as sums and counts, so that steps can be averaged.

    Attributes:
        loss: mean over the batch, weighted where t is not uniform.
        grad_norm: of the gradient, before it is clipped.
        param_norm: of the parameters after the update.
        bad: whether the loss or gradient is not finite or a spike; the update was left out then.
        quarter_sums: of the loss and of each of `Losses.figures` the weighted sum over the samples in each quarter of
            0 .. T-1, `[4]`; over all samples, `[1]`, where there is no noise.
        quarter_count: sum of the weights of the samples in each quarter.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    param_norm: Float[Array, ""]
    bad: Bool[Array, ""]
    quarter_sums: dict[str, Array]
    quarter_count: Float[Array, " q"]


GRAD_NORM_EMA = 0.01
"""Share of the newest gradient norm in its running average."""


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Settings of `train_step`.

    Attributes:
        num_steps: T of the process, for the loss by noise level.
        ema_decay: of the average, in [0, 1).
        ema_warmup: see `state.update_ema`.
        accumulate: in how many parts the gradient is computed, one after the other; divides the device's batch.
        grad_spike: how many times its running average makes a gradient's norm a spike; 0 is never.
        power_ema: lengths sigma_rel of the averages in `TrainState.power_ema`.
    """

    num_steps: int
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    accumulate: int = 1
    grad_spike: float = 0.0
    power_ema: tuple[float, ...] = ()


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    collectives: Collectives = NO_COLLECTIVES,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    timesteps: Timesteps | None = None,
) -> tuple[TrainState, Metrics]:
    """One update of the parameters and their average.

    Sample i of the step's whole batch draws its noise from `fold_in(fold_in(key, step), i)`. A bad step, whose loss or
    gradient is not finite or whose gradient is a spike, changes nothing but the number of the step.

    Args:
        state: before it.
        batch: this device's part of it.
        collectives: the devices.
        objective: what is trained.
        optimizer: as the state was created with.
        settings: numbers.
        timesteps: as the state was created with; None leaves the choice of t to the objective.
    """
    key, indices = jax.random.fold_in(state.key, state.step), collectives.sample_indices(len(batch["image"]))
    keys = sample_keys(key, indices)

    weight, chosen = jnp.ones(len(keys)), {}
    if timesteps is not None:
        of_batch = fold(sample_keys(key, collectives.gather(indices)), TIMESTEP_STREAM)
        t, weight = (values[indices] for values in timesteps.sample(state.timesteps, of_batch))
        chosen = {"t": t}
    losses, gradient = _gradient(objective, state, (keys, batch, weight, chosen), collectives, settings.accumulate)
    losses, weight = collectives.gather((losses, weight))
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = update_ema(state.ema, params, settings.ema_decay, state.step, warmup=settings.ema_warmup)
    updated = dataclasses.replace(state, params=params, ema=ema, opt_state=opt_state)
    if timesteps is not None:
        updated = dataclasses.replace(updated, timesteps=timesteps.update(state.timesteps, losses.t, losses.loss))
    loss, norm, param_norm = jnp.mean(weight * losses.loss), leafwise.norm(gradient), leafwise.norm(params)
    bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(param_norm))
    if state.grad_norm_ema is not None:
        average = state.grad_norm_ema
        bad |= norm > jnp.where(average > 0, settings.grad_spike * average, jnp.inf)
        average = jnp.where(average > 0, optax.incremental_update(norm, average, GRAD_NORM_EMA), norm)
        updated = dataclasses.replace(updated, grad_norm_ema=average)
    final = jax.tree.map(lambda new, old: new if new is old else jnp.where(bad, old, new), updated, state)
    if state.power_ema is not None:  # a bad step counts: its parameters are those before it
        averages = power_ema.update(state.power_ema, final.params, settings.power_ema, state.step + 1)
        final = dataclasses.replace(final, power_ema=averages)
    in_quarter = weight[:, None]
    if losses.t is not None:
        in_quarter *= jax.nn.one_hot((losses.t * QUARTERS // settings.num_steps).astype(int), QUARTERS)
    return dataclasses.replace(final, step=state.step + 1), Metrics(
        loss=loss,
        grad_norm=norm,
        param_norm=param_norm,
        bad=bad,
        quarter_sums={name: figure @ in_quarter for name, figure in {"loss": losses.loss, **losses.figures}.items()},
        quarter_count=in_quarter.sum(0),
    )


def _gradient(
    objective: Objective, state: TrainState, samples: Any, collectives: Collectives, accumulate: int
) -> tuple[Losses, Params]:
    """Losses of this device's samples and the gradient of the batch's weighted mean, a part at a time."""

    @collectives.gathering
    def mean_loss(trees, keys, batch, weight, chosen):
        params, ema, frozen = trees
        losses = objective.loss(params, ema, frozen, keys, batch, **chosen)
        return jnp.mean(weight * losses.loss), losses

    def gradient_of(part):
        return jax.grad(lambda params: mean_loss((params, state.ema, state.frozen), *part), has_aux=True)(state.params)

    if accumulate == 1:
        gradient, losses = gradient_of(samples)
        return losses, collectives.mean(gradient)

    def add(total, part):
        gradient, losses = gradient_of(part)
        return optax.tree.add(total, gradient), losses

    # Every k-th sample is a part, so that a batch that is sharded along its first axis is not moved.
    parts = jax.tree.map(lambda a: a.reshape(-1, accumulate, *a.shape[1:]).swapaxes(0, 1), samples)
    # In a loop XLA's CPU backend takes 17 times as long for a convolution's gradient.
    unroll = jax.default_backend() == "cpu"
    total, losses = jax.lax.scan(add, optax.tree.zeros_like(state.params), parts, unroll=unroll)
    losses = jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), losses)
    return losses, collectives.mean(optax.tree.scale(1 / accumulate, total))
