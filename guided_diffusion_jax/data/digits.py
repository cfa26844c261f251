"""The embedded data set: 1,797 handwritten digits of 8x8 pixels, as a TFDS builder that downloads nothing."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Int, UInt8

from guided_diffusion_jax.data.dataset import Attribute
from guided_diffusion_jax.data.images import to_png

TEST_SIZE = 297
"""Size of the test split, up to rounding per class."""

SPLIT_SEED = 0

MEDIAN_INK = 78.0
"""Median of the digits' mean grey level, 0 .. 255."""


def ink(images: UInt8[np.ndarray, "n h w c"]) -> Int[np.ndarray, " n"]:
    """Stroke width: 1 (bold) where the mean grey level is above the median digit's, else 0 (thin)."""
    return (images.mean(axis=(1, 2, 3)) > MEDIAN_INK).astype(np.int32)


ATTRIBUTES = {
    "ink": Attribute(("thin", "bold"), lambda images, labels: ink(images)),
    "parity": Attribute(("even", "odd"), lambda images, labels: (labels % 2).astype(np.int32)),
}
"""`Dataset.derived` of the digits."""


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """scikit-learn's handwritten digits: `image` uint8 `[8 8 1]`, `label` 0 .. 9; 1,500 in `train`, 297 in `test`.

    scikit-learn has grey levels v in 0 .. 16; here they are `round(v * 255 / 16)`. `held_out` makes the split.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
    (its test part, which is what scikit-learn ships).
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "8x8 grey digits, stratified split."}  # noqa: RUF012 (TFDS declares it so)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="1,797 handwritten digits of 8x8 grey pixels, from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        _, labels = digits()
        test = held_out(labels)
        return {"train": self._generate_examples(~test), "test": self._generate_examples(test)}

    def _generate_examples(self, chosen: Bool[np.ndarray, " n"]) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = digits()
        for index in np.flatnonzero(chosen):
            # TFDS encodes arrays with TensorFlow, but accepts PNG bytes.
            yield int(index), {"image": to_png(images[index]), "label": int(labels[index])}


def digits() -> tuple[UInt8[np.ndarray, "1797 8 8 1"], Int[np.ndarray, "1797"]]:
    """All digits in scikit-learn's order: images of 0 .. 255 and their labels 0 .. 9."""
    from sklearn.datasets import load_digits  # a second of imports that only preparing needs

    values, labels = load_digits(return_X_y=True)
    return np.round(values * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1), labels


def held_out(labels: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """A mask of the test split: the same share of every class, drawn with the fixed seed `SPLIT_SEED`."""
    # RandomState, because NumPy promises never to change its stream; a Generator's may.
    random = np.random.RandomState(SPLIT_SEED)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(len(members) * TEST_SIZE / len(labels))]] = True
    return chosen
