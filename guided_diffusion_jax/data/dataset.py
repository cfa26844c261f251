"""`Dataset`: images with their conditions, readable in any order, whatever they come from."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int, Int32, UInt8
from PIL import Image
from tqdm import tqdm

from guided_diffusion_jax.data.images import to_float, to_mode
from guided_diffusion_jax.data.understood import Understood, describe
from guided_diffusion_jax.errors import choose, require

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of pixels up to which `cached` holds a data set in memory."""

CHUNK = 512
"""Images that `cached` reads at a time."""

IMAGE_KEYS = ("image", "reference_image", "control_image")
"""The keys of a batch that hold images: uint8 from `Dataset.read`, float32 in [-1, 1] in the batches of `pipeline`."""

Read = Callable[[np.ndarray], dict[str, np.ndarray]]


class Columns(NamedTuple):
    """The features of a data set that become conditions beside the class; empty for none.

    Attributes:
        attributes: features with named values, like the class.
        text: the feature that holds captions; for a folder a column of its tables, such as "caption".
        reference_image: an image in the style of the image.
        control_image: an image that shows the layout: a segmentation, edges; for a folder, the folder of these images.
        labels: the feature that holds the class; for a folder a column of its tables, "folder" or "filename". Empty for
            the data set's own.
    """

    attributes: tuple[str, ...] = ()
    text: str = ""
    reference_image: str = ""
    control_image: str = ""
    labels: str = ""


NO_COLUMNS = Columns()


class Attribute(NamedTuple):
    """An attribute that can be computed from images and labels.

    Attributes:
        class_names: names of its values.
        compute: images uint8 `[n h w c]` and labels int32 `[n]` to the attribute's labels int32 `[n]`.
    """

    class_names: tuple[str, ...]
    compute: Callable[[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"]], Int32[np.ndarray, " n"]]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a model, a pipeline or a report needs to know of a data set.

    Attributes:
        name: its name in messages.
        length: number of examples.
        image_shape: height, width and channels of every image.
        class_names: names of the classes in the order of their labels; empty without labels.
        attributes: name and names of the values of each attribute.
        control_channels: channels of the control images; 0 without.
    """

    name: str
    length: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()
    attributes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    control_channels: int = 0

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.class_names)

    def to_dict(self) -> dict[str, Any]:
        """These fields as JSON has them, with lists for tuples."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(DatasetInfo)}
        return json.loads(json.dumps(values))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "DatasetInfo":
        """The inverse of `to_dict`."""
        return DatasetInfo(**{key: _to_tuples(value) for key, value in values.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(DatasetInfo):
    """A data set of images of one shape that can be read in any order, from any thread.

    Attributes:
        read: indices int `[n]` in 0 .. length-1 to a batch: "image" uint8 `[n h w c]`, "label" int32 `[n]` (zeros
            without labels), and where the data set has them "attributes" int32 `[n k]`, each in 1 .. its number of
            values or 0 where unknown, "text", `[n]` captions or their encodings, "reference_image" uint8 `[n h w c]`,
            "control_image" uint8 `[n h w m]`. Raises `InputError` for an image that cannot be read.
        in_memory: whether `read` only copies.
        has_reference: whether there are reference images.
        derived: further attributes that a classifier can learn, by name (see `with_label`).
        home: the folder of the data set, where results computed from it can be cached; None for arrays.
        raw: the same data set before its captions were encoded; None if they were not.
        labels: int32 `[n]`, the labels of all examples; None without, or where the examples would have to be read.
        parts: the data sets that `grouped` made it of; () of one shape.
        understood: what the source found, for `describe`.
    """

    read: Read
    in_memory: bool = False
    has_reference: bool = False
    derived: Mapping[str, Attribute] = dataclasses.field(default_factory=dict)
    home: epath.Path | None = None
    raw: "Dataset | None" = None
    labels: np.ndarray | None = None
    parts: "tuple[Dataset, ...]" = ()
    understood: Understood = dataclasses.field(default_factory=Understood)

    def __len__(self) -> int:
        return self.length

    def __str__(self) -> str:
        return self.describe()

    def describe(self) -> str:
        """What was understood of the data: splits, classes with counts, sizes, channels, and what is left out."""
        return describe(self)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels in memory, reference and control images included."""
        height, width, channels = self.image_shape
        return len(self) * height * width * (channels * (1 + self.has_reference) + self.control_channels)

    @property
    def info(self) -> DatasetInfo:
        """The description of the data set without its examples."""
        return self.from_dict(self.to_dict())

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data set, JSON-able: its info and a SHA-256 digest of up to 64 examples spread evenly.

        Captions count as they were before any encoder, so the digest is the same on every machine.
        """
        if self.parts:
            digests = [[*part.image_shape, part.fingerprint()["digest"]] for part in self.parts]
            return self.to_dict() | {"digest": hashlib.sha256(json.dumps(digests).encode()).hexdigest()}
        count = min(64, len(self))
        batch = (self.raw or self).read(np.linspace(0, len(self) - 1, count).round().astype(int))
        digest = hashlib.sha256()
        for key, values in sorted(batch.items()):
            content = "\0".join(values).encode("utf-8", "replace") if values.dtype == object else values.tobytes()
            digest.update(f"{key} {values.shape} ".encode() + content)
        return self.to_dict() | {"digest": digest.hexdigest()}

    def subset(self, indices: Sequence[int] | Int[np.ndarray, " n"]) -> "Dataset":
        """The examples of these indices, in this order.

        Raises:
            InputError: there are none, or one is beyond the last example.
        """
        chosen = np.asarray(indices)
        require(
            chosen.ndim == 1 and chosen.size > 0 and np.issubdtype(chosen.dtype, np.integer)
            and bool(np.all((chosen >= 0) & (chosen < len(self)))),
            f"a subset needs at least one index, all in 0 .. {len(self) - 1}",
        )  # fmt: skip
        raw, labels = self.raw and self.raw.subset(chosen), None if self.labels is None else self.labels[chosen]
        return dataclasses.replace(
            self, length=len(chosen), read=lambda wanted: self.read(chosen[wanted]), labels=labels, raw=raw
        )

    def with_label(self, attribute: str) -> "Dataset":
        """The data set with a derived attribute as its label; "label" is the class itself.

        Raises:
            InputError: the data set has no such attribute.
        """
        found = choose({"label": None, **self.derived}, attribute, "classifier.attribute")
        if found is None:
            return self

        def read(indices: np.ndarray) -> dict[str, np.ndarray]:
            batch = self.read(indices)
            return batch | {"label": found.compute(batch["image"], batch["label"])}

        return dataclasses.replace(self, class_names=found.class_names, read=read, labels=None)

    def with_channels(self, channels: int) -> "Dataset":
        """The data set with its images and reference images in grey (1) or RGB (3); 0 leaves them as they are.

        Grey is luminance (ITU-R 601, as Pillow has it); grey images become RGB of three equal channels.

        Raises:
            InputError: another number.
        """
        require(channels in (0, 1, 3), f"data.channels={channels} must be 1 (grey), 3 (RGB) or 0 (as the images are)")
        if channels in (0, self.image_shape[2]):
            return self
        if self.parts:
            return grouped([part.with_channels(channels) for part in self.parts])

        def read(indices: np.ndarray) -> dict[str, np.ndarray]:
            batch = self.read(indices)
            converted = {key: _convert(batch[key], channels) for key in ("image", "reference_image") if key in batch}
            return batch | converted

        were = f"made of {'RGB' if channels == 1 else 'grey'}, data.channels={channels}"
        understood = dataclasses.replace(self.understood, colours=were)
        shape = (*self.image_shape[:2], channels)
        return dataclasses.replace(self, image_shape=shape, read=read, in_memory=False, understood=understood)


def cached(dataset: Dataset, limit: int = MEMORY_LIMIT) -> Dataset:
    """The data set with everything decoded into memory, if its pixels take at most `limit` bytes; else unchanged.

    Shows a progress bar on a terminal.

    Raises:
        InputError: an image cannot be read.
    """
    if dataset.parts:
        return grouped([cached(part, limit * len(part) // len(dataset)) for part in dataset.parts])
    if dataset.in_memory or dataset.nbytes > limit:
        return dataset
    arrays: dict[str, np.ndarray] = {}
    with tqdm(total=len(dataset), desc=f"reading {dataset.name}", unit=" images", disable=None) as bar:
        for start in range(0, len(dataset), CHUNK):
            chunk = dataset.read(np.arange(start, min(start + CHUNK, len(dataset))))
            count = len(chunk["label"])
            for key, values in chunk.items():
                array = arrays.setdefault(key, np.empty((len(dataset), *values.shape[1:]), values.dtype))
                array[start : start + count] = values
            bar.update(count)
    labels = arrays["label"] if dataset.class_names else None
    return dataclasses.replace(dataset, read=array_reader(arrays), in_memory=True, labels=labels)


def grouped(parts: Sequence[Dataset]) -> Dataset:
    """One data set of several that are alike but for the shape of their images; what is read at once is of one part.

    The first one's `image_shape` stands for all.
    """
    starts = np.cumsum([0, *map(len, parts)])

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        which = np.unique(np.searchsorted(starts, indices, side="right") - 1)
        require(len(which) == 1, f"images of {len(which)} shapes are no batch; read those of one part at a time")
        return parts[which[0]].read(indices - starts[which[0]])

    raws = [part.raw for part in parts if part.raw is not None]
    return dataclasses.replace(
        parts[0],
        length=int(starts[-1]),
        read=read,
        in_memory=all(part.in_memory for part in parts),
        labels=None,
        raw=grouped(raws) if len(raws) == len(parts) else None,
        parts=tuple(parts),
    )


def as_inputs(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch of `Dataset.read` with its images in [-1, 1]; latents, which are floats, stay as they are."""
    pixels = {key for key in IMAGE_KEYS if key in batch and batch[key].dtype == np.uint8}
    return {key: to_float(values) if key in pixels else values for key, values in batch.items()}


def array_reader(arrays: Mapping[str, np.ndarray]) -> Read:
    """A `Dataset.read` over arrays in memory."""
    return lambda indices: {key: values[indices] for key, values in arrays.items()}


@cache
def pool() -> ThreadPoolExecutor:
    """The threads that decode images, shared by all data sets; Pillow decodes outside the interpreter's lock."""
    return ThreadPoolExecutor(16, thread_name_prefix="decode")


def _convert(images: UInt8[np.ndarray, "n h w c"], channels: int) -> UInt8[np.ndarray, "n h w d"]:
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    return np.stack([np.asarray(to_mode(Image.fromarray(image), 1))[..., None] for image in images])


def _to_tuples(value: Any) -> Any:
    return tuple(_to_tuples(item) for item in value) if isinstance(value, list) else value
