"""`SOURCES`: every kind of data set by name, and `load`, which opens one.

A new kind is a function `(name, *, split, image_size, data_dir, columns) -> Dataset` and a line in the table; a TFDS
builder of one's own is `SOURCES["mine"] = functools.partial(open_tfds, builder=Mine)`.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from guided_diffusion_jax.data.dataset import CHUNK, MEMORY_LIMIT, Columns, Dataset, cached
from guided_diffusion_jax.data.images import Size, height_and_width
from guided_diffusion_jax.data.text import TextEncoder, encode_text
from guided_diffusion_jax.errors import InputError, hint, require


def open_folder(name: str, *, data_dir: str, **options: Any) -> Dataset:
    """The images of the folder `data_dir` (see `folders`)."""
    from guided_diffusion_jax.data import folders

    return folders.open_folder(data_dir, **options)


def open_tfds(name: str, *, builder: type | None = None, data_dir: str, **options: Any) -> Dataset:
    """An image data set of TFDS by its name there, or of the TFDS builder class `builder` (see `records`)."""
    import tensorflow_datasets as tfds

    from guided_diffusion_jax.data import records

    try:
        return records.open_tfds(name, builder=builder, data_dir=data_dir, **options)
    except tfds.core.DatasetNotFoundError as error:
        where = f"data.data_dir={data_dir}" if data_dir else "TFDS's own folder (data.data_dir is empty)"
        raise InputError(
            f"data.name={name!r} is not one of {', '.join(SOURCES)}, is unknown to TFDS, and is not prepared in {where}"
            f"{hint(name, [*SOURCES, 'cifar10'])}"
        ) from error


def open_digits(name: str, **options: Any) -> Dataset:
    """The embedded 8x8 handwritten digits."""
    from guided_diffusion_jax.data import digits

    return dataclasses.replace(open_tfds(name, builder=digits.Digits, **options), derived=digits.ATTRIBUTES)


def open_shapes(name: str, **options: Any) -> Dataset:
    """The drawn data set: "shapes/16", "shapes/32", "shapes/64"."""
    from guided_diffusion_jax.data.shapes.builder import Shapes

    return open_tfds(name, builder=Shapes, **options)


SOURCES: dict[str, Callable[..., Dataset]] = {"folder": open_folder, "digits": open_digits, "shapes": open_shapes}
"""Data sets by the part of their name before "/"; every other name is a data set of TFDS."""


def load(
    name: str,
    *,
    image_size: Size,
    split: str = "train",
    data_dir: str = "",
    attributes: Sequence[str] = (),
    text: str = "",
    reference_image: str = "",
    control_image: str = "",
    labels: str = "",
    channels: int = 0,
    caption_has: str = "",
    caption_lacks: str = "",
    buckets: int = 0,
    text_encoder: TextEncoder | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Dataset:
    """Opens a data set: held in memory if its pixels fit into `memory_limit` bytes, else decoded while it is read.

    Args:
        name: a name in `SOURCES` ("folder", "digits", "shapes/16"), or any image data set of TFDS ("cifar10").
        image_size: pixels of the images' height and width; of a folder also a pair of them.
        split: "train", "test"; for a folder by any usual name of it ("val", "valid", "dev"), for TFDS any of its
            expressions, such as "train[:90%]".
        data_dir: the folder of images; or where TFDS's prepared data sets lie, empty for TFDS's own folder.
        attributes: features that become attributes (see `Columns`, also for the next three).
        text: the feature that holds captions; for a folder the column of a table.
        reference_image: the feature that holds reference images.
        control_image: the feature, or for a folder the folder, that holds control images.
        labels: the feature that holds the class; for a folder the column of a table, "folder" or "filename"; empty for
            the data set's own.
        channels: 1 makes the images grey, 3 RGB; 0 leaves them as they are.
        caption_has: keep only the examples whose caption has this word; upper and lower case are the same.
        caption_lacks: leave out the examples whose caption has this word.
        buckets: of a folder, images of several aspect ratios whose sides are multiples of so many pixels (see
            `data.buckets`), for fine-tuning; 0 makes all of them of `image_size`.
        text_encoder: encodes the captions; None leaves them strings.
        memory_limit: bytes; 0 never decodes in advance.

    Raises:
        InputError: the data set cannot be found or prepared, lacks the split or a feature, or holds an image that
            cannot be read.
    """
    require(min(height_and_width(image_size)) >= 1, f"data.image_size={image_size} must be at least 1 pixel")
    more = {"buckets": buckets} if buckets else {}
    require(
        name == "folder" or (not buckets and isinstance(image_size, int)),
        f"image_size={image_size} and buckets={buckets}: other shapes than squares are of data.name='folder'",
    )
    opener = SOURCES.get(name.partition("/")[0], open_tfds)
    columns = Columns(tuple(attributes), text, reference_image, control_image, labels)
    dataset = opener(name, split=split, image_size=image_size, data_dir=os.fspath(data_dir), columns=columns, **more)
    dataset = cached(dataset.with_channels(channels), memory_limit)
    if caption_has or caption_lacks:
        require(bool(text), "data.caption_has and data.caption_lacks need captions; set data.text")
        dataset = by_caption(dataset, has=caption_has, lacks=caption_lacks)
    # After `cached`: encoded captions can take a hundred times the memory of the pixels, and lie on disk.
    return encode_text(dataset, text_encoder) if text and text_encoder else dataset


def by_caption(dataset: Dataset, *, has: str = "", lacks: str = "") -> Dataset:
    """The examples whose caption has one word and lacks another; every caption is read.

    Raises:
        InputError: there is none.
    """
    chunks = (np.arange(start, min(start + CHUNK, len(dataset))) for start in range(0, len(dataset), CHUNK))
    captions = np.concatenate([dataset.read(chunk)["text"] for chunk in chunks])

    def found(word: str) -> np.ndarray:
        word_in = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE).search
        return np.array([word_in(caption) is not None for caption in captions])

    kept = np.flatnonzero((found(has) if has else True) & (~found(lacks) if lacks else np.ones(len(captions), bool)))
    require(
        len(kept) > 0, f"{dataset.name}: no caption is left by data.caption_has={has!r}, data.caption_lacks={lacks!r}"
    )
    return dataset.subset(kept)


def folder(path: os.PathLike | str, *, image_size: Size, split: str = "train", **options: Any) -> Dataset:
    """A folder of images as a data set (see `folders` for its layout); the options are those of `load`."""
    return load("folder", data_dir=os.fspath(path), image_size=image_size, split=split, **options)
