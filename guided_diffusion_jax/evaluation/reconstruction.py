"""How well an autoencoder gives images back, and how large its latents are."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from guided_diffusion_jax import sharding
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.data.pipeline import numbered
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.interop.stable_diffusion import Part, save_autoencoder
from guided_diffusion_jax.models.autoencoder import AutoencoderKL
from guided_diffusion_jax.objectives.autoencoder import psnr
from guided_diffusion_jax.runtime import distributed, notices
from guided_diffusion_jax.training import latents
from guided_diffusion_jax.training.trainer import Trainer
from guided_diffusion_jax.typing import Images, Params

IMAGES = 5000
"""Of the training data, at most, that the scaling factor is measured on: latents are many numbers each."""


def finish_autoencoder(trainer: Trainer) -> Part:
    """The averaged autoencoder that a trainer has fitted, with 1 / std of the training data's latents as its factor.

    Writes it to `vae/` in the trainer's folder, where `load_autoencoder` finds it and diffusers too.

    Raises:
        InputError: the trainer has not been run, or trains something else.
    """
    model, state = trainer.model, trainer.state
    if state is None or not isinstance(model, AutoencoderKL):
        raise InputError("finish_autoencoder takes a trainer of an AutoencoderKL after its fit")
    params = state.network()
    data = trainer.data
    if len(data) > IMAGES:
        data = data.subset(np.linspace(0, len(data) - 1, IMAGES).round().astype(int))
    std = latent_std(model, params, data, mesh=trainer.mesh)
    found = Part(model.clone(scaling_factor=1 / std), params)
    if trainer.workdir is not None and distributed.is_main_process():
        save_autoencoder(trainer.workdir / latents.FOLDER, found)
    return found


@functools.partial(jax.jit, static_argnums=0)
def restore(model: AutoencoderKL, params: Params, images: Images) -> Images:
    """Reconstructions, from the posterior's mean."""
    restored: Any = model.apply({"params": params}, images)
    return restored[0]


def mean_psnr(
    model: AutoencoderKL, params: Params, data: Dataset, *, batch_size: int = 64, mesh: Mesh | None = None
) -> float:
    """Mean PSNR, in dB, of the reconstructions from the posterior's mean, clipped to [-1, 1] and rounded to 8 bits."""

    def of_batch(params: Params, images: Images) -> Array:
        pixels = jnp.round((jnp.clip(restore(model, params, images), -1, 1) + 1) * 127.5) / 127.5 - 1
        return jnp.minimum(psnr(images, pixels), 100.0)[:, None]  # an exact image would count as infinite

    return float(_mean(of_batch, params, data, batch_size, mesh)[0])


def latent_std(
    model: AutoencoderKL, params: Params, data: Dataset, *, batch_size: int = 64, mesh: Mesh | None = None
) -> float:
    """Standard deviation of samples of the posterior, over all images, positions and channels, without the factor."""

    def of_batch(params: Params, images: Images) -> Array:
        posterior: Any = model.apply({"params": params}, images, method="encode")
        square = posterior.mean**2 + jnp.exp(posterior.logvar)
        return jnp.stack([jnp.mean(values, axis=(1, 2, 3)) for values in (posterior.mean, square)], axis=1)

    mean, square = _mean(of_batch, params, data, batch_size, mesh)
    return float(np.sqrt(square - mean**2))


def _mean(
    of_batch: Callable[[Params, Images], Float[Array, "b k"]],
    params: Params,
    data: Dataset,
    batch_size: int,
    mesh: Mesh | None,
) -> Float[np.ndarray, " k"]:
    """Mean over a data set of numbers of each image."""
    devices = sharding.mesh() if mesh is None else mesh

    @functools.partial(
        jax.jit, out_shardings=sharding.replicated(devices), compiler_options=sharding.compiler_options()
    )
    def total(params: Params, batch: dict[str, Array]) -> Array:
        return batch["weight"] @ sharding.gathering(devices)(of_batch)(params, batch["image"])

    size, found = sharding.round_up(min(batch_size, len(data)), devices.size), np.zeros(())
    with notices.progress(-(-len(data) // size), f"autoencoder on {data.name}", " batches", leave=False) as bar:
        for i, batch in enumerate(numbered(data, len(data), size, jax.process_index(), jax.process_count())):
            on_devices = sharding.put_batch({key: batch[key] for key in ("image", "weight")}, devices)
            notice = contextlib.nullcontext() if i else notices.compiling("the autoencoder", params, on_devices)
            with notice:
                found = found + np.asarray(total(params, on_devices), np.float64)
            bar.update()
    return found / len(data)
