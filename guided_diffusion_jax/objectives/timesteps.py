"""Which noise level each sample is trained at: uniformly any, or more often those where the loss is large.

With t drawn from p instead of uniformly from T steps, the loss times 1 / (T p(t)) has the same expectation; its
variance is least for p proportional to sqrt(E[loss_t**2]) (Nichol & Dhariwal 2021, eq. 18).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.typing import Keys

TICKS = 2**30
"""Probabilities are counted in about so many equal parts, so that what is drawn has exactly the weight it is given."""


class Timesteps(NamedTuple):
    """How t is drawn: three pure functions around a state, which is part of the train state.

    Attributes:
        init: `init() -> state`.
        sample: `sample(state, keys) -> (t, weight)`, both `[b]`; the mean of weight * loss estimates without bias the
            mean loss over uniform t.
        update: `update(state, t, loss) -> state`, with the losses `[b]` that these t had, not weighted.
    """

    init: Callable[[], Any]
    sample: Callable[[Any, Keys], tuple[Int[Array, " b"], Float[Array, " b"]]]
    update: Callable[[Any, Int[Array, " b"], Float[Array, " b"]], Any]


class History(NamedTuple):
    """The last losses of every step.

    Attributes:
        losses: a ring for each step, `[T h]`.
        seen: how many losses each step has had, int32.
    """

    losses: Float[Array, "T h"]
    seen: Int[Array, " T"]


def uniform_steps(keys: Keys, num_steps: int) -> Int[Array, " b"]:
    """T ~ Uniform {0 .. T-1}, each sample's from its own key."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_steps))(keys)


def uniform(num_steps: int) -> Timesteps:
    """Every step alike; there is nothing to remember."""
    return Timesteps(
        init=lambda: (),
        sample=lambda state, keys: (uniform_steps(keys, num_steps), jnp.ones(keys.shape[0])),
        update=lambda state, t, loss: state,
    )


def loss_second_moment(num_steps: int, history: int = 10, uniform_share: float = 0.001) -> Timesteps:
    """Improved diffusion's resampler: p(t) ~ sqrt(mean of loss_t**2) over the last losses that each step had.

    Until every step has had `history` of them, all steps are alike.

    Args:
        num_steps: T.
        history: how many losses of each step are remembered.
        uniform_share: the part of the probability that is spread evenly, so that no step is forgotten; in (0, 1].
    """

    def sample(state: History, keys: Keys) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
        ticks = jnp.maximum(1, jnp.round(probabilities(state, uniform_share) * TICKS)).astype(jnp.int32)
        edges = jnp.cumsum(ticks)
        drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, edges[-1]))(keys)
        t = jnp.searchsorted(edges, drawn, side="right")
        return t, edges[-1] / (num_steps * ticks[t].astype(jnp.float32))

    return Timesteps(
        init=lambda: History(jnp.zeros((num_steps, history)), jnp.zeros(num_steps, jnp.int32)),
        sample=sample,
        update=remember,
    )


def probabilities(state: History, uniform_share: float) -> Float[Array, " T"]:
    """p(t), which sums to 1."""
    num_steps, history = state.losses.shape
    second_moment = jnp.sqrt(jnp.mean(state.losses**2, axis=1))
    share = second_moment / jnp.maximum(second_moment.sum(), jnp.finfo(jnp.float32).tiny)
    even = jnp.full(num_steps, 1 / num_steps)
    return jnp.where(jnp.all(state.seen >= history), (1 - uniform_share) * share + uniform_share * even, even)


def remember(state: History, t: Int[Array, " b"], loss: Float[Array, " b"]) -> History:
    """Writes the losses into the rings of their steps, in the order of the batch; the newest stay."""
    num_steps, history = state.losses.shape
    order = jnp.argsort(t, stable=True)
    t, loss = t[order], loss[order]
    place = jnp.arange(len(t)) - jnp.searchsorted(t, t)  # among the losses of the same t: 0, 1, ..
    new = jnp.zeros(num_steps, jnp.int32).at[t].add(1)
    # Of more losses than a ring holds the first ones go to a row that does not exist: no place is written twice.
    row = jnp.where(place >= new[t] - history, t, num_steps)
    losses = state.losses.at[row, (state.seen[t] + place) % history].set(loss, mode="drop")
    return History(losses, state.seen + new)


TIMESTEPS: dict[str, Callable[[int], Timesteps]] = {"uniform": uniform, "loss_second_moment": loss_second_moment}
