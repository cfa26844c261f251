"""Charts and rows of images as data URIs, so that the page needs no other file."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure as Canvas
from numpy.typing import ArrayLike
from PIL import Image

SMALLEST, LARGEST, GAP = 40, 64, 4
"""Pixels: smaller images are enlarged by whole factors, larger ones reduced; distance between images."""

LOOKS = {"cfg": ("C0", "o", "-"), "classifier": ("C1", "s", "--"), "class-conditional": ("C2", "^", ":")}
"""Colour, marker and line of each approach: no two differ in colour alone."""

CURVES = [("C0", "", "-"), ("C1", "", "--"), ("C2", "", "-."), ("C3", "", ":"), ("C4", "", (0, (1, 3)))]

STYLE: dict[Any, Any] = {
    "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#d4d9df",
    "lines.markersize": 5, "legend.frameon": False, "svg.hashsalt": "report",
}  # fmt: skip


class Line(NamedTuple):
    """Points of a chart.

    Attributes:
        name: in the legend.
        x, y: `[n]`; strings are equidistant categories.
        look: colour, marker and matplotlib line style.
        x_std, y_std: half lengths of error bars, `[n]`; empty draws none.
        labels: text at each point; empty writes none.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    look: tuple[str, str, Any]
    x_std: Sequence[float] = ()
    y_std: Sequence[float] = ()
    labels: Sequence[str] = ()


def chart(lines: Sequence[Line], x_name: str, y_name: str, **axes_settings: Any) -> str:
    """Line chart as the data URI of an SVG.

    Args:
        lines: curves to draw.
        x_name: label of the x axis.
        y_name: label of the y axis.
        axes_settings: for matplotlib's `Axes.set`, e.g. `ylim=(0, 1)`, `yscale="log"`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=(4.7, 3.3), layout="constrained", facecolor="white")
        axes = figure.add_subplot(xlabel=x_name, ylabel=y_name)
        for line in lines:
            colour, marker, style = line.look
            axes.errorbar(
                line.x, line.y, xerr=_bars(line.x_std), yerr=_bars(line.y_std), label=line.name,
                color=colour, marker=marker, linestyle=style, capsize=2,
            )  # fmt: skip
            for x, y, text in zip(np.asarray(line.x), np.asarray(line.y), line.labels, strict=False):
                axes.annotate(text, (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8.5)
        axes.set(**axes_settings)
        if len(lines) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)  # hides no point
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return _data_uri("image/svg+xml", svg.getvalue())


def image_row(images: UInt8[np.ndarray, "n h w c"]) -> str:
    """Images side by side as the data URI of a PNG."""
    n, h = images.shape[:2]
    size = h * math.ceil(SMALLEST / h) if h <= LARGEST else LARGEST
    row = Image.new("RGBA", (n * (size + GAP) - GAP, size))
    for i, image in enumerate(images):
        rgb = Image.fromarray(np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))))
        row.paste(rgb.resize((size, size), Image.Resampling.BICUBIC), (i * (size + GAP), 0))
    png = io.BytesIO()
    row.save(png, "PNG", optimize=True)
    return _data_uri("image/png", png.getvalue())


def _bars(std: Sequence[float]) -> Sequence[float] | None:
    return std if any(std) else None


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
