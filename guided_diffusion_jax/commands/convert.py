"""`--mode=import`: a run from a file of guided-diffusion's weights; and for `--mode=export` such a file from a run."""

import math
import warnings
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import models
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.experiment import build, runs
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.interop import adm, files
from guided_diffusion_jax.loading import classifier_folder
from guided_diffusion_jax.models import ControlNet, SuperResolution
from guided_diffusion_jax.requests import NO_NULL
from guided_diffusion_jax.runtime.lock import exclusive
from guided_diffusion_jax.training import run_files
from guided_diffusion_jax.training.checkpoint import Checkpoints


def read(config: ConfigDict, workdir: epath.Path, path: str) -> None:
    """Makes a run of a file of weights: `run.json`, `config.json` and `checkpoints/0`; a classifier's in `classifier/`.

    Raises:
        InputError: there is no such file, it does not fit the configuration, or the run has checkpoints already.
    """
    require(bool(path), "--import_path is missing: the file of weights, e.g. --import_path=64x64_diffusion.pt")
    with warnings.catch_warnings(record=True) as notes:
        loaded = adm.load(path, **build.adm_settings(config, adm.kind_of(path), path))
    for note in notes:
        print(f"note: {note.message}", flush=True)
    module, params = loaded.model, loaded.params
    if isinstance(module, SuperResolution):
        module = module.clone(low_res_size=config.data.low_res_size)
    process = build.process(config)
    classes = models.num_classes(module)
    folder = workdir if loaded.kind != "classifier" else classifier_folder(workdir, "label")
    if loaded.kind != "classifier":
        _check_guidance(config, classes)
    for beside in (workdir, classifier_folder(workdir, "label")):
        configs.check_same(config, beside, ("model.", "train.", "classifier.", "data."))
    size = config.data.image_size
    info = DatasetInfo(
        name=config.data.name, length=0, image_shape=(size, size, 3), class_names=tuple(map(str, range(classes)))
    )
    description = {"model": models.describe(module), "process": process.describe(), "data": info.to_dict()}
    with exclusive(folder), Checkpoints(folder / "checkpoints") as checkpoints:
        latest = checkpoints.latest
        require(latest is None, f"{folder} already has a checkpoint, of step {latest}; use another --workdir.")
        run_files.write(folder, {**description, "source": path, "null_label": config.data.null_label})
        configs.save(config, folder)
        checkpoints.save_weights(params, path)
    number = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    print(f"{folder}: {type(module).__name__} with {number:,} parameters from {path}", flush=True)


def write(config: ConfigDict, workdir: epath.Path, path: str) -> None:
    """Writes the newest averaged parameters of a run with guided-diffusion's names; the null class is left out.

    Raises:
        InputError: the run has no checkpoint, or the file's ending or the network has no counterpart there.
    """
    files.check_writable(path)
    pipe = runs.pipeline(config, workdir)
    model: Any = pipe.model
    if isinstance(model, ControlNet):
        raise InputError(f"{workdir} is a ControlNet, which guided-diffusion does not have; export its base")
    order = config.model.attention_order
    settings = {"image_size": pipe.codec.shape[0], "attention_order": order, "null_label": config.data.null_label}
    adm.save(path, model, pipe.params, **settings)
    print(f"{path}: the averaged parameters of step {pipe.step} in {workdir}", flush=True)


def _check_guidance(config: ConfigDict, classes: int) -> None:
    """ADM's networks have no null class: classifier-free guidance would steer away from what was never trained."""
    weight = config.sample.guidance.weight
    require(
        classes == 0 or weight == 0 or config.data.null_label is not None,
        f"sample.guidance.weight={weight:g} {NO_NULL}; use --config.sample.guidance.weight=0, or say which row of the "
        "class embedding was trained as the null: --config.data.null_label=ROW",
    )
