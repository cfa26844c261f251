"""CFG++ (Chung et al. 2024): the guided x0, noised again with the unconditional eps."""

import jax.numpy as jnp
from jax.tree_util import Partial

from guided_diffusion_jax.guidance.base import Guidance
from guided_diffusion_jax.guidance.cfg import composed
from guided_diffusion_jax.guidance.rules import Combiner
from guided_diffusion_jax.guidance.weights import inside


def cfgpp() -> Combiner:
    """CFG++ (Chung et al. 2024, algorithm 2): x_nxt = alpha_nxt x0 + sigma_nxt eps_null.

    x0 = x0_null + (1 + w) (x0_cond - x0_null) as in CFG. The paper's lambda in [0, 1] is 1 + w: useful weights lie in
    [-1, 0]. The eps takes its place after all else (rescaling, classifiers, clipping), so that these change x0 alone.
    Outside the interval it is the plain conditional model. So that solvers which make their eps of x and x0 do the same
    as DDIM, the step goes on from alpha x0 + sigma eps_null in the place of x. Solvers with several evaluations a step
    are refused: their later ones belong to a step from x.
    """
    return Combiner(Partial(_guidance), "cfgpp", prunes=(-1,))


def _guidance(weights, interval):
    rule = composed(weights, interval)
    return Guidance(Partial(_init), Partial(_combine, combine=rule.combine, interval=interval), Partial(_renoise))


def _init(x):
    return jnp.zeros_like(x), jnp.zeros((x.shape[0], 1, 1, 1), bool)


def _combine(branches, x, level, memory, *, combine, interval):
    prediction, _ = combine(branches, x, level, ())
    return prediction, (branches[-1].eps, jnp.broadcast_to(inside(level, interval), (x.shape[0], 1, 1, 1)))


def _renoise(prediction, memory):
    eps, acts = memory
    return prediction._replace(eps=jnp.where(acts, eps, prediction.eps))
