"""What pictures are scored against: statistics of real ones, computed once and kept, or those of a file."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from guided_diffusion_jax.commands.evaluate import kept
from guided_diffusion_jax.commands.evaluate.extractors import Part, Viewer
from guided_diffusion_jax.data.dataset import Dataset as Source
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation import moments as sums
from guided_diffusion_jax.evaluation import reference
from guided_diffusion_jax.evaluation.features import Features, weights
from guided_diffusion_jax.evaluation.moments import Gaussian, Moments

VERSION = 1
"""Of what is kept of a reference; to be raised with every change of it."""

KEPT_NUMBERS = 2**26
"""Of the reference's pictures so many numbers are kept, for the search of what a sample may be a copy of: 256 MB."""


class Statistics(NamedTuple):
    """What is known of a reference.

    Attributes:
        pictures: how many are in it; 0 where a file does not say.
        pool: the normal distribution of their features.
        spatial: of their spatial ones, where the extractor has them.
        features: float32 `[k d]` of some of them, chosen at random; None where a file has no pictures.
        rows: which ones these are.
    """

    pictures: int
    pool: Gaussian
    spatial: Gaussian | None
    features: Float[np.ndarray, "k d"] | None
    rows: Int[np.ndarray, " k"]


def of_source(data: Source, viewer: Viewer, identity: str, where: Sequence[epath.Path]) -> Statistics:
    """Those of all of a data set.

    Args:
        data: the real pictures.
        viewer: of one extractor.
        identity: what tells the extractor from any other.
        where: the folders that they may be kept in.

    Raises:
        InputError: there are fewer than 2 pictures.
    """
    numbers, file = np.arange(len(data)), kept.file("reference", VERSION, identity, kept.identity(data))
    return _kept(file, where, len(data), viewer, lambda: viewer.of_source(data, numbers))


def of_file(
    there: reference.Reference, path: epath.Path, viewer: Viewer, identity: str, where: Sequence[epath.Path]
) -> Statistics:
    """Those that a reference batch holds, where the features are Inception's; else those of its pictures.

    Args:
        there: what it holds: with statistics, those are taken.
        path: of the file.
        viewer: of one extractor.
        identity: what tells the extractor from any other.
        where: the folders that what is computed of its pictures may be kept in.

    Raises:
        InputError: there are fewer than 2 pictures, or the file is damaged.
    """
    samples = there.samples
    found = Statistics(0, Gaussian(np.zeros(0), np.zeros((0, 0))), None, None, np.zeros(0, np.int64))
    if samples is not None:
        file = kept.file("reference", VERSION, identity, weights.sha256(path))
        parts = lambda: viewer.of_blocks(reference.blocks(samples, viewer.size))  # noqa: E731
        found = _kept(file, where, samples.shape[0], viewer, parts)
    return found._replace(pool=there.pooled or found.pool, spatial=there.spatial or found.spatial)


def _kept(
    file: str, where: Sequence[epath.Path], count: int, viewer: Viewer, parts: Callable[[], Iterable[Part]]
) -> Statistics:
    require(count > 1, f"a reference of {count} picture has no spread; give 2 pictures at least")
    stored = kept.arrays(file, where, lambda: _statistics(viewer, parts(), count))
    spatial = Gaussian(stored["spatial_mean"], stored["spatial_covariance"]) if "spatial_mean" in stored else None
    pool = Gaussian(stored["pool_mean"], stored["pool_covariance"])
    return Statistics(count, pool, spatial, stored["features"], stored["rows"])


class Gathered:
    """The moments of features that come batch by batch."""

    def __init__(self) -> None:
        self._pool: Moments | None = None
        self.spatial: Moments | None = None

    @property
    def count(self) -> int:
        return 0 if self._pool is None else self._pool.pictures

    @property
    def pool(self) -> Moments:
        assert self._pool is not None
        return self._pool

    def add(self, found: Features) -> None:
        self._pool = _added(self._pool, found.pool)
        if found.spatial is not None:
            self.spatial = _added(self.spatial, found.spatial)


def _added(total: Moments | None, features: sums.Features) -> Moments:
    return sums.moments(features) if total is None else sums.merge(total, sums.moments(features))


def _statistics(viewer: Viewer, parts: Iterable[Part], count: int) -> kept.Arrays:
    """What is kept of a reference."""
    order, gathered = np.random.default_rng(0).permutation(count), Gathered()
    rows, features = order, np.zeros((0, 0), np.float32)
    place = np.zeros(count, np.int64)
    for (found,) in viewer.features(parts):
        if gathered.count == 0:
            rows = order[: KEPT_NUMBERS // found.pool.shape[1]]
            features = np.zeros((len(rows), found.pool.shape[1]), np.float32)
            place = np.full(count, -1)
            place[rows] = np.arange(len(rows))
        of_batch = place[gathered.count : gathered.count + len(found.pool)]
        features[of_batch[of_batch >= 0]] = found.pool[of_batch >= 0]
        gathered.add(found)
    pool = sums.gaussian(gathered.pool)
    arrays = {"pool_mean": pool.mean, "pool_covariance": pool.covariance, "features": features, "rows": rows}
    if gathered.spatial is not None:
        spatial = sums.gaussian(gathered.spatial)
        arrays |= {"spatial_mean": spatial.mean, "spatial_covariance": spatial.covariance}
    return arrays
