"""The interface of objectives: what is trained, the network call included."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key

from guided_diffusion_jax.objectives.timesteps import Steps, uniform_steps
from guided_diffusion_jax.typing import Images, Keys, Level, Params


class Losses(NamedTuple):
    """Losses of a batch.

    Attributes:
        loss: of each sample.
        t: the training step whose noise it was given; a real one lies between two rows of the process. None where
            there is no noise.
        figures: other values of each sample by name, which are logged.
    """

    loss: Float[Array, " b"]
    t: Steps | None
    figures: dict[str, Array] = {}  # noqa: RUF012 (nobody writes into it)


class Objective(NamedTuple):
    """Pair of pure functions: what is trained, and on what.

    Attributes:
        init: `init(key) -> params`, fresh parameters of the whole network.
        loss: `loss(params, ema, frozen, keys, batch, t=None) -> Losses`: `params` are those that are trained, `ema`
            their moving average, `frozen` those that are not; `partition.merge(params, frozen)` is the whole network.
            `keys` has one key per sample; `t` are the training steps where the trainer chooses them.
    """

    init: Callable[[Key[Array, ""]], Params]
    loss: Callable[..., Losses]


def draw_noise(keys: Keys, x0: Images, levels: Level) -> tuple[Int[Array, " b"], Images]:
    """A uniform t and standard normal noise for each sample, from its own key."""
    of_t, of_eps = jax.vmap(jax.random.split, out_axes=1)(keys)
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(of_eps)
    return uniform_steps(of_t, len(levels.time)), eps


def split_keys(keys: Keys, number: int) -> Any:
    """Each sample's key split into `number` keys: `[number b]`."""
    return jax.vmap(lambda key: jax.random.split(key, number), out_axes=1)(keys)
