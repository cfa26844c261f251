"""Rows of small pictures: for HTML one transparent PNG a row, whose words are the page's; for Markdown one grid."""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from guided_diffusion_jax.commands import pictures
from guided_diffusion_jax.data.images import to_png

LARGEST = 64
"""Pixels that a picture is at most shown in, so that a page stays light."""


class Strip(NamedTuple):
    """One row.

    Attributes:
        name: said at its left.
        alt: what it shows, for those who do not see it.
        png: the bytes of the row on nothing, so that it lies on light and dark alike.
        width: in pixels.
        height: in pixels.
        images: the pictures themselves.
        note: said at its right.
    """

    name: str
    alt: str
    png: bytes
    width: int
    height: int
    images: UInt8[np.ndarray, "n h w c"]
    note: str = ""


def strip(name: str, alt: str, images: UInt8[np.ndarray, "n h w c"], note: str = "") -> Strip:
    """Pictures side by side, small ones enlarged smoothly and large ones reduced to `LARGEST`."""
    n, h = images.shape[:2]
    size = h * math.ceil(pictures.SMALLEST / h) if h <= LARGEST else LARGEST
    row = Image.new("RGBA", (n * (size + pictures.GAP) - pictures.GAP, size))
    for number, image in enumerate(images):
        shown = Image.fromarray(np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))))
        row.paste(shown.resize((size, size), Image.Resampling.BICUBIC), (number * (size + pictures.GAP), 0))
    buffer = io.BytesIO()
    row.save(buffer, "PNG", optimize=True)
    return Strip(name, alt, buffer.getvalue(), row.width, row.height, images, note)


def together(rows: Sequence[Strip]) -> bytes:
    """All rows with their names as one PNG on white."""
    names = [f"{row.name}   {row.note}" if row.note else row.name for row in rows]
    return to_png(pictures.grid([row.images for row in rows], names))
