"""DPM-Solver++ (2S), (3S) and DPM-2: solvers that look ahead and then step from where they began.

A step of theirs spans two or three steps of the trajectory, whose inner levels are the points where they look. So all
take one evaluation at each level, no level is made up, and the network sees times of the trajectory only.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.samplers import multistep
from guided_diffusion_jax.samplers.base import Sampler
from guided_diffusion_jax.samplers.dpmpp_2m import SOLVER_TYPES
from guided_diffusion_jax.trajectories import num_steps
from guided_diffusion_jax.typing import Images, Level


class Memory(NamedTuple):
    """Predictions since the level where the step began.

    Attributes:
        x0: there.
        eps: there.
        level: there.
        value: at the first inner level.
        place: of that level, lambda.
        phase: steps of the trajectory since.
        left: steps until the end, the next one included.
    """

    x0: Images
    eps: Images
    level: Level
    value: Images
    place: Float[Array, ""]
    phase: Int[Array, ""]
    left: Int[Array, ""]


def dpmpp_2s(solver_type: str = "midpoint", predict_x0: bool = True, lower_order_final: bool | int = True) -> Sampler:
    """DPM-Solver++ (2S) of Lu et al. 2022 (algorithm 1), over two steps of the trajectory.

    Args:
        solver_type: "midpoint" or "heun", see `dpmpp_2m`.
        predict_x0: interpolate x0; else eps, which is DPM-Solver-2 (Lu et al. 2022a).
        lower_order_final: the last step of the trajectory is of first order, also where it does not lead to sigma = 0.
    """
    return _sampler(2, solver_type, predict_x0, lower_order_final)


def dpmpp_3s(solver_type: str = "midpoint", predict_x0: bool = True, lower_order_final: bool | int = True) -> Sampler:
    """DPM-Solver-3 (Lu et al. 2022a, algorithm 2), on x0 or eps, over three steps of the trajectory.

    Args:
        solver_type: "midpoint" uses the prediction at the last inner level alone; "heun" both.
        predict_x0: see `dpmpp_2s`.
        lower_order_final: the last step of the trajectory is of first order.
    """
    return _sampler(3, solver_type, predict_x0, lower_order_final)


def dpm_2() -> Sampler:
    """DPM-Solver-2 in r = sigma / alpha: the explicit midpoint method (Karras et al. 2022, appendix D; k-diffusion).

    Every second level of the trajectory should lie halfway between its neighbours, in r or in ln r.
    """
    return Sampler(init=Partial(_init), step=Partial(_midpoint_step), order=2)


def _sampler(order, solver_type, predict_x0, lower_order_final):
    options = {
        "order": np.int32(order),
        "simple": np.bool_(choose(SOLVER_TYPES, solver_type, "solver_type")),
        "lower_order_final": np.bool_(lower_order_final),
    }
    return Sampler(init=Partial(_init), step=Partial(_step_x0 if predict_x0 else _step_eps, **options), order=order)


def _init(x, levels):
    first = Level(*(jnp.asarray(column)[0] for column in levels))
    zero, place = jnp.zeros_like(x), jnp.zeros((), first.alpha.dtype)
    return Memory(zero, zero, first, zero, place, jnp.int32(0), num_steps(levels).astype(jnp.int32))


def _begin(denoise, x, now, memory):
    """Prediction at this level, and the memory, which begins anew where a step does."""
    prediction = denoise(x, now)
    fresh = memory.phase == 0
    x0, eps = (jnp.where(fresh, a, b) for a, b in zip(prediction[:2], memory[:2], strict=True))
    level = Level(*(jnp.where(fresh, a, b) for a, b in zip(now, memory.level, strict=True)))
    return prediction, memory._replace(x0=x0, eps=eps, level=level)


def _end(memory, value, place, whole):
    """Memory after a step of the trajectory, which may have been the last one of a whole step."""
    first = memory.phase == 1
    value, place = jnp.where(first, value, memory.value), jnp.where(first, place, memory.place)
    return memory._replace(value=value, place=place, phase=jnp.where(whole, 0, memory.phase + 1), left=memory.left - 1)


def _step(denoise, x, now, nxt, memory, sign, order, simple, lower_order_final):
    last = (nxt.sigma <= 0) | (lower_order_final & (memory.left == 1) & (memory.phase + 1 == order))
    memory = memory._replace(phase=jnp.where(last | (memory.level.alpha == 0), 0, memory.phase))
    prediction, memory = _begin(denoise, x, now, memory)
    value, origin = (prediction.x0, memory.x0) if sign > 0 else (prediction.eps, memory.eps)
    scale = nxt.alpha if sign > 0 else nxt.sigma
    h, usable = multistep.logsnr_step(memory.level, nxt)
    here, begun = multistep.half_logsnr(now), multistep.half_logsnr(memory.level)
    j0, j1, j2 = multistep.exponential_moments(sign * h, 2)
    u1 = jnp.where(usable & (memory.phase > 0), (here - begun) / h, 0.5)
    u2 = jnp.where(usable & (memory.phase > 1), (memory.place - begun) / h, 0.25)
    second = multistep.weights([u1], [jnp.where(simple, j0 / 2, j1)])
    both = multistep.weights([u1, u2], [j1, j2])
    third = [jnp.where(simple, j1 / u1, both[0]), jnp.where(simple, 0.0, both[1])]
    w = multistep.select(jnp.where(usable, memory.phase + 1, 1), [second, third])
    change = w[0] * (value - origin) + w[1] * (memory.value - origin)
    x_nxt = nxt.alpha * memory.x0 + nxt.sigma * memory.eps + scale * change
    return x_nxt, _end(memory, value, here, (memory.phase + 1 == order) | last)


def _step_x0(denoise, keys, x, now, nxt, memory, *, order, simple, lower_order_final):
    return _step(denoise, x, now, nxt, memory, 1, order, simple, lower_order_final)


def _step_eps(denoise, keys, x, now, nxt, memory, *, order, simple, lower_order_final):
    return _step(denoise, x, now, nxt, memory, -1, order, simple, lower_order_final)


def _midpoint_step(denoise, keys, x, now, nxt, memory):
    alone = (nxt.sigma <= 0) & (memory.left == 1) & (memory.phase == 0)
    prediction, memory = _begin(denoise, x, now, memory)
    length = nxt.sigma - nxt.alpha * multistep.noise_ratio(memory.level)
    change = jnp.where((memory.phase == 1) & (memory.level.alpha > 0), length, 0) * (prediction.eps - memory.eps)
    whole = (memory.phase == 1) | alone
    return nxt.alpha * memory.x0 + nxt.sigma * memory.eps + change, _end(memory, prediction.eps, memory.place, whole)
