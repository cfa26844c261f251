"""Metrics of generated images: functions on arrays, and the table `METRICS` of those that a `Scorer` computes.

A notebook computes a Frechet distance of uint8 images in one line:

>>> images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), np.uint8)
>>> round(fid(images, images, features="pixels"), 6)
0.0

A new metric is a function of a `Comparison` in a file of its own and one line in `METRICS`; scores, printed lines,
tables and plots follow.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from guided_diffusion_jax.evaluation import precision_recall as manifolds
from guided_diffusion_jax.evaluation.accuracy import Accuracy, class_accuracy
from guided_diffusion_jax.evaluation.feature_pipeline import FeaturePipeline
from guided_diffusion_jax.evaluation.features import FeatureChoice, open_extractor
from guided_diffusion_jax.evaluation.fid import biased, frechet_distance
from guided_diffusion_jax.evaluation.image_set import ImageSet
from guided_diffusion_jax.evaluation.inception_score import inception_score, probabilities
from guided_diffusion_jax.evaluation.kid import Kid, kid
from guided_diffusion_jax.evaluation.moments import FeatureArray
from guided_diffusion_jax.evaluation.numbers import number
from guided_diffusion_jax.evaluation.precision_recall import Prdc, nearest
from guided_diffusion_jax.evaluation.statistics import Statistics, collect
from guided_diffusion_jax.evaluation.uncertainty import half_sample_error

__all__ = [
    "METRICS", "Comparison", "Metric", "class_accuracy", "density_coverage", "extract", "fid", "frechet_distance",
    "inception_score", "kid", "nearest", "precision_recall", "probabilities", "scores",
]  # fmt: skip

FEWEST = 6
"""Images that have 5 neighbours among themselves."""

NEIGHBOURS = {"precision": 3, "recall": 3, "density": 5, "coverage": 5}
"""k of each metric of neighbours, as its authors have it."""

MOST = 10_000
"""Images of either set that are compared one by one, for KID, precision, recall, density and coverage."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything a metric may use: generated images against a reference.

    Attributes:
        generated: statistics of the generated images.
        reference: statistics of the real ones.
        labels: class requested for each generated image; None if there is none.
        class_names: of the data set.
        classifier: name of the classifier of `generated.predicted`.
        seed: of random choices.
    """

    generated: Statistics
    reference: Statistics
    labels: Int[np.ndarray, " n"] | None = None
    class_names: Sequence[str] = ()
    classifier: str = ""
    seed: int = 0

    @property
    def available(self) -> set[str]:
        """Which inputs there are: "pool", "spatial", "features", "logits" and "labels" (see `Metric.needs`)."""
        real, generated = self.reference, self.generated
        there = {
            "pool": True,
            "spatial": real.spatial is not None and generated.spatial is not None,
            "features": real.features is not None and len(real.features) >= FEWEST,
            "logits": generated.logits is not None,
            "labels": self.labels is not None and generated.predicted is not None,
        }
        return {name for name, is_there in there.items() if is_there}

    @property
    def features(self) -> tuple[FeatureArray, FeatureArray]:
        """Pooled features of some of the generated images, and of some real ones."""
        assert self.generated.features is not None and self.reference.features is not None
        return self.generated.features, self.reference.features[:MOST]

    @functools.cached_property
    def balanced(self) -> tuple[FeatureArray, FeatureArray]:
        """The same, as many of both: metrics of neighbours depend on both counts."""
        generated, real = self.features
        count = min(len(generated), len(real))
        return generated[np.random.default_rng(self.seed).permutation(len(generated))[:count]], real[:count]

    @functools.cached_property
    def kid(self) -> Kid:
        """KID, and its spread over the subsets."""
        return kid(*self.features)

    @functools.cached_property
    def prdc(self) -> dict[int, Prdc]:
        """Precision, recall, density and coverage at the usual numbers of neighbours (`NEIGHBOURS`)."""
        return {k: manifolds.prdc(*self.balanced, k) for k in sorted(set(NEIGHBOURS.values()))}

    @functools.cached_property
    def accuracy(self) -> Accuracy:
        """Class accuracy, overall and by class."""
        assert self.generated.predicted is not None and self.labels is not None
        return class_accuracy(self.generated.predicted, self.labels, self.class_names or None)


class Metric(NamedTuple):
    """One metric of the table.

    Attributes:
        name: key of its value in scores.
        title: heading in tables and plots.
        better: whether "lower" or "higher" values are better.
        needs: inputs of `Comparison.available` without which its value is None.
        compute: its value.
        details: further entries of the scores, which tables leave out.
    """

    name: str
    title: str
    better: Literal["lower", "higher"]
    needs: tuple[str, ...]
    compute: Callable[[Comparison], float]
    details: Mapping[str, Callable[[Comparison], Any]] = {}


def _spatial_frechet_distance(c: Comparison) -> float:
    assert c.generated.spatial is not None and c.reference.spatial is not None
    return frechet_distance(c.generated.spatial, c.reference.spatial)


def _frechet_distance_error(c: Comparison) -> float | None:
    """Standard error over the generated images; None where too few of their features are kept."""
    features = c.generated.features
    if features is None or len(features) < 4:
        return None
    error = half_sample_error(lambda half: frechet_distance(half, c.reference.pool), np.asarray(features), seed=c.seed)
    return error * float(np.sqrt(len(features) / c.generated.num_images))


def _inception_score(c: Comparison) -> float:
    assert c.generated.logits is not None
    return inception_score(probabilities(c.generated.logits), splits=10 if c.generated.num_images >= 1000 else 1).mean


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("fd", "FD", "lower", ("pool",), lambda c: frechet_distance(c.generated.pool, c.reference.pool),
               {"fd_error": _frechet_distance_error}),
        Metric("sfid", "sFD", "lower", ("spatial",), _spatial_frechet_distance),
        Metric("kid", "KID", "lower", ("features",), lambda c: c.kid.mean, {"kid_std": lambda c: c.kid.std}),
        Metric("inception_score", "IS", "higher", ("logits",), _inception_score),
        Metric("precision", "precision", "higher", ("features",), lambda c: c.prdc[NEIGHBOURS["precision"]].precision),
        Metric("recall", "recall", "higher", ("features",), lambda c: c.prdc[NEIGHBOURS["recall"]].recall),
        Metric("density", "density", "higher", ("features",), lambda c: c.prdc[NEIGHBOURS["density"]].density),
        Metric("coverage", "coverage", "higher", ("features",), lambda c: c.prdc[NEIGHBOURS["coverage"]].coverage),
        Metric(
            "accuracy", "accuracy", "higher", ("labels",), lambda c: c.accuracy.overall,
            {
                "accuracy_by": lambda c: c.classifier,
                "accuracy_by_class": lambda c: [one._asdict() for one in c.accuracy.classes],
            },
        ),
    )
}  # fmt: skip
"""Metrics in the order of tables. Register further ones here, or from outside: `METRICS["name"] = Metric(...)`."""


def scores(comparison: Comparison) -> dict[str, Any]:
    """Value of each metric by its name, None if an input is missing; counts and warnings."""
    available = comparison.available
    values: dict[str, Any] = {}
    for metric in METRICS.values():
        parts = {metric.name: metric.compute, **metric.details}
        there = set(metric.needs) <= available
        values |= {name: compute(comparison) if there else None for name, compute in parts.items()}
    generated, real = comparison.generated, comparison.reference
    widths = {"FD": len(generated.pool.mean)}
    if "spatial" in available and generated.spatial is not None:
        widths["sFD"] = len(generated.spatial.mean)
    warnings = [
        f"{title} of {generated.num_images} images in {width} features is biased; read KID, or give more than {width}"
        for title, width in widths.items()
        if biased(generated.num_images, width)
    ]
    if "features" not in available:
        warnings.append("the reference has too few images for KID, precision, recall, density and coverage")
    compared = len(comparison.balanced[0]) if "features" in available else 0
    counts = {"count": generated.num_images, "reference_count": real.num_images, "compared_count": compared}
    return counts | values | {"warnings": warnings}


# --- functions on arrays


def extract(
    images: Any,
    features: FeatureChoice,
    feature_weights: epath.PathLike = "",
    batch_size: int = 100,
) -> Float[np.ndarray, "n d"]:
    """Pooled features of images, for the other functions of this module.

    Args:
        images: uint8 `[n h w c]`, 1 or 3 channels; or the path of an `.npz` or of a folder of images of one size.
        features: "inception", "dinov2", "pixels", a jit-able function `[b h w c] -> [b d]`, or an `Extractor`.
        feature_weights: file of weights, for "inception" and "dinov2".
        batch_size: images at a time.

    Raises:
        InputError: an unknown extractor, a missing or unfit file of weights, or images that are not uint8 or of
            another shape, or a file or folder that cannot be read.
    """
    given = ImageSet.of(images, "images")
    pipeline = FeaturePipeline([open_extractor(features, feature_weights)], batch_size)
    return np.concatenate([f.pool for (f,) in pipeline(given.batches(pipeline))])


def fid(
    images: Any,
    reference: Any,
    features: FeatureChoice = "inception",
    feature_weights: epath.PathLike = "",
    batch_size: int = 100,
) -> float:
    """Frechet distance of generated images to real ones: FID with features="inception", else an FD in other features.

    Args:
        images: generated images, as `extract` takes them; more than features are wide, or the distance is biased.
        reference: real images, as `extract` takes them.
        features: see `extract`.
        feature_weights: see `extract`.
        batch_size: images at a time.

    Raises:
        InputError: as `extract` does, or fewer than 2 images.
    """
    sets = ImageSet.of(images, "images"), ImageSet.of(reference, "reference")
    pipeline = FeaturePipeline([open_extractor(features, feature_weights)], batch_size)
    no_rows = lambda width: np.zeros(0, np.int64)  # noqa: E731
    a, b = (collect(pipeline(one.batches(pipeline)), one.length, no_rows).pool for one in sets)
    return frechet_distance(a, b)


def precision_recall(generated: FeatureArray, reference: FeatureArray, k: int = 3) -> tuple[float, float]:
    """Precision and recall of features (Kynkaanniemi et al. 2019). Raises `InputError` as `prdc` does."""
    found = manifolds.prdc(generated, reference, k)
    return found.precision, found.recall


def density_coverage(generated: FeatureArray, reference: FeatureArray, k: int = 5) -> tuple[float, float]:
    """Density and coverage of features (Naeem et al. 2020). Raises `InputError` as `prdc` does."""
    found = manifolds.prdc(generated, reference, k)
    return found.density, found.coverage


# --- text


def summary(values: Mapping[str, Any]) -> str:
    """Scores in a few lines of text, `Scorer.scores`' result."""
    lines = [
        f"n = {values['count']:,} images against {values['reference_count']:,}; features: {values['features']}",
        "  " + ", ".join(_with_error(m, values) for m in METRICS.values() if values.get(m.name) is not None),
    ]
    of_neighbours = [name for name in NEIGHBOURS if values.get(name) is not None]
    if of_neighbours:
        by_k = {k: [name for name in of_neighbours if NEIGHBOURS[name] == k] for k in NEIGHBOURS.values()}
        ks = ", ".join(f"k = {k} ({', '.join(names)})" for k, names in by_k.items() if names)
        lines.append(f"  nearest neighbours: {ks}, among {values['compared_count']:,} of each")
    if (values.get("kid") or 0) < 0:
        lines.append(
            "  KID below 0 is no error: the estimate is unbiased and scatters around the true distance; read it as 0"
        )
    if values.get("accuracy") is not None:
        each = [f"{one['name']} {number(100 * one['accuracy'])} %" for one in values["accuracy_by_class"]]
        more = ", ..." if len(each) > 20 else ""
        lines += [f"  accuracy by: {values['accuracy_by']}", f"  of each class: {', '.join(each[:20])}{more}"]
    return "\n".join(lines + [f"  warning: {warning}" for warning in values["warnings"]])


def _with_error(metric: Metric, values: Mapping[str, Any]) -> str:
    """Title and value of a metric, with its spread over subsets or its standard error where there is one."""
    error = values.get(f"{metric.name}_std", values.get(f"{metric.name}_error"))
    return f"{metric.title} {number(values[metric.name])}" + (f" ± {number(error, 2)}" if error else "")
