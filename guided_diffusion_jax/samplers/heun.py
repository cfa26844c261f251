"""Heun's method: a second-order solver of the probability flow with two evaluations a step."""

import jax.numpy as jnp
from jax.tree_util import Partial

from guided_diffusion_jax.samplers.base import Sampler, no_memory


def heun() -> Sampler:
    """Heun's method in exponential form, for any alpha and sigma (Hochbruck & Ostermann 2005; x0 as in Lu et al. 2022).

    The linear part of the flow is solved exactly, and the average of two predictions stands for x0:

        x_euler = sigma_nxt / sigma_now x + (alpha_nxt - alpha_now sigma_nxt / sigma_now) x0(x, now)
        x_nxt   = the same with (x0(x, now) + x0(x_euler, nxt)) / 2

    The first line is DDIM's step. Nothing is divided by alpha, so that it may start at alpha = 0. The step to sigma = 0
    is DDIM's alone.
    """
    return Sampler(init=Partial(no_memory), step=Partial(_step), evaluations=2, order=2)


def _step(denoise, keys, x, now, nxt, memory):
    noisy = now.sigma > 0
    ratio = jnp.where(noisy, nxt.sigma / jnp.where(noisy, now.sigma, 1), 1)
    gain = nxt.alpha - now.alpha * ratio
    first = denoise(x, now).x0
    euler = ratio * x + gain * first
    second = denoise(euler, nxt).x0
    return jnp.where(nxt.sigma > 0, euler + 0.5 * gain * (second - first), euler), memory
