"""Heun's method of EDM: a second-order solver with two evaluations a step, and noise on request."""

from typing import NamedTuple

import jax.numpy as jnp
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
    s_churn: ArrayLike = 0.0, s_tmin: ArrayLike = 0.0, s_tmax: ArrayLike = jnp.inf, s_noise: ArrayLike = 1.0
) -> Sampler:
    """Heun's method in r = sigma / alpha, for any alpha and sigma (Karras et al. 2022, algorithms 1 and 2).

        x_euler = alpha_nxt x0 + sigma_nxt eps
        x_nxt = alpha_nxt (x / alpha + (r_nxt - r) (eps + eps(x_euler, nxt)) / 2)

    The step to sigma = 0, and one from alpha = 0, are the first line, which is DDIM's. With `s_churn` each step first
    goes up to r (1 + gamma) by new noise, gamma = min(s_churn / steps, sqrt(2) - 1); the network is told the time of
    that level, which is interpolated between those of the trajectory and never beyond its first one.

    Args:
        s_churn: 0 is the deterministic solver.
        s_tmin: the least r at which noise is added.
        s_tmax: the largest.
        s_noise: standard deviation of that noise; slightly above 1 makes up for lost detail.
    """
    options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    return Sampler(init=Partial(_init, s_churn=s_churn), step=Partial(_step, **options), evaluations=2, order=2)


def _init(x, levels, *, s_churn):
    columns = Level(*map(jnp.asarray, levels))
    return _Memory(columns, jnp.minimum(s_churn / num_steps(levels), jnp.sqrt(2.0) - 1).astype(columns.alpha.dtype))


def _step(denoise, keys, x, now, nxt, memory, *, s_churn, s_tmin, s_tmax, s_noise):
    x, now = churn(keys, x, now, memory, s_tmin, s_tmax, s_noise)
    x0, eps, *_ = denoise(x, now)
    euler = nxt.alpha * x0 + nxt.sigma * eps
    second = denoise(euler, nxt).eps
    inner = (now.alpha > 0) & (nxt.sigma > 0)
    length = jnp.where(inner, nxt.sigma - nxt.alpha * noise_ratio(now), 0)
    return euler + length / 2 * (second - eps), memory


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
