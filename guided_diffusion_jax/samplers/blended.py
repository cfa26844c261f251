"""Inpainting by putting the known part back after each step, as noisy as the step leaves x."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from guided_diffusion_jax.samplers.base import Sampler
from guided_diffusion_jax.trajectories import num_steps
from guided_diffusion_jax.typing import Images


def blended(sampler: Sampler, known: ArrayLike, mask: Float[ArrayLike, "b h w 1"], noise: Images) -> Sampler:
    """Sampler after whose every step the known part is alpha known + sigma noise; after the last it is clean.

    Blended diffusion (Avrahami et al. 2022, algorithm 1) with one noise for all levels, so that the known part keeps to
    one trajectory. It needs no network that was trained for it, and suits latents.

    Args:
        sampler: any.
        known: clean `[b h w c]`.
        mask: 1 where it is known, 0 where it is drawn.
        noise: standard normal `[b h w c]`; the noise that the trajectory began with.
    """

    def init(x: Images, levels):
        return jnp.int32(0), num_steps(levels).astype(jnp.int32), sampler.init(x, levels)

    def step(denoise, keys, x, now, nxt, memory):
        done, total, inner = memory
        x, inner = sampler.step(denoise, keys, x, now, nxt, inner)
        last = done + 1 == total
        alpha, sigma = jnp.where(last, 1.0, nxt.alpha), jnp.where(last, 0.0, nxt.sigma)
        return _mix(x, alpha * jnp.asarray(known) + sigma * noise, jnp.asarray(mask)), (done + 1, total, inner)

    return sampler._replace(init=init, step=step, with_gradient=None)


def _mix(drawn: Images, known: Array, mask: Array) -> Images:
    return mask * known + (1 - mask) * drawn
