"""Sentences as bytes, which need no vocabulary: every sentence of every language can be said.

A sentence is its UTF-8 bytes, padded with zeros to one length; the empty sentence is all zeros, which is the null of
`Conditions.text`. Beside the pictures of a folder their sentences stand in `captions.jsonl`, a line a picture:

```
{"file": "cat/1.png", "caption": "a cat asleep on a red chair"}
```

`file_name` and `text`, the names that Hugging Face's image folders use, do as well.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from guided_diffusion_jax.errors import InputError, require

CAPTIONS = "captions.jsonl"
SPELLINGS = (("file", "caption"), ("file_name", "text"))


def encode(sentences: Iterable[str], length: int) -> UInt8[np.ndarray, "n length"]:
    """The UTF-8 bytes of each sentence, 0 after its end; what `length` bytes do not hold is cut.

    The cut falls between two characters, and sentences are made `clean` first.

    >>> encode(["hé", ""], 4)
    array([[104, 195, 169,   0],
           [  0,   0,   0,   0]], dtype=uint8)
    >>> encode(["hé"], 2)
    array([[104,   0]], dtype=uint8)

    Raises:
        InputError: `length` is below 1.
    """
    require(length >= 1, f"a text of {length} bytes holds nothing; the length must be at least 1")
    kept = [_cut(clean(sentence).encode(), length) for sentence in sentences]
    padded = bytearray().join(text.ljust(length, b"\0") for text in kept)
    return np.frombuffer(padded, np.uint8).reshape(len(kept), length)


def decode(rows: UInt8[np.ndarray, "n length"]) -> list[str]:
    """The sentences of rows that `encode` made; bytes that are no UTF-8 become U+FFFD."""
    return [bytes(row).rstrip(b"\0").decode("utf-8", "replace") for row in rows]


def overflow(sentence: str, length: int) -> str:
    """What a warning says after "has" of a sentence that `encode` cuts; empty where it fits.

    >>> overflow("a cat on a chair", 8)
    "16 bytes of UTF-8, the model reads 8: the last 8 were cut: ' a chair'"
    """
    text = clean(sentence).encode()
    tail = text[len(_cut(text, length)) :]
    if not tail:
        return ""
    return (
        f"{len(text)} bytes of UTF-8, the model reads {length}: the last {len(tail)} were cut: {tail.decode('utf-8')!r}"
    )


def clean(sentence: str) -> str:
    """The sentence with what cannot be said replaced: NUL by a space, half a surrogate pair by a question mark.

    Such halves come out of JSON's escapes and of a command line that is no UTF-8.
    """
    return sentence.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")


def captions(folder: Any, files: Sequence[str]) -> list[str] | None:
    """The sentence of each of a folder's pictures, as its `captions.jsonl` gives them; None where there is none.

    Lines for pictures that are there but not among `files` are passed over; a caption may be empty.

    Args:
        folder: an `epath.Path`.
        files: the pictures, relative to the folder, with "/" between folders.

    Raises:
        InputError: a line cannot be read, names a picture twice or one that is not there, or a picture has no line.
    """
    path = folder / CAPTIONS
    if not path.exists():
        return None
    found = dict[str, str]()
    for line, data in enumerate(path.read_bytes().split(b"\n"), start=1):
        if data.strip():
            file, caption = _entry(data, f"{path} line {line}")
            require(file not in found, f"{path} line {line} names {file} again; one line a file")
            found[file] = caption
    known = set(files)
    gone = [file for file in found if file not in known and not (folder / file).exists()]
    require(not gone, f"{path} names {len(gone)} files that are not in {folder}, the first {(gone or [''])[0]}")
    bare = [file for file in files if file not in found]
    require(
        not bare,
        f"{path} lacks {len(bare)} of the {len(files)} images, the first {(bare or [''])[0]}; "
        'give each a line, with the caption "" where there is nothing to say',
    )
    return [found[file] for file in files]


def _cut(text: bytes, length: int) -> bytes:
    if len(text) <= length:
        return text
    # All before the cut is UTF-8, so only a character that it goes through is dropped.
    return text[:length].decode("utf-8", "ignore").encode("utf-8")


def _entry(data: bytes, where: str) -> tuple[str, str]:
    """The file and the caption that one line gives."""
    try:
        entry = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:  # of UTF-8 or of JSON
        raise InputError(f"{where} is no JSON in UTF-8: {error}") from error
    for names in SPELLINGS:
        if isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in names):
            return entry[names[0]].removeprefix("./"), entry[names[1]]
    text = data.decode("utf-8-sig").strip()
    raise InputError(f'{where} is {text[:80]}; it must be {{"file": "...", "caption": "..."}}')
