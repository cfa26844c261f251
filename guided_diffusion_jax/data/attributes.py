"""What else can be said of a picture than its class: further attributes that a classifier may learn and steer by."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from guided_diffusion_jax.data.source import Source
from guided_diffusion_jax.errors import choose


class Attribute(NamedTuple):
    """An attribute that can be read off a picture and its label.

    Attributes:
        class_names: of its values.
        of: images uint8 `[n h w c]` and labels int32 `[n]` to the attribute's labels int32 `[n]`.
    """

    class_names: tuple[str, ...]
    of: Callable[[np.ndarray, np.ndarray], np.ndarray]


DIGITS_INK = 78.0
"""Median of the digits' mean grey level, 0 .. 255."""


def ink(images: np.ndarray) -> np.ndarray:
    """Thin strokes 0 or bold ones 1: whether a picture has more ink than the median digit."""
    return (images.mean(axis=(1, 2, 3)) > DIGITS_INK).astype(np.int32)


ATTRIBUTES = {
    "ink": Attribute(("thin", "bold"), lambda images, labels: ink(images)),
    "parity": Attribute(("even", "odd"), lambda images, labels: (labels % 2).astype(np.int32)),
}


def with_attribute(source: Source, name: str) -> Source:
    """The same pictures with an attribute's labels; "label" is the class itself.

    Raises:
        InputError: there is no such attribute.
    """
    if name == "label":
        return source
    attribute = choose(ATTRIBUTES, name, "classifier.attribute")

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = source.read(indices)
        return batch | {"label": attribute.of(batch["image"], batch["label"])}

    return dataclasses.replace(source, class_names=attribute.class_names, read=read)
