"""Batches for training and for metrics, as Grain data sets whose iterator state can be saved."""

import sys
from collections.abc import Iterator
from functools import lru_cache

import grain
import numpy as np
from jaxtyping import Int

from guided_diffusion_jax.data.augmentation import flip_batch
from guided_diffusion_jax.data.dataset import Dataset, as_inputs
from guided_diffusion_jax.errors import require

PREFETCH_BYTES = 256 * 1024**2
"""About how much memory prefetched batches take."""


def batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    flip: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Shuffled batches without end: `{"image": float32 [b h w c] in [-1, 1], "label": int32 [b]}`.

    The other conditions of the data set are there as well, images in [-1, 1].

    Each epoch has its own order and shows every example once; batches continue across its end, so that a batch
    larger than the data set repeats some images. The order of the examples depends on `seed` alone: the batches k of
    all processes, concatenated, are batch k of a single process with the same global batch size.

    The iterator's state (`get_state`, `set_state`, or Orbax through `grain.checkpoint.CheckpointSave`) is the number of
    batches it gave. An iterator of the same data set, seed and global batch size with this state continues bit for bit;
    these three are not part of the state and must be saved beside it.

    Of a data set of several shapes (`dataset.grouped`) a batch has one: an epoch shows every example of each shape, the
    last batch of which is filled up with further ones of the same shape, and the batches come in any order.

    Args:
        dataset: the data set; `cached` makes it faster.
        batch_size: images in a batch of this process.
        seed: of the order and the flips; 0 .. 2**32-1.
        flip: mirror half of the images with their control images, drawn anew each time (`augmentation.flip`).
        process_index: of this process, in 0 .. process_count-1.
        process_count: number of processes that share the data.

    Raises:
        InputError: a value out of its range. While iterating: an image that cannot be read.
    """
    require(batch_size >= 1, f"train.batch_size gives {batch_size} images to each process; at least 1 is needed")
    require(0 <= seed < 2**32, f"seed={seed} must lie in 0 .. {2**32 - 1}")
    require(0 <= process_index < process_count, f"process_index={process_index} must lie in 0 .. {process_count - 1}")

    whole = batch_size * process_count
    length = sum(-(-len(part) // whole) * whole for part in dataset.parts) or len(dataset)

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> Int[np.ndarray, " n"]:
        # RandomState, because NumPy promises never to change its stream: a newer NumPy must not break a resumed run.
        rng = np.random.RandomState(np.random.MT19937([seed, epoch]))
        if not dataset.parts:
            return rng.permutation(len(dataset))
        found, start = [], 0
        for part in dataset.parts:
            filled = np.resize(start + rng.permutation(len(part)), -(-len(part) // whole) * whole)
            found.append(filled.reshape(-1, whole))
            start += len(part)
        return rng.permutation(np.concatenate(found)).reshape(-1)

    def load(number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        places = (number * process_count + process_index) * batch_size + np.arange(batch_size)
        epochs, places = np.divmod(places, length)
        indices = np.concatenate([permutation(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        batch = dataset.read(indices)
        if flip:
            # Drawn for the batch of all processes, so that the images do not depend on their number.
            chosen = np.split(rng.random(batch_size * process_count) < 0.5, process_count)[process_index]
            batch = flip_batch(batch, chosen)
        return as_inputs({key: values for key, values in batch.items() if key != "mirrored"})

    # Numbers of batches, not of examples, run through Grain: its own shuffle and batch take them one by one, which for
    # 64 images costs 0.4 ms an example (grain 0.2.18) where this takes a microsecond.
    numbers = grain.MapDataset.range(sys.maxsize).seed(seed)
    return numbers.random_map(load).to_iter_dataset(_read_options(dataset, batch_size))


def examples(dataset: Dataset, *, batch_size: int, process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
    """Every example once and in order, in batches like those of `batches`; the last one may be smaller.

    Of several processes each gets its share, `process_index::process_count`.

    Raises:
        InputError: a value out of its range. While iterating: an image that cannot be read.
    """
    require(batch_size >= 1, f"batch_size={batch_size} must be at least 1")
    require(0 <= process_index < process_count, f"process_index={process_index} must lie in 0 .. {process_count - 1}")

    def load(indices: np.ndarray) -> dict[str, np.ndarray]:
        return as_inputs(dataset.read(indices))

    mine = grain.MapDataset.range(len(dataset))[process_index::process_count]
    return mine.batch(batch_size, drop_remainder=False).map(load).to_iter_dataset(_read_options(dataset, batch_size))


def numbered(
    data: Dataset, count: int, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Images 0 .. count-1 in order, in batches of one size, of which each process gets its part.

    Yields:
        Batches like `pipeline.batches`, with `number` int32 `[b]`, the index of each image, which determines its noise,
        and `weight` float32 `[b]`, 0 for the padding of the last batch.
    """
    size = batch_size // process_count
    for start in range(0, count, batch_size):
        number = start + process_index * size + np.arange(size, dtype=np.int32)
        batch = as_inputs(data.read(np.minimum(number, count - 1)))
        yield batch | {"number": number, "weight": (number < count).astype(np.float32)}


def _read_options(dataset: Dataset, batch_size: int) -> grain.ReadOptions:
    # A lazy data set decodes a batch's images in its own threads, so few batches at once keep all cores busy.
    batch_bytes = 4 * batch_size * int(np.prod(dataset.image_shape))
    ahead = int(np.clip(PREFETCH_BYTES // batch_bytes, 2, 16))
    return grain.ReadOptions(num_threads=1 if dataset.in_memory else 2, prefetch_buffer_size=ahead)
