"""What is computed once of a data set and kept with it: arrays in files whose names tell all that they depend on."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from guided_diffusion_jax import writing
from guided_diffusion_jax.data.dataset import Dataset as Source
from guided_diffusion_jax.training import distributed

FOLDER = "evaluation"

SEEN = 256
"""Examples, evenly spaced, that stand for a data set which is not in memory."""

Arrays = dict[str, np.ndarray]


def folders(data: Source, workdir: epath.Path | None) -> list[epath.Path]:
    """Where to look for what is kept of a data set, and to put it: with the data, or else in the run's folder."""
    return [home / FOLDER for home in (data.home, workdir) if home is not None]


def identity(data: Source) -> list[Any]:
    """What changes when the data set does: name, number, shape, classes and a digest of the examples."""
    number = len(data) if data.in_memory else min(SEEN, len(data))
    batch = data.read(np.linspace(0, len(data) - 1, number).round().astype(int))
    digest = hashlib.sha256(batch["image"].tobytes() + batch["label"].tobytes()).hexdigest()
    return [data.name, len(data), list(data.image_shape), list(data.class_names), digest]


def file(kind: str, *depends_on: Any) -> str:
    """A file's name, from all that its content depends on, which must fit into JSON."""
    return f"{kind}-{hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]}.npz"


def arrays(name: str, where: Sequence[epath.Path], make: Callable[[], Arrays]) -> Arrays:
    """The arrays of this file in the first folder that has it, or else what `make` makes of them.

    These are kept in the first folder that can be written to; where none can, a line says so. Of many processes the
    first one writes, and all of them make what one of them does not find.
    """
    found = next(filter(None, (_read(folder / name) for folder in where)), None)
    if _everywhere(found is not None) and found is not None:
        return found
    made = make()
    if distributed.leads() and not any(_written(folder / name, made) for folder in where):
        print(f"{name} is not kept, it is computed anew each time: no folder for it can be written to", flush=True)
    return made


def _everywhere(here: bool) -> bool:
    return bool(np.all(multihost_utils.process_allgather(np.array(here)))) if jax.process_count() > 1 else here


def _read(path: epath.Path) -> Arrays | None:
    """None also for a damaged file, which is then made again."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def _written(path: epath.Path, values: Arrays) -> bool:
    """Whether there was room for it; the file is whole or not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing.whole(path) as opened:
            np.savez(opened, **values)  # type: ignore[arg-type]
    except OSError:
        return False
    return True
