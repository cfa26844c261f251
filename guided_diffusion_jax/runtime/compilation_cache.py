"""Compiled programs on disk, for the next start: where they are, and how long each took."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from guided_diffusion_jax.runtime import files

MAX_BYTES = 4 * 2**30
"""The least recently used programs beyond it are removed."""

MIN_SECONDS = 0.1
"""What compiles faster is not kept. JAX's own limit of 1 s leaves out dozens of programs that every start needs."""

SECONDS = "compile_seconds.json"
"""File beside the programs: how long compiling them took."""

MOST = 500
"""Durations that are kept."""

_config: Any = jax.config


def enable() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX was told of another place, or of none.

    For the command line: a library leaves JAX's configuration alone. Where the folder cannot be written, nothing is
    kept. Nor is it by several processes, of which the first alone would find its programs, and the others wait for it.
    """
    if jax.distributed.is_initialized() or folder() is not None or not _config.jax_enable_compilation_cache:
        return
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        where = Path(base) / "guided_diffusion_jax" / "compilation"
        where.mkdir(parents=True, exist_ok=True)
        if os.access(where, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", os.fspath(where))
            if _config.jax_compilation_cache_max_size == -1:
                jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
            if _config.jax_persistent_cache_min_compile_time_secs == 1.0:  # JAX's default
                jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def folder() -> epath.Path | None:
    """Where compiled programs are kept; None where they are not."""
    where = _config.jax_compilation_cache_dir
    return epath.Path(where) if where and _config.jax_enable_compilation_cache else None


def shapes(arguments: Any) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Shape and type of every leaf of a tree of arrays and numbers."""
    return tuple((np.shape(leaf), str(getattr(leaf, "dtype", type(leaf)))) for leaf in jax.tree.leaves(arguments))


def program_key(what: str, arguments: Any) -> str:
    """Name of a program by the shapes of its arguments, and by the devices that it is compiled for."""
    device = jax.devices()[0].device_kind
    named = repr((what, shapes(arguments), device, jax.device_count()))
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def seconds(key: str) -> float | None:
    """How long such a program compiled the last time; None if nobody knows."""
    return _read().get(key)


def remember(key: str, took: float) -> None:
    """Notes how long a program compiled, where compiled programs are kept."""
    where = folder()
    if where is None:
        return
    known = {name: value for name, value in _read().items() if name != key}
    latest = dict([*known.items(), (key, round(took, 1))][-MOST:])
    with contextlib.suppress(OSError):  # it is only a number to be shown
        files.write_json(where / SECONDS, latest)


def _read() -> dict[str, float]:
    where = folder()
    try:
        found = json.loads((where / SECONDS).read_text()) if where is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
