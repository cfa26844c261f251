"""Labelled grids of images; small images are enlarged smoothly, as the eye would blur them."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

SMALLEST = 40
"""Pixels that an image of a grid is at least enlarged to, by whole factors."""

GAP, TEXT = 4, 14


def grid(
    rows: Sequence[UInt8[np.ndarray, "_ h w c"]], names: Sequence[str] = (), title: str = ""
) -> UInt8[np.ndarray, "height width 3"]:
    """Rows of images on white, each with its name at the left, under a title.

    Args:
        rows: images of one size, grey or RGB; rows may differ in length.
        names: one a row, or none.
        title: a line above, or none.
    """
    height, width = rows[0].shape[1:3]
    scale = math.ceil(SMALLEST / height)
    font = ImageFont.load_default(TEXT)
    left = GAP + max((math.ceil(font.getlength(name)) + GAP for name in names), default=0)
    top = GAP + (TEXT + 2 * GAP if title else 0)
    step_x, step_y = width * scale + GAP, height * scale + GAP
    columns = max(len(row) for row in rows)
    full_width = max(left + columns * step_x, math.ceil(font.getlength(title)) + 2 * GAP)
    canvas = Image.new("RGB", (full_width, top + len(rows) * step_y), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, GAP), title, fill="black", font=font)
    for r, row in enumerate(rows):
        if names:
            draw.text((GAP, top + r * step_y + height * scale // 2), names[r], fill="black", font=font, anchor="lm")
        for c, image in enumerate(row):
            rgb = Image.fromarray(np.ascontiguousarray(np.broadcast_to(image, (height, width, 3))))
            large = rgb.resize((width * scale, height * scale), Image.Resampling.BICUBIC)
            canvas.paste(large, (left + c * step_x, top + r * step_y))
    return np.asarray(canvas)


def by_class(
    images: UInt8[np.ndarray, "n h w c"],
    labels: np.ndarray,
    class_names: Sequence[str],
    title: str = "",
    most: int = 10,
) -> UInt8[np.ndarray, "height width 3"]:
    """One row a class, at most so many images in each; without classes one row after another."""
    present = np.unique(labels)
    if len(present) == 1:
        rows = [images[start : start + most] for start in range(0, min(len(images), most * most), most)]
        return grid(rows, [""] * len(rows), title)
    names = [class_name(int(label), class_names) for label in present]
    return grid([images[labels == label][:most] for label in present], names, title)


def class_name(label: int, class_names: Sequence[str]) -> str:
    """Name of a class: empty where there are no classes, "any" for the null."""
    return [*class_names, "any"][label] if class_names else ""


def curve(
    x: Sequence[float], y: Sequence[float], title: str, x_name: str, chance: float
) -> UInt8[np.ndarray, "height width 3"]:
    """Shares y in [0, 1] over x as a line, with a dashed line at what chance would give."""
    figure = Figure(figsize=(5, 3), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, xlabel=x_name, ylim=(0, 1))
    axes.plot(x, y, marker=".")
    axes.axhline(chance, linestyle="--", color="grey", linewidth=1)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
