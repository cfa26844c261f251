"""`--mode=autoencoder`: train the autoencoder whose latents a diffusion model can see."""

import shlex
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import grids
from guided_diffusion_jax.commands.arguments import program
from guided_diffusion_jax.data.images import to_float, to_uint8, write_png
from guided_diffusion_jax.evaluation import reconstruction
from guided_diffusion_jax.experiment import build, trainers
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.runtime import distributed
from guided_diffusion_jax.runtime.files import write_json
from guided_diffusion_jax.training import latents

OTHER_SECTIONS = ("model.", "diffusion.", "train.", "classifier.", "data.text", "data.attributes")
"""Keys that do not concern the autoencoder."""


def run(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains to `autoencoder.train.steps`, measures the latents and the held-out reconstructions.

    Leaves in `autoencoder/` of the run's folder `config.json`, checkpoints, metrics, `vae/` (the averaged parameters
    and the scaling factor, as diffusers has them), `reconstructions.png` (images above their reconstructions) and
    `reconstruction.json`.

    Raises:
        InputError: before anything is compiled, for whatever in the configuration cannot work.
    """
    t, folder = config.autoencoder.train, workdir / "autoencoder"
    configs.check_same(config, folder, OTHER_SECTIONS)
    data = build.dataset(config)
    trainer = trainers.autoencoder_trainer(config, folder, data)
    trainers.fit(trainer, t, config, folder)
    autoencoder = reconstruction.finish_autoencoder(trainer)
    model: Any = autoencoder.model
    held_out = build.dataset(config, "test")
    psnr = reconstruction.mean_psnr(model, autoencoder.params, held_out, mesh=trainer.mesh)
    if not distributed.is_main_process():
        return
    shape, factor = latents.latent_shape(autoencoder, data.image_shape), model.scaling_factor
    found = {"psnr": psnr, "count": len(held_out), "latent_shape": shape, "scaling_factor": factor}
    write_json(folder / "reconstruction.json", found | {"checkpoint_step": t.steps})
    images = held_out.read(np.arange(min(grids.COLUMNS, len(held_out))))["image"]
    restored = reconstruction.restore(model, jax.device_get(autoencoder.params), to_float(images))
    rows, title = [images, to_uint8(np.asarray(restored))], f"{held_out.name}: PSNR {psnr:.2f} dB"
    write_png(folder / "reconstructions.png", grids.grid(rows, ("images", "reconstructions"), title))
    use = "" if config.model.autoencoder else " --config.model.autoencoder=autoencoder"
    print(
        f"{folder}: step {t.steps}; PSNR {psnr:.2f} dB on {len(held_out):,} images of {held_out.name}; latents "
        f"{'x'.join(map(str, shape))}, scaling factor {factor:.4g}; next: {program()} "
        f"--workdir={shlex.quote(str(workdir))}{use}",
        flush=True,
    )
