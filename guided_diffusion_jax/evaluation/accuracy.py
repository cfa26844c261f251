"""Class accuracy: how often a classifier recognises the class that an image was generated for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Integer

from guided_diffusion_jax.errors import require


class ClassAccuracy(NamedTuple):
    """Share of correct images, 0 .. 1, among the images of one requested class."""

    name: str
    accuracy: float
    num_images: int


class Accuracy(NamedTuple):
    """Share of all images that show the requested class, 0 .. 1, and that of each requested class, in class order."""

    overall: float
    classes: list[ClassAccuracy]


def class_accuracy(
    predicted: Integer[Array | np.ndarray, " _n"],
    label: Integer[Array | np.ndarray, " _n"],
    names: Sequence[str] | None = None,
) -> Accuracy:
    """Class accuracy, overall and by class.

    Args:
        predicted: class of each image, from 0.
        label: class requested for it.
        names: class names; None: their numbers.

    Raises:
        InputError: the counts differ or are 0, or a label has no name.
    """
    predicted, label = np.asarray(predicted), np.asarray(label)
    require(
        len(predicted) == len(label) > 0,
        f"{len(predicted)} predictions for {len(label)} labels; give one for each of 1 image at least",
    )
    require(
        names is None or bool(0 <= label.min() <= label.max() < len(names)),
        f"labels {label.min()} .. {label.max()} for {len(names or ())} names; use 0 .. {len(names or ()) - 1}",
    )
    correct = predicted == label
    classes = []
    for number in np.unique(label).tolist():
        of_class = correct[label == number]
        name = str(number) if names is None else names[number]
        classes.append(ClassAccuracy(name, float(of_class.mean()), len(of_class)))
    return Accuracy(float(correct.mean()), classes)
