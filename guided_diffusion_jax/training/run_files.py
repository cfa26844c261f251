"""Files of a run's folder: `run.json`, which describes what is trained, and is the run's identity."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from etils import epath

from guided_diffusion_jax import models
from guided_diffusion_jax.errors import InputError, require, shown
from guided_diffusion_jax.runtime.files import read_json, write_json

FILE = "run.json"
VERSION = 2

NOT_COMPARED = ("data.name", "data_fingerprint.name")
"""A folder of images may have moved; what lies in it is compared by the digest of its fingerprint."""


def read(folder: epath.PathLike) -> dict[str, Any] | None:
    """Description of the run in a folder; None where there is none.

    Raises:
        InputError: the file is damaged, or of another version of the package.
    """
    file = epath.Path(folder) / FILE
    if not file.exists():
        return None
    description = read_json(file)
    version = description.get("version") if isinstance(description, dict) else None
    require(version is not None, f"{file} is damaged: it describes no run; restore it, or use another folder")
    if version != VERSION:
        raise InputError(f"{file} has version {shown(version)}, and this package reads version {VERSION}")
    damaged = [part for part in ("model", "process", "data") if not isinstance(description.get(part), dict)]
    require(not damaged, f"{file} is damaged: it has no {', '.join(damaged)}; restore it, or use another folder")
    return description


@contextmanager
def named_errors(folder: epath.PathLike) -> Iterator[None]:
    """Errors of what is made of a description, which somebody may have edited, with the file's name."""
    try:
        yield
    except (InputError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{epath.Path(folder) / FILE} is damaged: {what}") from None


def write(folder: epath.Path, description: Mapping[str, Any]) -> None:
    """Writes `run.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, {"version": VERSION, **description})


def check_same(folder: epath.Path, description: Mapping[str, Any]) -> bool:
    """Whether the folder holds a run with this description; False where it holds none, or imported weights alone.

    Imported weights (with a "source") must have the same model and process.

    Raises:
        InputError: it holds another one; all that differs is named.
    """
    before = read(folder)
    if before is None:
        return False
    with named_errors(folder):  # a module has got fields since, at their defaults in every older run
        before["model"] = models.describe(models.create(before["model"])) if before["model"] else {}
    after = {"version": VERSION, **json.loads(json.dumps(description))}
    imported = "source" in before
    if imported:
        before, after = ({part: one[part] for part in ("model", "process")} for one in (before, after))
    old, new = dict(flatten(before)), dict(flatten(after))
    differing = [
        f"{key}={_short(new.get(key))} (the run's is {_short(old.get(key))})"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and key not in NOT_COMPARED
    ]
    if differing:
        rest = f" and {len(differing) - 5} more" * (len(differing) > 5)
        raise InputError(
            f"the run in {folder} is another one: {', '.join(differing[:5])}{rest}; use the run's values or another "
            "folder (--workdir)."
        )
    return not imported


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values of nested dicts, as ("model.width", 128)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
