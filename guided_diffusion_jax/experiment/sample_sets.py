"""Folders of generated images: a set never takes another one's place unasked, and is whole or not there."""

import contextlib
import itertools
import json
import re
import unicodedata
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.runtime.files import write_json

RECORD = "samples.json"
"""File that says what a set was made with; its presence tells a set from other files."""

FILES = ("samples.npz", "samples.png", "trajectory.png", "sweep.npz", "sweep.png", RECORD)
IMAGES = "images"
"""Folder of single PNG files within a set."""

NUMBERED = re.compile(r"\d{5,}(_.*)?\.png")
LONGEST_NAME = 100
"""Bytes of a class name in a file's name; file systems take 255 in all."""


def check_out(out: epath.Path) -> None:
    """Raises `InputError` for a folder given by --out in which a set would replace files that are no set."""
    require(not out.exists() or out.is_dir(), f"--out={out} is a file; give a folder, new or empty")
    if out.exists() and not (out / RECORD).exists():
        theirs = [name for name in (*FILES, IMAGES) if (out / name).exists()]
        require(
            not theirs,
            f"--out={out} holds a {', '.join(theirs)} that --mode=sample did not make (there is no {RECORD}), and "
            "would replace it; give another folder",
        )


def free_folder(folder: epath.Path, record: Mapping[str, Any]) -> epath.Path:
    """The folder, or folder_2, folder_3, ...: the first without a set, or whose set was made with the same settings."""
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
        occupied = any((candidate / name).exists() for name in (*FILES, IMAGES))
        if not occupied or _same(_read(candidate), record):
            return candidate
    raise AssertionError("there is always a next number")


@contextlib.contextmanager
def new_set(
    folder: epath.Path, record: Mapping[str, Any], count: int, *, exactly: bool = False
) -> Iterator[epath.Path]:
    """A folder to write a set into; when the block ends well it takes its place, and one line says where that is.

    Args:
        folder: of the set, such as RUN/samples; where it holds a set of other settings, a numbered one beside it.
        record: JSON-able, what the set was made with; "checkpoint_step" and "sample" tell sets apart.
        count: number of images, for the line.
        exactly: the set goes into this very folder, and takes the place of the one there.

    Raises:
        InputError: see `check_out`.
    """
    if exactly:
        check_out(folder)
    stage = folder / f".{uuid.uuid4().hex[:8]}.tmp"
    made = not folder.exists()
    stage.mkdir(parents=True)
    try:
        yield stage
        write_json(stage / RECORD, record)
        place = folder if exactly else free_folder(folder, record)
        note = _note(place, folder, record, exactly)
        _move(stage, place)
    except BaseException:
        stage.rmtree()
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise
    stage.rmtree()
    print(f"{place}: {count:,} images from step {record['checkpoint_step']}{note}", flush=True)


def file_names(labels: Sequence[int], class_names: Sequence[str]) -> list[str]:
    """Names of single files, by number and class, that every file system takes.

    >>> file_names([1, 0, 2], ["cat", "a/b: *"])
    ['00000_a-b.png', '00001_cat.png', '00002.png']
    """
    safe = [_safe(name) or f"class{number}" for number, name in enumerate(class_names)]
    alike = {name for name in safe if safe.count(name) > 1}
    safe = [f"{name}-{number}" if name in alike else name for number, name in enumerate(safe)]
    digits = max(5, len(str(len(labels) - 1)))
    return [
        f"{i:0{digits}d}_{safe[label]}.png" if 0 <= label < len(safe) else f"{i:0{digits}d}.png"
        for i, label in enumerate(labels)
    ]


def _safe(name: str) -> str:
    """Letters, digits, dots and dashes of a name; every run of others is a dash."""
    kept = re.sub(r"[^\w.]+", "-", unicodedata.normalize("NFC", name)).strip("-._")
    return kept.encode()[:LONGEST_NAME].decode(errors="ignore")


def _note(place: epath.Path, folder: epath.Path, record: Mapping[str, Any], exactly: bool) -> str:
    """What a user should know of the folder that a set goes into, to follow "100 images ..."."""
    if place != folder:
        return f"; {folder.name} holds a set of other settings"
    if (place / RECORD).exists():
        same = _same(_read(place), record)
        return f", in the place of {'those of the same settings' if same else 'a set of other settings'}"
    others = [path for path in place.iterdir() if path.suffix != ".tmp"] if exactly else []
    return f"; what else is there, {len(others)} files or folders, stays as it is" if others else ""


def _read(folder: epath.Path) -> Any:
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None


def _same(one: Any, other: Mapping[str, Any]) -> bool:
    """Whether two records are of the same images; the run's folder may be written in several ways."""
    other = json.loads(json.dumps(other))
    return isinstance(one, dict) and all(one.get(key) == other[key] for key in ("checkpoint_step", "sample"))


def _move(stage: epath.Path, place: epath.Path) -> None:
    """Moves a whole set to its place, from which the files of an older set go."""
    place.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (place / name).unlink(missing_ok=True)
    for path in (place / IMAGES).iterdir() if (place / IMAGES).exists() else ():
        if NUMBERED.fullmatch(path.name):
            path.unlink()
    for path in (p for p in stage.iterdir() if p.name != IMAGES):
        path.replace(place / path.name)
    if (stage / IMAGES).exists():
        (place / IMAGES).mkdir(exist_ok=True)
        for path in (stage / IMAGES).iterdir():
            path.replace(place / IMAGES / path.name)
