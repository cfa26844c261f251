"""Classifiers that steer: a run's own, trained on noisy images, and a user's own function."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array

from guided_diffusion_jax import sharding
from guided_diffusion_jax.denoisers import class_log_prob
from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.generation import Guide
from guided_diffusion_jax.guidance import Weight
from guided_diffusion_jax.typing import Images, Level, Params


class GuidingClassifier(NamedTuple):
    """A trained noise-aware classifier.

    Attributes:
        log_prob: `log_prob(label, x, level) -> [b]`, with the parameters inside.
        class_names: of its values.
    """

    log_prob: Partial
    class_names: tuple[str, ...]


def guiding_classifier(
    model: nn.Module, params: Params, class_names: Sequence[str], mesh: Mesh | None = None
) -> GuidingClassifier:
    """Classifier from a module and its parameters; make it once, for each one compiles anew."""

    def apply(params, x, time):
        return model.apply({"params": params}, x, time)

    sharded = apply if mesh is None else sharding.gathering(mesh)(apply)

    def log_prob(params, label, x, level):
        return class_log_prob(sharded, params, label, x, level)

    return GuidingClassifier(Partial(log_prob, params), tuple(class_names))


def make_guides(
    classifier: Callable[[str], GuidingClassifier],
    labels: np.ndarray,
    weight: Weight | None,
    classifiers: Mapping[str, tuple[int, float]],
    log_prob: Callable[..., Any] | None,
) -> tuple[Guide, ...]:
    """What steers a request; `Pipeline.__call__` documents the last three arguments.

    Args:
        classifier: of an attribute, "label" being the class itself.
        labels: of the images; that beyond the last class is none.
        weight: `classifier_weight`.
        classifiers: see there.
        log_prob: see there.

    Raises:
        InputError: there is no label to steer to, or a value that the attribute does not have.
    """
    guides = []
    if log_prob is not None:
        function = log_prob if isinstance(log_prob, Partial) else Partial(log_prob)
        guides.append(Guide(Partial(_without_label, function), labels, 1.0 if weight is None else weight))
    elif weight is not None:
        found = classifier("label")
        absent = labels >= len(found.class_names)
        require(not absent.any(), "classifier_weight steers to a class, but no labels are given; give labels, or None")
        guides.append(Guide(found.log_prob, labels, weight))
    for attribute, (value, own) in classifiers.items():
        found = classifier(attribute)
        last = len(found.class_names) - 1
        require(0 <= value <= last, f"classifiers: {value} is no value of {attribute}; use 0 to {last}")
        guides.append(Guide(found.log_prob, np.full_like(labels, value), own))
    return tuple(guides)


def no_classifier(attribute: str) -> GuidingClassifier:
    """Raises `InputError`: the classifiers of a pipeline that has none."""
    raise InputError(f"this pipeline has no classifier of {attribute}; train one, or give log_prob=")


def _without_label(log_prob: Partial, label: Array, x: Images, level: Level) -> Array:
    return log_prob(x, level)
