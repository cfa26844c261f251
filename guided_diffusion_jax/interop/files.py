"""Files of weights: `.safetensors` is read and written; torch's `.pt` and `.pth` are read, without torch.

A `.pt` file is an uncompressed zip archive (torch's default since 1.6): NAME/data.pkl describes the tensors of a plain
state dict and NAME/data/KEY holds the numbers of each. Nothing in a file is run. Tensors are read one by one, when
they are used.
"""

import io
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.interop import pickled
from guided_diffusion_jax.interop.pickled import Damaged, LazyTensor, View
from guided_diffusion_jax.runtime.files import atomic_write

LOCAL_HEADER = b"PK\x03\x04"  # starts a zip archive
BEFORE_1_6 = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # starts torch's older files

Tensors = dict[str, LazyTensor]


@contextmanager
def opened(path: epath.PathLike) -> Iterator[Tensors]:
    """The tensors of a `.safetensors`, `.pt` or `.pth` file by name, to be read inside the `with`.

    All names, sizes and positions are checked on opening; the checksum of a `.pt`'s tensor when it is read.

    Raises:
        InputError: the file is missing, truncated or damaged, or a `.pt` holds anything but a plain state dict.
    """
    path = epath.Path(path)
    reader = choose(READERS, path.suffix, f"the ending of {path}")
    require(path.is_file(), f"{path} is no file")
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


@contextmanager
def _safetensors(path: epath.Path) -> Iterator[Tensors]:
    try:
        # "pread" frees each tensor after its use; pages of a memory-mapped file would stay.
        with _local(path) as local, safe_open(local, "np", backend="pread") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            yield {name: LazyTensor(shape, partial(file.get_tensor, name)) for name, shape in shapes.items()}
    except SafetensorError as error:
        raise Damaged(f"it is truncated, damaged or no .safetensors file: {error}") from None


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
    with path.open("rb") as file, _archive(file) as archive:
        yield _tensors(archive)


READERS = {".safetensors": _safetensors, ".pt": _pt, ".pth": _pt}


def _archive(file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        file.seek(0)
        start = file.read(len(BEFORE_1_6))
        if start == BEFORE_1_6:
            again = "torch.save(torch.load(old, weights_only=True), new)"
            raise Damaged(f"it has torch's format from before 1.6; re-save it with a newer torch: {again}.") from None
        if not start.startswith(LOCAL_HEADER):
            raise Damaged("it is no zip archive, so it is no file of torch's") from None
        raise Damaged("it is truncated: it ends without the directory of a zip archive; download it again.") from None


def _tensors(archive: zipfile.ZipFile) -> Tensors:
    infos = {info.filename: info for info in archive.infolist()}
    tops = [name.removesuffix("data.pkl") for name in infos if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(tops) != 1:
        raise Damaged("it holds no entry NAME/data.pkl, so it is no file of torch's")
    (top,) = tops
    if f"{top}byteorder" in infos and _read(archive, infos[f"{top}byteorder"]) != b"little":
        raise Damaged(f"entry {top}byteorder: only little-endian files are read")
    content = io.BytesIO(_read(archive, infos[f"{top}data.pkl"]))
    views = pickled.load(content, f"entry {top}data.pkl")
    return {name: _lazy(archive, infos, f"{top}data/{view.storage.key}", name, view) for name, view in views.items()}


def _lazy(
    archive: zipfile.ZipFile, infos: Mapping[str, zipfile.ZipInfo], entry: str, name: str, view: View
) -> LazyTensor:
    if entry not in infos:
        raise Damaged(f"entry {entry}, the numbers of {name}, is missing")
    info, wanted = infos[entry], view.storage.size * view.storage.dtype.itemsize
    if info.file_size != wanted:
        raise Damaged(f"entry {entry}, the numbers of {name}, has {info.file_size} bytes instead of {wanted}")
    return pickled.lazy(name, view, f"entry {entry}", lambda start, size: _read(archive, info, start, size))


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, start: int = 0, size: int | None = None) -> bytes:
    """Bytes of an entry; when they are all of it, their checksum is compared."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise Damaged(f"entry {info.filename} is compressed, which torch's files never are")
    size = info.file_size if size is None else size
    try:
        with archive.open(info) as entry:
            if start:
                entry.seek(start)
            numbers = entry.read(size)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise Damaged(f"entry {info.filename} is damaged: {error}") from None
    if len(numbers) != size:
        raise Damaged(f"entry {info.filename} is truncated: {len(numbers)} of {size} bytes")
    return numbers
