"""`.safetensors` files, read and written one tensor at a time.

The format: the header's length in 8 bytes, little-endian; a header of JSON that gives each tensor's type, shape and
place; the numbers (https://huggingface.co/docs/safetensors).
"""

import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from etils import epath

from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.interop.tensors import Stored
from guided_diffusion_jax.runtime import files

DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}
"""The format's names of types."""
LIMIT = 100_000_000
"""Bytes of the longest header that the format allows."""


@contextmanager
def opened(path: epath.PathLike) -> Iterator[dict[str, Stored]]:
    """The tensors of a file by name, to be read inside the `with`.

    Raises:
        InputError: the file is truncated or no `.safetensors`; the message names the tensor.
    """
    path = epath.Path(path)
    require(path.is_file(), f"{path} is no file")
    with path.open("rb") as file:
        header, start = _header(file, path)
        end = file.seek(0, io.SEEK_END)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        yield {name: _stored(file, path, start, end, name, entry) for name, entry in entries.items()}


def write(path: epath.PathLike, state_dict: Mapping[str, Any]) -> None:
    """Writes a `.safetensors` file, whole or not at all.

    Args:
        path: of the file.
        state_dict: names to arrays of any strides, which are converted and written one by one.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in state_dict.items():
        dtype, shape = np.dtype(array.dtype), [int(n) for n in array.shape]
        require(dtype in names, f"{name}: .safetensors has no type for {dtype}")
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with files.atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in state_dict.values():
            file.write(np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8))


def _header(file: BinaryIO, path: epath.Path) -> tuple[dict[str, Any], int]:
    """The header, and where the numbers begin."""
    size = int.from_bytes(file.read(8), "little")
    text = file.read(size) if size <= LIMIT else b""
    require(0 < size == len(text), f"{path} is truncated, or no .safetensors file: its header is incomplete")
    try:
        header = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is no .safetensors file: its header is no JSON: {error}") from None
    require(isinstance(header, dict), f"{path} is no .safetensors file: its header is no object")
    return header, 8 + size


def _stored(file: BinaryIO, path: epath.Path, start: int, end: int, name: str, entry: Any) -> Stored:
    try:
        dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(type(n) is int and n >= 0 for n in (*shape, first, last))
        size = math.prod(shape) * DTYPES[dtype].itemsize
    except (KeyError, TypeError, ValueError):
        sound, size, first, last = False, 0, 0, 0
    require(sound and last - first == size, f"{path}: the header's entry for {name} is wrong: {entry}")
    require(start + last <= end, f"{path} is truncated: it ends before or in {name}")

    def read() -> np.ndarray:
        file.seek(start + first)
        return np.frombuffer(file.read(size), DTYPES[dtype]).reshape(shape)

    return Stored(shape, DTYPES[dtype], read)
