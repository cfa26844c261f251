"""What lies in a folder of images: every real folder once, nothing opened, and what is left out with the reason."""

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from guided_diffusion_jax.data.images import extensions
from guided_diffusion_jax.errors import InputError

SYSTEM_FOLDERS = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")
"""Folders that operating systems make; left out as hidden ones are."""

CACHE_FOLDERS = ("evaluation", "embedded_captions")
"""Folders that this package makes beside the images for what it computes from them."""

HIDDEN, BROKEN, SPECIAL, AGAIN = "hidden", "broken links", "pipes or devices", "links to folders that are read already"


class Scan(NamedTuple):
    """What `scan` found.

    Attributes:
        images: paths of the images relative to the folder, with "/" between folders, sorted.
        others: paths of the other regular files.
        left_out: number of entries by the reason why they are neither: `HIDDEN`, `BROKEN`, `SPECIAL`, `AGAIN`.
        folders: paths of all folders, those without images included, sorted.
    """

    images: list[str]
    others: list[str]
    left_out: Counter[str]
    folders: list[str]


def scan(folder: Any, skip: Collection[str] = ()) -> Scan:
    """Lists a folder with all folders inside it.

    A folder is listed once, however many links lead to it: where it really is before any link to it, and links in the
    order of their paths. Links to what holds the folder itself are left out. Only regular files count as files, so a
    named pipe or a device is never opened.

    Args:
        folder: an `epath.Path`, on a disk or `gs://`.
        skip: real paths of folders that are not to be listed.

    Raises:
        InputError: a folder cannot be listed.
    """
    found = Scan([], [], Counter(), [])
    endings = extensions()
    root = os.fspath(folder)
    walk = _walk_remote(folder) if "://" in root else _walk(root, {os.path.realpath(path) for path in skip})
    for path, reason in walk:
        if reason == "folder":
            found.folders.append(path)
        elif reason:
            found.left_out[reason] += 1
        else:
            (found.images if ending(path) in endings else found.others).append(path)
    return Scan(sorted(found.images), sorted(found.others), found.left_out, sorted(found.folders))


def ending(path: str) -> str:
    """The ending of a file's name in lower case, ".png"; empty where it has none."""
    return os.path.splitext(path)[1].lower()


def _is_hidden(name: str, is_folder: bool) -> bool:
    return name.startswith(".") or (is_folder and name.casefold() in SYSTEM_FOLDERS)


def _walk(root: str, skip: set[str]) -> Iterator[tuple[str, str]]:
    """Each entry with "" for a regular file, "folder", or the reason why it is left out."""
    real_root = os.path.realpath(root)
    seen = set(skip)
    pending, links = [""], list[str]()
    while pending or links:
        inside = pending.pop() if pending else links.pop(0)
        path = os.path.join(root, inside)
        real = os.path.realpath(path)
        if real in skip:
            continue
        if real in seen or (inside and f"{real_root}{os.sep}".startswith(real.rstrip(os.sep) + os.sep)):
            yield inside, AGAIN
            continue
        seen.add(real)
        if inside:
            yield inside, "folder"
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{path} cannot be listed: {error.strerror or error}") from error
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            try:
                mode = entry.stat().st_mode
            except OSError:  # also a link in a circle
                yield name, HIDDEN if entry.name.startswith(".") else BROKEN
                continue
            if _is_hidden(entry.name, stat.S_ISDIR(mode)):
                yield name, HIDDEN
            elif stat.S_ISDIR(mode):
                (links if entry.is_symlink() else pending).append(name)
            else:
                yield name, "" if stat.S_ISREG(mode) else SPECIAL
        links.sort()


def _walk_remote(folder: Any, inside: str = "") -> Iterator[tuple[str, str]]:
    """The same for a bucket, which has neither links nor special files, and where each question takes time."""
    endings = extensions()
    for path in folder.iterdir():
        name = f"{inside}{path.name}"
        is_folder = ending(path.name) not in endings and path.is_dir()
        if _is_hidden(path.name, is_folder):
            yield name, HIDDEN
        elif is_folder:
            yield name, "folder"
            yield from _walk_remote(path, f"{name}/")
        else:
            yield name, ""
