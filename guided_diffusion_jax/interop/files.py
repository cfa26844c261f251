"""Files of weights: `.safetensors` is read and written; torch's `.pt` and `.pth` are read, without torch.

A `.pt` file is an uncompressed zip archive (torch's default since 1.6): NAME/data.pkl describes the tensors of a plain
state dict and NAME/data/KEY holds the numbers of each. Nothing in a file is run. Tensors are read one by one, when
they are used.
"""

import itertools
import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from guided_diffusion_jax.errors import InputError, choose, one_line, require, shown
from guided_diffusion_jax.interop import foreign, limits, pickled
from guided_diffusion_jax.interop.pickled import Damaged, LazyTensor, View
from guided_diffusion_jax.runtime.files import atomic_write, is_regular

LOCAL_HEADER = b"PK\x03\x04"  # starts a zip archive, and each of its entries
LOCAL = struct.Struct("<4s5H3L2H")  # and so it goes on
BEFORE_1_6 = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # starts torch's older files
HEAD = 512  # bytes that a file is recognized by

Tensors = dict[str, LazyTensor]


@contextmanager
def opened(path: epath.PathLike) -> Iterator[Tensors]:
    """The tensors of a `.safetensors` file, or of one of torch's, by name, to be read inside the `with`.

    All names, sizes and positions are checked on opening, within `limits`; the checksum of a `.pt`'s tensor when it is
    read.

    Raises:
        InputError: the file is missing, truncated or damaged, or a `.pt` holds anything but a plain state dict; it
            says what a file of another kind seems to be.
    """
    path = epath.Path(path)
    found = foreign.content(_head(path)) if path.suffix not in READERS and is_regular(path) else None
    require(found is None, f"{path}: it seems to be {found}; weights are read of {', '.join(READERS)}")
    reader = choose(READERS, path.suffix, f"the ending of {path}")
    require(is_regular(path), f"{path} is no file")
    try:
        with reader(path) as tensors:
            yield tensors
    except Damaged as error:
        raise InputError(f"{path}: {error}") from None


def check_writable(path: epath.PathLike) -> None:
    """Raises `InputError` unless the path ends in `.safetensors`, the only format that is written."""
    path = epath.Path(path)
    require(
        path.suffix == ".safetensors",
        f"{path}: weights are written as .safetensors only; use {path.with_suffix('.safetensors').name}, "
        "which torch reads with safetensors.torch.load_file.",
    )


def write(path: epath.PathLike, state_dict: Mapping[str, Any]) -> None:
    """Writes a `.safetensors` file, atomically.

    Args:
        path: local or remote.
        state_dict: names to arrays of any strides.
    """
    check_writable(path)
    # The library writes an array's memory as it is, whatever its strides.
    arrays = {name: np.asarray(array, order="C") for name, array in state_dict.items()}
    with atomic_write(path) as file:
        file.write(save(arrays, {"format": "pt"}))


def _head(path: epath.Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


# --- .safetensors

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""Types of numbers of safetensors, and NumPy's."""


@contextmanager
def _safetensors(path: epath.Path) -> Iterator[Tensors]:
    try:
        # "pread" frees each tensor after its use; pages of a memory-mapped file would stay.
        with _local(path) as local:
            _check_header_size(local)
            with safe_open(local, "np", backend="pread") as file:
                _check_header(local)
                yield {name: _slice(file, name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        found = foreign.content(_head(path)) or ".safetensors"
        guess = "" if ".safetensors" in found else f"; it seems to be {found}"
        fault = one_line(str(error).removeprefix("Error while deserializing header: "), 120)
        raise Damaged(f"it is truncated, damaged or no .safetensors file: {fault}{guess}") from None


def _slice(file: Any, name: str) -> LazyTensor:
    stored = file.get_slice(name)
    dtype, shape = stored.get_dtype(), tuple(stored.get_shape())
    if dtype not in DTYPES:
        raise Damaged(f"{shown(name)} is of type {dtype}, which is not read; convert it to F32")
    if len(shape) > limits.DIMENSIONS:
        raise Damaged(f"{shown(name)} has {len(shape)} dimensions")
    return LazyTensor(shape, partial(file.get_tensor, name), jnp.dtype(DTYPES[dtype]))


def _check_header_size(path: str) -> None:
    """The library reads headers of up to 100 MB."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    # A header that is longer than the file is no header; the library says so.
    if limits.description(size) < header <= size:
        raise Damaged(f"it has a header of {header:,} bytes, more than any list of tensors needs")


def _check_header(path: str) -> None:
    """What the library does not check, of a header that it has read: that no name comes twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in pairs:
            if name in values:
                raise Damaged(f"{shown(repr(name))} comes twice in its header")
            values[name] = value
        return values

    with open(path, "rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    try:
        json.loads(header, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"its header is no JSON: {error}") from None


@contextmanager
def _local(path: epath.Path) -> Iterator[str]:
    """The path of a local file; a remote file is copied to a temporary one."""
    if os.path.isfile(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield os.fspath(path.copy(epath.Path(folder) / path.name))


# --- .pt


@contextmanager
def _pt(path: epath.Path) -> Iterator[Tensors]:
    size = path.stat().length
    with path.open("rb") as file, _archive(file, size) as archive:
        yield _tensors(archive, size)


READERS: dict[str, Callable[[epath.Path], AbstractContextManager[Tensors]]] = {
    ".safetensors": _safetensors, ".pt": _pt, ".pth": _pt, ".ckpt": _pt, ".bin": _pt,
}  # fmt: skip
"""Reader of each ending."""


class _Directory:
    """A file whose zip directory is being read: no more is taken of it at once than a directory may have."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.open = file, size, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def read(self, count: int = -1) -> bytes:
        most = self.size if self.open else limits.description(self.size)
        wanted = self.size - self.file.tell() if count < 0 else count
        if wanted > most:
            raise Damaged(f"its zip archive has a directory of {wanted:,} bytes, more than any list of tensors needs")
        return self.file.read(count)


def _archive(file: BinaryIO, size: int) -> zipfile.ZipFile:
    start = file.read(HEAD)
    if not start.startswith(LOCAL_HEADER):
        if start.startswith(BEFORE_1_6):
            again = "torch.save(torch.load(old, weights_only=True), new)"
            raise Damaged(f"it has torch's format from before 1.6; re-save it with a newer torch: {again}.")
        found = foreign.content(start) or ("empty" if not start else None)
        guess = f": it seems to be {found}" if found else ""
        raise Damaged(f"it is no zip archive, so it is no file of torch's{guess}")
    directory = _Directory(file, size)
    try:
        archive = zipfile.ZipFile(directory)  # type: ignore[arg-type]
    except Damaged:
        raise
    except Exception:  # zipfile lets through whatever a damaged number leads to
        raise Damaged("it is truncated: it ends without the directory of a zip archive; download it again.") from None
    directory.open = True
    return archive


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries of an archive by name, none of which comes twice, or reaches into another or the directory."""
    infos = {info.filename: info for info in archive.infolist()}
    if len(infos) < len(archive.infolist()):
        names = sorted(info.filename for info in archive.infolist())
        twice = next(name for name, other in itertools.pairwise(names) if name == other)
        raise Damaged(f"entry {shown(twice)} comes twice")
    ordered = sorted(infos.values(), key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in ordered[1:]), archive.start_dir]
    for info, end in zip(ordered, ends, strict=True):
        if info.header_offset + LOCAL.size + info.compress_size > end:
            raise Damaged(f"entry {shown(info.filename)} claims {info.compress_size:,} bytes, more than are there")
    return infos


def _tensors(archive: zipfile.ZipFile, size: int) -> Tensors:
    infos = _entries(archive)
    tops = [name.removesuffix("data.pkl") for name in infos if name.endswith("/data.pkl") and name.count("/") == 1]
    found = foreign.archive(infos)
    if len(tops) != 1 or found:
        guess = f": it seems to be {found}" if found else ""
        raise Damaged(f"it holds no entry NAME/data.pkl of a state dict, so it is no file of torch's{guess}")
    (top,) = tops
    order = infos.get(f"{top}byteorder")
    if order and _read(archive, order, size=min(order.file_size, 10)) != b"little":
        raise Damaged(f"entry {shown(top)}byteorder: only little-endian files are read")
    pickle = infos[f"{top}data.pkl"]
    if pickle.file_size > limits.description(size):
        raise Damaged(f"entry {shown(pickle.filename)} has {pickle.file_size:,} bytes, more than any list of tensors")
    views = pickled.load(_read(archive, pickle), f"entry {shown(top)}data.pkl")
    tensors = {name: _lazy(archive, infos, f"{top}data/{view.storage.key}", name, view) for name, view in views.items()}
    for name, tensor in tensors.items():
        if tensor.nbytes > limits.tensor(size):
            raise Damaged(f"{shown(name)} has {tensor.nbytes:,} bytes, more than the file")
    return tensors


def _lazy(
    archive: zipfile.ZipFile, infos: Mapping[str, zipfile.ZipInfo], entry: str, name: str, view: View
) -> LazyTensor:
    said = f"entry {shown(entry)}"
    if entry not in infos:
        raise Damaged(f"{said}, the numbers of {shown(name)}, is missing")
    info, wanted = infos[entry], view.storage.size * view.storage.dtype.itemsize
    if info.file_size != wanted:
        raise Damaged(f"{said}, the numbers of {shown(name)}, has {info.file_size} bytes instead of {wanted}")
    return pickled.lazy(name, view, said, lambda start, size: _read(archive, info, start, size))


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, start: int = 0, size: int | None = None) -> bytes:
    """Bytes of an entry; when they are all of it, their checksum is compared."""
    entry = f"entry {shown(info.filename)}"
    if info.compress_type != zipfile.ZIP_STORED:
        raise Damaged(f"{entry} is compressed, which torch's files never are")
    size = info.file_size if size is None else size
    try:
        _check_local_header(archive, info)
        with archive.open(info) as opened:
            if start:
                opened.seek(start)
            numbers = opened.read(size)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Damaged(f"{entry} is damaged: {error}") from None
    if len(numbers) != size:
        raise Damaged(f"{entry} is truncated: {len(numbers)} of {size} bytes")
    return numbers


def _check_local_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """An entry's own header must have the sizes that the directory has, which alone `zipfile` believes."""
    if info.file_size != info.compress_size:
        raise zipfile.BadZipFile(f"{info.compress_size} bytes are stored instead of {info.file_size}")
    file = archive.fp
    assert file is not None
    file.seek(info.header_offset)
    *_, flags, _, _, _, _, stored, size, _, _ = LOCAL.unpack(file.read(LOCAL.size))
    elsewhere = flags & 8 or size == 0xFFFFFFFF  # they follow the numbers, or are in a zip64 field
    if not elsewhere and (stored, size) != (info.compress_size, info.file_size):
        raise zipfile.BadZipFile(f"its header has {size} bytes, and the directory {info.file_size}")
