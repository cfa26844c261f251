"""Charts and rows of images as data URIs, so that the page needs no other file."""

import base64
import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox, BboxBase
from numpy.typing import ArrayLike
from PIL import Image

from guided_diffusion_jax.grids import to_image
from guided_diffusion_jax.report.tables import number, percent

SMALLEST, LARGEST, GAP = 40, 64, 4
"""Pixels: smaller images are enlarged by whole factors, larger ones reduced; distance between images."""

NOTE_WIDTH = 62
"""Characters of a line below a chart."""

POINT, FARTHEST = 4, 400
"""Pixels of a chart: around a point that no label covers, and to the farthest place of its label."""

LOOKS = {"cfg": ("C0", "o", "-"), "classifier": ("C1", "s", "--"), "class-conditional": ("C2", "^", ":")}
"""Colour, marker and line of each approach: no two differ in colour alone."""

CURVES = [("C0", "", "-"), ("C1", "", "--"), ("C2", "", "-."), ("C3", "", ":"), ("C4", "", (0, (1, 3)))]

STYLE: dict[Any, Any] = {
    "font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#d4d9df",
    "lines.markersize": 5, "legend.frameon": False, "svg.hashsalt": "report",
}  # fmt: skip


class Line(NamedTuple):
    """Points of a chart.

    Attributes:
        name: in the legend.
        x, y: `[n]`; strings are equidistant categories.
        look: colour, marker and matplotlib line style.
        x_error, y_error: half lengths of error bars, `[n]`; empty draws none. A line without marker has a band.
        labels: text at each point; empty writes none.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    look: tuple[str, str, Any]
    x_error: Sequence[float] = ()
    y_error: Sequence[float] = ()
    labels: Sequence[str] = ()


def chart(
    lines: Sequence[Line], x_name: str, y_name: str, note: str = "", shares: bool = False, **axes_settings: Any
) -> str:
    """Line chart as the data URI of an SVG.

    Args:
        lines: curves to draw.
        x_name: label of the x axis.
        y_name: label of the y axis.
        note: small, below the x axis: what the points were computed from.
        shares: y are shares, which the axis has in per cent.
        axes_settings: for matplotlib's `Axes.set`, e.g. `ylim=(0, 1)`, `yscale="log"`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=(4.5, 3.5), dpi=72, layout="constrained", facecolor="white")
        axes = figure.add_subplot(xlabel=x_name, ylabel=y_name)
        for line in lines:
            colour, marker, style = line.look
            band = bool(_bars(line.y_error)) and not marker
            axes.errorbar(
                line.x, line.y, xerr=_bars(line.x_error), yerr=None if band else _bars(line.y_error), label=line.name,
                color=colour, marker=marker, linestyle=style, capsize=2,
            )  # fmt: skip
            if band:
                y, error = np.asarray(line.y), np.asarray(line.y_error)
                axes.fill_between(np.asarray(line.x), y - error, y + error, color=colour, alpha=0.2, linewidth=0)
        axes.set(**axes_settings)
        if len(lines) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)  # hides no point
        figure.supxlabel(textwrap.fill(note, NOTE_WIDTH), fontsize=8.5, color="#444b55", x=0.99, ha="right")
        axes.yaxis.set_major_formatter(lambda value, _: percent(value) if shares else number(value))
        if all(np.asarray(line.x).dtype.kind in "fiu" for line in lines):
            axes.xaxis.set_major_formatter(lambda value, _: number(value))
        if axes.get_yscale() == "log":
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        place_labels(axes, lines)
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return _data_uri("image/svg+xml", svg.getvalue())


def place_labels(axes: Axes, lines: Sequence[Line]) -> list[Bbox]:
    """Writes the labels of the lines' points, each at the nearest place where it hides no point and no other label.

    Returns:
        The box of each label, in pixels.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # lays the axes out
    labelled = [
        (axes.transData.transform((x, y)), text, line.look[0])
        for line in lines
        for x, y, text in zip(np.asarray(line.x), np.asarray(line.y), line.labels, strict=False)
    ]
    taken = [Bbox.from_extents(*(point - POINT), *(point + POINT)) for point, _, _ in labelled]
    boxes: list[Bbox] = []
    for point, text, colour in labelled:
        note = axes.annotate(
            text, tuple(axes.transData.inverted().transform(point)), xytext=(0, 0), textcoords="offset points",
            ha="center", va="center", fontsize=9, color=colour,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": colour, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip
        note.set_in_layout(False)
        size = Text.get_window_extent(note)  # of the text alone
        around = list(_around(point, size.width + 2, size.height))
        free = (box for box in around if _within(box, axes.bbox) and not box.count_overlaps([*taken, *boxes]))
        boxes.append(next(free, around[0]))
        note.xyann = ((boxes[-1].p0 + boxes[-1].p1) / 2 - point) * 72 / figure.dpi
    return boxes


def _around(point: np.ndarray, width: float, height: float) -> Iterator[Bbox]:
    """Boxes of this size around a point, the nearest first."""
    half = np.array([width, height]) / 2
    for distance in range(POINT + 1, FARTHEST, 4):
        for angle in np.arange(0.25, 2.25, 0.125) * math.pi:
            direction = np.array([math.cos(angle), math.sin(angle)])
            centre = point + distance * direction + half * np.sign(direction.round(6))
            yield Bbox.from_extents(*(centre - half), *(centre + half))


def _within(box: Bbox, outer: BboxBase) -> bool:
    return bool(np.all(box.min >= outer.min) and np.all(box.max <= outer.max))


def image_row(images: UInt8[np.ndarray, "n h w c"]) -> str:
    """Images side by side as the data URI of a PNG."""
    n, h = images.shape[:2]
    size = h * math.ceil(SMALLEST / h) if h <= LARGEST else LARGEST
    row = Image.new("RGBA", (n * (size + GAP) - GAP, size))
    for i, image in enumerate(images):
        row.paste(to_image(image, size, size), (i * (size + GAP), 0))
    png = io.BytesIO()
    row.save(png, "PNG", optimize=True)
    return _data_uri("image/png", png.getvalue())


def _bars(error: Sequence[float]) -> Sequence[float] | None:
    return error if any(error) else None


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
