"""Heun's method: a second-order solver with two evaluations a step, and EDM's noise on request."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike

from guided_diffusion_jax import random
from guided_diffusion_jax.samplers.base import Sampler
from guided_diffusion_jax.samplers.multistep import noise_ratio
from guided_diffusion_jax.trajectories import between, num_steps
from guided_diffusion_jax.typing import Images, Level


class _Memory(NamedTuple):
    levels: Level
    gamma: Array


def heun(
    s_churn: ArrayLike = 0.0,
    s_tmin: ArrayLike = 0.0,
    s_tmax: ArrayLike = jnp.inf,
    s_noise: ArrayLike = 1.0,
    predict_x0: bool = True,
) -> Sampler:
    """Heun's method, the trapezoidal rule, for any alpha and sigma (Karras et al. 2022, algorithms 1 and 2).

    The average of two predictions stands for x0 in d(x / sigma) = x0 ds, s = alpha / sigma, or as in EDM for eps in
    d(x / alpha) = eps dr, r = sigma / alpha:

        x_euler = alpha_nxt x0 + sigma_nxt eps
        x_nxt = x_euler + sigma_nxt (s_nxt - s) / 2 (x0(x_euler, nxt) - x0)
        x_nxt = x_euler + alpha_nxt (r_nxt - r) / 2 (eps(x_euler, nxt) - eps)

    The step to sigma = 0 is the first line, which is DDIM's; EDM's also that from alpha = 0. With `s_churn` each step
    first goes up to r (1 + gamma) by new noise, gamma = min(s_churn / steps, sqrt(2) - 1); the network is told the time
    of that level, which is interpolated between those of the trajectory and never beyond its first one.

    Args:
        s_churn: 0 is the deterministic solver.
        s_tmin: the least r at which noise is added.
        s_tmax: the largest.
        s_noise: standard deviation of that noise; slightly above 1 makes up for lost detail.
        predict_x0: average x0; else eps, which is EDM's, k-diffusion's and diffusers' method. Where r is large, as at
            the noisy end of the cosine schedule (2e4; EDM: 80), eps must be right to 1 / r: average x0 there.
    """
    options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    options["predict_x0"] = np.bool_(predict_x0)
    return Sampler(init=Partial(_init, s_churn=s_churn), step=Partial(_step, **options), evaluations=2, order=2)


def _init(x, levels, *, s_churn):
    columns = Level(*map(jnp.asarray, levels))
    return _Memory(columns, jnp.minimum(s_churn / num_steps(levels), jnp.sqrt(2.0) - 1).astype(columns.alpha.dtype))


def _step(denoise, keys, x, now, nxt, memory, *, s_churn, s_tmin, s_tmax, s_noise, predict_x0):
    x, now = churn(keys, x, now, memory, s_tmin, s_tmax, s_noise)
    x0, eps, *_ = denoise(x, now)
    euler = nxt.alpha * x0 + nxt.sigma * eps
    second = denoise(euler, nxt)
    inner = (now.sigma > 0) & (nxt.sigma > 0) & (predict_x0 | (now.alpha > 0))
    of_x0 = nxt.alpha - now.alpha * nxt.sigma / jnp.where(inner, now.sigma, 1)
    of_eps = nxt.sigma - nxt.alpha * noise_ratio(now)
    change = jnp.where(predict_x0, of_x0 * (second.x0 - x0), of_eps * (second.eps - eps))
    return euler + jnp.where(inner, change, 0) / 2, memory


def churn(keys, x: Images, now: Level, memory: _Memory, s_tmin, s_tmax, s_noise) -> tuple[Images, Level]:
    """State and level after new noise, which keep x / alpha = x0 + r eps."""
    r = noise_ratio(now)
    wanted = (memory.gamma > 0) & (now.alpha > 0) & (now.sigma > 0) & (s_tmin <= r) & (r <= s_tmax)
    most = jnp.max(jnp.where(memory.levels.alpha > 0, noise_ratio(memory.levels), 0))
    target = jnp.where(wanted, jnp.minimum(r * (1 + memory.gamma), most), 1.0)
    up = between(memory.levels, -jnp.log(target))
    up = Level(*(jnp.where(wanted, a, b) for a, b in zip(up, now, strict=True)))
    kept = jnp.where(wanted, up.alpha / jnp.where(wanted, now.alpha, 1), 1)
    std = jnp.sqrt(jnp.maximum(up.sigma**2 - (kept * now.sigma) ** 2, 0)) * jnp.where(wanted, s_noise, 0)
    return kept * x + std * random.standard_normal(keys, x.shape[1:]), up
