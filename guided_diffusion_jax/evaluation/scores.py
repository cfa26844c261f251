"""What a classifier, or an encoder of pictures and conditions, says of generated pictures."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Integer

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation.moments import Features


class Score(NamedTuple):
    """Of the splits: their mean, and their standard deviation (over n)."""

    mean: float
    std: float


class ClassAccuracy(NamedTuple):
    """Of the pictures that were to show one class, the share, 0 .. 1, that does."""

    name: str
    accuracy: float
    pictures: int


class Accuracy(NamedTuple):
    """How often pictures show the class that they were asked for.

    Attributes:
        overall: share of all pictures, 0 .. 1.
        classes: the figures of each class that was asked for, in the classes' order.
    """

    overall: float
    classes: list[ClassAccuracy]


def probabilities(logits: Float[Array | np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """The softmax of each row, in float64."""
    exp = np.exp(np.asarray(logits, np.float64) - np.max(np.asarray(logits), axis=1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def inception_score(probability: Float[Array | np.ndarray, "n c"], splits: int = 10, seed: int | None = 2020) -> Score:
    """The exponential of the mean KL divergence of p(y given x) from p(y) (Salimans et al. 2016, section 4).

    Args:
        probability: of each class for each picture; of Inception's 1000 for the published figures. See `probabilities`.
        splits: the score depends on how many pictures a split has: 5000 in most papers.
        seed: of the shuffle before splitting, without which pictures ordered by class give too low a score; the default
            shuffles as torch-fidelity does. None: their own order, as in guided-diffusion's evaluator.

    Raises:
        InputError: rows do not sum to 1, or there are fewer pictures than splits.
    """
    p = np.asarray(probability, np.float64)
    n = len(p)
    require(1 <= splits <= n, f"splits={splits} of {n} pictures; use 1 to {n}")
    total = p.sum(1)
    require(
        bool((p >= 0).all() and (abs(total - 1) < 1e-3).all()),
        f"rows sum to {total.min():.4g} .. {total.max():.4g}, the smallest entry is {p.min():.4g}; probabilities "
        "must be 0 at least and sum to 1: give scores.probabilities(logits)",
    )
    p = p if seed is None else p[np.random.RandomState(seed).permutation(n)]
    edges = [i * n // splits for i in range(splits + 1)]
    values = [_score(p[start:end]) for start, end in itertools.pairwise(edges)]
    return Score(float(np.mean(values)), float(np.std(values)))


def _score(p: Float[np.ndarray, "n c"]) -> float:
    # 0 log 0 is 0; where the mean is 0, so is every p.
    ratio = np.divide(p, p.mean(0), out=np.ones_like(p), where=p > 0)
    return float(np.exp((p * np.log(ratio)).sum(1).mean()))


def class_accuracy(
    predicted: Integer[Array | np.ndarray, " _n"],
    label: Integer[Array | np.ndarray, " _n"],
    names: Sequence[str] | None = None,
) -> Accuracy:
    """How often a classifier sees what was asked for.

    Args:
        predicted: the class that each picture shows, as from 0.
        label: the class that it was asked for.
        names: of the classes; None: their numbers.

    Raises:
        InputError: the numbers of pictures differ or are 0, or a label has no name.
    """
    predicted, label = np.asarray(predicted), np.asarray(label)
    require(
        len(predicted) == len(label) > 0,
        f"{len(predicted)} predictions for {len(label)} labels; give one for each of 1 picture at least",
    )
    require(
        names is None or bool(0 <= label.min() <= label.max() < len(names)),
        f"labels {label.min()} .. {label.max()} for {len(names or ())} names; use 0 .. {len(names or ()) - 1}",
    )
    right = predicted == label
    classes = []
    for number in np.unique(label).tolist():
        of_class = right[label == number]
        name = str(number) if names is None else names[number]
        classes.append(ClassAccuracy(name, float(of_class.mean()), len(of_class)))
    return Accuracy(float(right.mean()), classes)


def clip_score(images: Features, conditions: Features) -> float:
    """The mean of max(100 cos, 0) over the pairs of a picture and its condition, 0 .. 100.

    Hessel et al. 2021, section 3, has the factor 2.5 in place of 100: divide by 40 for it.

    Args:
        images: what an encoder such as CLIP says of each picture; of any length.
        conditions: what its other half says of each picture's sentence; the same encoder twice compares pictures.

    Raises:
        InputError: they differ in shape, there are none, or one is all zero.
    """
    a, b = np.asarray(images, np.float64), np.asarray(conditions, np.float64)
    require(
        a.shape == b.shape and len(a) > 0,
        f"features of shape {a.shape} for pictures and {b.shape} for conditions; give pairs of one width, 1 at least",
    )
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    require(
        bool((length > 0).all()),
        f"{np.count_nonzero(length == 0)} of {len(a)} pairs have features that are all 0; they need a direction: "
        "check the encoder",
    )
    return float(np.maximum(100 * np.einsum("nd,nd->n", a, b) / length, 0).mean())
