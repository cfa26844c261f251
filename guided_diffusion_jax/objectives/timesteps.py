"""Which noise level each sample is trained at: uniformly any, often those where the loss is large, or as a law says.

t is a step of the process, a whole number in 0 .. T-1, or a real number between two steps (see `schedules.at`).

With t drawn from p instead of uniformly from T steps, the loss times 1 / (T p(t)) has the same expectation; its
variance is least for p proportional to sqrt(E[loss_t**2]) (Nichol & Dhariwal 2021, eq. 18).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from guided_diffusion_jax import checks
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.schedules import position
from guided_diffusion_jax.typing import Keys, Level

TICKS = 2**30
"""Probabilities are counted in about so many equal parts, so that what is drawn has exactly the weight it is given."""


Steps = Int[Array, " b"] | Float[Array, " b"]


class Timesteps(NamedTuple):
    """How t is drawn: three pure functions around a state, which is part of the train state.

    Attributes:
        init: `init() -> state`.
        sample: `sample(state, keys) -> (t, weight)`, both `[b]`, of the keys of a whole batch. `uniform`, `stratified`
            and `loss_second_moment` promise that the mean of weight * loss estimates without bias the mean loss over
            uniform t. The laws that are part of a method (`logit_normal`, `log_normal_sigma`) have the weight 1.
        update: `update(state, t, loss) -> state`, with the losses `[b]` that these t had, not weighted.
    """

    init: Callable[[], Any]
    sample: Callable[[Any, Keys], tuple[Steps, Float[Array, " b"]]]
    update: Callable[[Any, Steps, Float[Array, " b"]], Any]


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


def loss_second_moment(num_steps: int, history: int = 10, *, uniform_share: float = 0.001) -> Timesteps:
    """Improved diffusion's resampler: p(t) ~ sqrt(mean of loss_t**2) over the last losses that each step had.

    Until every step has had `history` of them, all steps are alike.

    Args:
        num_steps: T.
        history: how many losses of each step are remembered.
        uniform_share: the part of the probability that is spread evenly, so that no step is forgotten; in (0, 1].
    """
    require(0 < uniform_share <= 1, f"train.timestep_options: uniform_share={uniform_share} must lie in (0, 1]")

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


def stratified(num_steps: int) -> Timesteps:
    """Uniform real times, one sample of the batch in each of b equal parts (Kingma et al. 2021, appendix I.1).

    The mean loss of a batch has the same expectation as with independent times, and less variance.
    """

    def parts(keys: Keys) -> Float[Array, " b"]:
        return (jnp.arange(len(keys)) + jax.vmap(jax.random.uniform)(keys)) / len(keys)

    return _memoryless(lambda keys: _time(parts(keys), num_steps))


def logit_normal(num_steps: int, *, mean: float = 0.0, std: float = 1.0) -> Timesteps:
    """Times most often in the middle: logistic(N(mean, std**2)), a flow's sigma (Esser et al. 2024, eq. 19)."""
    require(std > 0, f"train.timestep_options: std={std} must be positive")
    return _memoryless(lambda keys: _time(jax.nn.sigmoid(mean + std * _normal(keys)), num_steps))


def log_normal_sigma(levels: Level, *, mean: float = -1.2, std: float = 1.2) -> Timesteps:
    """ln(sigma / alpha) ~ N(mean, std**2), within the levels of the process (Karras et al. 2022, table 1)."""
    require(std > 0, f"train.timestep_options: std={std} must be positive")
    return _memoryless(lambda keys: position(levels, jnp.exp(mean + std * _normal(keys))))


def _memoryless(draw: Callable[[Keys], Float[Array, " b"]]) -> Timesteps:
    return Timesteps(lambda: (), lambda state, keys: (draw(keys), jnp.ones(len(keys))), lambda state, t, loss: state)


def _normal(keys: Keys) -> Float[Array, " b"]:
    return jax.vmap(jax.random.normal)(keys)


def _time(u: Float[Array, " b"], num_steps: int) -> Float[Array, " b"]:
    """Share of all time in [0, 1] to a step: row t stands for u = (t + 1) / T, the first also for what is below."""
    return jnp.maximum(u * num_steps - 1, 0)


TIMESTEPS: dict[str, Callable[..., Timesteps]] = {
    "uniform": uniform,
    "stratified": stratified,
    "logit_normal": logit_normal,
    "log_normal_sigma": log_normal_sigma,
    "loss_second_moment": loss_second_moment,
}
"""Choices of `train.timesteps`: constructors of the number of steps, or of the levels, and options of their own."""


def create(name: str, levels: Level, **options: float) -> Timesteps:
    """Choice of noise levels by name, for a table of levels.

    Raises:
        InputError: there is no such choice, or it has no such option, or not with this value.
    """
    make = choose(TIMESTEPS, name, "train.timesteps")
    checks.options(f"train.timesteps={name!r}", make, options, skip=1)
    return make(levels if make is log_normal_sigma else len(levels.time), **options)
