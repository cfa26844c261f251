"""`--mode=sample`: pictures of a trained run, as arrays, as a labelled grid and on their way from noise."""

import json

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import build, pictures
from guided_diffusion_jax.commands.draw import Artist
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.training import parallel
from guided_diffusion_jax.training.checkpoint import Checkpoints


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
    pictures.write(out / "samples.png", pictures.by_class(images, labels, config.data.class_names, title))
    if s.frames:
        pictures.write(out / "trajectory.png", trajectory(artist, params))
    settings = {"checkpoint_step": step, "sample": s.to_dict(), "run": str(workdir)}
    (out / "samples.json").write_text(json.dumps(settings, indent=2) + "\n")
    print(f"{out}: {len(images)} pictures from step {step}", flush=True)


def load(config: ConfigDict, workdir: epath.Path):
    """A run's artist, averaged parameters and their step."""
    resolved = config.data.channels > 0 and config.model.num_classes >= 0
    require(resolved, f"{workdir} has not been trained yet: its config leaves channels or classes to the data")
    network = build.unet(config)
    artist = Artist(network, config)
    folder = workdir / "checkpoints"
    require(folder.exists(), f"{folder} does not exist; train the run first")
    with Checkpoints(folder, keep=config.train.keep) as checkpoints:
        shapes = jax.eval_shape(lambda: build.init(network, config))
        params, step = checkpoints.restore_ema(shapes, parallel.data_mesh())
    return artist, params, step


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
