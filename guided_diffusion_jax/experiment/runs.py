"""A run of the commands as objects: its pipeline, its requests, its previews in training."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from guided_diffusion_jax import bundled, loading
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.data.low_res import read_low_res
from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.experiment import build, sampling
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment.default import DTYPES, KEYS, get_config
from guided_diffusion_jax.experiment.keys import pairs
from guided_diffusion_jax.exporting import BY_IMAGE
from guided_diffusion_jax.generation import Request
from guided_diffusion_jax.interop.stable_diffusion import is_stable_diffusion
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.runtime import notices
from guided_diffusion_jax.stable_diffusion import StableDiffusion
from guided_diffusion_jax.stable_diffusion import load as stable_diffusion_of
from guided_diffusion_jax.training import run_files

OTHER_PARTS = ("classifier.", "autoencoder.")
"""Keys of other networks than the run's model."""


def mesh(config: ConfigDict) -> Mesh:
    """Devices of a run, grouped as it is trained."""
    return build.settings(config.train, "train").mesh()


def pipeline(config: ConfigDict, workdir: epath.Path) -> Pipeline:
    """Pipeline of a trained run.

    Raises:
        InputError: there is none, or the configuration is another run's.
    """
    if is_stable_diffusion(workdir):
        return stable_diffusion(config, workdir)
    configs.check_same(config, workdir, OTHER_PARTS)
    require(
        run_files.read(workdir) is not None,
        f"{workdir} has not been trained yet: it holds no {run_files.FILE}; train it first",
    )
    with notices.working(f"opening {workdir}"):
        return loading.load(workdir, mesh=mesh(config), ema=config.sample.ema)


def stable_diffusion(config: ConfigDict, path: epath.Path) -> Pipeline:
    """Pipeline of Stable Diffusion's weights with what `config.weights` adds to them."""
    w = config.weights
    of_file = {"config": w.config or None, "prediction_type": w.prediction_type or None} if path.is_file() else {}
    with notices.working(f"opening {path}"):
        pipe = stable_diffusion_of(
            path, mesh=mesh(config), controlnet=tuple(w.controlnets), image_size=tuple(w.image_size) or None,
            dtype=DTYPES[config.model.dtype], **of_file,
        )  # fmt: skip
        for file, scale in pairs(w.loras, "weights.loras", 2):
            pipe = pipe.with_lora(file, scale)
        for file in w.embeddings:
            pipe = pipe.with_embedding(file)
    return pipe


def samples_folder(workdir: epath.Path) -> epath.Path:
    """Where samples go by default: into the run's folder, or beside a file of weights.

    Those of a model that came with the package go to NAME_samples, here.
    """
    if name := bundled.name_of(workdir):
        return epath.Path(f"{name}_samples")
    return workdir.with_name(f"{workdir.stem}_samples") if workdir.is_file() else workdir / "samples"


@contextlib.contextmanager
def named_keys() -> Iterator[None]:
    """Errors about a keyword of a request with the name of the configuration's key, such as sample.guidance.weights."""
    try:
        yield
    except InputError as error:
        keyword = re.split(r"\W", str(error), maxsplit=1)[0]
        sample = get_config().sample
        section = next(
            (name for name, part in (("sample.", sample), ("sample.guidance.", sample.guidance)) if keyword in part), ""
        )
        raise InputError(f"{section}{error}") from error


@named_keys()
def request(config: ConfigDict, pipe: Pipeline) -> Request:
    """What the keys of `config.sample` ask for."""
    return pipe.request(**_wishes(config, pipe))


@named_keys()
def sweep(config: ConfigDict, pipe: Pipeline) -> tuple[dict[str, list[Any]], Request, np.ndarray]:
    """A sweep that `config.sample.sweep` asks for: its axes, the request at their first values, and its images.

    Raises:
        InputError: more than two axes, or what `request` refuses at any of their values.
    """
    axes = sampling.sweep_axes(config)
    few = config.copy_and_resolve_references()
    few.sample.count = min(config.sample.count, config.sample.sweep.count)
    wishes = _wishes(few, pipe)
    for name, other in (("weight", "guidance_scale"), ("guidance_scale", "weight")):
        wishes |= {other: None} if name in axes and other not in axes else {}
    others = {name: wish for name, wish in wishes.items() if name not in axes}
    swept: dict[str, Any] = {**axes, **others, **sampling.program_settings(config)}
    first: dict[str, Any] = {**others, **{name: values[0] for name, values in axes.items()}}
    return axes, pipe.request(**first), pipe.sweep(**swept)


def _wishes(config: ConfigDict, pipe: Pipeline) -> dict[str, Any]:
    classes = pipe.specs["label"].null if "label" in pipe.specs else 0
    wishes = sampling.wishes(config, classes or guided_classes(config, pipe))
    if tuple(config.sample.labels) == sampling.ALL and wishes["labels"]:
        wishes["labels"] = wishes["labels"][: config.sample.count]
    wishes["weight"] = given_weight(wishes["weight"])
    wishes["autoguidance"] = worse_model(config)
    if isinstance(pipe, StableDiffusion):
        w = config.weights
        wishes |= {"clip_skip": w.clip_skip, "prompt_weights": w.prompt_weights}
        wishes |= {"control_scale": w.control_scale, "guess_mode": w.guess_mode} if w.controlnets else {}
    path = config.sample.low_res
    require(bool(path) == ("low_res" in pipe.specs), _low_res_message(path, pipe))
    if path:
        images, labels = read_low_res(path, pipe.specs["low_res"].shape, config.sample.count, classes)
        if labels is not None:
            require(
                tuple(config.sample.labels) == ("all",),
                f"sample.labels={config.sample.labels} must stay all: the small images bring their labels (arr_1)",
            )
            wishes["labels"] = labels.tolist()
        wishes["low_res"] = images
    return wishes


def export_wishes(config: ConfigDict, pipe: Pipeline) -> dict[str, Any]:
    """Keywords of `exporting.export`: how `config.sample` samples, and nothing of what an image shall show."""
    wishes = sampling.wishes(config, len(pipe.info.class_names))
    wishes["weight"] = given_weight(wishes["weight"])
    return {name: wish for name, wish in wishes.items() if name not in BY_IMAGE}


def given_weight(weight: Any) -> Any:
    """The weight of guidance that a run is asked for; None, the model's own default, where the key was left alone."""
    untouched = isinstance(weight, float | int) and weight == KEYS["sample.guidance.weight"].default
    return None if untouched else weight


def unusual(config: ConfigDict, pipe: Pipeline) -> str:
    """What a person may not expect of a run's samples: that nothing steers them. Empty where guidance is at work."""
    if not pipe.specs:
        return "this run has no classes and takes no conditions: the images are unconditional"
    if not pipe.null_trained and given_weight(config.sample.guidance.weight) is None:
        return "this run was trained without condition dropout: weight=0, the plain conditional model"
    return ""


def worse_model(config: ConfigDict) -> Pipeline | None:
    """The other network of autoguidance; None without one."""
    g = config.sample.guidance
    if not g.autoguidance:
        require("autoguidance" not in g.rules, "autoguidance is missing: the rule needs a worse model's run or weights")
        return None
    return loading.load(
        g.autoguidance, mesh=mesh(config), **({"step": g.autoguidance_step} if g.autoguidance_step else {})
    )


def guided_classes(config: ConfigDict, pipe: Pipeline) -> int:
    """Number of classes of an unconditional model that a classifier of the class steers; else 0."""
    return len(pipe.info.class_names) if config.sample.guidance.classifier_weight else 0


def _low_res_message(path: str, pipe: Pipeline) -> str:
    if path:
        return f"sample.low_res={path} is for super-resolution models, which this run is none; leave it empty"
    size = pipe.specs["low_res"].shape[0] if "low_res" in pipe.specs else 0
    return (
        f"sample.low_res is missing: a super-resolution model needs an .npz of images of {size} pixels, like "
        "samples.npz; give --config.sample.low_res=FILE.npz"
    )


@named_keys()
def evaluation_request(config: ConfigDict, pipe: Pipeline, data: Dataset, count: int, **wishes: Any) -> Request:
    """What images that are scored are asked to show: all classes in turn, or the conditions of a split's examples.

    Args:
        config: the configuration; `config.sample` says how they are sampled.
        pipe: of the run.
        data: the split whose examples give the conditions of a model that takes more than labels.
        count: number of images.
        wishes: keywords of `Pipeline.__call__` in the place of the configuration's.
    """
    g = config.sample.guidance
    how = {
        "weight": given_weight(g.weight),
        "classifier_weight": g.classifier_weight or None,
        "autoguidance": worse_model(config),
        **sampling.rule_wishes(config),
        **sampling.solver_wishes(config),
        **wishes,
    }
    if set(pipe.specs) <= {"label"}:
        classes = max(1, len(pipe.info.class_names))
        labels = [i % classes for i in range(count)] if pipe.info.class_names else None
        return pipe.request(labels=labels, count=count, **how)
    return pipe.request_for(data, np.arange(count) % len(data), **how)
