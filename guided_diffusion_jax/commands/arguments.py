"""The arguments of the command line: flags, and keys of the configuration, as `--name=value` or `--name value`."""

import collections
import functools
import re
import sys
import types
from collections.abc import Collection, Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.errors import InputError, choose, hint, require
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment.default import KEYS
from guided_diffusion_jax.experiment.keys import Key, choice, guess, integer, path, text

DRY_RUN = choice(("brief", "full"))._replace(
    words="alone, or full",
    check=lambda name, value: value == "" or choose({"brief": 0, "full": 0}, value, name),
    parse=lambda text: {"true": "brief", "1": "brief", "false": "", "0": ""}.get(text.lower(), text),
)
"""Values of --dry_run, which may also be a yes or no; "" is no."""

FLAGS: dict[str, Key] = {
    "config": Key("", "what starts a run: a preset or a file; a run's folder holds its own", path("name or file")),
    "workdir": Key("", "the run's folder; may be gs://...", path("folder")),
    "mode": Key("train", "what to do, see below", text("name of a mode")),
    "out": Key("", "where sample writes", path("folder; nothing is samples/ in the run's folder")),
    "import_path": Key("", "weights with guided-diffusion's names that import reads", path(".pt or .safetensors")),
    "export_path": Key(
        "", "what export writes; nothing is sampler.zip in the run's folder",
        path(".zip, the sampler; .safetensors, the weights; a folder, a small run of weights alone"),
    ),
    "host": Key("127.0.0.1", "of serve: address that is listened on; 0.0.0.0 lets other machines in", text("address")),
    "port": Key(7860, "of serve", integer(0, 65535, "0 is any free one")),
    "dry_run": Key(
        "", "only say what training would take on each device, and where it fits; reads no data",
        DRY_RUN,
    ),
    "devices": Key("", "of a dry run: number of devices", text("whole number; nothing is those of this machine")),
    "distributed": Key("auto", "join the processes of a run, docs/scaling.md", choice(("auto", "on", "off"))),
    "coordinator": Key("", "address of process 0", text("HOST:PORT")),
    "processes": Key(None, "of the run, given with coordinator", integer(1)),
    "process": Key(None, "number of this one, given with coordinator", integer(0)),
    "startup_timeout": Key(600, "seconds to wait for the other processes", integer(1, 10**6)),
    "heartbeat": Key(100, "seconds of silence after which a process counts as dead", integer(1, 10**6)),
    "help": Key("", "this page; with the name of a group of keys, that group", text("alone, or the name of a group")),
    "version": Key("", "print the version", text("alone")),
}  # fmt: skip
"""Flags beside the keys of the configuration."""

ALONE = {"dry_run": "brief", "help": "all", "version": "true"}
"""Flags that need no value, and the one that they then have."""


def program(called_as: str = "") -> str:
    """How this program is called, for messages that name a command: from a checkout, or after installation."""
    name = epath.Path(called_as or sys.argv[0]).stem
    return name if name == "guided-diffusion-jax" else "python main.py"


def _take(
    arguments: Sequence[str], known: Collection[str], alone: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Texts of the known names, the last of several; and the other arguments.

    >>> _take(["--a=1", "--b", "-2", "--c", "--d", "3"], ("a", "b", "c"), {"c": "true"})
    ({'a': '1', 'b': '-2', 'c': 'true'}, ['--d', '3'])
    """
    texts, rest, waiting = {}, [], collections.deque(arguments)
    while waiting:
        argument = waiting.popleft()
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in known:
            rest.append(argument)
        elif equals:
            texts[name] = value
        elif waiting and not waiting[0].startswith("--"):
            texts[name] = waiting.popleft()
        else:
            require(name in alone, f"--{name} needs a value: --{name}=VALUE or --{name} VALUE")
            texts[name] = alone[name]
    return texts, rest


def flags(arguments: Sequence[str]) -> tuple[types.SimpleNamespace, list[str]]:
    """Values of all `FLAGS`, and the arguments that are none of them: the keys of the configuration.

    Raises:
        InputError: a flag that there is not, or a value that it cannot take.
    """
    known = {f"--{name}" for name in FLAGS}
    texts, rest = _take(list(map(_two_dashes, arguments)), FLAGS, ALONE)
    for argument in filter(_is_flag, rest):
        name = argument.split("=")[0]
        if not name.startswith("--config."):
            raise InputError(f"{name} is no flag{hint(name, known)}; see --help")
    given = {name: key.read(f"--{name}", texts[name]) for name, key in FLAGS.items() if name in texts}
    return types.SimpleNamespace(**{name: key.default for name, key in FLAGS.items()} | given), rest


def override(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Sets the keys of a configuration that arguments `--config.KEY=VALUE` name.

    Raises:
        InputError: a key that there is not, a value that it cannot take, or an argument that belongs to none.
    """
    keys = {f"config.{name}": KEYS.get(name) or guess(value) for name, value in configs.flatten(config)}
    alone = {name: "true" for name, key in keys.items() if isinstance(key.default, bool)}
    texts, left = _take(arguments, keys, alone)
    for argument in filter(_is_flag, left):
        name = argument.split("=")[0].removeprefix("--")
        raise InputError(f"{name} is no key of the config{hint(name, keys)}".replace("'config.", "'"))
    require(not left, f"{' '.join(left)}: flags are written --name=value or --name value")
    for name, value in texts.items():
        *sections, last = (short := name.removeprefix("config.")).split(".")
        functools.reduce(lambda part, key: part[key], sections, config)[last] = keys[name].read(short, value)


def _is_flag(argument: str) -> bool:
    return re.match(r"--?[a-zA-Z]", argument) is not None


def _two_dashes(argument: str) -> str:
    """`-name` as `--name`, and the short and old forms of help as `--help`."""
    if re.match(r"-[a-z_]{2,}", argument):
        argument = f"-{argument}"
    return {"-h": "--help", "--helpfull": "--help", "--helpshort": "--help"}.get(argument, argument)
