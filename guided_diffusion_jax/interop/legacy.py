"""Torch's format from before 1.6. OpenAI's 256x256_diffusion_uncond.pt has it, by its size in bytes: a zip is larger.

Five pickles, one after the other: a magic number, the format's version, the machine, the state dict and the list of its
storages' keys. Then for each key, in the list's order: the number of elements in 8 bytes, and the elements.
"""

import io
from typing import BinaryIO

from guided_diffusion_jax.interop import pickled
from guided_diffusion_jax.interop.pickled import Storage, View
from guided_diffusion_jax.interop.tensors import Damaged, Stored

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle."""
VERSION = 1001


def begins(file: BinaryIO) -> bool:
    """Whether the file is of this format; it stands at its beginning afterwards."""
    start = file.read(len(MAGIC))
    file.seek(0)
    return start == MAGIC


def tensors(file: BinaryIO) -> dict[str, Stored]:
    """The tensors by name, to be read while the file is open.

    Raises:
        Damaged: the file is truncated, or holds anything but a plain state dict.
    """
    file.seek(len(MAGIC))
    version, machine = pickled.load(file, "its second pickle"), pickled.load(file, "its third pickle")
    if version != VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Damaged(f"it has version {version!r} on the machine {machine!r}; only {VERSION}, little-endian, is read")
    views = pickled.load_views(file, "its pickle")
    keys = pickled.load(file, "its list of storages")
    users = {view.storage.key: (name, view.storage) for name, view in views.items()}
    places = _places(file, keys if isinstance(keys, list) else [], users)
    return {name: _stored(file, name, view, places) for name, view in views.items()}


def _places(file: BinaryIO, keys: list, users: dict[str, tuple[str, Storage]]) -> dict[str, int]:
    """Where each storage's elements begin."""
    places, at = {}, file.tell()
    end = file.seek(0, io.SEEK_END)
    for key in keys:
        if not isinstance(key, str) or key not in users:
            raise Damaged(f"storage {key!r} belongs to no tensor")
        name, storage = users[key]
        file.seek(at)
        size, places[key] = int.from_bytes(file.read(8), "little"), at + 8
        at = places[key] + storage.size * storage.dtype.itemsize
        if at > end:
            raise Damaged(f"it is truncated: it ends before or in storage {key}, the numbers of {name}")
        if size != storage.size:
            raise Damaged(f"storage {key}, the numbers of {name}, has {size} elements instead of {storage.size}")
    return places


def _stored(file: BinaryIO, name: str, view: View, places: dict[str, int]) -> Stored:
    key = view.storage.key
    if key not in places:
        raise Damaged(f"storage {key}, the numbers of {name}, is missing")

    def read(start: int, size: int) -> bytes:
        file.seek(places[key] + start)
        return file.read(size)

    return pickled.stored(name, view, f"storage {key}", read)
