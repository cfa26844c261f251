"""`--mode=import` and `--mode=export`: a run from a file of guided-diffusion's weights, and such a file from a run."""

import math
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import classifier, kinds, networks, sample
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.interop import adm, files
from guided_diffusion_jax.models.control import Controlled
from guided_diffusion_jax.models.plan import SETTINGS
from guided_diffusion_jax.training.checkpoint import Checkpoints
from guided_diffusion_jax.training.lock import writing


def read(config: ConfigDict, workdir: epath.Path, path: str) -> None:
    """Makes a run of a file of weights: `config.json` and `checkpoints/0`; of a classifier's, in `classifier/`.

    Raises:
        InputError: there is no such file, it does not fit the config, or the run has checkpoints already.
    """
    require(bool(path), "--import_path is missing: the file of weights, e.g. --import_path=64x64_diffusion.pt")
    module, params, kind, *_ = adm.load(path, **_arguments(config, path))
    classes = module.num_classes
    if kind == "classifier":
        into = classifier.folder(workdir, "label")
        resolved = resolve(config, config.model.num_classes, classes)
    else:
        into = workdir
        resolved = resolve(config, classes, classes or len(config.data.class_names))
        _check_guidance(resolved)
    others = sorted(set(kinds.names(resolved)) - {"label", "low_res"}) + (["control.base"] * bool(config.control.base))
    require(
        not others, f"the config has {', '.join(others)}, which guided-diffusion's networks do not take; leave it empty"
    )
    for beside in (workdir, classifier.folder(workdir, "label")):
        configs.check_same(resolved, beside, ("diffusion",))
    with writing(into), Checkpoints(into / "checkpoints") as checkpoints:
        latest = checkpoints.latest
        require(latest is None, f"{into} already has a checkpoint, of step {latest}; use another --workdir.")
        configs.save(resolved, into)
        checkpoints.save_weights(params, path)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    print(f"{into}: {type(module).__name__} with {size:,} parameters from {path}", flush=True)


def write(config: ConfigDict, workdir: epath.Path, path: str) -> None:
    """Writes the newest averaged parameters of a run as guided-diffusion has them; the null class is left out.

    Raises:
        InputError: the run has no checkpoint, or the file's ending or the network's fusion has no counterpart there.
    """
    require(bool(path), "--export_path is missing: the file to write, e.g. --export_path=model.pt")
    files.check_writable(path)
    network = networks.network(sample.checked(config, workdir))
    if isinstance(network, Controlled):
        raise InputError(f"{workdir} is a control branch, which guided-diffusion has not; export its base")
    params, step = sample.averaged(network, config, workdir)
    order = config.model.get("attention_order", "legacy")
    adm.save(path, network, params, image_size=config.data.image_size, attention_order=order)
    print(f"{path}: the averaged parameters of step {step} in {workdir}", flush=True)


def resolve(config: ConfigDict, num_classes: int, named: int) -> ConfigDict:
    """The config with what it leaves to the data: channels 3 as ADM has, the number of classes, numbers for names.

    Args:
        config: as it was given.
        num_classes: of the model.
        named: how many classes have names.

    Raises:
        InputError: it names another number of classes.
    """
    resolved = config.copy_and_resolve_references()
    names = config.data.class_names
    require(
        len(names) in (0, named), f"data.class_names has {len(names)} names for {named} classes; name all, or give ()"
    )
    resolved.data.channels = config.data.channels or 3
    resolved.data.class_names = tuple(names) or tuple(str(label) for label in range(named))
    resolved.model.num_classes = num_classes
    return resolved


def _arguments(config: ConfigDict, path: str) -> dict[str, Any]:
    """What a config gives to `adm.load`; -1 classes are left to the weights."""
    channels, upsampler = config.data.channels or 3, config.data.low_res_size > 0
    kind = adm.kind_of(path, channels)
    if kind != "classifier" and upsampler != (kind == "super_resolution"):
        wanted, seen, needed = ("an upsampler", 1, 2) if upsampler else ("a U-Net", 2, 1)
        raise InputError(
            f"{path}: the weights see {seen * channels} channels; {wanted} for data.channels={channels} sees "
            f"{needed * channels}."
        )
    part = "classifier" if kind == "classifier" else "model"
    keys = (*SETTINGS, "attention_order", "num_classes", "pool" if kind == "classifier" else "fusion")
    given = {key: config[part][key] for key in keys if key in config[part]}
    if given.get("num_classes") == -1:
        del given["num_classes"]
    if kind != "classifier":
        given["out_channels"] = channels * (1 + (config.diffusion.variance == "learned_range"))
    given["dtype"] = choose(networks.DTYPES, given["dtype"], f"{part}.dtype")
    return given | {"image_size": config.data.image_size, "channels": channels}


def _check_guidance(config: ConfigDict) -> None:
    """ADM's networks have no null class: classifier-free guidance would steer away from what was never trained."""
    weight = config.sample.guidance.weight
    require(
        config.model.num_classes == 0 or weight == 0,
        f"sample.guidance.weight={weight:g} needs a null class, which guided-diffusion's networks were never trained "
        "with; use --config.sample.guidance.weight=0",
    )
