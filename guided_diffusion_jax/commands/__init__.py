"""What each mode of `main.py` does."""

import importlib
from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import classifier, demo, dry_run, evaluate, sample, train, weights
from guided_diffusion_jax.errors import choose, require

MODES = {
    "train": lambda config, workdir, given: train.run(config, workdir),
    "classifier": lambda config, workdir, given: classifier.run(config, workdir),
    "sample": lambda config, workdir, given: sample.run(config, workdir, epath.Path(given.out or workdir / "samples")),
    "evaluate": lambda config, workdir, given: evaluate.run(config, workdir),
    "report": lambda config, workdir, given: importlib.import_module(f"{__name__}.report").run(config, workdir),
    "demo": lambda config, workdir, given: demo.run(config, workdir),
    "import": lambda config, workdir, given: weights.read(config, workdir, given.import_path),
    "export": lambda config, workdir, given: weights.write(config, workdir, given.export_path),
}

TRAINING = ("train", "classifier", "demo", "report")
"""The modes that save and stop when they are asked to."""


def chosen(given: Any) -> Callable[[ConfigDict], Any]:
    """What the flags ask for, to be called with the config: a mode, or what it would take.

    Raises:
        InputError: flags that are missing or do not go together.
    """
    mode = choose(MODES, given.mode, "--mode")
    if given.dry_run:
        return lambda config: dry_run.run(config, epath.Path(given.workdir), given.mode, given.devices)
    require(given.devices == "", "--devices is for --dry_run; a run takes all devices that it finds")
    require(bool(given.workdir), "--workdir is missing: the folder of the run, e.g. --workdir=runs/digits")
    return lambda config: mode(config, epath.Path(given.workdir), given)
