"""Batches for training and for metrics, as Grain data sets whose iterators' place can be saved."""

import sys
from functools import lru_cache

import grain
import numpy as np
from jaxtyping import Int

from guided_diffusion_jax.data.images import flip as flip_images
from guided_diffusion_jax.data.images import to_float
from guided_diffusion_jax.data.source import Source
from guided_diffusion_jax.errors import require

PICTURES = ("image", "style", "map")
"""The keys of a batch that hold pictures."""

PREFETCH_BYTES = 256 * 1024**2
"""About how much memory the batches take that are made ahead."""


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    flip: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Shuffled batches without end: `{"image": float32 [b h w c] in [-1, 1], "label": int32 [b]}`.

    What else the source reads is there as well, its pictures in [-1, 1].

    Each epoch has its own order and shows every example once; batches run on across its end, so that a batch larger
    than the data set repeats some images. There is one stream of examples, and its order depends on `seed` alone: the
    batches k of all processes, one after the other, are batch k of a single process with the same global batch size.

    The iterator's state (`get_state`, `set_state`, or Orbax through `grain.checkpoint.CheckpointSave`) is the number of
    batches given out. Set in an iterator of the same source, seed and global batch size, it goes on bit for bit; these
    three are not part of it, so whoever saves it keeps them too.

    Args:
        source: the data set; `cached` makes it faster.
        batch_size: images in a batch of this process.
        seed: decides the order and the flips; 0 .. 2**32-1.
        flip: mirror half of the images with their maps, drawn anew each time.
        process_index: this process, in 0 .. process_count-1.
        process_count: how many processes share the data.

    Raises:
        InputError: a value out of its range. While iterating: an image that cannot be read.
    """
    require(batch_size >= 1, f"train.batch_size gives {batch_size} images to each process; at least 1 is needed")
    require(0 <= seed < 2**32, f"seed={seed} must lie in 0 .. {2**32 - 1}")
    require(0 <= process_index < process_count, f"process_index={process_index} must lie in 0 .. {process_count - 1}")

    @lru_cache(maxsize=2)
    def permutation(epoch: int) -> Int[np.ndarray, " n"]:
        # RandomState, because NumPy promises never to change its stream: a newer NumPy must not break a resumed run.
        return np.random.RandomState(np.random.MT19937([seed, epoch])).permutation(len(source))

    def load(number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        places = (number * process_count + process_index) * batch_size + np.arange(batch_size)
        epochs, places = np.divmod(places, len(source))
        indices = np.concatenate([permutation(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        batch = source.read(indices)
        if flip:
            # Drawn for the batch of all processes, so that the pictures do not depend on how many there are.
            chosen = np.split(rng.random(batch_size * process_count) < 0.5, process_count)[process_index]
            batch |= {key: flip_images(batch[key], chosen) for key in ("image", "map") if key in batch}
        return as_inputs(batch)

    # Numbers of batches, not of examples, run through Grain: its own shuffle and batch take them one by one, which for
    # 64 images costs 0.4 ms an example (grain 0.2.18) where this takes a microsecond.
    numbers = grain.MapDataset.range(sys.maxsize).seed(seed)
    return numbers.random_map(load).to_iter_dataset(_reading(source, batch_size))


def examples(source: Source, *, batch_size: int, process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
    """Every example once and in order, in batches like those of `batches`; the last one may be smaller.

    With several processes each has its share, `process_index::process_count`.

    Raises:
        InputError: a value out of its range. While iterating: an image that cannot be read.
    """
    require(batch_size >= 1, f"batch_size={batch_size} must be at least 1")
    require(0 <= process_index < process_count, f"process_index={process_index} must lie in 0 .. {process_count - 1}")

    def load(indices: np.ndarray) -> dict[str, np.ndarray]:
        return as_inputs(source.read(indices))

    mine = grain.MapDataset.range(len(source))[process_index::process_count]
    return mine.batch(batch_size, drop_remainder=False).map(load).to_iter_dataset(_reading(source, batch_size))


def as_inputs(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `Source.read` gives, with its pictures in [-1, 1]."""
    return {key: to_float(values) if key in PICTURES else values for key, values in batch.items()}


def _reading(source: Source, batch_size: int) -> grain.ReadOptions:
    # A lazy source decodes a batch's images in its own threads, so few batches at once keep all cores busy.
    batch_bytes = 4 * batch_size * int(np.prod(source.image_shape))
    ahead = int(np.clip(PREFETCH_BYTES // batch_bytes, 2, 16))
    return grain.ReadOptions(num_threads=1 if source.in_memory else 2, prefetch_buffer_size=ahead)
