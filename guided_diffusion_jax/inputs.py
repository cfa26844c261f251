"""Inputs of a request: labels, attributes, images and arrays as users give them, to one row for each image."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Int
from PIL import Image

from guided_diffusion_jax.checks import shown
from guided_diffusion_jax.conditions import ConditionSpec
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.data.images import decode, is_grey, to_float
from guided_diffusion_jax.errors import InputError, choose, hint, require

ImageLike = str | os.PathLike | np.ndarray | jax.Array
"""A file; or an array uint8 or float in [-1, 1], `[h w c]` or one per sample `[n h w c]`."""


def label_rows(labels: Any, rows: int, info: DatasetInfo, classes: int) -> Int[np.ndarray, " n"]:
    """Class number of each image: the labels in turn, by number or name; the number of classes for none.

    Raises:
        InputError: a class that there is not.
    """
    if labels is None:
        return np.full(rows, classes, np.int32)
    several = [labels] if isinstance(labels, str) or np.ndim(labels) == 0 else list(labels)
    require(len(several) > 0, "labels is empty; give class numbers or names, or None")
    require(classes > 0, f"labels={shown(labels)}, but this run has no classes; leave labels out")
    require(
        len(several) <= rows, f"labels has {len(several)} classes for {rows} images; give count={len(several)} or more"
    )
    return np.resize(np.array([_number(label, info.class_names, classes) for label in several], np.int32), rows)


def _number(label: Any, names: Sequence[str], classes: int) -> int:
    """The number of a class that is given by its number, or in a text by its name or number."""
    if isinstance(label, str):
        if label in names:
            return list(names).index(label)
        label = int(label) if re.fullmatch(r"\d{1,9}", label) else label
    whole = np.ndim(label) == 0 and np.asarray(label).dtype.kind in "iu"
    if not whole or not 0 <= int(label) < classes:
        named = class_list(names) if len(names) == classes else ""
        near = hint(label, names) if isinstance(label, str) else ""
        listed = f" or a name: {named}" if named and named != f"0 to {classes - 1}" else ""
        raise InputError(f"labels: {shown(label).strip(QUOTES)} is no class; use 0 to {classes - 1}{listed}{near}")
    return int(label)


QUOTES = "'\""


def class_list(names: Sequence[str], *, all_of_them: bool = False) -> str:
    """Classes with their numbers, for people; a long list is cut in the middle.

    >>> class_list(["cats", "dogs"]), class_list([str(i) for i in range(10)])
    ('0 cats, 1 dogs', '0 to 9')
    """
    if list(names) == [str(i) for i in range(len(names))]:
        return f"0 to {len(names) - 1}"
    listed = [f"{i} {name}" for i, name in enumerate(names)]
    if len(listed) > 12 and not all_of_them:
        listed = [*listed[:10], "...", listed[-1]]
    return ", ".join(listed)


def attribute_row(attributes: Mapping[str, str], info: DatasetInfo) -> Int[np.ndarray, "1 k"]:
    """One row of attribute numbers of named values; 0 for attributes that are not given."""
    columns = {name: i for i, (name, _) in enumerate(info.attributes)}
    row = np.zeros((1, len(columns)), np.int32)
    for name, value in attributes.items():
        column = choose(columns, name, "attributes")
        values = {value: i for i, value in enumerate(info.attributes[column][1], 1)}
        row[0, column] = choose(values, value, f"attributes: {name}")
    return row


def image_rows(
    name: str, value: ImageLike, shape: tuple[int, ...], rows: int, *, exact: bool = False, resize: bool = True
) -> Float[np.ndarray, "n h w c"]:
    """Image in [-1, 1] of each sample, from a file or an array.

    Args:
        name: of the argument, for errors.
        value: file or array; one image stands for all samples.
        shape: (h, w, c) that the model needs.
        rows: number of samples.
        exact: another number of channels is an error, and is not converted.
        resize: files of another size are cropped to the centre and scaled, which is printed.
    """
    size, channels = shape[0], shape[-1]
    if isinstance(value, str | os.PathLike):
        pixels = _read(name, epath.Path(value).expanduser(), size, channels, exact)[None]
    else:
        require(
            isinstance(value, np.ndarray | jax.Array),
            f"{name} is a {type(value).__name__}; give the name of a file, or an array [h w c] or [n h w c]",
        )
        pixels = np.asarray(value)
        pixels = pixels[None] if pixels.ndim == 3 else pixels
    require(
        pixels.ndim == 4 and pixels.shape[1:] == tuple(shape),
        f"{name} has shape {pixels.shape}; it must be {(*shape,)}, or [n, ...] of these",
    )
    require(
        len(pixels) == 1 or len(pixels) >= rows,
        f"{name} has {len(pixels)} images for {rows} samples; give one, or one for each",
    )
    if pixels.dtype == np.uint8:
        images = to_float(pixels)
    else:
        floats = np.issubdtype(pixels.dtype, np.floating) or pixels.dtype.name == "bfloat16"
        require(floats, f"{name} holds {pixels.dtype}; give uint8, or floats in [-1, 1]")
        images = pixels.astype(np.float32)
        low, high = float(images.min(initial=0)), float(images.max(initial=0))
        require(low >= -1.001 and high <= 1.001, f"{name} goes from {low:g} to {high:g}; floats must lie in [-1, 1]")
    return np.repeat(images, rows, axis=0) if len(images) == 1 else images[:rows]


def _read(name: str, file: epath.Path, size: int, channels: int, exact: bool) -> np.ndarray:
    require(file.is_file(), f"{name}={file} is no file")
    with file.open("rb") as opened:
        found = 1 if is_grey(opened) else 3
    kind = {1: "grey", 3: "RGB"}
    require(
        not exact or found == channels,
        f"{name}={file} has {found} channels ({kind[found]}), the model's have {channels} ({kind.get(channels)}); "
        "convert it",
    )
    pixels = decode(file.read_bytes(), name=f"{name}={file}", size=size, channels=channels)
    with file.open("rb") as opened, Image.open(opened) as image:
        width, height = image.size
    if (width, height) != (size, size):
        print(f"{name}={file}: {width}x{height} pixels, made {size}x{size} by cropping to the centre and scaling")
    return pixels


def array_rows(name: str, value: Any, spec: ConditionSpec, rows: int) -> np.ndarray:
    """Values of a condition for each image, from one value or from one for each."""
    values = np.asarray(value, spec.dtype)
    values = values[None] if values.shape == spec.shape else values
    require(
        values.shape[1:] == spec.shape and len(values) in (1, rows),
        f"{name} has shape {values.shape}; it must be {spec.shape}, or [{rows}, ...] of these",
    )
    return np.repeat(values, rows, axis=0) if len(values) == 1 else values
