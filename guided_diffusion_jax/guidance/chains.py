"""Several rules as one: which of them apply, in what order, and the branches that they need."""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.tree_util import Partial

from guided_diffusion_jax.errors import InputError, choose, hint, require
from guided_diffusion_jax.guidance.base import Evaluate, Guidance
from guided_diffusion_jax.guidance.cfg import cfg
from guided_diffusion_jax.guidance.reconstruction import lower_loss
from guided_diffusion_jax.guidance.rules import Adjuster, Combiner, Contrast, LossGradient, Rule, as_partial
from guided_diffusion_jax.guidance.weights import Interval, Weight, weight_at
from guided_diffusion_jax.typing import ConditionalDenoiser, Conditions, Images, Level, Prediction

Chain = tuple[Rule, ...]
"""A combiner, then contrasts, adjusters, limits and the gradient of a loss."""

REASONS = {
    "combine": "a combiner makes the prediction that the others change",
    "contrast": "a contrast adds to the prediction, which is adjusted and limited after that",
    "adjust": "a limit of the values comes after what changes them",
    "limit": "the gradient of a loss goes through all the others",
    "loss": "",
}
"""Places in a chain, in order, each with the reason why nothing of a later place may come before it."""


def place(rule: Rule) -> str:
    """Key of `REASONS`."""
    if isinstance(rule, Adjuster):
        return rule.place
    return {Combiner: "combine", Contrast: "contrast", LossGradient: "loss"}[type(rule)]


def create(table: Mapping[str, Callable[..., Any]], name: str, **options: Any) -> Any:
    """Rule of the table by its name, with its options.

    Raises:
        InputError: there is no such rule, or it has no such option.
    """
    constructor = choose(table, name, "guidance")
    known = inspect.signature(constructor).parameters
    for option in options:
        has = f"it has {', '.join(known)}" if known else "it has no options"
        require(option in known, f"guidance: {name} has no option {option!r}; {has}{hint(option, known)}")
    missing = [key for key, of in known.items() if of.default is of.empty and key not in options]
    require(not missing, f"guidance: {name} needs {', '.join(missing)}; give gd.guidance.{name}(...)")
    return constructor(**options)


def chain(table: Mapping[str, Callable[..., Any]], rules: Any) -> Chain:
    """Chain of one rule or several, checked; without a combiner it begins with `cfg`.

    Args:
        table: rules by name.
        rules: a name, a rule, a `Guidance` with its own weights, a function `(weights, interval) -> Guidance`, or a
            sequence of them.

    Raises:
        InputError: no rule, or an order without a meaning.
    """
    several = isinstance(rules, list | tuple) and not isinstance(rules, Guidance)
    made = tuple(_rule(table, rule) for rule in (rules if several else (rules,)))
    combiners = [rule.name for rule in made if isinstance(rule, Combiner)]
    require(len(combiners) < 2, f"guidance: {' and '.join(combiners)} both combine the branches; keep one of them")
    losses = [rule for rule in made if isinstance(rule, LossGradient)]
    require(len(losses) < 2, "guidance: reconstruction is given twice; add the losses, each with its factor")
    if not combiners:
        made = (cfg(), *made)
    order = list(REASONS)
    for before, after in itertools.pairwise(made):
        first, second = place(before), place(after)
        require(
            order.index(first) <= order.index(second),
            f"guidance: {before.name} comes before {after.name}, but {REASONS[second]}",
        )
    return made


def _rule(table: Mapping[str, Callable[..., Any]], rule: Any) -> Rule:
    if isinstance(rule, str):
        return _rule(table, create(table, rule))
    if isinstance(rule, Guidance):
        return Combiner(Partial(_as_it_is, guidance=rule))
    if isinstance(rule, Rule):
        return rule
    if not callable(rule):
        raise InputError(f"guidance={rule!r} is no rule; give a name of {', '.join(table)}, or gd.guidance.apg()")
    return Combiner(as_partial(rule))


def _as_it_is(weights, interval, *, guidance):
    return guidance


def prunes(rules: Chain) -> tuple[int, ...]:
    """Weights at which a branch has no influence on what the chain makes."""
    combiner, *others = rules
    reads = any(isinstance(rule, Contrast) or (isinstance(rule, Adjuster) and rule.needs_conditions) for rule in others)
    return tuple(weight for weight in combiner.prunes if weight == 0 or not reads)  # type: ignore[union-attr]


def evaluate_contrasts(
    evaluate: Evaluate, rules: Chain, denoise: ConditionalDenoiser, conditions: Conditions
) -> Evaluate:
    """The branches of `evaluate`, then one of each contrast, with the conditions of the first branch."""
    worse = [rule.worse(denoise) for rule in rules if isinstance(rule, Contrast)]
    return lambda x, level: (*evaluate(x, level), *(one(x, level, conditions) for one in worse))


def as_guidance(rules: Chain, weights: Sequence[Weight], interval: Interval | None) -> Guidance:
    """Combination of a chain up to the gradient of a loss. Its memory is a tuple, one of each rule."""
    combiner = rules[0].make(weights, interval)  # type: ignore[union-attr]
    later = [rule for rule in rules[1:] if not isinstance(rule, LossGradient)]
    extra = sum(isinstance(rule, Contrast) for rule in later)

    def init(x: Images):
        return combiner.init(x), tuple(rule.init(x) if isinstance(rule, Adjuster) else () for rule in later)

    def combine(branches: tuple[Prediction, ...], x: Images, level: Level, memory):
        of_combiner, of_later = memory
        count = len(branches) - extra
        main, worse = branches[:count], iter(branches[count:])
        prediction, of_combiner = combiner.combine(main, x, level, of_combiner)
        fraction, kept = prediction.variance_fraction, []
        for rule, own in zip(later, of_later, strict=True):
            if isinstance(rule, Contrast):
                w = weight_at(rule.weight, level, interval)
                shifted = zip(prediction[:2], main[0][:2], next(worse)[:2], strict=True)
                prediction = Prediction(*(p + w * (good - bad) for p, good, bad in shifted))
            else:
                prediction, own = rule.adjust(main, prediction, x, level, own)  # type: ignore[union-attr]
            kept.append(own)
        return prediction._replace(variance_fraction=fraction), (of_combiner, tuple(kept))

    renoise = None if combiner.renoise is None else lambda prediction, memory: combiner.renoise(prediction, memory[0])
    return Guidance(init, combine, renoise)


def through(rules: Chain, interval: Interval | None) -> Callable[..., Any]:
    """What the last rule of a chain does with `predict`, `x` and the level; see `base.guided`."""
    last = rules[-1]
    if isinstance(last, LossGradient):
        return functools.partial(lower_loss, last, interval)
    return lambda predict, x, level: predict(x)
