"""SDE-DPM-Solver++ (2M): a stochastic multistep solver with one evaluation a step."""

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from guided_diffusion_jax import random
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.samplers import multistep
from guided_diffusion_jax.samplers.base import Sampler
from guided_diffusion_jax.samplers.ddim import split_noise
from guided_diffusion_jax.samplers.dpmpp_2m import SOLVER_TYPES


def dpmpp_2m_sde(solver_type: str = "midpoint", lower_order_final: bool | int = True) -> Sampler:
    """SDE-DPM-Solver++ (2M) of Lu et al. 2022 (section 5): DPM-Solver++ (2M) of the reverse SDE.

    Its first-order step is DDIM's with eta = 1.

    Args:
        solver_type: "midpoint" or "heun", see `dpmpp_2m`.
        lower_order_final: the last step is of first order also where it does not lead to sigma = 0.
    """
    half = np.bool_(choose(SOLVER_TYPES, solver_type, "solver_type"))
    step = Partial(_step, half=half, final=multistep.final_order(lower_order_final))
    return Sampler(init=Partial(_init), step=step, order=0)


def _init(x, levels):
    return multistep.start(x, levels, 1)


def _step(denoise, keys, x, now, nxt, memory, *, half, final):
    x0, eps, *_ = denoise(x, now)
    h, usable = multistep.logsnr_step(now, nxt)
    here = multistep.half_logsnr(now)
    order = multistep.order_of_step(memory, jnp.where(usable, 2, 1), final)
    j0, j1 = multistep.exponential_moments(2 * h, 1)
    second = multistep.weights(multistep.nodes(memory, here, h), [jnp.where(half, j0 / 2, j1)])
    change = multistep.correction(memory, x0, multistep.select(order, [second]))
    std, kept = split_noise(now, nxt, 1.0)
    noise = random.standard_normal(keys, x.shape[1:])
    return nxt.alpha * (x0 + change) + kept * eps + std * noise, multistep.remember(memory, x0, here)
