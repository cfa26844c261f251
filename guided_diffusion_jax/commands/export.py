"""`--mode=export`: the whole guided sampler as one file, or the weights alone: a small run, or with ADM's names."""

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import codecs, exported, exporting, loading, models
from guided_diffusion_jax.commands import convert
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment import runs, sampling
from guided_diffusion_jax.runtime import checksums
from guided_diffusion_jax.training import compact, run_files


def run(config: ConfigDict, workdir: epath.Path, path: str) -> None:
    """Writes the sampler that `config.sample` describes, with the newest averaged parameters, as `exporting.export`.

    Args:
        config: of the run.
        workdir: the run.
        path: a `.zip`; "" is `sampler.zip` of the run. A `.safetensors` is for the weights alone (`convert.write`); a
            name without an ending for a folder that `gd.load` takes (`training.compact`).

    Raises:
        InputError: there is no such run, another ending, or what a file cannot hold.
    """
    file = epath.Path(path) if path else workdir / "sampler.zip"
    if not file.suffix:
        write_compact(config, workdir, file)
        return
    if file.suffix != ".zip":
        convert.write(config, workdir, path)
        return
    pipe = runs.pipeline(config, workdir)
    settings = sampling.program_settings(config)
    del settings["batch_size"]
    if tile := settings.pop("tile"):
        pipe.codec = codecs.tiled(pipe.codec, tile)
    header = exporting.export(pipe, file, **settings, **runs.export_wishes(config, pipe))
    print(f"{file}: {file.stat().length / 1e6:.1f} MB\n{exported.summary(header)}", flush=True)


def write_compact(config: ConfigDict, workdir: epath.Path, folder: epath.Path) -> None:
    """Writes the newest averaged parameters of a run and its classifiers as a run with weights alone, in float16.

    Raises:
        InputError: there is no such run, it is one of latents, or the folder is there already with something else.
    """
    pipe = runs.pipeline(config, workdir)
    described = run_files.read(workdir)
    require(
        described is not None and "autoencoder" not in described, f"{workdir} holds no run on pixels; copy it whole"
    )
    require(
        compact.is_compact(folder) or not folder.exists() or not list(folder.iterdir()),
        f"--export_path={folder} is there already, and is no folder that export wrote; give another",
    )
    for part in sorted(workdir.glob("classifier*")):
        of_part = run_files.read(part)
        if of_part is not None:
            shape = DatasetInfo.from_dict(of_part["data"]).image_shape
            found = loading.restore(part, models.create(of_part["model"]), shape, runs.mesh(config))
            compact.write(folder / part.name, of_part, *found)
    if configs.stored(workdir) is not None:  # a run of the Python API has none
        configs.save(config, folder)
    assert described is not None
    compact.write(folder, described, pipe.params, pipe.step)
    size = checksums.size(folder) / 1e6
    print(f"{folder}: the averaged parameters of step {pipe.step} in {workdir}, {size:.2f} MB", flush=True)
