"""LMS: the linear multistep (Adams-Bashforth) method in sigma / alpha, with one evaluation a step."""

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from guided_diffusion_jax import checks
from guided_diffusion_jax.samplers import multistep
from guided_diffusion_jax.samplers.base import Sampler


def lms(order: int = 4, lower_order_final: bool | int = False) -> Sampler:
    """Linear multistep method: eps is a polynomial in r = sigma / alpha (k-diffusion's LMS; DEIS's rhoAB).

    The step to sigma = 0 is of full order too.

    Args:
        order: 1 (Euler) to 4.
        lower_order_final: the last step is of first order, the one before it of second, and so on.
    """
    order = checks.integer("order", order, 1, 4)
    step = Partial(_step, order=np.int32(order), final=multistep.final_order(lower_order_final))
    return Sampler(init=Partial(_init), step=step, order=order)


def _init(x, levels):
    return multistep.start(x, levels, 3)


def _step(denoise, keys, x, now, nxt, memory, *, order, final):
    x0, eps, *_ = denoise(x, now)
    here = multistep.noise_ratio(now)
    usable = (now.alpha > 0) & (nxt.alpha > 0)
    h = jnp.where(usable, multistep.noise_ratio(nxt) - here, 0.0)
    order = multistep.order_of_step(memory, jnp.where(h != 0, order, 1), final)
    u = multistep.nodes(memory, here, jnp.where(h != 0, h, 1.0))
    moments = [jnp.full_like(h, 1 / (q + 1)) for q in (1, 2, 3)]
    w = multistep.select(order, [multistep.weights(u[:n], moments[:n]) for n in (1, 2, 3)])
    x_nxt = nxt.alpha * x0 + nxt.sigma * eps + nxt.alpha * h * multistep.correction(memory, eps, w)
    return x_nxt, multistep.remember(memory, eps, here)
