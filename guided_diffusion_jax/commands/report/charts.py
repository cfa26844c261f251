"""Charts as SVG that takes the page's font and colours, light or dark, and as PNG for where pages have no style."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

COLOURS = {
    "ink": "#1b1f25",
    "muted": "#616a75",
    "rule": "#d4d9df",
    "first": "#1a6fb5",
    "second": "#c2550a",
    "third": "#2c7f52",
}
"""The page's variables of the same names have these values in light; charts are drawn with them."""

SERIES = {"cfg": ("first", "o", "-"), "classifier": ("second", "s", "--"), "class-conditional": ("third", "^", ":")}
"""Colour, marker and line of each way of steering: no two differ in colour alone."""

NAMES = {
    "cfg": "CFG",
    "classifier": "classifier guidance",
    "class-conditional": "class-conditional",
    "none": "no guidance",
}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": COLOURS["muted"], "axes.labelcolor": COLOURS["ink"], "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"], "ytick.color": COLOURS["muted"], "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"], "axes.grid": True, "grid.color": COLOURS["rule"], "grid.linewidth": 0.7,
    "lines.linewidth": 1.7, "lines.markersize": 5, "legend.frameon": False, "legend.fontsize": 9,
    "axes.facecolor": "none", "figure.facecolor": "none",
}  # fmt: skip


class Chart(NamedTuple):
    """A drawing, twice.

    Attributes:
        svg: an element that belongs into HTML, whose colours are the variables of `COLOURS`.
        png: the bytes of a picture on white.
    """

    svg: str
    png: bytes


class Line(NamedTuple):
    """Points with their spread.

    Attributes:
        name: for the legend.
        series: a key of `SERIES`.
        x, y: `[n]`.
        x_spread, y_spread: half of the bars' length, `[n]`; zeros draw none.
        labels: what is written at each point; none or n.
    """

    name: str
    series: str
    x: Sequence[float]
    y: Sequence[float]
    x_spread: Sequence[float] = ()
    y_spread: Sequence[float] = ()
    labels: Sequence[str] = ()


def lines(
    name: str, alt: str, series: Sequence[Line], x_name: str, y_name: str, *, share: bool = False, log_x: bool = False
) -> Chart:
    """Lines with markers and error bars.

    Args:
        name: of the chart, one of its own on a page.
        alt: what it shows, for those who do not see it.
        series: what to draw.
        x_name: what x is, with its unit.
        y_name: what y is, with its unit.
        share: y is drawn from 0 to 1.
        log_x: powers of two at equal distances.
    """

    def draw(axes: Axes) -> None:
        for line in series:
            colour, marker, dashes = SERIES[line.series]
            axes.errorbar(
                line.x, line.y, xerr=_bars(line.x_spread), yerr=_bars(line.y_spread), label=line.name,
                color=COLOURS[colour], marker=marker, linestyle=dashes, elinewidth=0.9, capsize=2,
            )  # fmt: skip
            for x, y, text in zip(line.x, line.y, line.labels, strict=False):
                axes.annotate(text, (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8.5)
        if share:
            axes.set_ylim(-0.03, 1.03)
        if log_x:
            axes.set_xscale("log", base=2)
            ticks = sorted({x for line in series for x in line.x})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()

    return chart(name, alt, draw, x_name, y_name, legend=len(series) > 1)


def curves(
    name: str, alt: str, values: Mapping[str, tuple[ArrayLike, ArrayLike]], x_name: str, y_name: str,
    *, log_y: bool = False, fraction: bool = False,
) -> Chart:  # fmt: skip
    """Plain curves, up to four, told apart by colour and dashes; `fraction` draws y from 0 to 1."""

    def draw(axes: Axes) -> None:
        looks = [("first", "-"), ("second", "--"), ("third", "-."), ("muted", ":")]
        for (label, (x, y)), (colour, dashes) in zip(values.items(), looks, strict=False):
            axes.plot(x, y, label=label, color=COLOURS[colour], linestyle=dashes)
        if log_y:
            axes.set_yscale("log")
        if fraction:
            axes.set_ylim(0, 1.02)

    return chart(name, alt, draw, x_name, y_name, legend=len(values) > 1)


def chart(name: str, alt: str, draw: Callable[[Axes], None], x_name: str, y_name: str, *, legend: bool) -> Chart:
    """What `draw` puts into axes that are named and styled as all charts of the page are."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.7, 3.3), layout="constrained")
        axes = figure.add_subplot(xlabel=x_name, ylabel=y_name)
        draw(axes)
        if legend:
            # Above the axes it hides no point.
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0, handlelength=2.6)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        figure.savefig(png, format="png", dpi=144, facecolor="white")
    return Chart(_inline(svg.getvalue(), alt), png.getvalue())


def _bars(spread: Sequence[float]) -> Sequence[float] | None:
    return spread if np.any(spread) else None


def _inline(svg: str, alt: str) -> str:
    """The drawing as part of a page: named for those who do not see it, in the page's font and colours."""
    body = svg[svg.index("<svg") :]
    for part in (r"<metadata>.*?</metadata>", r"<style[^>]*>.*?</style>", r"<!--.*?-->"):
        body = re.sub(part, "", body, flags=re.DOTALL)
    # The groups' ids are the same in every drawing; those of markers and clips are not, by the salt.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font-family: [^;]*; ", "", body)
    for name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    box = re.search(r'viewBox="[^"]*"', body)
    head = f'<svg role="img" aria-label="{_attribute(alt)}" {box.group() if box else ""}'
    return head + body[body.index(">") :]


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
