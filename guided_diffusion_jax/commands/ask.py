"""What a run is asked to draw: the conditions of each picture, from the config, from users' files or from data."""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int
from ml_collections import ConfigDict

from guided_diffusion_jax import guidance
from guided_diffusion_jax.commands import build, files, kinds
from guided_diffusion_jax.commands import small as low_res_file
from guided_diffusion_jax.data.dataset import Dataset as Source
from guided_diffusion_jax.data.images import to_float
from guided_diffusion_jax.data.pipeline import as_inputs
from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.typing import Conditions

KEYS = {"attributes": "attributes", "text": "prompt", "style": "style", "map": "map"}
"""The key of `sample` that asks for a kind of condition."""


class Wanted(NamedTuple):
    """What is asked for, a row a picture; NumPy arrays.

    Attributes:
        labels: the class of each picture: what classifiers steer towards, and what it is filed under.
        branches: the conditions that are composed (see `guidance.composed`); none is the plain model of `null`.
        weights: w of each branch, one for all pictures or one a pixel `[n h w 1]`.
        null: the conditions that stand for none.
        known: a picture of which a part stays; None where all is drawn.
        mask: 1 where it stays, 0 where it is drawn anew.
    """

    labels: Int[np.ndarray, " n"]
    branches: tuple[Conditions, ...]
    weights: tuple[ArrayLike, ...]
    null: Conditions
    known: Float[np.ndarray, "n h w c"] | None = None
    mask: Float[np.ndarray, "n h w 1"] | None = None

    def take(self, numbers: Int[np.ndarray, " n"]) -> "Wanted":
        """The rows of these pictures; beyond the last it is that one."""

        def rows(values):
            return values.take(numbers, axis=0, mode="clip") if np.ndim(values) else values

        return jax.tree.map(rows, self)

    def at(self, weight: float) -> "Wanted":
        """The same at another weight of all branches."""
        return self._replace(weights=(weight,) * len(self.branches))

    def spared(self) -> "Wanted":
        """The same in fewer branches, where a weight of 0 or -1 leaves one without influence: less work a step."""
        branches, null, weights = guidance.needed(self.branches, self.null, self.weights)
        return self._replace(branches=branches, null=null, weights=weights)


def for_labels(config: ConfigDict, labels: Int[np.ndarray, " n"]) -> Wanted:
    """Pictures of these classes, by `sample.guidance.weight`."""
    null = kinds.null(config, len(labels))
    if null.label is None:
        return Wanted(labels, (), (), null)
    given = dataclasses.replace(null, label=labels.astype(np.int32))
    return Wanted(labels, (given,), (config.sample.guidance.weight,), null)


def for_examples(config: ConfigDict, data: Source, numbers: Int[np.ndarray, " n"], only: Sequence[str] = ()) -> Wanted:
    """Pictures with the conditions of these examples of a data set.

    Args:
        config: resolved.
        data: with the columns that the config has.
        numbers: of the examples.
        only: kinds of conditions that the run has; the others are absent. () is all.
    """
    there = kinds.names(config)
    batch = as_inputs(data.read(numbers))
    null = kinds.null(config, len(numbers))
    if "low_res" in there:
        small = np.asarray(kinds.reduced(batch["image"], config.data.low_res_size))
        null = dataclasses.replace(null, low_res=small)
    given = {kind: batch[key] for kind in only or there if (key := kinds.COLUMNS.get(kind, kind)) in batch}
    return Wanted(batch["label"], (dataclasses.replace(null, **given),), (config.sample.guidance.weight,), null)


def from_config(config: ConfigDict) -> Wanted:
    """What the keys of `sample` ask for, `sample.count` pictures of it.

    Raises:
        InputError: a condition that the run was not trained with, or one that cannot be.
    """
    s, there = config.sample, kinds.names(config)
    for kind, key in (*KEYS.items(), ("text", "negative")):
        require(
            kind in there or not s[key],
            f"sample.{key}={s[key]!r} asks for {kind}, which this run was not trained with; it has "
            f"{', '.join(there) or 'no conditions'}",
        )
    low_res, labels = low_res_file.load(config)
    if labels is None:
        labels = _labels(config)
    null = kinds.null(config, s.count)
    given = {kind: _repeated(value, s.count) for kind, value in _given(config).items()}
    if null.label is not None and (labels != null.label).any():
        given["label"] = labels
    if low_res is not None:
        null = dataclasses.replace(null, low_res=to_float(low_res))
    known, mask = _unfinished(config)
    if "known" in there and known is not None and mask is not None:
        given["known"] = np.where(mask > 0.5, known, 0.0)
    branches, weights = _composition(config, null, given)
    if s.negative:
        null = dataclasses.replace(null, text=_repeated(_sentence(config, "sample.negative", s.negative), s.count))
    return Wanted(labels, branches, weights, null, known, mask)


def _labels(config: ConfigDict) -> Int[np.ndarray, " n"]:
    """The classes in turn; none where `sample.labels` was left at "all" and something else is asked for."""
    s, labels = config.sample, build.labels(config)
    if tuple(s.labels) != ("all",) or not any(s[key] for key in (*KEYS.values(), "negative", "image")):
        return labels
    weight = s.guidance.classifier_weight
    require(
        not weight,
        f"sample.guidance.classifier_weight={weight:g} steers to a class, but sample.labels=all is none where anything "
        "else is asked for; give sample.labels, or use the weight 0",
    )
    return np.full_like(labels, config.model.num_classes)


def _given(config: ConfigDict) -> dict[str, np.ndarray]:
    """One row of each kind that is asked for, but sentences."""
    s, d = config.sample, config.data
    given = {}
    if s.attributes:
        given["attributes"] = _attributes(config)
    if s.style:
        given["style"] = files.picture("sample.style", s.style, d.image_size, d.channels)
    if s.map:
        given["map"] = files.exact("sample.map", s.map, d.image_size, d.map_channels)
    return given


def _attributes(config: ConfigDict) -> Int[np.ndarray, "1 k"]:
    names = tuple(config.data.attributes)
    row = np.zeros((1, len(names)), np.int32)
    for asked in config.sample.attributes.split(","):
        name, _, value = asked.strip().partition("=")
        column = choose({name: i for i, name in enumerate(names)}, name, "sample.attributes")
        values = {value: i for i, value in enumerate(config.data.attribute_values[column], 1)}
        row[0, column] = choose(values, value, f"sample.attributes: {name}")
    return row


def _composition(config: ConfigDict, null: Conditions, given: dict[str, np.ndarray]):
    """The branches with their weights.

    The first has all that is asked for, less the kinds that `sample.guidance.weights` lets steer for themselves; each
    of these is a branch, and so is each further part of the prompt, or every part where parts have regions.
    """
    s, weight = config.sample, config.sample.guidance.weight
    parts = [_part(part) for part in re.split(r"\s+AND\s+", s.prompt.strip())] if s.prompt.strip() else []
    # What the first branch says must be wanted, not negated.
    parts.sort(key=lambda part: part[1])
    regions = _regions(config, len(parts))
    rows = [_repeated(_sentence(config, "sample.prompt", sentence), s.count) for sentence, _ in parts]
    own = _own_weights(config, {*given, *(["text"] if parts else [])})
    of_text = own.get("text", weight)
    pulls = [guidance.negated(of_text) if negated else of_text for _, negated in parts]
    if regions:
        pulls = [np.asarray(guidance.regional(pull, mask)) for pull, mask in zip(pulls, regions, strict=True)]

    branches, weights = [], []
    together = {kind: value for kind, value in given.items() if kind not in own}
    if rows and "text" not in own and not regions and not parts[0][1]:
        together["text"] = rows.pop(0)
        main_weight = pulls.pop(0)
    else:
        main_weight = weight
    if together:
        branches.append(dataclasses.replace(null, **together))
        weights.append(main_weight)
    for row, pull in zip(rows, pulls, strict=True):
        branches.append(dataclasses.replace(null, text=row))
        weights.append(pull)
    for kind in given:
        if kind in own:
            branches.append(dataclasses.replace(null, **{kind: given[kind]}))
            weights.append(own[kind])
    return tuple(branches), tuple(weights)


def _part(part: str) -> tuple[str, bool]:
    """A part of a prompt without its NOT, and whether it had one."""
    whole = part.strip()
    return whole.removeprefix("NOT ").strip(), whole.startswith("NOT ")


def _own_weights(config: ConfigDict, asked: set[str]) -> dict[str, float]:
    own = {}
    for entry in filter(None, config.sample.guidance.weights.split(",")):
        kind, _, value = entry.strip().partition("=")
        choose(dict.fromkeys(sorted(asked)), kind, "sample.guidance.weights: among what is asked for, kind")
        try:
            own[kind] = float(value)
        except ValueError:
            raise InputError(f"sample.guidance.weights: {entry!r} must be like {kind}=1.5") from None
    return own


def _regions(config: ConfigDict, parts: int) -> list[Array]:
    """A mask for each part of the prompt, 1 where it holds; [] for everywhere."""
    regions, size = config.sample.regions.replace(",", " ").split(), config.data.image_size
    require(
        len(regions) in (0, parts),
        f"sample.regions has {len(regions)} pictures for {parts} parts of the prompt; give one for each, or none",
    )
    masks = [(files.picture("sample.regions", path, size, 1) + 1) / 2 for path in regions]
    return [jnp.asarray(_repeated(mask, config.sample.count)) for mask in masks]


def _sentence(config: ConfigDict, key: str, sentence: str) -> np.ndarray:
    """One row of what the network reads; says how much of a sentence that is too long is cut."""
    reader = kinds.reader(config)
    if cut := reader.overflow(sentence):
        print(f"warning: {key} has {cut}")
    return reader.encode([sentence])


def _unfinished(config: ConfigDict):
    """The picture to change and where it stays as it is; two times None where there is none."""
    s, d = config.sample, config.data
    require(
        bool(s.image) == bool(s.inpaint),
        "sample.image and sample.inpaint belong together: a picture, and where to draw it anew",
    )
    if not s.image:
        return None, None
    image = files.picture("sample.image", s.image, d.image_size, d.channels)
    drawn = (files.picture("sample.inpaint", s.inpaint, d.image_size, 1) + 1) / 2
    return _repeated(image, s.count), _repeated(1 - drawn, s.count)


def _repeated(row: np.ndarray, count: int) -> np.ndarray:
    return np.repeat(row, count, axis=0)
