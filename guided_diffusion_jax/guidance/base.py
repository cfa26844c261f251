"""The interface of guidance rules: combining predictions apart from evaluating the network."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.samplers import Sampler
from guided_diffusion_jax.typing import ConditionalDenoiser, Conditions, Denoiser, Images, Level, Prediction

Branches = tuple[Prediction, ...]
"""Predictions of the K conditional branches, then of the null one."""

Evaluate = Callable[[Images, Level], Branches]
"""All branches at noisy images and their level."""

Memory = Any


class Guidance(NamedTuple):
    """Rule that combines branches into one prediction.

    As with samplers, a rule made of `jax.tree_util.Partial`s is data: its options are leaves.

    Attributes:
        init: `init(x) -> memory`, what the rule keeps between evaluations.
        combine: `combine(branches, x, level, memory) -> (prediction, memory)`.
    """

    init: Callable[[Images], Memory]
    combine: Callable[[Branches, Images, Level, Memory], tuple[Prediction, Memory]]


def evaluate_branches(
    denoise: ConditionalDenoiser, branches: Sequence[Conditions], *, sequential: bool = False
) -> Evaluate:
    """All branches in one forward of `len(branches)` times the batch, or one after the other.

    Args:
        denoise: the network.
        branches: conditions `[b ...]` of each branch, with the same keys in all of them.
        sequential: one branch at a time, which takes the memory of one branch; the same numbers.

    Raises:
        InputError: branches with different keys.
    """
    structures = {jax.tree.structure(branch) for branch in branches}
    require(
        len(structures) == 1,
        "the branches of a composition have different conditions; give a condition that is absent as its null",
    )
    count = len(branches)
    if sequential and count > 1:
        stacked = jax.tree.map(lambda *values: jnp.stack(values), *branches)

        def one_by_one(x: Images, level: Level) -> Branches:
            predictions = jax.lax.map(lambda conditions: denoise(x, level, conditions), stacked)
            return tuple(jax.tree.map(lambda a, i=i: a[i], predictions) for i in range(count))

        return one_by_one

    batch = jax.tree.map(lambda *values: jnp.concatenate(values), *branches)

    def repeat(a):
        return a if jnp.ndim(a) == 0 else jnp.concatenate([a] * count)

    def together(x: Images, level: Level) -> Branches:
        prediction = denoise(repeat(x), jax.tree.map(repeat, level), batch)
        parts = jax.tree.map(lambda a: jnp.split(a, count), prediction)
        return tuple(
            Prediction(*(None if part is None else part[i] for part in parts))  # type: ignore[arg-type]
            for i in range(count)
        )

    return together


def guided(sampler: Sampler, rule: Guidance, wrap: Callable[[Denoiser], Denoiser] = lambda denoise: denoise) -> Sampler:
    """Sampler of guided samples: its steps take `Evaluate`, all branches, in the place of a denoiser.

    Its memory is the pair (sampler's, rule's).

    Args:
        sampler: any.
        rule: any.
        wrap: what else is done to each combined prediction: a classifier's shift, clipping, inpainting.
    """

    def init(x, levels):
        return sampler.init(x, levels), rule.init(x)

    def step(evaluate, keys, x, now, nxt, memory):
        own, of_rule = memory

        def combined(x, level):
            nonlocal of_rule
            prediction, of_rule = rule.combine(evaluate(x, level), x, level, of_rule)
            return prediction

        x, own = sampler.step(wrap(combined), keys, x, now, nxt, own)
        return x, (own, of_rule)

    return sampler._replace(init=init, step=step, with_gradient=None)
