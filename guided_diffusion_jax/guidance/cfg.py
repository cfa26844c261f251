"""Classifier-free guidance, of one condition or of several composed ones."""

from collections.abc import Collection, Sequence
from functools import reduce
from operator import add

import numpy as np
from jax.tree_util import Partial

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.guidance.base import Branches, Guidance
from guided_diffusion_jax.guidance.rules import Combiner
from guided_diffusion_jax.guidance.weights import Interval, Weight, weight_at
from guided_diffusion_jax.samplers import no_memory
from guided_diffusion_jax.typing import Conditions, Images, Level, Prediction


def cfg() -> Combiner:
    """Classifier-free guidance: eps = (1 + w) eps_cond - w eps_null (Ho & Salimans 2022, eq. 6).

    w is the weight of the request: 0 is the plain conditional model and -1 the unconditional one, both exactly. Other
    libraries' `guidance_scale` is 1 + w. Several conditions are `composed`.
    """
    return Combiner(Partial(composed), "cfg", prunes=(0, -1))


def composed(weights: Sequence[Weight], interval: Interval | None = None) -> Guidance:
    """K conditions at once, each with its own weight (Liu et al. 2022, section 3).

        eps = eps_null + sum_k (1 + w_k) (eps_k - eps_null)

    With all w_k = 0 this is the score of p(x) prod_k p(x given c_k) / p(x): all that each condition says of x, as if
    they were independent given x. x0 and eps are the same affine function of each other in all branches, and the
    factors sum to 1: combining either combines the other. A learned variance is the mean of the conditional branches'.
    With K = 0 it is the plain model of the null branch, whatever that holds.

    Args:
        weights: w_k of each branch. -1 takes the branch out of x0 and eps exactly; below it steers away (see
            `weights.negated`).
        interval: see `weights.inside`; None is everywhere.
    """
    return Guidance(init=Partial(no_memory), combine=Partial(_combine, weights=tuple(weights), interval=interval))


def _combine(branches: Branches, x: Images, level: Level, memory, *, weights, interval):
    check_count(branches, weights)
    of_conditions = [1 + weight_at(weight, level, interval) for weight in weights]
    factors = [*of_conditions, 1 - sum(of_conditions)]
    x0, eps = (_dot(factors, [branch[i] for branch in branches]) for i in range(2))
    return Prediction(x0, eps, variance_fraction(branches)), memory


def check_count(branches: Branches, weights: Sequence[Weight]) -> None:
    """Raises `InputError` unless there is a weight for each condition."""
    count = len(branches) - 1
    require(len(weights) == count, f"{len(weights)} weights for {count} conditions; give one for each")


def variance_fraction(branches: Branches) -> Images | None:
    """Learned variance of a combination: the mean of the conditional branches', or the null's where it is alone."""
    if branches[0].variance_fraction is None:
        return None
    parts = [branch.variance_fraction for branch in branches[: max(1, len(branches) - 1)]]
    return reduce(add, parts) / len(parts)  # type: ignore[arg-type, operator, return-value]


def unguided(branches: Branches) -> Prediction:
    """Composition of the branches with all weights 0: the conditional model, where there is one condition."""
    return composed((0.0,) * (len(branches) - 1)).combine(branches, branches[0].x0, _NOWHERE, ())[0]


_NOWHERE = Level(1.0, 1.0, 0.0)  # constant weights read no level


def _dot(factors, values):
    return reduce(add, (factor * value for factor, value in zip(factors, values, strict=True)))


def prune_branches(
    conditions: Sequence[Conditions], null: Conditions, weights: Sequence[Weight], at: Collection[int] = (0, -1)
) -> tuple[tuple[Conditions, ...], Conditions, tuple[Weight, ...]]:
    """Composition with the same x0 and eps, without the branches that have no influence.

    Those are the conditions whose weight is -1 everywhere, and the null where one condition is left with w = 0: the
    plain conditional and unconditional models (K = 0) cost one forward of the batch. The weights must be known, not
    traced; schedules are never pruned. `at` are the weights at which the rule allows it, see `Combiner.prunes`.
    """

    def everywhere(weight: Weight, value: float) -> bool:
        return not isinstance(weight, tuple) and bool(np.all(np.asarray(weight) == value))

    pairs = zip(conditions, weights, strict=True)
    used = [pair for pair in pairs if -1 not in at or not everywhere(pair[1], -1.0)]
    if 0 in at and len(used) == 1 and everywhere(used[0][1], 0.0):
        return (), used[0][0], ()
    return tuple(condition for condition, _ in used), null, tuple(weight for _, weight in used)
