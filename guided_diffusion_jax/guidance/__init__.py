"""Guidance rules, a file each. `GUIDANCE` is the table of those that combine branches.

    classifier-free   eps = (1 + w) eps_cond - w eps_null                      (Ho & Salimans 2022, eq. 6)
    composed          eps = eps_null + sum_k (1 + w_k) (eps_k - eps_null)      (Liu et al. 2022, section 3)
    classifier        eps = eps - w sigma grad_x log p(y given x)              (Dhariwal & Nichol 2021, algorithm 2)

All weights count from the plain model: w = 0 leaves it as it is. Other libraries' `guidance_scale` is 1 + w.
"""

from collections.abc import Callable

from guided_diffusion_jax.guidance.base import Branches, Evaluate, Guidance, evaluate_branches, guided
from guided_diffusion_jax.guidance.cfg import cfg, composed, prune_branches
from guided_diffusion_jax.guidance.classifier import LogProb, classifier, gradient, total, weighted
from guided_diffusion_jax.guidance.constraints import clip_x0, inpaint
from guided_diffusion_jax.guidance.weights import Weight, WeightSchedule, negated, regional, weight_at

GUIDANCE: dict[str, Callable[..., Guidance]] = {"cfg": composed}
"""Choices of `sample.guidance.rule`: name to constructor `(weights, interval) -> Guidance`, one weight a condition."""

__all__ = [
    "GUIDANCE",
    "Branches",
    "Evaluate",
    "Guidance",
    "LogProb",
    "Weight",
    "WeightSchedule",
    "cfg",
    "classifier",
    "clip_x0",
    "composed",
    "evaluate_branches",
    "gradient",
    "guided",
    "inpaint",
    "negated",
    "prune_branches",
    "regional",
    "total",
    "weight_at",
    "weighted",
]
