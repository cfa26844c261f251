"""`--mode=export`: the whole guided sampler as one file, or the weights alone with guided-diffusion's names."""

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import codecs, exported, exporting
from guided_diffusion_jax.commands import convert
from guided_diffusion_jax.experiment import runs, sampling


def run(config: ConfigDict, workdir: epath.Path, path: str) -> None:
    """Writes the sampler that `config.sample` describes, with the newest averaged parameters, as `exporting.export`.

    Args:
        config: of the run.
        workdir: the run.
        path: a `.zip`; "" is `sampler.zip` of the run. A `.safetensors` is for the weights alone (`convert.write`).

    Raises:
        InputError: there is no such run, another ending, or what a file cannot hold.
    """
    file = epath.Path(path) if path else workdir / "sampler.zip"
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
