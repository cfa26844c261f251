"""Torch's `.pt` files of a plain state dict, read and written without torch and without running what they hold.

Such a file is a zip archive, uncompressed: NAME/data.pkl describes the tensors and NAME/data/KEY holds the numbers of
each. That is torch's default since 1.6; the format before is read by `legacy`. Tensors are read one by one, when they
are asked for.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.interop import legacy, pickled
from guided_diffusion_jax.interop.pickled import Storage, View
from guided_diffusion_jax.interop.tensors import Damaged, Stored
from guided_diffusion_jax.runtime import files

LOCAL_HEADER = b"PK\x03\x04"
ALIGNMENT = 64
"""Bytes; where torch's own files start each entry's numbers, so that they can be memory-mapped."""


@contextmanager
def opened(path: epath.PathLike) -> Iterator[dict[str, Stored]]:
    """The tensors of a `.pt` file by name, to be read inside the `with`.

    Every name, size and place is checked here, before any of the numbers is read; a checksum, when it is.

    Raises:
        InputError: the file is truncated or damaged, or holds anything but a plain state dict; the message names the
            entry.
    """
    path = epath.Path(path)
    require(path.is_file(), f"{path} is no file")
    with path.open("rb") as file:
        try:
            if legacy.begins(file):
                yield legacy.tensors(file)
            else:
                with _archive(file) as archive:
                    yield _tensors(archive)
        except Damaged as error:
            raise InputError(f"{path}: {error}") from None


def write(path: epath.PathLike, state_dict: Mapping[str, Any]) -> None:
    """Writes a `.pt` file that `torch.load(path, weights_only=True)` reads; whole or not at all.

    Args:
        path: of the file.
        state_dict: names to arrays of any strides, which are converted and written one by one.
    """
    top = epath.Path(path).stem or "archive"
    views = [(name, _whole(str(key), array)) for key, (name, array) in enumerate(state_dict.items())]
    with files.atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write_entry(archive, f"{top}/data.pkl", pickled.dump(views))
        _write_entry(archive, f"{top}/byteorder", b"little")
        for (_, view), array in zip(views, state_dict.values(), strict=True):
            numbers = np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8)
            _write_entry(archive, f"{top}/data/{view.storage.key}", numbers)
        _write_entry(archive, f"{top}/version", b"3\n")


# --- reading


def _archive(file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        file.seek(0)
        if file.read(len(LOCAL_HEADER)) != LOCAL_HEADER:
            raise Damaged("it is no zip archive and not in torch's older format, so it is no file of torch's") from None
        raise Damaged(
            f"it is truncated or damaged: it ends in or after entry {_last_entry(file)}, without the archive's "
            "directory; download it again."
        ) from None


def _tensors(archive: zipfile.ZipFile) -> dict[str, Stored]:
    infos = {info.filename: info for info in archive.infolist()}
    tops = [name.removesuffix("data.pkl") for name in infos if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(tops) != 1:
        raise Damaged("it holds no entry NAME/data.pkl, so it is no file of torch's")
    (top,) = tops
    if f"{top}byteorder" in infos and _read(archive, infos[f"{top}byteorder"]) != b"little":
        raise Damaged(f"entry {top}byteorder: only little-endian files are read")
    content = io.BytesIO(_read(archive, infos[f"{top}data.pkl"]))
    views = pickled.load_views(content, f"entry {top}data.pkl")
    return {name: _stored(archive, infos, f"{top}data/{view.storage.key}", name, view) for name, view in views.items()}


def _stored(
    archive: zipfile.ZipFile, infos: Mapping[str, zipfile.ZipInfo], entry: str, name: str, view: View
) -> Stored:
    if entry not in infos:
        raise Damaged(f"entry {entry}, the numbers of {name}, is missing")
    info, wanted = infos[entry], view.storage.size * view.storage.dtype.itemsize
    if info.file_size != wanted:
        raise Damaged(f"entry {entry}, the numbers of {name}, has {info.file_size} bytes instead of {wanted}")
    return pickled.stored(name, view, f"entry {entry}", lambda start, size: _read(archive, info, start, size))


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


def _last_entry(file: BinaryIO, block: int = 1 << 20) -> str:
    """The name of the last entry that begins in a file without a directory, searched from its end."""
    end, overlap = file.seek(0, io.SEEK_END), 1024
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        text = file.read(end - start + overlap)
        at = text.rfind(LOCAL_HEADER)
        while at >= 0:
            length = int.from_bytes(text[at + 26 : at + 28], "little")
            name = text[at + 30 : at + 30 + length]
            if len(name) == length and b"/" in name and name.isascii() and name.decode().isprintable():
                return name.decode()
            at = text.rfind(LOCAL_HEADER, 0, at)
        end = start
    return "1"


# --- writing


def _whole(key: str, array: Any) -> View:
    """A contiguous array in a storage of its own."""
    shape = tuple(int(n) for n in array.shape)
    strides = tuple(int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))
    size = int(np.prod(shape, dtype=np.int64))
    return View(Storage(key, np.dtype(array.dtype), size), 0, shape, strides)


def _write_entry(archive: zipfile.ZipFile, name: str, content: Any) -> None:
    info = zipfile.ZipInfo(name)
    # An extra field "FB" of zeros, as torch has it, moves the content to a multiple of the alignment.
    header = archive.fp.tell() + 30 + len(name.encode()) + 4  # type: ignore[union-attr]
    padding = -header % ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
    archive.writestr(info, content)
