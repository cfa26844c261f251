"""CIFAR-10 in one file that a machine without TensorFlow Datasets can read, and images drawn in its place."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from guided_diffusion_jax import data
from guided_diffusion_jax.data.dataset import Dataset

CLASSES = 10

SIZE = 32
"""Height and width of the images."""

COLOURS = ((230, 60, 50), (60, 190, 80), (60, 90, 230), (240, 200, 60), (200, 80, 210))
"""Colours of the drawn shapes; two shapes in each make ten classes."""


class Examples(NamedTuple):
    """Images in memory, with their labels and where they are from."""

    images: UInt8[np.ndarray, "n h w 3"]
    labels: Int32[np.ndarray, " n"]
    source: str

    def dataset(self, size: int = SIZE, **conditions: Any) -> Dataset:
        """Data set of ten classes, of every k-th pixel where `size` is smaller; `conditions` as in `from_arrays`."""
        stride = self.images.shape[1] // size
        names = tuple(map(str, range(CLASSES)))
        return data.from_arrays(self.images[:, ::stride, ::stride], self.labels, names, name="images", **conditions)


def pack(path: Path, data_dir: str, count: int = 0) -> int:
    """Writes the first `count` training images of TFDS's CIFAR-10 (0: all), encoded as they are stored.

    The file holds `encoded`, the images' bytes one after another, `ends`, where each one ends, and `labels`.
    """
    import tensorflow_datasets as tfds  # only needed where the data set is prepared

    builder = tfds.builder("cifar10", data_dir=data_dir or None)
    source: Any = builder.as_data_source(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    examples = [source[i] for i in range(min(count or len(source), len(source)))]
    encoded = [example["image"] for example in examples]
    np.savez(
        path,
        encoded=np.frombuffer(b"".join(encoded), np.uint8),
        ends=np.cumsum([len(file) for file in encoded]),
        labels=np.array([example["label"] for example in examples], np.uint8),
    )
    return len(examples)


def read(path: Path) -> Examples:
    """Reads what `pack` has written, or any .npz with `images` (uint8, `[n 32 32 3]`) and `labels`."""
    with np.load(path, allow_pickle=False) as file:
        labels = file["labels"].astype(np.int32)
        if "images" in file.files:
            return Examples(file["images"], labels, str(path))
        encoded, ends = file["encoded"].tobytes(), file["ends"]
    starts = np.concatenate([[0], ends[:-1]])
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda part: _decode(encoded[part[0] : part[1]]), zip(starts, ends, strict=True)))
    return Examples(np.stack(images), labels, str(path))


def _decode(file: bytes) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def drawn(count: int, seed: int = 0) -> Examples:
    """Draws discs and squares in five colours at random places on dark grounds: ten classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count).astype(np.int32)
    radius = rng.uniform(4, 10, (count, 1, 1))
    x, y = np.abs(np.mgrid[:SIZE, :SIZE][:, None] - rng.uniform(8, SIZE - 8, (2, count, 1, 1)))
    disc, square = x**2 + y**2 <= radius**2, np.maximum(x, y) <= radius
    inside = np.where((labels % 2 == 0)[:, None, None], disc, square)[..., None]
    ground = rng.integers(0, 60, (count, 1, 1, 3))
    images = np.where(inside, np.array(COLOURS)[labels // 2][:, None, None], ground)
    return Examples(images.astype(np.uint8), labels, "drawn")


def write_grid(path: Path, images: UInt8[np.ndarray, "n h w 3"], columns: int = 10) -> None:
    """Writes the images in rows of `columns`, as a PNG."""
    rows = -(-len(images) // columns)
    padded = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    padded[: len(images)] = images
    _, h, w, c = images.shape
    grid = padded.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
    Image.fromarray(grid).save(path)
