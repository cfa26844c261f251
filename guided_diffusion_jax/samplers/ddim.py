"""DDIM: an ODE solver at eta = 0, an SDE solver above it (Song et al. 2021)."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from guided_diffusion_jax.gaussian import beta
from guided_diffusion_jax.samplers import noise
from guided_diffusion_jax.samplers.loop import Sampler
from guided_diffusion_jax.typing import Denoiser, Images, Keys, Level, per_sample


def ddim(eta: ArrayLike = 0.0) -> Sampler:
    """DDIM's sampler.

    Args:
        eta: 0 adds no noise: the same x_T gives the same picture. 1 adds as much as DDPM. Traced; scalar or `[b]`.
    """

    def step(denoise, keys, x, now, nxt, memory):
        return ddim_step(denoise, keys, x, now, nxt, eta=eta), memory

    return Sampler(init=lambda x, levels: (), step=step)


def ddim_step(denoise: Denoiser, keys: Keys, x: Images, now: Level, nxt: Level, *, eta: ArrayLike = 0.0) -> Images:
    """One step from `now` to `nxt` (Song et al. 2021, eq. 12 and 16). x: [b h w c].

    At eta = 0 it also goes from less noise to more, which encodes a picture as its x_T.
    """
    prediction = denoise(x, now)
    std = noise_std(now, nxt, eta)
    kept = jnp.sqrt(jnp.maximum(nxt.sigma**2 - std**2, 0.0))
    return nxt.alpha * prediction.x0 + kept * prediction.eps + std * noise.standard_normal(keys, x.shape[1:])


def noise_std(now: Level, nxt: Level, eta: ArrayLike) -> Array:
    """The noise that a step adds: eta times that of DDPM with beta_tilde; none on the way up, where beta < 0."""
    return per_sample(eta) * nxt.sigma / now.sigma * jnp.sqrt(jnp.maximum(beta(now, nxt), 0.0))
