"""Training objectives: draw a noise level and noise for each sample, ask the network, compare."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.losses.terms import LOSSES, noised
from guided_diffusion_jax.losses.timesteps import uniform_steps
from guided_diffusion_jax.prediction import TARGETS
from guided_diffusion_jax.typing import ConditionalDenoiser, Conditions, Images, Keys, Level


class Losses(NamedTuple):
    """Of each sample: its loss, the step t whose noise it was given, and other figures of interest by name, `[b]`."""

    loss: Float[Array, " b"]
    t: Int[Array, " b"]
    figures: dict[str, Array] = {}  # noqa: RUF012 (nobody writes into it)


def objective(
    denoise: ConditionalDenoiser,
    keys: Keys,
    x0: Images,
    conditions: Conditions,
    table: Level,
    *,
    loss: str = "mse",
    prediction: str = "eps",
    variance: str = "fixed_small",
    t: Int[Array, " b"] | None = None,
) -> Losses:
    """The mean squared error of the network's output (Ho et al. 2020, eq. 14, algorithm 1), or any other of `LOSSES`.

    Args:
        denoise: the network, with a `variance_fraction` where the variance is learned.
        keys: one per sample; they decide eps, and t where it is not given.
        x0: clean images in [-1, 1].
        conditions: of each sample, dropped or not.
        table: the levels of the process, all of the schedule or fewer, S of them.
        loss: "mse", with a learned variance the hybrid L_simple + L_t; "rescaled_mse", the hybrid with S/1000 L_t;
            "kl", L_t; "rescaled_kl", S L_t. See `terms`.
        prediction: what the squared error is measured in: "eps", "x0" or "v".
        variance: "fixed_small", "fixed_large" or "learned_range".
        t: the step of each sample, as `Timesteps.sample` chooses it; None draws it uniformly.
    """
    terms, target = choose(LOSSES, loss, "train.loss"), choose(TARGETS, prediction, "diffusion.prediction")
    drawn, eps = draw_noise(keys, x0, table)
    t = drawn if t is None else t
    noisy = noised(x0, eps, t, table)
    return Losses(terms(denoise(noisy.x, noisy.now, conditions), noisy, target, variance, len(table.time)), t)


def draw_noise(keys: Keys, x0: Images, table: Level) -> tuple[Int[Array, " b"], Images]:
    """Of each sample a uniform t and its noise, from its own key."""
    of_t, of_eps = jax.vmap(jax.random.split, out_axes=1)(keys)
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(of_eps)
    return uniform_steps(of_t, len(table.time)), eps
