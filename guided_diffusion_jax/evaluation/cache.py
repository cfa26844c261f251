"""Files of what is computed once: arrays of a data set and rows of a sweep, named by all that they depend on."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.runtime.files import atomic_write, read_json, write_json

FOLDER = "evaluation"

FINGERPRINT_EXAMPLES = 256
"""Evenly spaced examples that represent a data set which is not in memory."""

Arrays = dict[str, np.ndarray]


def folders(data: Dataset, cache_dir: epath.PathLike | None) -> list[epath.Path]:
    """Folders to read and write cached files in: the data set's own, then `cache_dir`."""
    return [epath.Path(folder) / FOLDER for folder in (data.home, cache_dir) if folder is not None]


def fingerprint(data: Dataset) -> list[Any]:
    """Identity of a data set: name, length, shape, classes and a digest of examples."""
    count = len(data) if data.in_memory else min(FINGERPRINT_EXAMPLES, len(data))
    batch = data.read(np.linspace(0, len(data) - 1, count).round().astype(int))
    digest = hashlib.sha256(batch["image"].tobytes() + batch["label"].tobytes()).hexdigest()
    return [data.name, len(data), list(data.image_shape), list(data.class_names), digest]


def file_name(kind: str, *depends_on: Any) -> str:
    """File name made from everything its content depends on, JSON values."""
    return f"{kind}-{hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]}.npz"


def arrays(name: str, where: Sequence[epath.Path], compute: Callable[[], Arrays]) -> Arrays:
    """Arrays of file `name` in the first folder that has it; else computed, and written to the first writable folder.

    Process 0 writes; all processes compute what one of them does not find.
    """
    stored = next(filter(None, (_read(folder / name) for folder in where)), None)
    if _in_all_processes(stored is not None) and stored is not None:
        return stored
    computed = compute()
    if where and jax.process_index() == 0 and not any(_write(folder / name, computed) for folder in where):
        print(f"{name} is not cached: none of its folders can be written to", flush=True)
    return computed


def rows(path: epath.PathLike, settings: Any, compute: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of a sweep from a JSON file, computed again if `settings`, all that they depend on, have changed."""
    path, settings = epath.Path(path), json.loads(json.dumps(settings))  # tuples become lists
    if path.exists():
        stored = read_json(path)
        if isinstance(stored, dict) and stored.get("settings") == settings and "rows" in stored:
            return stored["rows"]
    computed = compute()
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"settings": settings, "rows": computed})
    return computed


def _in_all_processes(value: bool) -> bool:
    return bool(np.all(multihost_utils.process_allgather(np.array(value)))) if jax.process_count() > 1 else value


def _read(path: epath.Path) -> Arrays | None:
    """Arrays of a file; None if it is missing or damaged."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def _write(path: epath.Path, values: Arrays) -> bool:
    """Whether the file could be written; written atomically."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as opened:
            np.savez(opened, **values)  # type: ignore[arg-type]
    except OSError:
        return False
    return True
