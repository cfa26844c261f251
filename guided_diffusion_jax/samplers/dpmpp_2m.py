"""DPM-Solver++ (2M): a second-order multistep solver with one evaluation a step; 3M, of third order."""

from jax.tree_util import Partial
from jaxtyping import ArrayLike

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.samplers import multistep
from guided_diffusion_jax.samplers.base import Sampler

SOLVER_TYPES = {"midpoint": True, "heun": False}
"""How a second-order step weighs the slope: by half the weight of x0 itself, or exactly."""


def dpmpp_2m(solver_type: str = "midpoint", lower_order_final: bool | int = True) -> Sampler:
    """DPM-Solver++ (2M) of Lu et al. 2022 (algorithm 2), for any alpha and sigma.

    With lambda = ln(alpha / sigma), h = lambda_nxt - lambda_now and r = h_previous / h,

        D = x0 + (x0 - x0_previous) / (2 r)
        x_nxt = sigma_nxt / sigma_now x - alpha_nxt expm1(-h) D

    The first step and the last one, to sigma = 0, are of first order (D = x0), which is DDIM's step, or DPM-Solver++
    (1S).

    Args:
        solver_type: "midpoint", as above; "heun" integrates the line through both predictions exactly.
        lower_order_final: the last step is of first order also where it does not lead to sigma = 0.
    """
    return _sampler(2, solver_type, lower_order_final, 1.0)


def dpmpp_3m(
    solver_type: str = "midpoint", lower_order_final: bool | int = True, curvature: ArrayLike = 1.0
) -> Sampler:
    """DPM-Solver++ (3M): a parabola through the last three predictions of x0 (Lu et al. 2022).

    Args:
        solver_type: of its second-order steps, see `dpmpp_2m`.
        lower_order_final: the last step is of first order, the one before it of second.
        curvature: factor of the second derivative. 1 is of third order; 0.5 is what the authors' code and diffusers
            compute, of second order.
    """
    return _sampler(3, solver_type, lower_order_final, curvature)


def _sampler(order, solver_type, lower_order_final, curvature):
    half = choose(SOLVER_TYPES, solver_type, "solver_type")
    options = multistep.exponential_options(order, half, lower_order_final, curvature)
    return Sampler(init=Partial(_init), step=Partial(_step, **options), order=order)


def _init(x, levels):
    return multistep.start(x, levels, 2)


def _step(denoise, keys, x, now, nxt, memory, **options):
    x0, eps, *_ = denoise(x, now)
    base = nxt.alpha * x0 + nxt.sigma * eps
    return multistep.exponential_step(x0, base, nxt.alpha, 1, now, nxt, memory, **options)
