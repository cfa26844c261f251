"""Drawing scenes: signed distance functions, many images at once, antialiased.

Lengths are in widths of the image, coordinates inside an object in its radii, x to the right and y downwards, so that
a scene looks the same at any resolution.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from guided_diffusion_jax.data.shapes.scenes import ATTRIBUTES, Scenes

COLOURS = np.array(
    [
        (215, 30, 35),
        (245, 130, 15),
        (250, 215, 25),
        (40, 160, 55),
        (25, 200, 205),
        (40, 75, 220),
        (135, 45, 175),
        (250, 120, 185),
    ],
    np.float32,
)
BACKGROUNDS = np.array([(248, 248, 248), (150, 150, 150), (180, 218, 250), (226, 205, 160)], np.float32)
"""RGB of the values of "colour" and "background", 0 .. 255."""

SHADE = 0.4
"""The dark parts of a texture have the colour times this."""

RADII = np.array([3.3, 4.3, 5.4], np.float32) / 16
"""Of a single object, by size."""

GROUP_RADIUS = 0.56
"""Of each object in a group of two or three, in radii of a single one."""

GROUPS = (((0, 0),), ((-1.2, 0), (1.2, 0)), ((0, -1.04), (-1.2, 1.04), (1.2, 1.04)))
"""Centres (x, y) of the objects of a group, by count, in radii."""

MARGIN = 0.012
"""Smallest distance between a group and the image border."""

REACH = (0.8, 0.2)
"""Shares of place and jitter in the distance from the centre to the outermost position of a group."""

PERIOD, DOT_PERIOD, DOT_RADIUS, BORDER = 0.92, 0.92, 0.25, 0.22
"""Of the stripes and the dots, and the border's width, in radii; on 16 pixels the smallest radius is 3.3 pixels."""


class Drawing(NamedTuple):
    """N images.

    Attributes:
        image: RGB.
        coverage: share of each pixel that the objects cover, 0 .. 1, regardless of texture.
        light: coverage times brightness, which is between `SHADE` and 1; the image is
            background * (1 - coverage) + colour * light.
    """

    image: UInt8[np.ndarray, "n p p 3"]
    coverage: Float[np.ndarray, "n p p"]
    light: Float[np.ndarray, "n p p"]


def draw(scenes: Scenes, pixels: int) -> Drawing:
    """Draws these scenes, `pixels` high and wide."""
    radius = RADII[scenes.size] * np.where(scenes.count > 0, np.float32(GROUP_RADIUS), np.float32(1))
    x, y = _local(scenes, radius, pixels)
    radius_pixels = (radius * pixels)[:, None, None]
    distance = np.empty_like(x)
    for index, name in enumerate(ATTRIBUTES["shape"]):
        chosen = scenes.shape == index
        distance[chosen] = shape_distance(name, x[chosen], y[chosen])
    coverage = np.clip(0.5 - distance * radius_pixels, 0, 1)
    bright = np.empty_like(x)
    for index, name in enumerate(ATTRIBUTES["texture"]):
        chosen = scenes.texture == index
        bright[chosen] = texture_distance(name, x[chosen], y[chosen], distance[chosen])
    light = coverage * (SHADE + (1 - SHADE) * np.clip(0.5 - bright * radius_pixels, 0, 1))
    colour, background = COLOURS[scenes.colour][:, None, None], BACKGROUNDS[scenes.background][:, None, None]
    image = background * (1 - coverage[..., None]) + colour * light[..., None]
    return Drawing(np.round(image).astype(np.uint8), coverage, light)


def segmentation(coverage: Float[np.ndarray, "n p p"]) -> Bool[np.ndarray, "n p p"]:
    """The pixels that an object covers by at least half."""
    return coverage >= 0.5


def edges(mask: Bool[np.ndarray, "n p p"]) -> Bool[np.ndarray, "n p p"]:
    """The inner boundary: pixels of the mask with one of four neighbours outside it; beyond the border is outside."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    inside = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return mask & ~inside


def _local(
    scenes: Scenes, radius: Float[np.ndarray, " n"], pixels: int
) -> tuple[Float[np.ndarray, "n p p"], Float[np.ndarray, "n p p"]]:
    """Every pixel's centre as (x, y) from the centre of its nearest object, in radii."""
    centres = (np.arange(pixels, dtype=np.float32) + 0.5) / pixels - 0.5
    x = np.empty((len(radius), pixels, pixels), np.float32)
    y = np.empty_like(x)
    for count, group in enumerate(np.array(points, np.float32) for points in GROUPS):
        chosen = scenes.count == count
        if not chosen.any():
            continue
        scale = radius[chosen, None]
        room = 0.5 - MARGIN - scale * (1 + np.abs(group).max(0))
        steps = [np.divmod(value[chosen], 3) for value in (scenes.place, scenes.jitter)]
        to_row_column = [np.stack(step[::-1], 1).astype(np.float32) - 1 for step in steps]
        middle = room * (REACH[0] * to_row_column[0] + REACH[1] * to_row_column[1])
        # All objects are equal, so that a pixel need only know its nearest one.
        dx, dy = np.broadcast_arrays(
            (centres[None, None, None, :] - middle[:, None, :1, None]) / scale[..., None, None],
            (centres[None, None, :, None] - middle[:, None, 1:, None]) / scale[..., None, None],
        )
        dx, dy = dx - group[None, :, :1, None], dy - group[None, :, 1:, None]
        nearest = np.argmin(dx**2 + dy**2, axis=1)[:, None]
        x[chosen] = np.take_along_axis(dx, nearest, 1)[:, 0]
        y[chosen] = np.take_along_axis(dy, nearest, 1)[:, 0]
    return x, y


def shape_distance(name: str, x: Float[np.ndarray, "*s"], y: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """Signed distance of points to the boundary of a shape of radius 1: negative inside, in radii."""
    if name == "circle":
        return np.hypot(x, y) - 1
    if name == "ring":
        return np.abs(np.hypot(x, y) - 0.69) - 0.31
    return _polygon_distance(POLYGONS[name], x, y)


def texture_distance(
    name: str, x: Float[np.ndarray, "*s"], y: Float[np.ndarray, "*s"], distance: Float[np.ndarray, "*s"]
) -> Float[np.ndarray, "*s"]:
    """Signed distance to the bright parts of a texture, negative in them; `distance` is that to the shape."""
    if name == "striped":
        return np.abs(_wrap(y, PERIOD)) - np.float32(PERIOD / 4)
    if name == "dotted":
        # A square lattice on its corner with no dot in the middle: it meets the arms of a cross and the band of a ring.
        along, across = (x + y) * np.float32(0.5**0.5), (x - y) * np.float32(0.5**0.5)
        half = np.float32(DOT_PERIOD / 2)
        return np.float32(DOT_RADIUS) - np.hypot(_wrap(along + half, DOT_PERIOD), _wrap(across + half, DOT_PERIOD))
    if name == "outlined":
        return distance + np.float32(BORDER)
    return np.full_like(x, -np.inf)


def _wrap(x: Float[np.ndarray, "*s"], period: float) -> Float[np.ndarray, "*s"]:
    """The difference to the nearest multiple of the period."""
    return x - np.float32(period) * np.round(x * np.float32(1 / period))


def _polygon_distance(
    corners: Float[np.ndarray, "k 2"], x: Float[np.ndarray, "*s"], y: Float[np.ndarray, "*s"]
) -> Float[np.ndarray, "*s"]:
    """Signed distance to a polygon: the nearest of its sides; inside, where a ray crosses an odd number."""
    squared = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        sx, sy = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = np.clip((px * sx + py * sy) / (sx * sx + sy * sy), 0, 1)
        squared = np.minimum(squared, (px - along * sx) ** 2 + (py - along * sy) ** 2)
        if ay != by:
            inside ^= ((y >= ay) != (y >= by)) & (px < py * (sx / sy))
    return np.where(inside, -1, 1).astype(np.float32) * np.sqrt(squared)


def _star() -> Float[np.ndarray, "10 2"]:
    angle = np.pi * (np.arange(10) / 5 - 0.5)
    radius = np.where(np.arange(10) % 2, 0.5, 1.08)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle) + 0.1], 1).astype(np.float32)


def _cross(half: float) -> Float[np.ndarray, "12 2"]:
    quarter = np.array([(half, -1), (half, -half), (1, -half)])
    turns = [quarter @ np.array([(c, s), (-s, c)]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.concatenate(turns).astype(np.float32)


def _heart() -> Float[np.ndarray, "24 2"]:
    t = 2 * np.pi * np.arange(24) / 24
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -(y + 2.5) / 14.5], 1).astype(np.float32)


POLYGONS: dict[str, Float[np.ndarray, "k 2"]] = {
    "square": np.array([(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)], np.float32),
    "triangle": np.array([(0, -1), (1, 0.85), (-1, 0.85)], np.float32),
    "diamond": np.array([(0, -1), (0.9, 0), (0, 1), (-0.9, 0)], np.float32),
    "cross": _cross(0.36),
    "star": _star(),
    "heart": _heart(),
}
"""Corners of the shapes with straight sides, the heart's curve among them."""
