"""Heun's method: a second-order solver of the probability flow with two evaluations a step."""

import jax.numpy as jnp
from jax.tree_util import Partial

from guided_diffusion_jax.samplers.base import Sampler, no_memory


def heun() -> Sampler:
    """Heun's method for the probability flow ODE (Karras et al. 2022, algorithm 1, with alpha free).

    With u = x / alpha and s = sigma / alpha the flow is du/ds = eps(x). The last step, to sigma = 0, is Euler's: there
    is no noise to predict at the clean level.
    """
    return Sampler(init=Partial(no_memory), step=Partial(_step), evaluations=2, order=2)


def _step(denoise, keys, x, now, nxt, memory):
    # In terms of x alone, so that alpha_now = 0 is safe: alpha_nxt x0 + sigma_nxt eps is Euler's step.
    first = denoise(x, now)
    euler = nxt.alpha * first.x0 + nxt.sigma * first.eps
    second = denoise(euler, nxt)
    change = 0.5 * (nxt.sigma - nxt.alpha * _ratio(now)) * (second.eps - first.eps)
    use = (nxt.sigma > 0) & (now.alpha > 0)
    return jnp.where(use, euler + jnp.where(use, change, 0.0), euler), memory


def _ratio(level):
    return level.sigma / jnp.where(level.alpha > 0, level.alpha, 1)
