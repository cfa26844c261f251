"""What was understood of a data set, in a dozen lines: splits, classes, sizes, conditions, and what is left out."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from guided_diffusion_jax.data.dataset import Dataset

MANY = 8
"""Classes, splits or reasons up to which all are listed."""

WIDTH = 40
"""Characters of a name that are shown."""


@dataclasses.dataclass(frozen=True)
class Understood:
    """What a source found beside the examples, for people to read.

    Attributes:
        split: the split that was opened.
        splits: number of images of each split by its name where it lies; empty where there is one alone.
        classes_from: where the labels come from; empty for the source's own.
        sizes: width and height of the smallest and of the largest image; None where nobody looked.
        colours: how files and `image_shape` differ in colour.
        text: where captions come from.
        control: where control images come from, and how they are resized.
        left_out: number of files by the reason why they are not used.
        notes: what somebody may have wanted otherwise, with the remedy.
    """

    split: str = ""
    splits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    classes_from: str = ""
    sizes: tuple[tuple[int, int], tuple[int, int]] | None = None
    colours: str = ""
    text: str = ""
    control: str = ""
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()


def describe(data: "Dataset") -> str:
    """The block that the commands print after a data set was opened, and `print(data)` shows.

    >>> from guided_diffusion_jax.data.arrays import from_arrays
    >>> print(describe(from_arrays(np.zeros((3, 8, 8, 1), np.uint8), np.array([0, 1, 1]), ("cat", "dog"))))
    data      arrays: 3 images
    classes   2: cat (1), dog (2)
    images    8x8, grey
    """
    return "\n".join(f"{name:<10}{_printable(line)}" for name, line in _lines(data))


def _lines(data: "Dataset") -> Iterator[tuple[str, str]]:
    known = data.understood
    yield "data", f"{data.name}: {data.length} images"
    if known.splits:
        others = ", ".join(f"{_short(name)} ({count})" for name, count in _some(known.splits.items()))
        yield "splits", f"{others}; this is {known.split}"
    yield "classes", _classes(data)
    for name, values in _some(data.attributes):
        yield "attribute", f"{name}: {_listed(values)}"
    yield "images", _images(data)
    if known.text:
        yield "captions", known.text
    if data.has_reference:
        yield "reference", "an image of the same style with each"
    if data.control_channels:
        yield "control", f"{known.control or 'with each image'}, {_channels(data.control_channels)}"
    if known.left_out:
        reasons = sorted(known.left_out.items(), key=lambda item: (-item[1], item[0]))
        rest = f", {len(reasons) - MANY} more reasons" * (len(reasons) > MANY)
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons[:MANY])
        yield "left out", f"{sum(known.left_out.values())}: {listed}{rest}"
    for note in known.notes[:3]:
        yield "note", note


def _classes(data: "Dataset") -> str:
    if not data.class_names:
        return "none"
    names, origin = data.class_names, f", from {data.understood.classes_from}" * bool(data.understood.classes_from)
    if data.labels is None:
        return f"{len(names)}: {_listed(names)}{origin}"
    counts = np.bincount(data.labels, minlength=len(names)).tolist()
    shown = [f"{_short(name)} ({count})" for name, count in zip(names, counts, strict=True)]
    if len(names) <= MANY:
        return f"{len(names)}: {', '.join(shown)}{origin}"
    few, most = min(counts), max(counts)
    return f"{len(names)}: {', '.join(shown[:4])}, ... {len(names) - 4} more, of {few} to {most} images{origin}"


def _images(data: "Dataset") -> str:
    height, width, channels = data.image_shape
    known = data.understood
    colours = _channels(channels) + f" ({known.colours})" * bool(known.colours)
    if known.sizes is None:
        return f"{width}x{height}, {colours}"
    sizes = [f"{w}x{h}" for w, h in known.sizes]
    if sizes == [f"{width}x{height}"] * 2:
        return f"{width}x{height}, {colours}"
    span = sizes[0] if sizes[0] == sizes[1] else f"{sizes[0]} to {sizes[1]}"
    larger = ", the smaller ones enlarged" * (min(known.sizes[0]) < min(height, width))
    return f"{span}, cropped to the centre and scaled to {width}x{height}{larger}; {colours}"


def _channels(channels: int) -> str:
    return {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")


def _some(items):
    return list(items)[:MANY]


def _listed(names: Sequence[str]) -> str:
    some = ", ".join(_short(name) for name in names[:MANY])
    return some + f", ... {len(names) - MANY} more" * (len(names) > MANY)


def _short(name: str) -> str:
    return name if len(name) <= WIDTH else f"{name[: WIDTH - 3]}..."


def _printable(line: str) -> str:
    """The line with what would break it, or hide in it, as escapes: names of files may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
