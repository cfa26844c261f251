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
        renoise: `renoise(prediction, memory) -> prediction` after all else, with another eps, from which the step then
            goes on: the solver must have one evaluation a step.
    """

    init: Callable[[Images], Memory]
    combine: Callable[[Branches, Images, Level, Memory], tuple[Prediction, Memory]]
    renoise: Callable[[Prediction, Memory], Prediction] | None = None


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


def guided(
    sampler: Sampler,
    rule: Guidance,
    wrap: Callable[[Denoiser], Denoiser] = lambda denoise: denoise,
    through: Callable[..., tuple[Prediction, Memory]] = lambda predict, x, level: predict(x),
) -> Sampler:
    """Sampler of guided samples: its steps take `Evaluate`, all branches, in the place of a denoiser.

    Its memory is the pair (sampler's, rule's).

    Args:
        sampler: any.
        rule: any.
        wrap: what else is done to each combined prediction: a classifier's shift, clipping, inpainting.
        through: `through(predict, x, level) -> (prediction, memory)`, for what takes a gradient through `predict(x)`.

    Raises:
        InputError: the rule renoises, and the sampler evaluates elsewhere than at the start of its step.
    """

    def init(x, levels):
        return sampler.init(x, levels), rule.init(x)

    def step(evaluate, keys, x, now, nxt, memory):
        own, of_rule = memory

        def combined(x, level):
            nonlocal of_rule
            before = of_rule
            prediction, of_rule = through(lambda x: rule.combine(evaluate(x, level), x, level, before), x, level)
            return prediction

        denoise = wrap(combined)
        if rule.renoise is not None:
            x, denoise = renoised(rule.renoise(denoise(x, now), of_rule), now)
        x, own = sampler.step(denoise, keys, x, now, nxt, own)
        return x, (own, of_rule)

    return sampler._replace(init=init, step=step, with_gradient=None)


def renoised(prediction: Prediction, now: Level) -> tuple[Images, Denoiser]:
    """The x that a prediction whose eps was replaced belongs to, and a denoiser that gives the prediction there.

    DDIM does from here what it does with x0 and eps alone; solvers that make their eps of x and x0 do the same.
    """

    def denoise(x, level):
        require(
            all(a is b for a, b in zip(level, now, strict=True)),
            "guidance: cfgpp needs a solver with one evaluation a step, at its start, such as ddim or dpmpp_2m, and "
            "this one evaluates elsewhere; use another solver, or the rule cfg",
        )
        return prediction

    return now.alpha * prediction.x0 + now.sigma * prediction.eps, denoise
