"""DEIS (tAB) and DPM-Solver: multistep solvers that interpolate eps, with one evaluation a step."""

from jax.tree_util import Partial
from jaxtyping import ArrayLike

from guided_diffusion_jax import checks
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.samplers import multistep
from guided_diffusion_jax.samplers.base import Sampler
from guided_diffusion_jax.samplers.dpmpp_2m import SOLVER_TYPES


def deis(order: int = 3, lower_order_final: bool | int = True) -> Sampler:
    """DEIS's tAB (Zhang & Chen 2023, section 3.3) with t = ln(sigma / alpha), which diffusers calls "logrho".

    eps is a polynomial in t through the last predictions, of which d(x / alpha) = eps d(sigma / alpha) is integrated.

    Args:
        order: 1 (DDIM), 2 or 3.
        lower_order_final: the last step is of first order, the one before it of second.
    """
    return _sampler(order, False, lower_order_final, 1.0)


def dpm_solver(
    order: int = 2, solver_type: str = "midpoint", lower_order_final: bool | int = True, curvature: ArrayLike = 1.0
) -> Sampler:
    """DPM-Solver, the multistep variant of Lu et al. 2022a on eps; "heun" and curvature = 1 make it DEIS.

    Args:
        order: 1 (DDIM), 2 or 3.
        solver_type: of second-order steps, "midpoint" or "heun" (see `dpmpp_2m`).
        lower_order_final: the last step is of first order, the one before it of second.
        curvature: see `dpmpp_3m`.
    """
    return _sampler(order, choose(SOLVER_TYPES, solver_type, "solver_type"), lower_order_final, curvature)


def _sampler(order, half, lower_order_final, curvature):
    order = checks.integer("order", order, 1, 3)
    options = multistep.exponential_options(order, half, lower_order_final, curvature)
    return Sampler(init=Partial(_init), step=Partial(_step, **options), order=order)


def _init(x, levels):
    return multistep.start(x, levels, 2)


def _step(denoise, keys, x, now, nxt, memory, **options):
    x0, eps, *_ = denoise(x, now)
    base = nxt.alpha * x0 + nxt.sigma * eps
    return multistep.exponential_step(eps, base, nxt.sigma, -1, now, nxt, memory, **options)
