"""Checksums of a checkpoint's files, by which damage is found: size and CRC-32 of each, in `checksums.json`.

Orbax notices missing and shortened files when it reads them, but no flipped bits. Each process checksums the files that
it wrote, in the background while the page cache still holds them; the main process adds the shared ones and writes the
list before the checkpoint gets its final name.
"""

import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.runtime import distributed

FILE = "checksums.json"
"""Beside the files that it tells of."""

METADATA = "_CHECKPOINT_METADATA"
"""Orbax's file, to which it adds the time of the commit after all else."""

PART = "checksums.process_"
"""What the names of lists of single processes begin with, until `seal` joins them."""

TEMPORARY = re.compile(r"\.orbax-checkpoint-tmp[^/]*")
"""What Orbax adds to the name of an item's folder while it is written."""

DAMAGED = "damaged_"
"""What the names of checkpoints begin with that were set aside."""

THREADS = 8
CHUNK = 2**20


def seal_process(folder: epath.Path) -> None:
    """Writes the checksums of the files of this process alone, `ITEM/ocdbt.process_N/`, for `seal`."""
    index = jax.process_index()
    files = [file for part in folder.glob(f"*/ocdbt.process_{index}") for file in _files(part)]
    (folder / f"{PART}{index}.json").write_text(json.dumps(_sums(files, folder)))


def seal(folder: epath.Path, verify: bool = True) -> None:
    """Writes the checksums of all files: those of `seal_process`, and the main process's of all others.

    Without `verify` the list is empty: nothing is read back, and nothing is found damaged later.
    """
    sums: dict[str, Any] = {}
    for part in list(folder.glob(f"{PART}*")):
        sums |= json.loads(part.read_text())
        part.unlink()
    if verify:
        sums |= _sums([file for file in _files(folder) if _name(file, folder) not in sums], folder)
    (folder / FILE).write_text(json.dumps({"files": sums, "crc32": _own(sums)}, indent=0))


def damage(folder: epath.Path) -> str | None:
    """What is wrong with a checkpoint, e.g. "state/d/2fe6 has changed"; None where nothing is.

    All processes must ask at once.
    """
    try:
        kept = json.loads((folder / FILE).read_text())
        sums = {name: tuple(one) for name, one in kept["files"].items()}
        intact = kept["crc32"] == _own(sums)
    except FileNotFoundError:
        return f"{FILE} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        return f"{FILE} has changed"
    names = sorted(sums)
    mine = range(jax.process_index(), len(names), jax.process_count())
    with ThreadPoolExecutor(THREADS) as pool:
        same = pool.map(lambda i: _sum(folder / names[i]) == sums[names[i]], mine)
        first = next((i for i, good in zip(mine, same, strict=True) if not good), len(names))
    if jax.process_count() > 1:
        first = int(np.min(multihost_utils.process_allgather(np.int32(first))))
    return None if first == len(names) else _difference(folder, names[first], sums[names[first]][0])


def size(folder: epath.Path) -> int:
    """Bytes of all files in a checkpoint."""
    return sum(file.stat().length for file in _files(folder))


def newest_good(folder: epath.Path, steps: Iterable[int], *, set_aside: bool) -> int | None:
    """The newest whole checkpoint among `folder/STEP`, or None where there are none any more.

    The damaged ones that are newer are named on stderr and, to `set_aside`, renamed to `damaged_STEP`: there they are
    in nobody's way, and somebody may still look at them. All processes must ask at once.

    Raises:
        InputError: there are checkpoints and all are damaged. They stay as they are, so that a run never silently
            begins again.
    """
    damaged: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        here = folder / str(step)
        what = damage(here)
        if what is None:
            break
        if here.exists():  # else a process that trains has removed it meanwhile
            damaged[step] = f"{here} is damaged: {what}"
    else:
        told = "; ".join(one.removeprefix(f"{folder}/") for one in damaged.values())
        require(
            not damaged,
            f"no checkpoint is whole: {told}. Put back a copy, or remove {folder} to begin again.",
        )
        return None
    for number, message in damaged.items():
        if distributed.is_main_process():
            print(f"warning: {message}; going on from step {step}", file=sys.stderr, flush=True)
        if set_aside and distributed.is_main_process():
            aside = folder / f"{DAMAGED}{number}"
            aside.rmtree(missing_ok=True)
            (folder / str(number)).rename(aside)
    if damaged and jax.process_count() > 1:
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
    return step


def _difference(folder: epath.Path, name: str, size: int) -> str:
    file = folder / name
    if not file.exists():
        return f"{name} is missing"
    length = file.stat().length
    return f"{name} has {length} bytes instead of {size}" if length < size else f"{name} has changed"


def _sums(files: list[epath.Path], folder: epath.Path) -> dict[str, Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip((_name(file, folder) for file in files), pool.map(_sum, files), strict=True))


def _sum(file: epath.Path) -> tuple[int, int] | None:
    """Size and CRC-32; None of a file that cannot be read."""
    try:
        if file.name == METADATA:
            content = json.loads(file.read_text())
            content.pop("commit_timestamp_nsecs")
            text = json.dumps(content, sort_keys=True).encode()
            return len(text), zlib.crc32(text)
        size = crc = 0
        with file.open("rb") as opened:
            while chunk := opened.read(CHUNK):
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        return size, crc
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _own(sums: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(sums, sort_keys=True).encode())


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        elif path.name != FILE:
            yield path


def _name(file: epath.Path, folder: epath.Path) -> str:
    """Path of a file in the finished checkpoint: Orbax renames the folder of an item once all of it is written."""
    return TEMPORARY.sub("", file.relative_to(folder).as_posix())
