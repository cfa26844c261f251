"""Measurements and images that a report shows, as plain data."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from guided_diffusion_jax.evaluation.uncertainty import share_error

SHARES = {"accuracy": "count", "precision": "compared_count", "recall": "compared_count", "coverage": "compared_count"}
"""Metrics that are shares of images, and the entry of a row that has the number of these images."""


class Point(NamedTuple):
    """Metrics of one guidance setting, averaged over trainings.

    Attributes:
        approach: "cfg", "classifier" or "class-conditional".
        weight: guidance weight w.
        steps: steps of the sampler, as in the config.
        trainings: number of trainings.
        mean: mean of each metric, by its name in `sweep.json`; metrics that were not measured are absent.
        std: standard deviation of each metric over the trainings; of a single one the metric's standard error over
            its images, 0 where that is not known.
    """

    approach: str
    weight: float
    steps: str
    trainings: int
    mean: Mapping[str, float]
    std: Mapping[str, float]


class Samples(NamedTuple):
    """Generated images at one weight; image i starts from the same noise at every weight."""

    approach: str
    weight: float
    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]


class Neighbors(NamedTuple):
    """Generated images with their nearest training images in the features of the metrics.

    Attributes:
        samples: generated images.
        images: training images, nearest first.
        distances: distances to these.
        held_out: distance of each held-out real image to its nearest training image.
        searched: number of training images among which the nearest were found; 0 does not say.
    """

    samples: Samples
    images: UInt8[np.ndarray, "n k h w c"]
    distances: Float[np.ndarray, "n k"]
    held_out: Float[np.ndarray, " m"]
    searched: int = 0


class Trajectory(NamedTuple):
    """States of the sampler from noise to images."""

    frames: UInt8[np.ndarray, "frames n h w c"]
    labels: Int[np.ndarray, " n"]


class Results(NamedTuple):
    """Contents of a report.

    Attributes:
        run: folder of the run.
        dataset: name of the data set.
        class_names: of the data set; empty if it has no classes.
        settings: every key of the config with its value.
        sampler: sampler and steps of samples and trajectory, in words.
        training_setup: steps and batch size of the training, in words.
        checkpoint_step: training step of the model shown.
        features: name of the feature extractor of the metrics.
        weights: points of different weights and the same number of steps.
        steps: points of different numbers of steps and the same weight.
        approaches: the compared approaches, each at its configured weight; empty for the report of one run.
        samples: images at each weight.
        trajectory: of the sampler at the configured weight.
        neighbors: of the samples at the configured weight.
        training: lines of the run's `metrics.jsonl`.
        classifier: "time", "accuracy" and "count", the number of images of each, of the noise-aware classifier; empty
            if there is none.
        warnings: of the metrics.
    """

    run: str
    dataset: str
    class_names: Sequence[str]
    settings: Mapping[str, Any]
    sampler: str
    training_setup: str
    checkpoint_step: int
    features: str
    weights: Sequence[Point]
    steps: Sequence[Point]
    approaches: Sequence[Point]
    samples: Sequence[Samples]
    trajectory: Trajectory
    neighbors: Neighbors
    training: Sequence[Mapping[str, float]]
    classifier: Mapping[str, Any]
    warnings: Sequence[str]


def points(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Averages rows of the same approach, steps and weight (trainings with different seeds).

    Args:
        rows: of a sweep, with "method" or "approach", "weight", "steps" and metrics; None is a metric not measured.

    >>> rows = [{"method": "cfg", "weight": 1.0, "steps": 20, "fd": fd} for fd in (2.0, 4.0)]
    >>> point, = points(rows)
    >>> point.trainings, point.mean["fd"], round(point.std["fd"], 3)
    (2, 3.0, 1.414)
    """
    groups: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row.get("approach", row["method"]), str(row["steps"]), float(row["weight"]))
        groups.setdefault(key, []).append(row)
    found = []
    for (approach, steps, weight), group in sorted(groups.items(), key=lambda item: (item[0][0], _order(item[0]))):
        names = [name for name, value in group[0].items() if isinstance(value, int | float) and name != "seed"]
        columns = {name: [row[name] for row in group if row.get(name) is not None] for name in names}
        mean = {name: float(np.mean(values)) for name, values in columns.items()}
        std = {
            name: float(np.std(values, ddof=1)) if len(values) > 1 else _image_error(name, group[0])
            for name, values in columns.items()
        }
        found.append(Point(approach, weight, steps, len(group), mean, std))
    return found


def _image_error(name: str, row: Mapping[str, Any]) -> float:
    """Standard error of a metric over the images of one training."""
    count = row.get(SHARES.get(name, ""))
    return share_error(row[name], count) if count else row.get(f"{name}_error") or 0.0


def nearest_weight(candidates: Sequence[Any], weight: float) -> Any:
    """The point or samples whose weight is nearest to `weight`."""
    return min(candidates, key=lambda one: abs(one.weight - weight))


def _order(key: tuple[str, str, float]) -> tuple[int, float]:
    return int(key[1]), key[2]
