"""What a network is trained on: the denoising objective, and its noise levels and noise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.gaussian import q_sample
from guided_diffusion_jax.prediction import TARGETS
from guided_diffusion_jax.schedules import at
from guided_diffusion_jax.typing import Conditions, Images, Keys, Level, Network


class Losses(NamedTuple):
    """Of each sample: its loss, and the step t whose noise it was given."""

    loss: Float[Array, " b"]
    t: Int[Array, " b"]


def uniform_steps(keys: Keys, num_steps: int) -> Int[Array, " b"]:
    """T ~ Uniform {0 .. T-1}, each sample's from its own key."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_steps))(keys)


def denoising(
    network: Network, keys: Keys, x0: Images, conditions: Conditions, table: Level, prediction: str = "eps"
) -> Losses:
    """The mean squared error of the network's output (Ho et al. 2020, eq. 14, algorithm 1).

    Args:
        network: with its parameters bound.
        keys: one per sample; they decide t and eps.
        x0: clean images in [-1, 1].
        conditions: of each sample, dropped or not.
        table: all levels of the schedule.
        prediction: what the output is compared with: "eps", "x0" or "v".
    """
    target = choose(TARGETS, prediction, "diffusion.prediction")
    of_t, of_eps = jax.vmap(jax.random.split, out_axes=1)(keys)
    t = uniform_steps(of_t, len(table.time))
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(of_eps)
    level = at(table, t)
    output = network(q_sample(x0, eps, level), level.time, conditions)
    return Losses(jnp.mean((output - target(x0, eps, level)) ** 2, axis=(1, 2, 3)), t)
