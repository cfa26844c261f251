"""Configurations: read from a preset, a file or a run's folder, checked, and written to the folder."""

import math
import runpy
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import guided_diffusion_jax
from guided_diffusion_jax.errors import InputError, choose, hint, require, shown
from guided_diffusion_jax.experiment.default import CLASSIFIER_TRAINING, KEYS, get_config
from guided_diffusion_jax.experiment.keys import guess
from guided_diffusion_jax.interop.stable_diffusion import is_stable_diffusion
from guided_diffusion_jax.runtime.files import keys, read_json, write_json
from guided_diffusion_jax.training import run_files

FILE = "config.json"

MAY_CHANGE_IN_TRAINING = (
    "steps", "learning_rate", "lr_schedule", "decay_steps", "warmup_steps", "weight_decay", "grad_clip", "ema_decay",
    "ema_warmup", "log_every", "save_every", "sample_every", "keep", "power_ema_keep", "verify", "on_full_disk",
    "parallel", "shards", "accumulate", "bad_step", "grad_spike",
)  # fmt: skip
"""Keys of `train`, `classifier.train` and `autoencoder.train` that a continued run may change."""

MAY_CHANGE = (
    "data.data_dir",  # what the data set holds is compared by its fingerprint
    "pretrained",  # its parameters are in the run's own checkpoints
    "sample.", "evaluate.", "report.",
    "model.autoencoder",  # the run has a copy of it, which is compared
    *(f"{part}.{key}" for part in ("train", "classifier.train", "autoencoder.train") for key in MAY_CHANGE_IN_TRAINING),
)  # fmt: skip
"""Keys, and beginnings of keys, that a continued run may change."""

OLD_KEYS = {"model.inject", "model.injection", "train.drop", "train.condition_dropout"}
"""Keys that only configurations of version 0.1 have."""

assert set(MAY_CHANGE_IN_TRAINING) <= set(CLASSIFIER_TRAINING)


def presets() -> dict[str, epath.Path]:
    """Configuration files that come with the package, by name: of an installation, or of a checkout."""
    package = epath.Path(guided_diffusion_jax.__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            files = sorted(folder.glob("*.py"), key=lambda file: file.name)
            return {file.stem: file for file in files if file.stem != "__init__"}
    return {}


def preset(name: str) -> ConfigDict:
    """Configuration of a preset by name, e.g. for another one that starts from it."""
    return runpy.run_path(str(choose(presets(), name, "--config")))["get_config"]()


def load(path: str, workdir: str) -> ConfigDict:
    """Configuration of a file, a preset's name ("digits"), or where `path` is empty, of the run in `workdir`.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    if path:
        file = epath.Path(path).expanduser()
        if not file.is_file():
            known = presets()
            name = path.removeprefix("configs/").removesuffix(".py")
            require(
                name in known,
                f"--config={path} is no file and no preset; presets: {', '.join(known)}{hint(name, known)}",
            )
            file = known[name]
        return _run(path, str(file))
    require(bool(workdir), "--config and --workdir are both missing; e.g. --config=digits --workdir=runs/digits")
    if is_stable_diffusion(epath.Path(workdir).expanduser()):
        return preset("stable_diffusion")
    config = stored(epath.Path(workdir)) or stored(epath.Path(workdir) / "autoencoder")  # which may be trained first
    if config is None and run_files.read(workdir) is not None:  # a run of the Python API
        return get_config()
    if config is None:
        raise InputError(f"--workdir={workdir} holds no {FILE}; give --config=... to start a run there")
    return config


def _run(path: str, file: str) -> ConfigDict:
    """What a file's `get_config()` returns; an error in it is a user's, and told with its line."""
    try:
        found = runpy.run_path(file)
        require("get_config" in found, f"--config={path} has no function get_config()")
        config = found["get_config"]()
    except InputError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "?"
        raise InputError(f"--config={path}, line {line}: {type(error).__name__}: {error}") from error
    require(isinstance(config, ConfigDict), f"--config={path}: get_config() gives no configuration")
    return config


def stored(workdir: epath.Path) -> ConfigDict | None:
    """Configuration that a run was started with; None for a new folder.

    Raises:
        InputError: it is damaged, or of version 0.1.
    """
    file = workdir / FILE
    if not file.exists():
        return None
    values = read_json(file)
    require(isinstance(values, dict), f"{file} holds no configuration: it is no {{...}} of keys and values")
    require(
        not OLD_KEYS & set(flatten_dict(values, sep=".", is_leaf=lambda path, _: len(path) == 2)),
        f"{file} is of version 0.1: write the run's weights with that version (--mode=export "
        "--export_path=run.safetensors), read them with this (--mode=import --import_path=run.safetensors)",
    )
    config = get_config()
    known = dict(flatten(config))
    for key, value in flatten_dict(values, sep=".").items():
        own = key.startswith("train.per_condition_dropout.")
        if key not in known and not own:
            raise InputError(f"{_line(file, key)}: {shown(key)} is no key of a configuration{hint(key[:99], known)}")
        wanted = _misfit(known.get(key, 0.0), value)
        if wanted:
            raise InputError(
                f"{_line(file, key)}: {key}={shown(repr(value))} is {_kind(value)}; '{key.split('.')[-1]}' must be "
                f"{wanted}{f', such as {known[key]!r}' if known.get(key) is not None else ''}"
            )
    try:
        config.update(_with_tuples(values))
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: {error}") from None
    return config


def _line(file: epath.Path, key: str) -> str:
    """The file and the line of a key in it."""
    line = next((line for name, line in keys(file.read_text(encoding="utf-8-sig")) if name == key), 1)
    return f"{file}, line {line}"


KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"), (int, "a whole number"), (float, "a number"), (str, "a text"), (list, "a list"),
    (tuple, "a list"), (dict, "an object"), (type(None), "null"),
)  # fmt: skip
"""Types of values as a JSON file has them, in words."""


def _kind(value: Any) -> str:
    return next(words for kind, words in KINDS if isinstance(value, kind))


def _misfit(default: Any, value: Any) -> str:
    """What the value of a key with this default should be, in words; "" where it is."""
    if not _finite(value):
        return "finite"
    kind, given = _kind(default), _kind(value)
    if default is None:  # a key that may be left open: null or a number
        return "" if given in ("null", "a number", "a whole number") else "a number or null"
    return "" if given == kind or (kind, given) == ("a number", "a whole number") else kind


def _finite(value: Any) -> bool:
    """Whether a number, or all numbers of a list, are finite; JSON has no such, and Python writes and reads them."""
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _with_tuples(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _with_tuples(value) for key, value in values.items()}
    return tuple(map(_with_tuples, values)) if isinstance(values, list) else values


def save(config: ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json`, and says which values of a continued run have changed."""
    before = stored(workdir)
    changes = [] if before is None else differences(before, config)
    for key, old, new in changes:
        print(f"{workdir}: {key} is now {new!r} (was {old!r})", flush=True)
    if before is None or changes:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / FILE, config.to_dict())


def check_same(config: ConfigDict, workdir: epath.Path, ignored: Sequence[str] = ()) -> None:
    """Raises `InputError`, naming all that differs, where the run in `workdir` has other values.

    Args:
        config: of the run to be continued.
        workdir: its folder; a new one has nothing to compare.
        ignored: further keys, or beginnings of keys, that may differ beside `MAY_CHANGE`.
    """
    before = stored(workdir)
    if before is None:
        return
    differing = [
        f"{key}={new!r} (the run's is {old!r})"
        for key, old, new in differences(before, config)
        if not _may_change(key, (*MAY_CHANGE, *ignored))
    ]
    if differing:
        raise InputError(
            f"the run in {workdir} belongs to another configuration: {', '.join(differing)}; "
            "use the run's values or another --workdir."
        )


def _may_change(key: str, allowed: Sequence[str]) -> bool:
    return any(key.startswith(name) if name.endswith(".") else key == name for name in allowed)


def differences(before: ConfigDict, after: ConfigDict) -> list[tuple[str, Any, Any]]:
    """Keys with another value, with both values; None for a key that one does not have."""
    old, new = dict(flatten(before)), dict(flatten(after))
    return [(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


def check(config: ConfigDict) -> None:
    """Raises `InputError` for the first key that there is not, or whose value it cannot take."""
    for name, value in flatten(config):
        known = KEYS.get(name)
        require(
            known is not None or name.startswith("train.per_condition_dropout."),
            f"{name} is no key of the config{hint(name, KEYS)}",
        )
        (known or guess(value)).check(name, value)


def flatten(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """All values as ("model.width", 128)."""
    yield from flatten_dict(config.to_dict(), sep=".").items()
