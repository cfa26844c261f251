"""`--mode=sample`: pictures of a trained run, as arrays, as a labelled grid and on their way from noise."""

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import UInt8
from ml_collections import ConfigDict

from guided_diffusion_jax import writing
from guided_diffusion_jax.commands import ask, build, classifier, kinds, networks, pictures
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.commands.ask import Wanted
from guided_diffusion_jax.commands.draw import Artist, Guide
from guided_diffusion_jax.data.dataset import Dataset as Source
from guided_diffusion_jax.data.digits import ATTRIBUTES
from guided_diffusion_jax.data.images import write_png
from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.training import distributed, parallel
from guided_diffusion_jax.training.checkpoint import Checkpoints
from guided_diffusion_jax.typing import Params


def run(config: ConfigDict, workdir: epath.Path, out: epath.Path) -> None:
    """Draws `sample.count` pictures with the newest averaged parameters and writes them to `out`.

    Files: `samples.npz` (`arr_0` uint8 `[n h w c]`, `arr_1` int labels), `samples.png` (one row a class),
    `trajectory.png` (unless `sample.frames` is 0) and `samples.json` (settings, seed and the checkpoint's step).

    Raises:
        InputError: before anything is compiled, for whatever in the config cannot work.
    """
    wanted = ask.from_config(checked(config, workdir))
    artist, params, step = load(config, workdir)
    labels = wanted.labels
    s = config.sample
    images = artist.images(params, wanted.spared())
    way = trajectory(artist, params, wanted.spared()) if s.frames else None
    if not distributed.leads():
        return
    out.mkdir(parents=True, exist_ok=True)
    write_arrays(out / "samples.npz", images, labels)
    title = f"w = {s.guidance.weight:g}, {s.solver} {s.steps}"
    write_png(out / "samples.png", pictures.by_class(images, labels, config.data.class_names, title))
    if way is not None:
        write_png(out / "trajectory.png", way)
    settings = {"checkpoint_step": step, "sample": s.to_dict(), "run": str(workdir)}
    writing.as_json(out / "samples.json", settings)
    print(f"{out}: {len(images)} pictures from step {step}", flush=True)


def load(config: ConfigDict, workdir: epath.Path) -> tuple[Artist, Params, int]:
    """A run's artist with the classifiers that its guidance asks for, averaged parameters and their step."""
    drawing = networks.network(checked(config, workdir))
    artist = Artist(drawing, config, guides(config, workdir))
    return artist, *averaged(drawing, config, workdir)


def checked(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """The config of a run that knows its data.

    Raises:
        InputError: there is no run yet.
    """
    resolved = config.data.channels > 0 and config.model.num_classes >= 0
    require(resolved, f"{workdir} has not been trained yet: its config leaves channels or classes to the data")
    return config


def averaged(network: nn.Module, config: ConfigDict, workdir: epath.Path) -> tuple[Params, int]:
    """A run's newest parameters, averaged where they were trained, and their step."""
    shapes = jax.eval_shape(lambda: networks.init(network, config))
    return restore(workdir, build.mesh(config, "train"), *networks.trained(network, shapes))


def guides(config: ConfigDict, workdir: epath.Path) -> list[Guide]:
    """The trained classifiers that `sample.guidance` asks for."""
    g = config.sample.guidance
    same = len(g.attributes) == len(g.attribute_labels) == len(g.attribute_weights)
    require(same, "sample.guidance.attributes, attribute_labels and attribute_weights must have the same length")
    asked: list[tuple[str, int | None, float]] = []
    if g.classifier_weight:
        asked.append(("label", None, g.classifier_weight))
    asked += zip(g.attributes, g.attribute_labels, g.attribute_weights, strict=True)
    return [guide(workdir, build.mesh(config, "train"), *one) for one in asked]


def guide(workdir: epath.Path, mesh: Mesh, attribute: str, value: int | None, weight: float) -> Guide:
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
    steering = networks.classifier(config, len(names))
    shapes = jax.eval_shape(lambda: networks.init_classifier(steering, config))
    params, _ = restore(folder, mesh, shapes)
    return Guide(steering, params, value, weight)


def restore(folder: epath.Path, mesh: Mesh, like: Params, frozen: Params | None = None) -> tuple[Params, int]:
    """The newest averaged parameters, with frozen ones, in a folder with checkpoints, and their step."""
    checkpoints = folder / "checkpoints"
    require(checkpoints.exists(), f"{checkpoints} does not exist; train first")
    like, frozen = parallel.placed((like, frozen), mesh)
    with Checkpoints(checkpoints, read_only=True) as kept:
        return kept.restore_ema(like, frozen)


def trajectory(artist: Artist, params: Params, wanted: Wanted) -> UInt8[np.ndarray, "height width 3"]:
    """The denoising of up to ten pictures, from left to right."""
    few = wanted.take(np.arange(min(10, len(wanted.labels))))
    # A model that neither knows classes nor is steered to one draws none, whatever the label is.
    classes = artist.config.data.class_names if artist.config.model.num_classes or artist.guides else ()
    names = [pictures.class_name(int(label), classes) for label in few.labels]
    return pictures.grid(list(artist.film(params, few).swapaxes(0, 1)), names)


def preview(
    artist: Artist, config: ConfigDict, data: Source
) -> Callable[[Params], UInt8[np.ndarray, "height width 3"]]:
    """What training shows: up to ten classes, eight pictures of each; or pictures like real ones, each below its own.

    The latter where a run has other conditions than the class: those of the first examples are asked for.
    """
    if set(kinds.names(config)) <= {"label"}:
        classes = max(1, config.model.num_classes)
        labels = np.repeat(np.linspace(0, classes - 1, min(10, classes)).round().astype(np.int32), 8)
        wanted = ask.for_labels(config, labels)
        return lambda params: pictures.by_class(artist.images(params, wanted), labels, config.data.class_names)
    numbers = np.arange(min(40, len(data)))
    wanted, real = ask.for_examples(config, data, numbers), data.read(numbers)["image"]

    def draw(params: Params) -> np.ndarray:
        drawn = artist.images(params, wanted)
        pairs = [images[i : i + 10] for i in range(0, len(numbers), 10) for images in (real, drawn)]
        return pictures.grid(pairs, ["real", "drawn"] * (len(pairs) // 2))

    return draw


def write_arrays(path: epath.Path, images: np.ndarray, labels: np.ndarray) -> None:
    """An `.npz` as OpenAI's evaluator reads it, whole or not at all."""
    with writing.whole(path) as file:
        np.savez(file, images, labels)
