"""`--mode=sample`: pictures of a trained run, as arrays, as a labelled grid and on their way from noise."""

import json

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import build, classifier, pictures
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.commands.draw import Artist, Guide
from guided_diffusion_jax.data.attributes import ATTRIBUTES
from guided_diffusion_jax.data.images import write_png
from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.training import parallel
from guided_diffusion_jax.training.checkpoint import Checkpoints
from guided_diffusion_jax.typing import Params


def run(config: ConfigDict, workdir: epath.Path, out: epath.Path) -> None:
    """Draws `sample.count` pictures with the newest averaged parameters and writes them to `out`.

    Files: `samples.npz` (`arr_0` uint8 `[n h w c]`, `arr_1` int labels), `samples.png` (one row a class),
    `trajectory.png` (unless `sample.frames` is 0) and `samples.json` (settings, seed and the checkpoint's step).

    Raises:
        InputError: before anything is compiled, for whatever in the config cannot work.
    """
    artist, params, step = load(config, workdir)
    labels = artist.labels
    images = artist.images(params, labels)
    out.mkdir(parents=True, exist_ok=True)
    write_arrays(out / "samples.npz", images, labels)
    s = config.sample
    title = f"w = {s.guidance.weight:g}, {s.solver} {s.steps}"
    write_png(out / "samples.png", pictures.by_class(images, labels, config.data.class_names, title))
    if s.frames:
        write_png(out / "trajectory.png", trajectory(artist, params))
    settings = {"checkpoint_step": step, "sample": s.to_dict(), "run": str(workdir)}
    (out / "samples.json").write_text(json.dumps(settings, indent=2) + "\n")
    print(f"{out}: {len(images)} pictures from step {step}", flush=True)


def load(config: ConfigDict, workdir: epath.Path) -> tuple[Artist, Params, int]:
    """A run's artist with the classifiers that its guidance asks for, averaged parameters and their step."""
    drawing = network(config, workdir)
    artist = Artist(drawing, config, guides(config, workdir))
    return artist, *averaged(drawing, config, workdir)


def network(config: ConfigDict, workdir: epath.Path) -> UNet | SuperResolution:
    """A run's network.

    Raises:
        InputError: there is no run yet.
    """
    resolved = config.data.channels > 0 and config.model.num_classes >= 0
    require(resolved, f"{workdir} has not been trained yet: its config leaves channels or classes to the data")
    return build.network(config)


def averaged(network: UNet | SuperResolution, config: ConfigDict, workdir: epath.Path) -> tuple[Params, int]:
    """A run's newest averaged parameters, and their step."""
    return restore(workdir, jax.eval_shape(lambda: build.init(network, config)))


def guides(config: ConfigDict, workdir: epath.Path) -> list[Guide]:
    """The trained classifiers that `sample.guidance` asks for."""
    g = config.sample.guidance
    same = len(g.attributes) == len(g.attribute_labels) == len(g.attribute_weights)
    require(same, "sample.guidance.attributes, attribute_labels and attribute_weights must have the same length")
    asked: list[tuple[str, int | None, float]] = []
    if g.classifier_weight:
        asked.append(("label", None, g.classifier_weight))
    asked += zip(g.attributes, g.attribute_labels, g.attribute_weights, strict=True)
    return [guide(workdir, *one) for one in asked]


def guide(workdir: epath.Path, attribute: str, value: int | None, weight: float) -> Guide:
    """The classifier of an attribute that the run in `workdir` has trained.

    Raises:
        InputError: it has trained none, or one that does not know this value.
    """
    folder = classifier.folder(workdir, attribute)
    config = configs.stored(folder)
    if config is None:
        raise InputError(
            f"{folder} does not exist; train it: --mode=classifier --config.classifier.attribute={attribute}, or do "
            f"without: --config.sample.guidance.{'classifier_weight=0' if attribute == 'label' else 'attributes=()'}"
        )
    names = config.data.class_names if attribute == "label" else ATTRIBUTES[attribute].class_names
    require(
        value is None or 0 <= value < len(names),
        f"sample.guidance.attribute_labels: {value} is no value of {attribute}; use 0 to {len(names) - 1}",
    )
    steering = build.classifier(config, len(names))
    params, _ = restore(folder, jax.eval_shape(lambda: build.init_classifier(steering, config)))
    return Guide(steering, params, value, weight)


def restore(folder: epath.Path, like: Params) -> tuple[Params, int]:
    """The newest averaged parameters in a folder with checkpoints, and their step."""
    checkpoints = folder / "checkpoints"
    require(checkpoints.exists(), f"{checkpoints} does not exist; train first")
    with Checkpoints(checkpoints, read_only=True) as kept:
        return kept.restore_ema(like, parallel.data_mesh())


def trajectory(artist: Artist, params):
    """The denoising of up to ten pictures, from left to right."""
    labels = artist.labels[:10]
    names = [artist.config.data.class_names[label] if artist.config.data.class_names else "" for label in labels]
    return pictures.grid(list(artist.film(params, labels).swapaxes(0, 1)), names)


def write_arrays(path: epath.Path, images: np.ndarray, labels: np.ndarray) -> None:
    """An `.npz` as OpenAI's evaluator reads it, whole or not at all."""
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        np.savez(file, images, labels)
    beside.replace(path)
