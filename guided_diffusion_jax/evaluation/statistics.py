"""Statistics of the features of a set of images: what metrics compare. Those of a reference are cached."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation import cache
from guided_diffusion_jax.evaluation.feature_pipeline import Batch, FeaturePipeline
from guided_diffusion_jax.evaluation.features import Features
from guided_diffusion_jax.evaluation.moments import Gaussian, MomentAccumulator
from guided_diffusion_jax.evaluation.reference import Reference, blocks

VERSION = 1
"""Raised with every change of cached statistics."""

KEPT_NUMBERS = 2**26
"""Numbers of features of a reference that are kept, 256 MB: among these images `Scorer.nearest` searches."""


class Statistics(NamedTuple):
    """Statistics of the features of a set of images.

    Attributes:
        num_images: number of images; 0 if a file does not say.
        pool: normal distribution of the pooled features.
        spatial: normal distribution of the spatial features, if the extractor has them.
        features: float32 `[k d]`, pooled features of some images, chosen at random; None without images.
        rows: which images these are.
        logits: `[n c]` of each image, if the extractor has them; not kept of a reference.
        predicted: `[n]`, class of each image by the data set's classifier, if it has one; not kept of a reference.
    """

    num_images: int
    pool: Gaussian
    spatial: Gaussian | None = None
    features: Float[np.ndarray, "k d"] | None = None
    rows: Int[np.ndarray, " k"] = np.zeros(0, np.int64)
    logits: Float[np.ndarray, "n c"] | None = None
    predicted: Int[np.ndarray, " n"] | None = None


def collect(
    stream: Iterable[Sequence[Features]],
    count: int,
    choose_rows: Callable[[int], Int[np.ndarray, " k"]],
    classifier: bool = False,
) -> Statistics:
    """Statistics of `count` images whose features arrive in batches.

    Args:
        stream: for each batch the features of one or more extractors; those of the first are compared.
        count: number of images.
        choose_rows: rows whose features are kept, given the width of the features.
        classifier: the last extractor's logits are of the data set's classes.

    Raises:
        InputError: there are fewer than 2 images, or a feature is not finite.
    """
    pool, spatial = MomentAccumulator(), MomentAccumulator()
    logits, predicted = [], []
    rows, features, position = np.zeros(0, np.int64), np.zeros((0, 0), np.float32), np.full(count, -1)
    for output in stream:
        first, last = output[0], output[-1]
        if pool.count == 0:
            rows = choose_rows(first.pool.shape[1])
            features = np.zeros((len(rows), first.pool.shape[1]), np.float32)
            position[rows] = np.arange(len(rows))
        in_batch = position[pool.count : pool.count + len(first.pool)]
        features[in_batch[in_batch >= 0]] = first.pool[in_batch >= 0]
        pool.add(first.pool)
        if first.spatial is not None:
            spatial.add(first.spatial)
        if first.logits is not None:
            logits.append(first.logits)
        if classifier and last.logits is not None:
            predicted.append(np.argmax(last.logits, axis=1))
    return Statistics(
        count,
        pool.gaussian(),
        spatial.gaussian() if spatial.count else None,
        features,
        rows,
        np.concatenate(logits) if logits else None,
        np.concatenate(predicted) if predicted else None,
    )


def of_dataset(
    data: Dataset, pipeline: FeaturePipeline, identity: str, where: Sequence[epath.Path] = (), seed: int = 0
) -> Statistics:
    """Statistics of all images of a data set.

    Args:
        data: the real images.
        pipeline: of one extractor.
        identity: of the extractor, different for any other.
        where: folders to cache them in.
        seed: of the choice of images whose features are kept.

    Raises:
        InputError: there are fewer than 2 images.
    """
    file = cache.file_name("reference", VERSION, identity, cache.fingerprint(data), seed)
    return _cached(file, where, len(data), pipeline, lambda: pipeline.dataset(data), seed)


def of_file(
    reference: Reference,
    pipeline: FeaturePipeline,
    identity: str,
    where: Sequence[epath.Path] = (),
    seed: int = 0,
) -> Statistics:
    """Statistics of a reference file: those stored in it, and else those of its images; see `of_dataset`.

    Raises `InputError` for fewer than 2 images, or a damaged file.
    """
    samples, found = reference.samples, Statistics(0, Gaussian(np.zeros(0), np.zeros((0, 0))))
    if samples is not None:
        file = cache.file_name("reference", VERSION, identity, samples.digest, seed)
        batches = lambda: pipeline.blocks(blocks(samples, pipeline.batch_size))  # noqa: E731
        found = _cached(file, where, samples.shape[0], pipeline, batches, seed)
    return found._replace(pool=reference.pooled or found.pool, spatial=reference.spatial or found.spatial)


def _cached(
    file: str,
    where: Sequence[epath.Path],
    count: int,
    pipeline: FeaturePipeline,
    batches: Callable[[], Iterable[Batch]],
    seed: int,
) -> Statistics:
    require(count > 1, f"a reference of {count} image has no spread; give 2 images at least")

    def compute() -> cache.Arrays:
        order = np.random.default_rng(seed).permutation(count)
        s = collect(pipeline(batches()), count, lambda width: order[: KEPT_NUMBERS // width])
        assert s.features is not None
        arrays = {"pool_mean": s.pool.mean, "pool_covariance": s.pool.covariance, "features": s.features}
        spatial = {} if s.spatial is None else {f"spatial_{k}": v for k, v in s.spatial._asdict().items()}
        return arrays | {"rows": s.rows} | spatial

    stored = cache.arrays(file, where, compute)
    spatial = Gaussian(stored["spatial_mean"], stored["spatial_covariance"]) if "spatial_mean" in stored else None
    pool = Gaussian(stored["pool_mean"], stored["pool_covariance"])
    return Statistics(count, pool, spatial, stored["features"], stored["rows"])
