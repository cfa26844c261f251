"""One entry for every data set: the name and folder that a config gives, to a `Source`."""

import dataclasses
from collections.abc import Callable

import numpy as np
from etils import epath

from guided_diffusion_jax.data import text
from guided_diffusion_jax.data.folders import folder_source
from guided_diffusion_jax.data.records import tfds_source
from guided_diffusion_jax.data.sentences import Encoder, embedded
from guided_diffusion_jax.data.source import CHUNK, MEMORY_LIMIT, NO_COLUMNS, Columns, Source, cached
from guided_diffusion_jax.errors import require


def open_source(
    name: str,
    *,
    split: str = "train",
    image_size: int,
    data_dir: str = "",
    columns: Columns = NO_COLUMNS,
    read_text: Callable[[Source], Source] = lambda source: source,
    memory_limit: int = MEMORY_LIMIT,
) -> Source:
    """The data set: in memory when its pixels fit into `memory_limit` bytes, decoded while it is read otherwise.

    Args:
        name: "folder", one of ours ("digits", "shapes/16"), or any image data set of TFDS.
        split: "train", "test", or for TFDS any of its expressions, such as "train[:90%]".
        image_size: height and width of the images in pixels.
        data_dir: the folder of images; or where TFDS's prepared data sets lie, empty for TFDS's own folder.
        columns: the features that become further conditions.
        read_text: turns sentences into what a network reads: `as_bytes` or `as_embedded`.
        memory_limit: bytes of pixels up to which everything is decoded at once; 0 for never.

    Raises:
        InputError: the data set cannot be had, lacks the split or a column, or an image of it cannot be read.
    """
    require(image_size >= 1, f"data.image_size={image_size} must be at least 1 pixel")
    if name == "folder":
        source = folder_source(data_dir, split=split, image_size=image_size, columns=columns)
    else:
        source = tfds_source(name, split=split, image_size=image_size, data_dir=data_dir, columns=columns)
    source = cached(source, memory_limit)
    # After it: what an encoder makes of sentences can be a hundred times as large as the pixels, and lies on disk.
    return read_text(source) if columns.text else source


def as_bytes(source: Source, length: int) -> Source:
    """The data set with its sentences as so many bytes each, uint8 `[n length]`."""
    return _with_text(source, lambda batch, indices: text.encode(batch["text"], length))


def as_embedded(source: Source, encoder: Encoder) -> Source:
    """The data set with its sentences as a pre-trained encoder reads them, float32 `[n length d]`.

    What it makes of them is computed once and kept in a folder beside the data set's files.

    Raises:
        InputError: the encoder cannot be had.
    """
    captions = [c for i in range(0, len(source), CHUNK) for c in _texts(source, i)]
    kept = embedded(captions, encoder, (source.home or epath.Path(".")) / "embedded_captions")
    return _with_text(source, lambda batch, indices: kept.rows(indices))


def _texts(source: Source, start: int) -> list[str]:
    return list(source.read(np.arange(start, min(start + CHUNK, len(source))))["text"])


def _with_text(source: Source, made: Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray]) -> Source:
    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = source.read(indices)
        return batch | {"text": made(batch, indices)}

    return dataclasses.replace(source, read=read)
