"""Text encoders: captions and prompts as arrays, and the encoded captions of a data set, computed once and cached.

`ByteTextEncoder` needs no vocabulary and represents every language: a caption is its UTF-8 bytes, padded with zeros.
For every encoder the empty caption is all zeros, the null of the condition "text".
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Float16, Float32, Int, Shaped, UInt8
from tqdm import tqdm

from guided_diffusion_jax.data import row_files
from guided_diffusion_jax.data.dataset import CHUNK, Dataset
from guided_diffusion_jax.errors import InputError, require

BATCH = 64
"""Captions that are encoded at a time."""


@runtime_checkable
class TextEncoder(Protocol):
    """Turns captions into what a network reads."""

    @property
    def length(self) -> int:
        """Number of bytes or tokens that are read of a caption."""

    @property
    def identity(self) -> str:
        """Differs for encoders that encode differently."""

    @property
    def cached(self) -> bool:
        """Whether the encoded captions of a data set are stored (see `encode_text`)."""

    def encode(self, captions: Sequence[str]) -> Shaped[np.ndarray, "n length ..."]:
        """Encodes n captions: zeros after the end of each; longer ones are truncated."""

    def overflow(self, caption: str) -> str:
        """What is lost of a caption that is too long, to complete "The caption has ..."; empty if it fits."""


@dataclasses.dataclass(frozen=True)
class ByteTextEncoder:
    """The first `length` bytes of a caption's UTF-8.

    >>> ByteTextEncoder(4).encode(["hé", ""])
    array([[104, 195, 169,   0],
           [  0,   0,   0,   0]], dtype=uint8)

    Raises:
        InputError: `length` is below 1.
    """

    length: int
    cached = False
    identity = "bytes"

    def __post_init__(self) -> None:
        require(self.length >= 1, f"a text of {self.length} bytes holds nothing; the length must be at least 1")

    def encode(self, captions: Iterable[str]) -> UInt8[np.ndarray, "n length"]:
        """The bytes of each caption, 0 after its end. Truncates between two characters; captions are `clean`ed."""
        rows = [_truncate(clean(caption).encode(), self.length).ljust(self.length, b"\0") for caption in captions]
        return np.frombuffer(bytearray().join(rows), np.uint8).reshape(len(rows), self.length)

    def decode(self, rows: UInt8[np.ndarray, "n length"]) -> list[str]:
        """The captions of encoded rows; bytes that are not UTF-8 become U+FFFD."""
        return [bytes(row).rstrip(b"\0").decode("utf-8", "replace") for row in rows]

    def overflow(self, caption: str) -> str:
        """What is lost of a caption that is too long.

        >>> ByteTextEncoder(8).overflow("a cat on a chair")
        "16 bytes of UTF-8, the model reads 8: the last 8 were cut: ' a chair'"
        """
        text = clean(caption).encode()
        tail = text[len(_truncate(text, self.length)) :]
        lost = f"the last {len(tail)} were cut: {tail.decode()!r}"
        return f"{len(text)} bytes of UTF-8, the model reads {self.length}: {lost}" if tail else ""


TEXT_ENCODERS: dict[str, Callable[[int], TextEncoder]] = {"bytes": ByteTextEncoder}
"""Text encoders by name, made from their length; every other name is a model of the package transformers."""


@functools.lru_cache(maxsize=4)  # a second one of the same name would load its model again, which takes seconds
def text_encoder(name: str, length: int) -> TextEncoder:
    """The text encoder of this name, "bytes" or that of a model for `PretrainedTextEncoder`.

    Raises:
        InputError: there is no name, or `length` is below 1.
    """
    if name in TEXT_ENCODERS:
        return TEXT_ENCODERS[name](length)
    from guided_diffusion_jax.data.pretrained_text import PretrainedTextEncoder

    return PretrainedTextEncoder(name, length)


def clean(caption: str) -> str:
    """Replaces what UTF-8 or the padding cannot represent: NUL by a space, half a surrogate pair by a question mark.

    Such halves come from JSON escapes and from a command line that is not UTF-8.
    """
    return caption.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")


def encode_text(dataset: Dataset, encoder: TextEncoder | None) -> Dataset:
    """The data set with its captions encoded, `[n length ...]`, or left out where there is no encoder.

    An encoder that is `cached` encodes all captions once, into a file in the data set's folder. A data set whose
    captions are encoded already stays as it is.

    Raises:
        InputError: the encoder cannot be used, or the file cannot be written.
    """
    if dataset.raw is not None:
        return dataset

    def captions(indices: np.ndarray) -> list[str]:
        return dataset.read(indices)["text"].tolist()

    if encoder is not None and encoder.cached:
        starts = range(0, len(dataset), CHUNK)
        every = [c for i in starts for c in captions(np.arange(i, min(i + CHUNK, len(dataset))))]
        encoded = cached_captions(every, encoder, (dataset.home or epath.Path(".")) / "embedded_captions").rows

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = dict(dataset.read(indices))
        given = batch.pop("text", None)
        if given is not None and encoder is not None:
            batch["text"] = encoded(indices) if encoder.cached else encoder.encode(given.tolist())
        return batch

    return dataclasses.replace(dataset, read=read, raw=dataset)


@dataclasses.dataclass(frozen=True)
class CachedCaptions:
    """The encodings of n captions, each distinct caption stored once.

    Attributes:
        table: float16 `[u length width]`, of the distinct captions, memory-mapped where the file is local.
        index: int `[n]`, the row of each caption in `table`.
    """

    table: Float16[np.ndarray, "u length width"]
    index: Int[np.ndarray, " n"]

    def rows(self, indices: Int[np.ndarray, " k"]) -> Float32[np.ndarray, "k length width"]:
        """The encodings of these captions, indices in 0 .. n-1. Safe to call from any thread."""
        return np.asarray(self.table[self.index[indices]], np.float32)


def cached_captions(captions: Iterable[str], encoder: TextEncoder, folder: epath.PathLike) -> CachedCaptions:
    """The encodings of captions, from a file in `folder` that is computed where it is missing.

    The file's name is a digest of encoder, length and captions, so that data sets and encoders may share a folder, and
    a run that finds its file loads no model. Several processes may call this at once; each then computes the file.
    Shows a progress bar on a terminal.

    Args:
        captions: n captions; "" where there is none.
        encoder: gives float arrays `[n length width]`.
        folder: on a disk or `gs://`, made where missing; from the latter the file is read into memory.

    Raises:
        InputError: there are no captions, the encoder cannot be used, or `folder` cannot be written to.
    """
    captions = list(map(str, captions))
    require(len(captions) > 0, "there are no captions to encode; at least 1 is needed")
    # Sorted by length, so that the captions of one batch need little padding.
    distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))
    row = {caption: number for number, caption in enumerate(distinct)}
    settings = json.dumps([encoder.identity, encoder.length, distinct])
    path = epath.Path(folder) / f"captions-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        row_files.write(path, len(distinct), _encodings(distinct, encoder))
    return CachedCaptions(row_files.read(path), np.array([row[caption] for caption in captions]))


def cached_anywhere(captions: Iterable[str], encoder: TextEncoder, places: Iterable[epath.Path]) -> CachedCaptions:
    """`cached_captions` in `embedded_captions/` of the first place that can be written to; in memory without one."""
    captions = list(map(str, captions))
    for place in places:
        try:
            return cached_captions(captions, encoder, place / "embedded_captions")
        except InputError as error:
            if not isinstance(error.__cause__, OSError):
                raise
    distinct, which = np.unique(np.array(captions, object), return_inverse=True)
    rows = [encoder.encode(list(distinct[i : i + BATCH])) for i in range(0, len(distinct), BATCH)]
    return CachedCaptions(np.concatenate(rows).astype(np.float16), which)


def _encodings(captions: list[str], encoder: TextEncoder) -> Iterator[np.ndarray]:
    with tqdm(total=len(captions), desc="captions", disable=None) as bar:
        for start in range(0, len(captions), BATCH):
            rows = encoder.encode(captions[start : start + BATCH])
            yield rows
            bar.update(len(rows))


def _truncate(text: bytes, length: int) -> bytes:
    # All before the cut is UTF-8, so only a character that it splits is dropped.
    return text if len(text) <= length else text[:length].decode("utf-8", "ignore").encode()
