"""Tables of metrics, and how numbers are written in them."""

from collections.abc import Sequence

from guided_diffusion_jax.evaluation.numbers import number
from guided_diffusion_jax.guidance.weights import weight_text
from guided_diffusion_jax.report.page import Table
from guided_diffusion_jax.report.results import Point

NAMES = {
    "cfg": "CFG", "classifier": "classifier guidance", "class-conditional": "class-conditional", "none": "no guidance",
}  # fmt: skip

COLUMNS: dict[str, tuple[str, float, str, int | None]] = {
    "fd": ("FD ↓", 1, "", None),
    "kid": ("KID ↓", 1, "", None),
    "precision": ("precision ↑", 1, "", 3),
    "density": ("density ↑", 1, "", 3),
    "recall": ("recall ↑", 1, "", 3),
    "coverage": ("coverage ↑", 1, "", 3),
    "accuracy": ("class accuracy ↑", 100, "%", 1),
    "seconds": ("ms per image ↓", 1e3, "", None),
    "evaluations": ("U-Net evaluations", 1, "", None),
    "classifier_evaluations": ("classifier evaluations", 1, "", None),
    "peak_bytes": ("peak memory, MB", 1e-6, "", None),
    "parameters": ("parameters, M", 1e-6, "", None),
    "train_seconds": ("training, s", 1, "", None),
    "classifier_train_seconds": ("classifier training, s", 1, "", None),
}
"""Columns of the tables: heading, factor, unit, decimals (None: three significant digits)."""


def metrics_table(title: str, caption: str, points: Sequence[Point]) -> Table:
    """Table with a row per point and a column per metric that was measured."""
    names = [name for name in COLUMNS if any(name in p.mean for p in points)]
    rows = [[NAMES[p.approach], weight_text(p.weight), *(cell(p, name) for name in names)] for p in points]
    return Table(title, caption, ["approach", "w", *(COLUMNS[name][0] for name in names)], rows)


def cell(point: Point, name: str) -> str:
    """Metric with its error (`Point.std`); "–" if it was not measured.

    >>> cell(Point("cfg", 1.0, "20", 3, {"fd": 12.345}, {"fd": 0.456}), "fd")
    '12.3 ± 0.46'
    >>> cell(Point("cfg", 1.0, "20", 3, {"accuracy": 0.9}, {"accuracy": 0.0123}), "accuracy")
    '90.0 ± 1.2 %'
    """
    if name not in point.mean:
        return "–"
    _, factor, unit, decimals = COLUMNS[name]
    mean, error = point.mean[name] * factor, point.std[name] * factor
    text = number(mean) if decimals is None else f"{mean:.{decimals}f}"
    if error > 1e-9 * abs(mean):
        text += f" ± {number(error, 2) if decimals is None else format(error, f'.{decimals}f')}"
    return f"{text} {unit}".rstrip()


def percent(share: float, digits: int = 3) -> str:
    """Share in per cent.

    >>> percent(0.956), percent(0.5), percent(0.0123)
    ('95.6 %', '50 %', '1.23 %')
    """
    return f"{number(100 * share, digits)} %"
