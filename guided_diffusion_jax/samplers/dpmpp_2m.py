"""DPM-Solver++ (2M): a second-order multistep solver with one evaluation a step."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guided_diffusion_jax.samplers.base import Sampler


def dpmpp_2m() -> Sampler:
    """DPM-Solver++ (2M) of Lu et al. 2022 (algorithm 2), for any alpha and sigma.

    With lambda = ln(alpha / sigma), h = lambda_nxt - lambda_now and r = h_previous / h,

        D = x0 + (x0 - x0_previous) / (2 r)
        x_nxt = sigma_nxt / sigma_now x - alpha_nxt expm1(-h) D

    The first step and the last one, to sigma = 0, are of first order (D = x0), which is DDIM's step.
    """
    return Sampler(init=Partial(_init), step=Partial(_step), order=2)


def _init(x, levels):
    return jnp.zeros_like(x), jnp.zeros((*x.shape[:1], 1, 1, 1)), jnp.zeros((), bool)


def _step(denoise, keys, x, now, nxt, memory):
    previous, previous_h, there_is_one = memory
    x0 = denoise(x, now).x0
    moves = (now.alpha != nxt.alpha) | (now.sigma != nxt.sigma)
    inner = (now.alpha > 0) & (nxt.sigma > 0) & moves
    h = jnp.where(inner, _half_logsnr(nxt) - _half_logsnr(now), 1.0)
    correct = inner & there_is_one & (previous_h > 0)
    slope = jnp.where(correct, h / (2 * jnp.where(previous_h > 0, previous_h, 1.0)), 0.0)
    d = x0 + slope * (x0 - previous)
    # alpha_nxt (1 - exp(-h)), which is alpha_nxt at the last step, without infinities.
    ratio = nxt.sigma / now.sigma
    gain = nxt.alpha - now.alpha * ratio
    x_nxt = jnp.where(moves, ratio * x + gain * d, x)
    new_h = jnp.where(inner, h, 0.0) * jnp.ones_like(previous_h)
    return x_nxt, jax.tree.map(lambda new, old: jnp.where(moves, new, old), (x0, new_h, inner), memory)


def _half_logsnr(level):
    safe = jnp.where((level.alpha > 0) & (level.sigma > 0), level.alpha / jnp.where(level.sigma > 0, level.sigma, 1), 1)
    return jnp.log(safe)
