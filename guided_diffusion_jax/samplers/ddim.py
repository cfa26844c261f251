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
    fresh, kept = split_noise(now, nxt, eta)
    return nxt.alpha * prediction.x0 + kept * prediction.eps + fresh * noise.standard_normal(keys, x.shape[1:])


def split_noise(now: Level, nxt: Level, eta: ArrayLike) -> tuple[Array, Array]:
    """Of sigma_nxt, the std of the fresh noise and that of the predicted one: fresh**2 + kept**2 = sigma_nxt**2.

    The fresh one is eta times that of DDPM with beta_tilde; there is none on the way up, where beta < 0. With
    r = alpha_now sigma_nxt / (alpha_nxt sigma_now) beta is sigma_now**2 (1 - r**2), and

        fresh = sigma_nxt eta sqrt(beta) / sigma_now
        kept = sigma_nxt sqrt(1 - eta**2 + eta**2 r**2)

    sqrt(sigma_nxt**2 - fresh**2) is the same but for its rounding, 3e-4 at the first step of a cosine schedule.
    """
    eta, added = per_sample(eta), beta(now, nxt)
    down = added > 0
    sigma = jnp.where(down, now.sigma, 1.0)
    r = jnp.where(down, now.alpha * nxt.sigma / (nxt.alpha * sigma), 1.0)
    fresh = nxt.sigma * eta * jnp.sqrt(jnp.where(down, added, 0.0)) / sigma
    return fresh, nxt.sigma * jnp.sqrt(jnp.maximum(1 - eta**2 + (eta * r) ** 2, 0.0))
