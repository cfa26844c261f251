"""Scores of images against real ones; the statistics of the reference are computed once and cached."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8

from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation import cache, metrics, statistics
from guided_diffusion_jax.evaluation import reference as files
from guided_diffusion_jax.evaluation.dataset_features import DatasetFeatures, dataset_features
from guided_diffusion_jax.evaluation.feature_pipeline import Batch, FeaturePipeline
from guided_diffusion_jax.evaluation.features import FeatureChoice, check_extractor, open_extractor
from guided_diffusion_jax.evaluation.metrics import FEWEST, MOST, Comparison
from guided_diffusion_jax.evaluation.precision_recall import nearest
from guided_diffusion_jax.evaluation.statistics import Statistics
from guided_diffusion_jax.runtime import notices

OWN = "own"
"""Features of a classifier that is trained on the data set; needs no download."""


class Scorer:
    """Scores sets of images against one reference.

    Args:
        data: held-out split, on which the accuracy of the data set's own classifier is measured.
        train: training split, the reference unless there is another.
        features: "own" (a classifier trained on `train`), "inception", "dinov2", "pixels", or see `metrics.extract`.
        feature_weights: file of weights, for "inception" and "dinov2".
        reference: folder of images, or `.npz` of images or of Inception statistics (a reference batch of OpenAI's),
            instead of `train`.
        batch_size: images at a time.
        seed: of the choice of images that are compared one by one.
        cache_dir: folder for what cannot be cached in the data set's own; None is nowhere.

    Attributes:
        name: of the features.
        classifier: the data set's own classifier; None if it is not needed. It measures class accuracy.

    Raises:
        InputError: for features or a reference that cannot be used, before anything is trained.
    """

    def __init__(
        self,
        data: Dataset,
        train: Dataset,
        *,
        features: FeatureChoice = OWN,
        feature_weights: epath.PathLike = "",
        reference: epath.PathLike = "",
        batch_size: int = 100,
        seed: int = 0,
        cache_dir: epath.PathLike | None = None,
    ):
        check(data, features=features, feature_weights=feature_weights, reference=reference)
        self.data, self.train, self._seed = data, train, seed
        chosen = None if features == OWN else open_extractor(features, feature_weights)
        self._where = cache.folders(train, cache_dir)
        self.classifier: DatasetFeatures | None = None
        if chosen is None or train.num_classes >= 2:
            self.classifier = dataset_features(train, data, self._where, batch_size)
        own = [] if self.classifier is None else [self.classifier.extractor]
        self._identity = chosen.name if chosen else self.classifier.identity if self.classifier else ""
        compared = [chosen] if chosen else own
        self.name = compared[0].name
        # The features of the first extractor are compared; the logits of the last one give classes.
        self._pipeline = FeaturePipeline(compared, batch_size)
        self._with_classes = FeaturePipeline([chosen, *own], batch_size) if chosen and own else self._pipeline
        if reference:
            contents = _read_reference(data, features, reference)
            self._reference = statistics.of_file(contents, self._pipeline, self._identity, self._where, seed)
        else:
            self._reference = self._training

    def scores(
        self, images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"] | None = None
    ) -> dict[str, Any]:
        """All metrics of these images by name (`metrics.METRICS`); None for those that lack an input.

        Args:
            images: generated images; all processes give the same.
            labels: class requested for each; None leaves class accuracy out.
        """
        return self._scores(self._with_classes.arrays(images), len(images), labels)

    def scores_of_file(self, file: files.Samples) -> dict[str, Any]:
        """All metrics of a file's or folder's images, read in blocks. Raises `InputError` for a damaged one."""
        blocks = files.blocks(file, self._with_classes.batch_size)
        labels = requested_labels(file, self.train)
        return self._scores(self._with_classes.blocks(blocks), file.shape[0], labels)

    def nearest(
        self, images: UInt8[np.ndarray, "n h w c"], k: int
    ) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
        """The k most similar training images of each image, nearest first: rows of `train`, and distances.

        Of a large training split, `num_searched` images chosen at random are searched.
        """
        features = [f.pool for (f,) in self._pipeline(self._pipeline.arrays(images))]
        training = self._training
        assert training.features is not None
        with notices.working("searching the training images"):
            found = nearest(np.concatenate(features), training.features, k)
        return training.rows[found.row], found.distance

    @property
    def num_searched(self) -> int:
        """Number of training images that `nearest` searches."""
        return len(self._training.rows)

    def _scores(self, batches: Iterable[Batch], count: int, labels: Int[np.ndarray, " n"] | None) -> dict[str, Any]:
        require(count >= FEWEST, f"{count} images are too few to be scored; give {FEWEST} at least")
        rows = np.sort(np.random.default_rng(self._seed).permutation(count)[:MOST])
        has_classes = self.classifier is not None and self.classifier.has_classes
        generated = statistics.collect(self._with_classes(batches), count, lambda width: rows, has_classes)
        classifier = self.classifier.extractor.name if self.classifier else ""
        comparison = Comparison(generated, self._reference, labels, self.train.class_names, classifier, self._seed)
        with notices.working("comparing the features"):
            return {"features": self.name} | metrics.scores(comparison)

    @functools.cached_property
    def _training(self) -> Statistics:
        return statistics.of_dataset(self.train, self._pipeline, self._identity, self._where, self._seed)


def check(
    data: Dataset,
    *,
    features: FeatureChoice = OWN,
    feature_weights: epath.PathLike = "",
    reference: epath.PathLike = "",
) -> None:
    """Raises `InputError` for features or a reference that cannot be used, before anything is compiled or trained."""
    check_extractor(features, feature_weights)
    if reference:
        _read_reference(data, features, reference)


def _read_reference(data: Dataset, features: FeatureChoice, path: epath.PathLike) -> files.Reference:
    """Contents of a reference that the features can use: stored statistics are those of Inception."""
    found = files.reference(path, None if features == "inception" else data.image_shape)
    if features != "inception":
        found = found._replace(pooled=None, spatial=None)
    require(
        found.samples is not None or found.pooled is not None,
        f"reference={path} holds no images, and statistics that are not those of features={features}; "
        "statistics are for features=inception",
    )
    return found


def open_samples(path: epath.PathLike, data: Dataset) -> files.Samples:
    """File or folder of images to score, after checks of sizes, labels and first images.

    Raises:
        InputError: it is missing, empty or damaged, its images have another size than the data set's or another range
            than 0 .. 255, or are too few, or a label is no class.
    """
    file = files.samples(path, data.image_shape)
    require(file.shape[0] >= FEWEST, f"{file.path} holds {file.shape[0]} images, too few to score; {FEWEST} at least")
    requested_labels(file, data)
    first = next(files.blocks(file))
    require(
        bool(file.files) or bool(first.max() > 1),
        f"{file.path}: the images hold only 0 and 1; they must be uint8 in 0 .. 255: of floats in [0, 1] save "
        "np.uint8((x * 255).round())",
    )
    return file


def requested_labels(file: files.Samples, data: Dataset) -> Int[np.ndarray, " n"] | None:
    """Classes requested for images; None if there are none, or the null label for all.

    Those of a folder are its folders' names, where each image lies in one that is called like a class.

    Raises:
        InputError: a label is no class of the data set.
    """
    number = {name: index for index, name in enumerate(data.class_names)}
    if file.files and set(file.folders) <= set(number):
        return np.array([number[folder] for folder in file.folders], np.int64)
    labels, classes = file.labels, data.num_classes
    if labels is None or classes < 2 or bool((labels == classes).all()):
        return None
    low, high = int(labels.min()), int(labels.max())
    require(
        low >= 0 and high < classes,
        f"{file.path}: the labels in arr_1 go from {low} to {high}; those of {data.name} go from 0 to {classes - 1}",
    )
    return labels
