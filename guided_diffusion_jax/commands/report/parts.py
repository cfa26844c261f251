"""What a page is made of, whether HTML or Markdown; and how numbers are written on it."""

from collections.abc import Sequence
from typing import NamedTuple

from guided_diffusion_jax.commands.report.charts import Chart
from guided_diffusion_jax.commands.report.results import Point
from guided_diffusion_jax.commands.report.strips import Strip


class Graph(NamedTuple):
    """A chart with its caption; `name` is of its file."""

    name: str
    title: str
    caption: str
    alt: str
    chart: Chart
    kind: str = "graph"


class Gallery(NamedTuple):
    """Rows of pictures with their caption; `name` is of its file."""

    name: str
    title: str
    caption: str
    rows: Sequence[Strip]
    kind: str = "gallery"

    @property
    def alt(self) -> str:
        """Of all rows together."""
        return f"{self.title}: rows {', '.join(row.name for row in self.rows)}."


class Table(NamedTuple):
    """Cells are text, the first of each row is its name; a folded one opens by a click."""

    title: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    kind: str = "table"


class Section(NamedTuple):
    """A heading, what is to be seen, and where."""

    title: str
    text: str
    graphs: Sequence[Graph] = ()
    galleries: Sequence[Gallery] = ()
    tables: Sequence[Table] = ()


class Page(NamedTuple):
    """A whole report; `facts` are the few figures that it opens with, each with its name, of what `facts_of` says."""

    title: str
    subtitle: str
    facts_of: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    warnings: Sequence[str]


class Column(NamedTuple):
    """How a figure is written: heading, what it is multiplied by, its unit, and decimals; None: three digits in all."""

    title: str
    factor: float = 1.0
    unit: str = ""
    decimals: int | None = None


COLUMNS = {
    "fd": Column("FD ↓"),
    "kid": Column("KID ↓"),
    "precision": Column("precision ↑", decimals=3),
    "density": Column("density ↑", decimals=3),
    "recall": Column("recall ↑", decimals=3),
    "coverage": Column("coverage ↑", decimals=3),
    "accuracy": Column("class right ↑", 100.0, "%", 1),
    "seconds": Column("ms a picture ↓", 1e3),
    "evaluations": Column("U-Net evaluations"),
    "classifier_evaluations": Column("classifier evaluations"),
    "peak_bytes": Column("peak memory, MB", 1e-6),
    "parameters": Column("parameters, M", 1e-6),
    "train_seconds": Column("training, s"),
    "classifier_train_seconds": Column("its classifier, s"),
}
"""Figures in the order of tables."""


def cell(point: Point, name: str) -> str:
    """A figure with its spread over trainings; "–" where it was not measured.

    >>> cell(Point("cfg", 1.0, "20", 3, {"fd": 12.345}, {"fd": 0.456}), "fd")
    '12.3 ± 0.46'
    >>> cell(Point("cfg", 1.0, "20", 3, {"accuracy": 0.9}, {"accuracy": 0.0123}), "accuracy")
    '90.0 ± 1.2 %'
    """
    if name not in point.mean:
        return "–"
    _, factor, unit, decimals = COLUMNS[name]
    mean, spread = point.mean[name] * factor, point.spread[name] * factor
    said = number(mean) if decimals is None else f"{mean:.{decimals}f}"
    if spread > 1e-9 * abs(mean):
        said += f" ± {number(spread, 2) if decimals is None else format(spread, f'.{decimals}f')}"
    return f"{said} {unit}".rstrip()


def number(value: float, digits: int = 3) -> str:
    """A figure with so many significant digits, never in powers of ten; large whole numbers in full.

    >>> number(0.012345), number(98.765), number(123456.0), number(0.0), number(1.0)
    ('0.0123', '98.8', '123,456', '0', '1')
    """
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:.10f}".rstrip("0").rstrip(".")


def percent(share: float) -> str:
    """A share, 0 .. 1, with one decimal."""
    return f"{share:.1%}"
