"""Inputs of a request: attributes, images and arrays as users give them, to one row for each image."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from guided_diffusion_jax.conditions import ConditionSpec
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.data.images import Header, decode, read_header, same_aspect, to_float
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.runtime.files import is_regular

ImageLike = str | os.PathLike | np.ndarray | jax.Array
"""A file; or an array uint8 or float in [-1, 1], `[h w c]` or one per sample `[n h w c]`."""


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
    name: str,
    value: ImageLike,
    shape: tuple[int, ...],
    rows: int,
    *,
    exact: bool = False,
    decoder: Callable[..., np.ndarray] = decode,
) -> Float[np.ndarray, "n h w c"]:
    """Image in [-1, 1] of each sample, from a file or an array.

    Args:
        name: of the argument, for errors.
        value: file or array; one image stands for all samples.
        shape: (h, w, c) that the model needs.
        rows: number of samples.
        exact: another number of channels is an error, and is not converted.
        decoder: `images.decode` or `images.decode_map`. Files of another size are cropped to the centre and scaled,
            which is printed.
    """
    size, channels = shape[0], shape[-1]
    if isinstance(value, str | os.PathLike):
        pixels = _read(name, epath.Path(value).expanduser(), size, channels, exact, decoder)[None]
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
    return repeated(images, rows) if len(images) == 1 else images[:rows]


def mask_rows(
    name: str, value: ImageLike, shape: tuple[int, ...], rows: int, *, soft: bool
) -> Float[np.ndarray, "n h w 1"]:
    """Mask in [0, 1] of each sample, 1 where it is white; arrays may also be bool, or float in [0, 1], and `[h w]`.

    Files and uint8 arrays are made black and white, unless they shall stay `soft`: the greys that JPEG leaves beside
    every edge, and around it, would mix what is known with what is drawn. What that changed is printed.
    """
    is_file = isinstance(value, str | os.PathLike)
    if not is_file:
        value = np.asarray(value)
        value = value[..., None] if value.ndim == 2 else value
        soft = soft or value.dtype != np.uint8
        if value.dtype == bool or (value.dtype != np.uint8 and value.min(initial=0) >= 0):
            value = np.asarray(value, np.float32) * 2 - 1
    white = each_row(lambda image: (image + 1) / 2, image_rows(name, value, (*shape[:2], 1), rows))
    if soft:
        return white
    grey = float(np.mean(each_row(lambda white: ((white > 0) & (white < 1)).mean((1, 2, 3)), white)))
    if grey:
        print(
            f"{name}{f'={value}' if is_file else ''}: the {grey:.1%} of its pixels that were grey are made black or "
            "white, whichever is nearer; soft_mask=True keeps them"
        )
    return each_row(lambda white: (white >= 0.5).astype(np.float32), white)


def check_same_part(given: Mapping[str, ImageLike | None]) -> None:
    """Refuses files that show one scene and would be cropped to different parts of it, upright as EXIF has them.

    Raises:
        InputError: two have another aspect ratio; the message has both sizes.
    """
    sizes = {
        f"{name}={value}": _header(name, epath.Path(value).expanduser()).size
        for name, value in given.items()
        if isinstance(value, str | os.PathLike)
    }
    first, *others = sizes or [""]
    for other in others:
        a, b = sizes[first], sizes[other]
        require(
            same_aspect(a, b),
            f"{other} has {b[0]}x{b[1]} pixels and {first} has {a[0]}x{a[1]}; they belong together: give both the same "
            "aspect ratio",
        )


def _header(name: str, file: epath.Path) -> Header:
    require(is_regular(file), f"{name}={file} is no file")
    with file.open("rb") as opened:
        return read_header(opened, f"{name}={file}")


def _read(
    name: str, file: epath.Path, size: int, channels: int, exact: bool, decoder: Callable[..., np.ndarray]
) -> np.ndarray:
    header = _header(name, file)
    found, (width, height) = 1 if header.grey else 3, header.size
    kind = {1: "grey", 3: "RGB"}
    require(
        not exact or found == channels,
        f"{name}={file} has {found} channels ({kind[found]}), the model's have {channels} ({kind.get(channels)}); "
        "convert it",
    )
    pixels = decoder(file.read_bytes(), name=f"{name}={file}", size=size, channels=channels)
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
    return repeated(values, rows) if len(values) == 1 else values


def repeated(value: np.ndarray, rows: int) -> np.ndarray:
    """One row, `[1 ...]`, for each of so many samples; once in memory, and so read only."""
    return np.broadcast_to(value, (rows, *value.shape[1:]))


def each_row(function: Callable[..., np.ndarray], *values: Any) -> np.ndarray:
    """`function` of NumPy arrays with a row for each sample; computed once where all are `repeated`."""
    rows = len(values[0])
    if all(value.strides[0] == 0 for value in values):
        return repeated(function(*(value[:1] for value in values)), rows)
    return function(*values)
