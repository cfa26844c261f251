"""PNDM (PLMS) and iPNDM: linear multistep formulas with constant weights inside DDIM's step, one evaluation a step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Int

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.prediction import PREDICTIONS
from guided_diffusion_jax.samplers.base import Sampler
from guided_diffusion_jax.typing import Images, Level

RUNGE_KUTTA, STAGES = (1 / 6, 1 / 3, 1 / 3, 1 / 6), 12
"""Weights of the evaluations of a classical Runge-Kutta step, and evaluations of three of them."""

ADAMS_BASHFORTH = (
    (1, 0, 0, 0),
    (3 / 2, -1 / 2, 0, 0),
    (23 / 12, -16 / 12, 5 / 12, 0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the last 1, 2, 3 and 4 predictions, the latest first."""


class Memory(NamedTuple):
    """Earlier predictions, how many there were, and the state and level that the trajectory began with."""

    values: tuple[Images, Images, Images]
    done: Int[Array, ""]
    x: Images
    level: Level


def pndm(prediction: str = "eps") -> Sampler:
    """PNDM without Runge-Kutta steps, as Stable Diffusion's PLMS has it (Liu et al. 2022, eq. 12).

    A step is DDIM's with the weighted sum of the last four predictions. The first step is made a second time with the
    mean of the predictions at both of its ends, so that the second level is visited twice: n + 1 evaluations in all.

    Args:
        prediction: which quantity is summed, a key of `prediction.PREDICTIONS`; Stable Diffusion sums what the network
            predicts.
    """
    return _sampler(prediction)._replace(visits=Partial(second_level_twice))


def ipndm(prediction: str = "eps") -> Sampler:
    """PNDM that starts with first, second and third order instead of a step made twice (Zhang & Chen 2023, eq. 19).

    Args:
        prediction: see `pndm`.
    """
    return _sampler(prediction)


def f_pndm(prediction: str = "eps") -> Sampler:
    """F-PNDM: three classical Runge-Kutta steps, then `ipndm`'s of full order (Liu et al. 2022, algorithm 2).

    Each Runge-Kutta step takes four rows of the trajectory, its evaluations: at its start, twice at its middle, and at
    its end, where each leads to the next. For `interop.schedulers`, which makes such trajectories.

    Args:
        prediction: see `pndm`.
    """
    choose(PREDICTIONS, prediction, "prediction")
    return Sampler(init=Partial(_init_runge_kutta), step=Partial(_RUNGE_KUTTA[prediction]), order=2)


def _sampler(prediction):
    choose(PREDICTIONS, prediction, "prediction")
    # The weights suit even steps of sigma / alpha; on others they are of second order (Liu et al. 2022, section 3.4).
    return Sampler(init=Partial(_init), step=Partial(_STEPS[prediction]), order=2 if prediction == "eps" else 1)


def second_level_twice(levels: Level) -> Level:
    """Rows 0, 1, 1, 2, 3, ... of a trajectory."""
    return Level(*(jnp.concatenate([jnp.asarray(column)[:2], jnp.asarray(column)[1:]]) for column in levels))


def _init(x, levels):
    first = Level(*(jnp.asarray(column)[0] for column in levels))
    return Memory((jnp.zeros_like(x),) * 3, jnp.int32(0), x, first)


def _step_of(name):
    kind = PREDICTIONS[name]

    def step(denoise, keys, x, now, nxt, memory):
        x0, eps, *_ = denoise(x, now)
        value = kind.target(x0, eps, now)
        again = (now.alpha == nxt.alpha) & (now.sigma == nxt.sigma)  # the first step, made a second time
        weights = jnp.asarray(ADAMS_BASHFORTH, x.dtype)[jnp.minimum(memory.done, 3)]
        summed = sum(w * m for w, m in zip(weights, (value, *memory.values), strict=True))
        summed = jnp.where(again, (value + memory.values[0]) / 2, summed)
        origin, level = jax.tree.map(lambda old, new: jnp.where(again, old, new), (memory.x, memory.level), (x, now))
        x0, eps, *_ = kind.prediction(origin, summed, level)
        newer = (value, *memory.values[:2])
        values = tuple(jnp.where(again, old, new) for old, new in zip(memory.values, newer, strict=True))
        kept = Memory(values, memory.done + ~again, memory.x, memory.level)
        return nxt.alpha * x0 + nxt.sigma * eps, kept

    return step


_STEPS = {name: _step_of(name) for name in PREDICTIONS}
"""One function for each prediction, so that a sampler made twice compiles once."""


def _init_runge_kutta(x, levels):
    return _init(x, levels), jnp.zeros_like(x)


def _runge_kutta_step_of(name):
    kind = PREDICTIONS[name]

    def step(denoise, keys, x, now, nxt, memory):
        (values, index, origin, level), total = memory
        x0, eps, *_ = denoise(x, now)
        value = kind.target(x0, eps, now)
        starts, stage = index < STAGES, index % len(RUNGE_KUTTA)
        first = ~starts | (stage == 0)
        origin, level = jax.tree.map(lambda old, new: jnp.where(first, new, old), (origin, level), (x, now))
        total = jnp.where(first, 0, total) + jnp.asarray(RUNGE_KUTTA, x.dtype)[stage] * value
        four = (value, *values)
        summed = sum(w * m for w, m in zip(ADAMS_BASHFORTH[3], four, strict=True))
        summed = jnp.where(starts, jnp.where(stage == 3, total, value), summed)
        x0, eps, *_ = kind.prediction(origin, summed, level)
        values = tuple(jnp.where(first, new, old) for old, new in zip(values, four[:3], strict=True))
        return nxt.alpha * x0 + nxt.sigma * eps, (Memory(values, index + 1, origin, level), total)

    return step


_RUNGE_KUTTA = {name: _runge_kutta_step_of(name) for name in PREDICTIONS}
