"""The command line: `python main.py` in a checkout, `guided-diffusion-jax` after installation.

Train, and generate images: guided-diffusion-jax --config=digits --workdir=runs/digits [--mode=...] [--config.KEY=...]

--workdir=FOLDER   The run's folder; may be gs://... It holds its own config: --config=NAME_OR_FILE starts one.
--mode=MODE        train (the default; or goes on), classifier, sample, evaluate, report, demo, import, export.
--dry_run [--devices=N]   Only say what training would take on each of N devices, and where it fits or what would make
                   it fit; reads no data. --dry_run=full prints every key of the config as well.
--out=FOLDER       Where sample writes, if not into samples/, samples_2/, ... of the run.
--import_path=FILE (.pt, .safetensors), --export_path=FILE (.safetensors): weights with guided-diffusion's names.
--distributed=MODE, --coordinator=HOST:PORT, --processes=N, --process=I, --startup_timeout=S, --heartbeat=S:
                   docs/scaling.md. --version.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from guided_diffusion_jax import __version__
from guided_diffusion_jax.commands import entry_point as entry_point  # console scripts of earlier installations
from guided_diffusion_jax.errors import InputError, choose, report, require
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.runtime import compilation_cache, distributed, preemption

HELP = ("--help", "-h", "--helpfull", "--helpshort")


MODES = {
    "train": "train.run", "classifier": "classifier.run", "sample": "sample.run", "evaluate": "evaluate.run",
    "report": "report.run", "demo": "demo.run", "import": "convert.read", "export": "convert.write",
}  # fmt: skip
"""Function of each mode, `(config, workdir, *MODE_ARGUMENTS[mode](flags))`; its module is imported when it is used."""

MODE_ARGUMENTS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "sample": lambda given: (epath.Path(given.out) if given.out else None,),
    "import": lambda given: (given.import_path,),
    "export": lambda given: (given.export_path,),
}

NO_DRY_RUN = ("", "false", "False", "0")
DRY_RUN = dict.fromkeys(("true", "True", "1"), "brief")
"""Values that --dry_run had as a yes or no."""

TRAINING = ("train", "classifier", "demo", "report")
"""Modes that save and stop when they are asked to."""


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 wrong input, 1 anything else."""
    arguments = sys.argv if arguments is None else arguments
    if set(HELP) & set(arguments):
        print(__doc__, *configs.describe(configs.get_config()), sep="\n")
        return 0
    if "--version" in arguments:
        print(__version__)
        return 0
    try:
        given, config = parse(arguments)
        run = chosen(given)
        distributed.start(handle_sigterm=given.mode in TRAINING, **{n: given[n].value for n in distributed.FLAGS})
        compilation_cache.enable()
        run(config)
    except preemption.Stopped as stopped:
        print(f"{distributed.name()}{stopped}; the same command goes on from there", file=sys.stderr)
        return 0 if stopped.by_system else 1
    except Exception as error:
        return report(error, (InputError, flags.Error), distributed.name())
    return 0


def chosen(given: Any) -> Callable[[ConfigDict], Any]:
    """What the flags ask for, to be called with the configuration.

    Raises:
        InputError: flags that are missing or do not go together.
    """
    module, function = choose(MODES, given.mode, "--mode").split(".")
    if given.dry_run not in NO_DRY_RUN:
        from guided_diffusion_jax.commands import dry_run

        return lambda config: dry_run.run(
            config, epath.Path(given.workdir), given.mode, given.devices, DRY_RUN.get(given.dry_run, given.dry_run)
        )
    require(given.devices == "", "--devices is for --dry_run; a run takes all devices that it finds")
    require(bool(given.workdir), "--workdir is missing: the folder of the run, e.g. --workdir=runs/digits")
    run = getattr(importlib.import_module(f"guided_diffusion_jax.commands.{module}"), function)
    arguments = MODE_ARGUMENTS.get(given.mode, lambda given: ())(given)
    return lambda config: run(config, epath.Path(given.workdir), *arguments)


def parse(arguments: list[str]) -> tuple[Any, ConfigDict]:
    """The flags, and the configuration of --config or else of the run's folder, with the overrides."""
    joined = join_values(arguments)
    keys = [a.split("=")[0] if a.startswith("--config") else str(i) for i, a in enumerate(joined)]
    joined = list(dict(zip(keys, joined, strict=True)).values())  # the last of two values wins
    file = next((a.split("=", 1)[1] for a in joined if a.startswith(("--config=", "-config="))), "")
    rest = [argument for argument in joined if not argument.startswith(("--config=", "-config="))]
    given = flags.FlagValues()
    texts = dict.fromkeys(("dry_run", "out", "devices", "import_path", "export_path"), "")
    for name, default in {"mode": "train", **texts, **distributed.FLAGS}.items():
        define: Any = {bool: flags.DEFINE_boolean, str: flags.DEFINE_string}.get(type(default), flags.DEFINE_integer)
        define(name, default, "", flag_values=given)
    given([argument for argument in rest if not argument.startswith("--config.")])
    config = configs.load(file, given.workdir)
    configs.check_keys(config, rest)
    holder = config_flags.DEFINE_config_dict("config", config, sys_argv=rest, flag_values=given)
    require(not (left := given(rest)[1:]), f"{' '.join(left)}: flags are written --name=value or --name value")
    return given, holder.value


def join_values(arguments: list[str]) -> list[str]:
    """The arguments with every `--name value` as `--name=value`."""
    joined: list[str] = []
    for argument in arguments:
        waiting = len(joined) > 1 and joined[-1].startswith("-") and "=" not in joined[-1]
        alone = joined[-1:] in (["--dry_run"], ["--nodry_run"]) and argument != "full"
        if waiting and not alone and not argument.startswith("--"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return [{"--dry_run": "--dry_run=brief", "--nodry_run": "--dry_run="}.get(one, one) for one in joined]
