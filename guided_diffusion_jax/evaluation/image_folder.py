"""A folder of image files as one set of images, at any depth: all of one size, in grey or RGB."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from guided_diffusion_jax.data.dataset import pool
from guided_diffusion_jax.data.images import GREY_MODES, open_image, to_mode, upright
from guided_diffusion_jax.data.scan import ending, scan
from guided_diffusion_jax.errors import InputError, require

T = TypeVar("T")


class Listing(NamedTuple):
    """The files of a folder.

    Attributes:
        images: paths of the files that are read as images by their endings, sorted.
        others: number of the other files, by ending.
    """

    images: tuple[epath.Path, ...]
    others: Mapping[str, int]


def shape(
    folder: epath.Path, found: Listing, expected_shape: tuple[int, int, int] | None = None
) -> tuple[int, int, int, int]:
    """Shape [n h w c] of a folder's images, every one of which is decoded and forgotten.

    Args:
        folder: the folder, for messages.
        found: its files.
        expected_shape: (height, width, channels) that is wanted; grey and RGB are converted, sizes are not. None takes
            the images' own, grey (1) where all of them are.

    Raises:
        InputError: there are no images, one is damaged, or their sizes differ.
    """
    stored = [file.name for file in sorted(folder.glob("*.npz"), key=lambda file: file.name)]
    instead = f"; or give {folder / stored[0]}, which lies there" if stored else ""
    there = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in sorted(found.others.items()))
    require(
        len(found.images) > 0,
        f"{folder} holds no images that Pillow reads ({there or 'it is empty'}); give a folder of .png, .jpg or other "
        f"images, or an .npz{instead}",
    )
    headers = list(pool().map(_check, found.images))
    size = headers[0][0] if expected_shape is None else (expected_shape[1], expected_shape[0])
    wrong = next((i for i, (other, _) in enumerate(headers) if other != size), None)
    if wrong is not None:
        (width, height), first = headers[wrong][0], found.images[0].name
        wanted, remedy = f"the {size[0]} x {size[1]} of {first}", "to one size"
        if expected_shape is not None:
            wanted, remedy = f"{size[0]} x {size[1]}", "to that size"
            remedy += ", or set data.image_size to theirs" if width == height else ""
        raise InputError(
            f"{found.images[wrong]} is {width} x {height} pixels (width x height) instead of {wanted}; crop and scale "
            f"all images of {folder} {remedy}{instead}"
        )
    channels = expected_shape[2] if expected_shape else 1 if all(grey for _, grey in headers) else 3
    return len(found.images), size[1], size[0], channels


def listing(folder: epath.Path) -> Listing:
    """The files of a folder and of the folders inside it, as `data.scan` finds them."""
    found = scan(folder)
    return Listing(tuple(folder / path for path in found.images), Counter(map(ending, found.others)))


def blocks(
    files: Sequence[epath.Path], shape: tuple[int, int, int, int], size: int
) -> Iterator[UInt8[np.ndarray, "b h w c"]]:
    """All images in their order, `size` at a time and the rest last. Raises `InputError` for a damaged one."""
    for start in range(0, len(files), size):
        block = pool().map(lambda file: _decode(file, shape[3]), files[start : start + size])
        yield np.stack(list(block)).reshape(-1, *shape[1:])


def digest(folder: epath.Path, files: Sequence[epath.Path]) -> str:
    """SHA-256 of the files' names and contents, hexadecimal."""
    found = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        found.update(f"{file.relative_to(folder)}\0{content}\n".encode())
    return found.hexdigest()


def _check(file: epath.Path) -> tuple[tuple[int, int], bool]:
    """(Width, height) of an image that can be decoded, and whether it is grey."""
    return _open(file, lambda image: (image.size, image.mode in GREY_MODES))


def _decode(file: epath.Path, channels: int) -> UInt8[np.ndarray, "..."]:
    return _open(file, lambda image: np.asarray(to_mode(image, channels)))


def _open(file: epath.Path, use: Callable[[Image.Image], T]) -> T:
    with file.open("rb") as stream:
        return open_image(stream, str(file), lambda image: use(upright(image)))
