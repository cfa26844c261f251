"""`--mode=sample`: images of a trained run, as arrays, as a labelled page and on their way from noise."""

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import grids
from guided_diffusion_jax.data.images import write_png
from guided_diffusion_jax.experiment import runs, sample_sets, sampling, sheets
from guided_diffusion_jax.generation import Request
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.runtime import distributed, npz
from guided_diffusion_jax.runtime.files import atomic_write


def run(config: ConfigDict, workdir: epath.Path, out: epath.Path | None = None) -> None:
    """Generates `sample.count` images with the newest averaged parameters, and writes them as they are made.

    Files: `samples.npz` (`arr_0` uint8 `[n h w c]`, `arr_1` int labels), `samples.png` (a page of the first images:
    `experiment.sheets`), `trajectory.png` (unless `sample.frames` is 0), `images/` (with `sample.png`: each image,
    named by number and class) and `samples.json` (settings, seed and the checkpoint's step).

    With `sample.sweep` instead `sweep.png`, a labelled grid over one or two settings, and `sweep.npz`: `arr_0` uint8
    `[k n h w c]` or `[k1 k2 n h w c]`, `arr_1` the labels `[n]`, "axes" the names of the settings, and by these names
    their values.

    Args:
        config: of the run, with `config.sample`.
        workdir: the run.
        out: folder of the files, in which a set of images is replaced; None is `samples/` of the run, or `samples_2/`
            and so on where that holds images of other settings.

    Raises:
        InputError: before anything is compiled, for whatever in the configuration cannot work.
    """
    s = config.sample
    if out is not None:
        sample_sets.check_out(out)
    pipe = runs.pipeline(config, workdir)
    if sampling.sweep_axes(config):
        _sweep(config, pipe, workdir, out)
        return
    asked = runs.request(config, pipe)
    if (note := runs.unusual(config, pipe)) and distributed.is_main_process():
        print(note, flush=True)
    request = asked.prune_branches()
    batches = pipe.batches(request, **sampling.program_settings(config))
    if not distributed.is_main_process():
        for _ in batches:
            pass
        if s.frames:
            pipe.trajectory(_few(request), frames=s.frames, batch_size=s.batch_size)
        return
    folder, record = runs.samples_folder(workdir) if out is None else out, record_of(config, pipe, workdir)
    title = sheets.title(config, pipe, asked)
    names = sample_sets.file_names(request.labels.tolist(), pipe.info.class_names) if s.png else []
    shape = pipe.codec.image_shape or pipe.codec.shape
    page = np.zeros((0, *shape), np.uint8)
    with sample_sets.new_set(folder, record, request.size, exactly=out is not None) as made:
        done = 0
        with npz.stream(made / "samples.npz", (request.size, *shape), request.labels) as append:
            for images in batches:
                append(images)
                page = np.concatenate([page, images[: grids.PAGE - len(page)]])
                for name, image in zip(names[done:], images, strict=False):
                    write_png(made / sample_sets.IMAGES / name, image)
                done += len(images)
        write_png(made / "samples.png", sheets.page(pipe, asked, page, title=title))
        if s.frames:
            write_png(made / "trajectory.png", trajectory(pipe, request, s.frames, s.batch_size, title))


def _sweep(config: ConfigDict, pipe: Pipeline, workdir: epath.Path, out: epath.Path | None) -> None:
    axes, request, images = runs.sweep(config, pipe)
    if not distributed.is_main_process():
        return
    folder, count = runs.samples_folder(workdir) if out is None else out, images[..., 0, 0, 0].size
    title = sheets.title(config, pipe, request, axes)
    with sample_sets.new_set(folder, record_of(config, pipe, workdir), count, exactly=out is not None) as made:
        with atomic_write(made / "sweep.npz") as file:
            np.savez(file, **{"arr_0": images, "arr_1": request.labels, "axes": np.array(list(axes)), **axes})
        write_png(made / "sweep.png", sheets.sweep_page(axes, images, sheets.class_names(pipe, request), title))


def record_of(config: ConfigDict, pipe: Pipeline, workdir: epath.Path) -> dict:
    """What a set of images was made with, for `sample_sets`."""
    return {"checkpoint_step": pipe.step, "sample": config.sample.to_dict(), "run": str(workdir)}


def trajectory(pipe: Pipeline, request: Request, frames: int, batch_size: int = 500, title: str = "") -> grids.Canvas:
    """The denoising of up to ten images, from left to right."""
    few = _few(request)
    states = pipe.trajectory(few, frames=frames, batch_size=batch_size)
    return grids.grid(list(states.swapaxes(0, 1)), sheets.class_names(pipe, few), title)


def _few(request: Request) -> Request:
    return request.rows(np.arange(min(10, request.size)))
