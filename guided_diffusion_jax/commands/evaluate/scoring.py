"""Scores of pictures against real ones, in the features that `evaluate.features` names; the reference is kept."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import ask, build, kinds, networks, sample
from guided_diffusion_jax.commands.ask import Wanted
from guided_diffusion_jax.commands.draw import Artist
from guided_diffusion_jax.commands.evaluate import extractors, kept, references
from guided_diffusion_jax.commands.evaluate.extractors import Part, Viewer
from guided_diffusion_jax.commands.evaluate.references import Gathered, Statistics
from guided_diffusion_jax.data.dataset import Dataset as Source
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.evaluation import frechet, kernel, reference
from guided_diffusion_jax.evaluation import manifold as manifolds
from guided_diffusion_jax.evaluation import moments as sums
from guided_diffusion_jax.evaluation import scores as classes
from guided_diffusion_jax.training import parallel
from guided_diffusion_jax.typing import Params

FEWEST = 6
"""Pictures that have 5 neighbours among themselves."""

MOST = 10_000
"""Pictures, of either set, that are compared one by one: for KID and, as many of both, for what asks for neighbours."""


class Seen(NamedTuple):
    """What was seen of pictures that came batch by batch.

    Attributes:
        sums: the moments of all their features.
        pool: the features of up to `MOST` of them, chosen at random.
        logits: of each, where the features come with some.
        named: the class that the data set's own classifier sees in each, where it has one.
    """

    sums: Gathered
    pool: Float[np.ndarray, "m d"]
    logits: Float[np.ndarray, "n k"] | None
    named: Int[np.ndarray, " n"] | None


def check(config: ConfigDict, data: Source) -> None:
    """Raises `InputError` for features and a reference that cannot work, before anything is compiled or trained."""
    extractors.check(config)
    if config.evaluate.reference:
        _batch(config, data)


def _batch(config: ConfigDict, data: Source) -> reference.Reference:
    """What `evaluate.reference` holds that the features can use: statistics are of Inception's alone."""
    e = config.evaluate
    found = reference.reference(e.reference, None if e.features == "inception" else data.image_shape)
    if e.features != "inception":
        found = found._replace(pooled=None, spatial=None)
    require(
        found.samples is not None or found.pooled is not None,
        f"evaluate.reference={e.reference} holds no pictures, and statistics that are not those of "
        f"evaluate.features={e.features}; statistics are for evaluate.features=inception",
    )
    return found


def opened(config: ConfigDict, data: Source) -> reference.Samples:
    """The file `evaluate.samples`, of which header, labels and the first pictures were checked.

    Raises:
        InputError: it is missing, empty, damaged or no such file, its pictures have another size than the data set's,
            another range than 0 .. 255 or are too few, or a label is no class.
    """
    file = reference.samples(config.evaluate.samples, data.image_shape)
    require(file.shape[0] >= FEWEST, f"{file.path} holds {file.shape[0]} pictures, too few to score; {FEWEST} at least")
    told_labels(file, data)
    first = next(reference.blocks(file))
    require(
        bool(first.max() > 1),
        f"{file.path}: the pictures hold only 0 and 1; they must be uint8 in 0 .. 255: of floats in [0, 1] save "
        "np.uint8((x * 255).round())",
    )
    return file


def count_of(config: ConfigDict, data: Source) -> int:
    """How many pictures are drawn: `evaluate.count`, or as many as the split has, up to `MOST`.

    Raises:
        InputError: they are too few to be scored.
    """
    count = config.evaluate.count or min(len(data), MOST)
    require(count >= FEWEST, f"{count} pictures are too few to be scored; evaluate.count must be {FEWEST} at least")
    return count


def wanted(config: ConfigDict, data: Source, count: int) -> Wanted:
    """What is asked for: all classes in turn; where there are other conditions, those of the split's examples."""
    if set(kinds.names(config)) <= {"label"}:
        number = max(1, config.model.num_classes or len(config.data.class_names))
        return ask.for_labels(config, np.arange(count, dtype=np.int32) % number)
    return ask.for_examples(config, data, np.arange(count) % len(data))


def of_run(config: ConfigDict, workdir: epath.Path, params: Params, scorer: "Scorer", count: int) -> dict[str, Any]:
    """Draws so many pictures as `sample` says and scores them; prints the figures."""
    artist = Artist(networks.network(config), config, sample.guides(config, workdir))
    asked = wanted(config, scorer.data, count)
    images = artist.images(params, asked.spared())
    told = "label" in kinds.names(config) or config.sample.guidance.classifier_weight
    scores = scorer.scores(images, asked.labels if told else None)
    show(scores)
    return scores


class Scorer:
    """Scores sets of pictures against one reference, whose statistics are computed once and kept with the data set.

    Args:
        config: resolved; `config.evaluate` says in which features, and against what.
        data: the split `evaluate.split`, which the accuracy of the data set's own network is of.
        workdir: where is kept what cannot be kept with the data; None is nowhere.

    Attributes:
        name: of the features.
        data: as given.
        own: the data set's own network; None where it is not needed.
        train: the training split, which is the reference unless `evaluate.reference` is another.

    Raises:
        InputError: as `check`, and as the extractors do for files that are not what they need.
    """

    def __init__(self, config: ConfigDict, data: Source, workdir: epath.Path | None = None):
        check(config, data)
        self._e, self.data = config.evaluate, data
        given = None if self._e.features == extractors.OWN else extractors.pretrained(config)
        self.train = build.source(config)
        self._where = kept.folders(self.train, workdir)
        # Class accuracy is always told by the data set's own classifier.
        self.own = None
        if given is None or self.train.num_classes >= 2:
            self.own = extractors.embedded(config, self.train, data, self._where)
        own = [] if self.own is None else [self.own.extractor]
        chosen = [own[0] if given is None else given]
        self.name = chosen[0].name
        self._identity = self.own.identity if given is None and self.own else self.name
        mesh = parallel.mesh()
        # The first one's features are compared, the last one's logits name classes.
        self._first = Viewer(chosen, mesh, self._e.batch_size)
        self._both = Viewer(chosen + own, mesh, self._e.batch_size) if given is not None and own else self._first
        if self._e.reference:
            path = epath.Path(self._e.reference)
            there = _batch(config, data)
            self._reference = references.of_file(there, path, self._first, self._identity, self._where)
        else:
            self._reference = self._of_training

    def scores(self, images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"] | None) -> dict[str, Any]:
        """All figures of these pictures; None for those that the features cannot give.

        Args:
            images: as many as there are; all processes give the same.
            labels: the class that each was asked for; None leaves the accuracy out.
        """
        return self._scores(self._both.of_images(images), len(images), labels)

    def scores_of(self, file: reference.Samples) -> dict[str, Any]:
        """All figures of a file's pictures, which are read in blocks. Raises `InputError` where it is damaged."""
        parts = self._both.of_blocks(reference.blocks(file, self._both.size))
        return self._scores(parts, file.shape[0], told_labels(file, self.train))

    def nearest(self, images: UInt8[np.ndarray, "n h w c"], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k training pictures that are most like each of these, nearest first.

        Of a training split that is too large to keep (`references.KEPT_NUMBERS`) a random part is searched, of
        `searched` pictures.

        Returns:
            Their rows in `train` `[n k]`, and their distances in features `[n k]`.
        """
        of_training = self._of_training
        features = [found.pool for found, *_ in self._first.features(self._first.of_images(images))]
        assert of_training.features is not None
        near = manifolds.nearest(np.concatenate(features), of_training.features, k)
        return of_training.rows[near.row], near.distance

    @property
    def searched(self) -> int:
        """Among how many training pictures `nearest` searches."""
        return len(self._of_training.rows)

    def _scores(self, parts: Iterable[Part], count: int, labels: Int[np.ndarray, " n"] | None) -> dict[str, Any]:
        require(count >= FEWEST, f"{count} pictures are too few to be scored; give {FEWEST} at least")
        real, seen, warnings = self._reference, self._seen(parts, count), []
        pooled, spatial = seen.sums.pool, seen.sums.spatial
        fd, sfid, sizes = frechet.frechet_distance(sums.gaussian(pooled), real.pool), None, {"FD": pooled.mean.size}
        if spatial is not None and real.spatial is not None:
            sfid, sizes["sFD"] = frechet.frechet_distance(sums.gaussian(spatial), real.spatial), spatial.mean.size
        warnings += [
            f"{what} of {count} pictures in {d} features is biased; read KID, or give more than {d}"
            for what, d in sizes.items()
            if frechet.biased(count, d)
        ]
        scores: dict[str, Any] = {"features": self.name, "count": count, "reference_count": real.pictures}
        scores |= {"fd": fd, "sfid": sfid} | _compared(seen.pool, real, warnings) | {"inception_score": None}
        if seen.logits is not None:
            probability, splits = classes.probabilities(seen.logits), 10 if count >= 1000 else 1
            scores["inception_score"] = classes.inception_score(probability, splits).mean
        scores |= {"accuracy": None, "accuracy_by": None, "accuracy_by_class": []}
        if seen.named is not None and self.own is not None and labels is not None:
            accuracy = classes.class_accuracy(seen.named, labels, self.train.class_names)
            scores |= {"accuracy": accuracy.overall, "accuracy_by": self.own.extractor.name}
            scores["accuracy_by_class"] = [one._asdict() for one in accuracy.classes]
        return scores | {"warnings": warnings}

    def _seen(self, parts: Iterable[Part], count: int) -> Seen:
        told = self.own is not None and self.own.told
        compared = np.zeros(count, bool)
        compared[np.random.default_rng(0).permutation(count)[:MOST]] = True
        gathered, pool, logits, named = Gathered(), [], [], []
        for found in self._both.features(parts):
            first, last = found[0], found[-1]
            pool.append(first.pool[compared[gathered.count : gathered.count + len(first.pool)]])
            gathered.add(first)
            if first.logits is not None:
                logits.append(first.logits)
            if told and last.logits is not None:
                named.append(np.argmax(last.logits, axis=1))
        joined = (np.concatenate(parts) if parts else None for parts in (logits, named))
        return Seen(gathered, np.concatenate(pool), *joined)

    @functools.cached_property
    def _of_training(self) -> Statistics:
        return references.of_source(self.train, self._first, self._identity, self._where)


def _compared(pool: Float[np.ndarray, "n d"], real: Statistics, warnings: list[str]) -> dict[str, Any]:
    """The figures of pictures that are compared one by one."""
    names = ("kid", "kid_std", "precision", "recall", "density", "coverage")
    if real.features is None or len(real.features) < FEWEST:
        warnings.append("the reference has too few pictures for KID, precision, recall, density and coverage")
        return {"compared_count": 0} | dict.fromkeys(names)
    others = real.features[:MOST]
    kid = kernel.kernel_distance(pool, others)
    # Who lies among whom depends on both numbers: recall and coverage are low where the samples are fewer.
    number = min(len(pool), len(others))
    some, others = pool[np.random.default_rng(0).permutation(len(pool))[:number]], others[:number]
    near, wide = manifolds.manifold(others, some, k=3), manifolds.manifold(others, some, k=5)
    values = (kid.mean, kid.std, near.precision, near.recall, wide.density, wide.coverage)
    return {"compared_count": number} | dict(zip(names, values, strict=True))


def told_labels(file: reference.Samples, data: Source) -> Int[np.ndarray, " n"] | None:
    """The classes that a file's pictures were asked for; None where it does not tell, or tells "any" of all.

    Raises:
        InputError: a label is no class of the data set.
    """
    labels, number = file.labels, data.num_classes
    if labels is None or number < 2 or bool((labels == number).all()):
        return None
    low, high = int(labels.min()), int(labels.max())
    require(
        low >= 0 and high < number,
        f"{file.path}: the labels in arr_1 go from {low} to {high}; those of {data.name} go from 0 to {number - 1}",
    )
    return labels


def show(scores: dict[str, Any]) -> None:
    """Prints the figures."""
    print(f"{scores['count']:,} pictures against {scores['reference_count']:,}; features: {scores['features']}")
    figures = {
        "FD": scores["fd"], "sFD": scores["sfid"], "KID": scores["kid"], "IS": scores["inception_score"],
        "precision": scores["precision"], "recall": scores["recall"], "density": scores["density"],
        "coverage": scores["coverage"],
    }  # fmt: skip
    print("  " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if value is not None))
    if scores["accuracy"] is not None:
        print(f"  {scores['accuracy']:.1%} show the class asked for, says: {scores['accuracy_by']}")
        each = ", ".join(f"{one['name']} {one['accuracy']:.0%}" for one in scores["accuracy_by_class"][:20])
        print(f"  of each class: {each}" + (", ..." if len(scores["accuracy_by_class"]) > 20 else ""))
    for warning in scores["warnings"]:
        print(f"  warning: {warning}", flush=True)
