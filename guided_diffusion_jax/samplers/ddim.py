"""DDIM: an ODE solver at eta = 0, an SDE solver above it (Song et al. 2021)."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike

from guided_diffusion_jax import random
from guided_diffusion_jax.gaussian import beta
from guided_diffusion_jax.samplers.base import Sampler, no_memory
from guided_diffusion_jax.trajectories import num_steps
from guided_diffusion_jax.typing import Denoiser, Images, Keys, Level, per_sample


def ddim(eta: ArrayLike = 0.0) -> Sampler:
    """DDIM's sampler.

    Args:
        eta: 0 adds no noise: the same x_T gives the same image. 1 adds as much as DDPM. Traced; scalar or `[b]`.
    """
    return Sampler(init=Partial(no_memory), step=Partial(_step, eta=eta))


def invert(denoise: Denoiser, x: Images, levels: Level) -> Images:
    """Noise that DDIM at eta = 0 leads to these images from: DDIM's steps upwards (Song et al. 2021, section 4.3).

    `sample(ddim(), ...)` along the same levels gives the images back, up to an error that falls with the steps.

    Args:
        denoise: the network.
        x: clean images `[b h w c]`.
        levels: of the way down, from the noisiest to the clean level, padded or not.

    Returns:
        `[b h w c]` at the first level.
    """
    count = num_steps(levels)

    def one(i, x):
        now, nxt = (Level(*(jnp.asarray(column)[count - i - shift] for column in levels)) for shift in (0, 1))
        # The prediction at the clean level is nothing; the next one's stands for it.
        at = Level(*(jnp.where(now.sigma > 0, a, b) for a, b in zip(now, nxt, strict=True)))
        prediction = denoise(x, at)
        x0 = jnp.where(now.sigma > 0, prediction.x0, x)
        return nxt.alpha * x0 + nxt.sigma * prediction.eps

    return jax.lax.fori_loop(0, count, one, x)


def _step(denoise, keys, x, now, nxt, memory, *, eta):
    return ddim_step(denoise, keys, x, now, nxt, eta=eta), memory


def ddim_step(denoise: Denoiser, keys: Keys, x: Images, now: Level, nxt: Level, *, eta: ArrayLike = 0.0) -> Images:
    """One step from `now` to `nxt` (Song et al. 2021, eq. 12 and 16). x: [b h w c].

    At eta = 0 it also goes from less noise to more, which encodes an image as its x_T.
    """
    prediction = denoise(x, now)
    std, kept = split_noise(now, nxt, eta)
    return nxt.alpha * prediction.x0 + kept * prediction.eps + std * random.standard_normal(keys, x.shape[1:])


def split_noise(now: Level, nxt: Level, eta: ArrayLike) -> tuple[Array, Array]:
    """Standard deviations of the new noise and of the predicted one: std**2 + kept**2 = sigma_nxt**2.

    std is eta times that of DDPM with beta_tilde; it is 0 on the way up, where beta < 0. With
    r = alpha_now sigma_nxt / (alpha_nxt sigma_now), beta is sigma_now**2 (1 - r**2), and

        std = sigma_nxt eta sqrt(beta) / sigma_now
        kept = sigma_nxt sqrt(1 - eta**2 + eta**2 r**2)

    sqrt(sigma_nxt**2 - std**2) is the same but for its rounding, 3e-4 at the first step of a cosine schedule.
    """
    eta, added = per_sample(eta), beta(now, nxt)
    down = added > 0
    sigma = jnp.where(down, now.sigma, 1.0)
    r = jnp.where(down, now.alpha * nxt.sigma / (nxt.alpha * sigma), 1.0)
    std = nxt.sigma * eta * jnp.sqrt(jnp.where(down, added, 0.0)) / sigma
    return std, nxt.sigma * jnp.sqrt(jnp.maximum(1 - eta**2 + (eta * r) ** 2, 0.0))
