"""The command line: `python main.py` in a checkout, `guided-diffusion-jax` after installation."""

import importlib
import os
import shlex
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import __version__, bundled
from guided_diffusion_jax.commands import arguments as parsing
from guided_diffusion_jax.commands import entry_point as entry_point  # console scripts of earlier installations
from guided_diffusion_jax.errors import InputError, choose, report, require
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment.default import GROUPS
from guided_diffusion_jax.runtime import compilation_cache, distributed, preemption


class Mode(NamedTuple):
    """What `--mode` chooses.

    Attributes:
        function: `(config, workdir, *arguments(flags))`; its module in `commands` is imported when it is used.
        meaning: for `--help`.
        arguments: further arguments of the function, from the flags.
    """

    function: str
    meaning: str
    arguments: Callable[[Any], tuple[Any, ...]] = lambda given: ()


MODES = {
    "train": Mode("train.run", "train a model, or go on from the newest checkpoint (the default)"),
    "classifier": Mode("classifier.run", "train the noise-aware classifier that can steer a run's model"),
    "autoencoder": Mode("autoencoder.run", "train the autoencoder whose latents a model can see"),
    "finetune": Mode("finetune.run", "fine-tune Stable Diffusion on own pictures: LoRA, ControlNet, a new word or all"),
    "sample": Mode(
        "sample.run",
        "generate images",
        lambda given: (epath.Path(given.out) if given.out else None,),
    ),
    "evaluate": Mode("evaluate.run", "measure a run, or a file of images"),
    "report": Mode("report.run", "measure a run and write a page about it"),
    "demo": Mode("demo.run", "train the digits and compare three ways of steering"),
    "import": Mode(
        "convert.read", "make a run of guided-diffusion's weights, --import_path", lambda given: (given.import_path,)
    ),
    "export": Mode(
        "export.run", "write a run's sampler as one file, or with --export_path=FILE.safetensors its weights",
        lambda given: (given.export_path,),
    ),
    "serve": Mode("serve.run", "a web page to play with a run", lambda given: (given.host, given.port)),
}  # fmt: skip

TRAINING = ("train", "classifier", "autoencoder", "finetune", "demo", "report")
"""Modes that save and stop when they are asked to."""


BUNDLED = ("sample", "serve")
"""Modes that take a model that comes with the package by its name, as --workdir."""


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 wrong input, 1 anything else."""
    arguments = sys.argv if arguments is None else arguments
    try:
        given, rest = flags(arguments)
        if given.version:
            print(__version__)
        elif given.help or not arguments[1:]:
            print(manual_page(parsing.program(arguments[0]), given, rest, arguments), flush=True)
        else:
            config = configuration(given, rest)
            run = chosen(given)
            distributed.start(
                handle_sigterm=given.mode in TRAINING, **{name: getattr(given, name) for name in distributed.FLAGS}
            )
            compilation_cache.enable()
            configs.check(config)
            run(config)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except preemption.Stopped as stopped:
        again = f"{parsing.program(arguments[0])} {shlex.join(arguments[1:])}"
        print(f"{distributed.name()}{stopped}; to go on from there: {again}", file=sys.stderr)
        return 0 if stopped.by_system else 1
    except Exception as error:
        return report(error, (InputError,), distributed.name())
    return 0


def manual_page(name: str, given: Any, rest: list[str], arguments: list[str]) -> str:
    """What `--help` prints; of a run with its values, for sampling also its classes."""
    from guided_diffusion_jax.commands import manual  # imports what only a page needs

    modes, workdir = {mode: about.meaning for mode, about in MODES.items()}, epath.Path(given.workdir)
    if not arguments[1:]:
        return manual.usage(name, modes)
    of_run = given.config or (given.workdir and configs.stored(workdir) is not None)
    config = configuration(given, rest) if of_run else configs.get_config()
    asked = any(argument.startswith("--mode") for argument in arguments)
    group = given.help if given.help != "all" else given.mode if asked and given.mode in GROUPS else ""
    listed = manual.classes(workdir) if given.workdir and group in ("", "sample") else ""
    return listed + manual.page(name, modes, config, group)


def chosen(given: Any) -> Callable[[ConfigDict], Any]:
    """What the flags ask for, to be called with the configuration.

    Raises:
        InputError: flags that are missing or do not go together.
    """
    mode = choose(MODES, given.mode, "--mode")
    if given.dry_run:
        from guided_diffusion_jax.commands import dry_run

        return lambda config: dry_run.run(config, epath.Path(given.workdir), given.mode, given.devices, given.dry_run)
    require(given.devices == "", "--devices is for --dry_run; a run takes all devices that it finds")
    require(bool(given.workdir), "--workdir is missing: the folder of the run, e.g. --workdir=runs/digits")
    module, function = mode.function.split(".")
    run = getattr(importlib.import_module(f"guided_diffusion_jax.commands.{module}"), function)
    return lambda config: run(config, epath.Path(given.workdir), *mode.arguments(given))


def parse(arguments: list[str]) -> tuple[Any, ConfigDict]:
    """The flags, and the configuration of --config or else of the run's folder, with the overrides."""
    given, rest = flags(arguments)
    return given, configuration(given, rest)


def flags(arguments: list[str]) -> tuple[Any, list[str]]:
    """The flags, --workdir of a model that comes with the package as its folder; and the other arguments."""
    given, rest = parsing.flags(arguments[1:])
    if given.mode in BUNDLED and given.workdir and bundled.name_of(found := bundled.find(given.workdir)):
        given.workdir = str(found)
    return given, rest


def configuration(given: Any, rest: list[str]) -> ConfigDict:
    """The configuration of --config or else of the run's folder, with the overrides `rest`."""
    config = configs.load(given.config, given.workdir)
    parsing.override(config, rest)
    return config
