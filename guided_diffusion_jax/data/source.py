"""Where pictures come from: one small type for every data set, and the memory that makes it fast."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from tqdm import tqdm

from guided_diffusion_jax.errors import require

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of pixels up to which `cached` keeps a data set in memory."""

CHUNK = 512
"""Images that `cached` reads at a time."""

Read = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which of a data set's features become which further conditions; empty is none.

    Attributes:
        attributes: features with named values, like the class.
        text: the feature that holds a sentence; for a folder "caption", from its captions.jsonl.
        style: a picture whose style is that of the image.
        map: a picture that says what is where in the image.
    """

    attributes: tuple[str, ...] = ()
    text: str = ""
    style: str = ""
    map: str = ""


NO_COLUMNS = Columns()


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set of square pictures that can be read in any order, from any thread.

    Attributes:
        name: what messages call it.
        length: how many examples there are.
        image_shape: height, width and channels of every image.
        class_names: the classes' names in the order of their labels; empty where there are no labels.
        read: indices int `[n]` in 0 .. length-1 to `{"image": uint8 [n h w c], "label": int32 [n]}`, 0 being every
            label where there are none; and as the columns were asked for "attributes" int32 `[n k]`, each in
            1 .. its number of values or 0 where it is not known, "text", `[n]` sentences or what encodes them,
            "style" uint8 `[n h w c]`, "map" uint8 `[n h w m]`. Raises `InputError` on an image that cannot be read.
        in_memory: whether `read` is a mere copy.
        attributes: of each of k attributes its name and its values' names.
        map_channels: m; 0 without maps.
        has_style: whether there are pictures of style.
        home: the folder where the data set lies, in which what is computed of it may be kept; None for arrays.
    """

    name: str
    length: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    read: Read
    in_memory: bool = False
    attributes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    map_channels: int = 0
    has_style: bool = False
    home: epath.Path | None = None

    def __len__(self) -> int:
        return self.length

    @property
    def num_classes(self) -> int:
        """How many classes there are; 0 without labels."""
        return len(self.class_names)

    @property
    def nbytes(self) -> int:
        """Bytes that all pixels take in memory, those of maps and of pictures of style too."""
        height, width, channels = self.image_shape
        return len(self) * height * width * (channels * (1 + self.has_style) + self.map_channels)


def from_arrays(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"] | None = None,
    class_names: Sequence[str] = (),
    *,
    name: str = "arrays",
) -> Source:
    """A source over arrays in memory. Without `labels` it has no classes; without names they are numbered.

    Raises:
        InputError: there are no images, or labels outside the classes.
    """
    require(len(images) > 0, f"{name} holds no images; at least 1 is needed")
    if labels is None:
        labels, class_names = np.zeros(len(images), np.int32), ()
    else:
        class_names = tuple(class_names) or tuple(str(label) for label in range(int(labels.max()) + 1))
        low, high, last = int(labels.min()), int(labels.max()), len(class_names) - 1
        require(
            low >= 0 and high <= last,
            f"the labels of {name} go from {low} to {high}; its {last + 1} classes need 0 .. {last}",
        )
    kept = labels.astype(np.int32)
    return Source(
        name=name,
        length=len(images),
        image_shape=(images.shape[1], images.shape[2], images.shape[3]),
        class_names=tuple(class_names),
        read=lambda indices: {"image": images[indices], "label": kept[indices]},
        in_memory=True,
    )


def cached(source: Source, limit: int = MEMORY_LIMIT) -> Source:
    """The same data set with everything decoded into memory, where its pixels take at most `limit` bytes.

    A larger one comes back as it is. The reading shows a progress bar on a terminal.

    Raises:
        InputError: an image cannot be read.
    """
    if source.in_memory or source.nbytes > limit:
        return source
    kept: dict[str, np.ndarray] = {}
    with tqdm(total=len(source), desc=f"reading {source.name}", unit=" images", disable=None) as bar:
        for start in range(0, len(source), CHUNK):
            chunk = source.read(np.arange(start, min(start + CHUNK, len(source))))
            count = len(chunk["label"])
            for key, values in chunk.items():
                rows = kept.setdefault(key, np.empty((len(source), *values.shape[1:]), values.dtype))
                rows[start : start + count] = values
            bar.update(count)

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        return {key: values[indices] for key, values in kept.items()}

    return dataclasses.replace(source, read=read, in_memory=True)


@cache
def pool() -> ThreadPoolExecutor:
    """The threads that decode images, shared by all sources; Pillow decodes outside the interpreter's lock."""
    return ThreadPoolExecutor(16, thread_name_prefix="decode")
