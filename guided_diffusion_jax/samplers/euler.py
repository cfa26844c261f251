"""Euler's method in sigma / alpha, and its ancestral variant: both are DDIM."""

from jaxtyping import ArrayLike

from guided_diffusion_jax.samplers.base import Sampler
from guided_diffusion_jax.samplers.ddim import ddim


def euler() -> Sampler:
    """Euler's method: DDIM at eta = 0.

    d(x / alpha) = eps d(sigma / alpha), so that a step with a constant eps is alpha_nxt x0 + sigma_nxt eps.
    """
    return ddim()


def euler_ancestral(eta: ArrayLike = 1.0) -> Sampler:
    """Euler's method to less noise than `nxt` has, and new noise up to it: DDIM with eta.

    With r = sigma / alpha, k-diffusion's sigma_up = eta r_nxt sqrt(1 - (r_nxt / r)**2) and
    sigma_down = sqrt(r_nxt**2 - sigma_up**2) are what DDIM adds and keeps (`ddim.split_noise`), divided by alpha_nxt.

    Args:
        eta: 0 is Euler's method, 1 the ancestral sampler.
    """
    return ddim(eta)
