"""What a figure or a table says of its numbers: how many images, which neighbours, what the bars are."""

from collections.abc import Sequence

from guided_diffusion_jax.evaluation.metrics import NEIGHBOURS
from guided_diffusion_jax.report.results import Point


def sizes(points: Sequence[Point], *metrics: str) -> str:
    """How many images each point was computed from, and the number k of neighbours of these metrics, in words."""
    of_neighbours = [metric for metric in metrics if metric in NEIGHBOURS]
    count, reference, balanced = (_common(points, name) for name in ("count", "reference_count", "compared_count"))
    of_each = f"{balanced:,.0f} generated and as many real images" if balanced and of_neighbours else ""
    parts = [f"n = {count:,.0f} images a point" + (f" against {reference:,.0f}" if reference else "")] if count else []
    if of_each:
        only = len(of_neighbours) == len(metrics)
        parts = [f"n = {of_each} a point"] if only else [*parts, f"for neighbours {of_each}"]
    by_k: dict[int, list[str]] = {}
    for metric in of_neighbours:
        by_k.setdefault(NEIGHBOURS[metric], []).append(metric)
    ks = [f"k = {k} ({', '.join(names)})" if len(by_k) > 1 else f"k = {k}" for k, names in by_k.items()]
    return "; ".join([*parts, *filter(None, [", ".join(ks)])]) or "n is not known"


def _common(points: Sequence[Point], name: str) -> float | None:
    """The number that all points have; None where they differ or lack it."""
    values = {point.mean.get(name) for point in points}
    return values.pop() if len(values) == 1 else None


def bars(points: Sequence[Point]) -> str:
    """What error bars and ± of these points are, in a sentence."""
    trainings = max(point.trainings for point in points)
    if trainings > 1:
        return f"Bars and ± are standard deviations over {trainings} trainings."
    if any(any(point.std.values()) for point in points):
        return "Bars and ± are standard errors over the images, of one training."
    return "One training; errors were not computed."


def explained(points: Sequence[Point]) -> str:
    """What a reader may wonder at in the table of these points, to be followed by more."""
    text = ""
    if any(point.mean.get("kid", 0) < 0 for point in points):
        text += (
            "A negative KID is no error: the estimate is unbiased and scatters around the true distance, below 0 too "
            "where that is smaller than the scatter; read it as 0. "
        )
    evaluations = {point.weight: point.mean.get("evaluations") for point in points if point.approach == "cfg"}
    if any(weight != 0 and evaluations[weight] == evaluations.get(0) for weight in evaluations):
        text += (
            "The sweep runs one program for all weights of CFG, which evaluates both branches at w = 0 too; asked for "
            "alone, w = 0 takes half of these evaluations. "
        )
    return text
