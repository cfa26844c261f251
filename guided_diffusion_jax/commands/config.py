"""Configurations: from a file or from a run's folder, with overrides whose keys are checked, and back to the folder."""

import json
import runpy
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.errors import InputError, hint, require
from guided_diffusion_jax.runtime import files

FILE = "config.json"

BEFORE: dict[str, dict[str, Any]] = {
    "data": {
        "low_res_size": 0, "attributes": (), "text": "", "style": "", "map": "", "attribute_values": (),
        "map_channels": 0,
    },
    "model": {
        "known": False, "inject": "", "text_encoder": "bytes", "text_length": 64, "text_width": 128, "text_depth": 2,
        "style_width": 128, "style_depth": 3,
    },
    "control": {"base": ""},
    "train": {
        "parallel": "data_parallel", "shards": 0, "accumulate": 1, "bad_step": "stop", "spike": 0.0,
        "on_full_disk": "stop",
    },
    "classifier": {
        "parallel": "data_parallel", "shards": 0, "accumulate": 1, "bad_step": "stop", "spike": 0.0,
        "on_full_disk": "stop",
    },
    "evaluate": {
        "features": "own", "weights": "", "reference": "", "samples": "",
        "sweep": {"weight": "", "classifier_weight": "", "steps": ""},
    },
}  # fmt: skip
"""Keys that came later than some runs, with what these runs do."""


def load(path: str, workdir: str, default: ConfigDict) -> ConfigDict:
    """The config of `path` ("configs/digits.py"), or where that is empty, the one that the run in `workdir` keeps.

    Keys that came into being after the run was started have the values of `default`.

    Raises:
        InputError: neither is there.
    """
    if path:
        require(epath.Path(path).is_file(), f"--config={path} is no file; see configs/")
        return runpy.run_path(path)["get_config"]()
    require(
        bool(workdir), "--config and --workdir are both missing; e.g. --config=configs/digits.py --workdir=runs/digits"
    )
    stored = epath.Path(workdir) / FILE
    require(stored.exists(), f"--workdir={workdir} holds no {FILE}; give --config=configs/... to start a run there")
    default.update(_from_json(json.loads(stored.read_text())))
    return default


def save(config: ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json`."""
    files.write_json(workdir / FILE, config.to_dict())


def stored(workdir: epath.Path) -> ConfigDict | None:
    """The config that a run was started with; None for a new folder."""
    file = workdir / FILE
    if not file.exists():
        return None
    config = ConfigDict(BEFORE)
    config.update(_from_json(json.loads(file.read_text())))
    return config


def check_keys(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Raises `InputError` for an override `--config.KEY=...` of a key that the config does not have."""
    known = dict(flatten(config))
    for argument in arguments:
        if not argument.startswith(("--config.", "-config.")):
            continue
        key = argument.lstrip("-").removeprefix("config.").split("=")[0]
        require(key in known, f"config.{key} is no key of the config{hint(key, known)}")


def describe(config: ConfigDict) -> Iterator[str]:
    """A line for each key, with its value."""
    yield "Keys of the config:"
    for key, value in flatten(config):
        yield f"  --config.{key}={value}"


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves as ("model.width", 128)."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_same(config: ConfigDict, workdir: epath.Path, parts: Sequence[str]) -> None:
    """Raises `InputError`, naming all that differs, unless the run in `workdir` has the same values in these parts."""
    before = stored(workdir)
    if before is None:
        return
    old = dict(flatten(before))
    differing = [
        f"{key}={value!r} (the run's is {old[key]!r})"
        for key, value in flatten(config)
        if f"{key}.".startswith(tuple(f"{part}." for part in parts)) and key in old and old[key] != value
    ]
    if differing:
        raise InputError(
            f"the run in {workdir} belongs to another configuration: {', '.join(differing)}; "
            "use the run's values or another --workdir."
        )


def _from_json(values: Any) -> Any:
    if isinstance(values, dict):
        return ConfigDict({key: _from_json(value) for key, value in values.items()})
    return tuple(_from_json(value) for value in values) if isinstance(values, list) else values
