"""`--mode=sample`: images of a trained run, as arrays, as a labelled grid and on their way from noise."""

import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict

from guided_diffusion_jax import grids
from guided_diffusion_jax.data.images import write_png
from guided_diffusion_jax.experiment import runs, sampling
from guided_diffusion_jax.generation import Request
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.runtime import distributed
from guided_diffusion_jax.runtime.files import atomic_write, write_json


def run(config: ConfigDict, workdir: epath.Path, out: epath.Path) -> None:
    """Generates `sample.count` images with the newest averaged parameters and writes them to `out`.

    Files: `samples.npz` (`arr_0` uint8 `[n h w c]`, `arr_1` int labels), `samples.png` (one row a class),
    `trajectory.png` (unless `sample.frames` is 0) and `samples.json` (settings, seed and the checkpoint's step).

    Raises:
        InputError: before anything is compiled, for whatever in the configuration cannot work.
    """
    s = config.sample
    pipe = runs.pipeline(config, workdir)
    request = runs.request(config, pipe).prune_branches()
    images = pipe.generate(request, **sampling.program_settings(config))
    states = trajectory(pipe, request, s.frames, s.batch_size) if s.frames else None
    if not distributed.is_main_process():
        return
    out.mkdir(parents=True, exist_ok=True)
    write_arrays(out / "samples.npz", images, request.labels)
    title = f"w = {s.guidance.weight:g}, {s.sampler} {s.steps}"
    write_png(out / "samples.png", grids.by_class(images, request.labels, pipe.info.class_names, title))
    if states is not None:
        write_png(out / "trajectory.png", states)
    write_json(out / "samples.json", {"checkpoint_step": pipe.step, "sample": s.to_dict(), "run": str(workdir)})
    print(f"{out}: {len(images)} images from step {pipe.step}", flush=True)


def trajectory(pipe: Pipeline, request: Request, frames: int, batch_size: int = 500) -> UInt8[np.ndarray, "h w 3"]:
    """The denoising of up to ten images, from left to right."""
    few = request.rows(np.arange(min(10, request.size)))
    # A model that neither knows classes nor is steered to one shows none, whatever the label is.
    classes = pipe.info.class_names if "label" in pipe.specs or request.guides else ()
    names = [grids.class_name(int(label), classes) for label in few.labels]
    states = pipe.trajectory(few, frames=frames, batch_size=batch_size)
    return grids.grid(list(states.swapaxes(0, 1)), names)


def write_arrays(path: epath.Path, images: np.ndarray, labels: np.ndarray) -> None:
    """An `.npz` as OpenAI's evaluator reads it, written as a whole or not at all."""
    with atomic_write(path) as file:
        np.savez(file, images, labels)
