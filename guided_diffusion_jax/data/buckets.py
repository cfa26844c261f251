"""Aspect-ratio buckets: shapes of about the same number of pixels, one of which each image is scaled to.

The sides are multiples of a step, and the area is at most that of the square. An image belongs to the shape whose
aspect ratio is nearest to its own, on a logarithmic scale, is scaled until it covers it, and cropped to it about the
centre: a part is cut on two sides at most, and only as much as the ratios differ.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from guided_diffusion_jax.errors import require

RATIO = 4
"""Longest side over the shortest of the outermost shapes, as SDXL was trained (Podell et al. 2023, appendix I)."""


def shapes(image_size: int, step: int) -> list[tuple[int, int]]:
    """Height and width of each shape, from the tallest to the widest.

    >>> shapes(512, 128)
    [(1024, 256), (640, 384), (512, 512), (384, 640), (256, 1024)]

    Args:
        image_size: pixels of the side of the square.
        step: pixels that the sides are multiples of.

    Raises:
        InputError: the square's side is no multiple of the step.
    """
    require(
        step >= 1 and image_size % step == 0 and image_size >= step,
        f"image_size={image_size} is no multiple of buckets={step}; use one, such as 64 for Stable Diffusion",
    )
    widths = range(step, RATIO * image_size + 1, step)
    found = {(image_size**2 // width // step * step, width) for width in widths}
    fitting = [(h, w) for h, w in found if 0 < max(h, w) <= RATIO * min(h, w)]
    tall = {h: (h, w) for h, w in sorted(fitting) if h >= w}  # of one height the widest
    return sorted({*tall.values(), *((w, h) for h, w in tall.values())}, reverse=True)


def nearest(
    sizes: Sequence[tuple[int, int]], names: Sequence[str], image_size: int, step: int
) -> tuple[list[tuple[int, int]], Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The shape of each image, and the share of it that is cut.

    Args:
        sizes: width and height of each image.
        names: of the images, for errors.
        image_size: see `shapes`.
        step: see `shapes`.

    Returns:
        All shapes, the number of each image's among them, and the share of its pixels that is outside of it.

    Raises:
        InputError: an image is longer than the outermost shapes.
    """
    known = shapes(image_size, step)
    most = max(w / h for h, w in known)
    ratios = np.array([width / height for width, height in sizes])
    outside = [i for i, ratio in enumerate(ratios) if max(ratio, 1 / ratio) > most * 1.001]
    if outside:
        (width, height), name = sizes[outside[0]], names[outside[0]]
        require(
            False,
            f"{name} has {width}x{height} pixels, longer than {most:g} to 1, the longest bucket ({len(outside)} such "
            "images); crop it",
        )
    logs = np.array([math.log(w / h) for h, w in known])
    distance = np.abs(np.log(ratios)[:, None] - logs)
    return known, distance.argmin(axis=1), 1 - np.exp(-distance.min(axis=1))
