"""Latents of a data set, computed once (Rombach et al. 2022), and the autoencoder that a run keeps in its folder.

An autoencoder lies on disk as diffusers has it: `vae/` with config.json and weights, in the folder of a run of ours or
of Stable Diffusion.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from guided_diffusion_jax import sharding
from guided_diffusion_jax.codecs import Codec
from guided_diffusion_jax.conditions import condition_specs
from guided_diffusion_jax.data import row_files
from guided_diffusion_jax.data.dataset import IMAGE_KEYS, Dataset, array_reader
from guided_diffusion_jax.data.images import to_float
from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.interop.stable_diffusion import Part, load_part, settings
from guided_diffusion_jax.interop.stable_diffusion.saving import autoencoder_config
from guided_diffusion_jax.models.autoencoder import AutoencoderKL, latent_codec
from guided_diffusion_jax.objectives.partition import flatten_params
from guided_diffusion_jax.runtime import notices
from guided_diffusion_jax.runtime.files import atomic_write
from guided_diffusion_jax.typing import Images, Params

FOLDER = "vae"
"""Folder of an autoencoder in that of a run, of ours or of Stable Diffusion."""

BATCH = 64
"""Images that are encoded at a time, about."""


def load_autoencoder(path: epath.PathLike) -> Part:
    """The autoencoder, `model` and `params`, of a run or of Stable Diffusion.

    Args:
        path: folder of a run that trained one (`--mode=autoencoder`) or that trains on latents; or of Stable Diffusion
            in diffusers' layout, or its `vae/` alone.

    Raises:
        InputError: there is no autoencoder.
    """
    folder = epath.Path(path).expanduser()
    for place in (folder / FOLDER, folder / "autoencoder" / FOLDER, folder):
        if (place / "config.json").exists() and "latent_channels" in (place / "config.json").read_text():
            return load_part(place, settings.autoencoder)
    raise InputError(
        f"{folder} holds no autoencoder: no {FOLDER}/config.json with latent_channels; train one with "
        "--mode=autoencoder, or give the folder of a Stable Diffusion"
    )


def describe(autoencoder: Part) -> dict[str, Any]:
    """What identifies an autoencoder, JSON-able: a SHA-256 digest of its settings and parameters."""
    return {"sha256": digest(json.dumps(autoencoder_config(autoencoder.model)), autoencoder.params)}


def digest(settings: str, params: Params) -> str:
    """SHA-256 digest of a network's settings and parameters."""
    found = hashlib.sha256(settings.encode())
    for path, value in sorted(flatten_params(params).items()):
        array = np.asarray(value)
        found.update(f"{'/'.join(path)} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()


def of_run(folder: epath.Path, description: Mapping[str, Any]) -> Part | None:
    """The autoencoder of a run with this description; None of a run on pixels.

    Raises:
        InputError: it is missing or another one.
    """
    if "autoencoder" not in description:
        return None
    found = load_autoencoder(folder / FOLDER)
    require(
        describe(found) == description["autoencoder"],
        f"{folder / FOLDER} is not the autoencoder that the run was trained with; restore it",
    )
    return found


def codec(autoencoder: Part, image_shape: tuple[int, int, int], mesh: Mesh | None = None) -> Codec:
    """Codec of an autoencoder for images `(h, w, c)`, its parameters on all devices."""
    assert isinstance(autoencoder.model, AutoencoderKL)
    params = jax.device_put(autoencoder.params, sharding.replicated(sharding.mesh() if mesh is None else mesh))
    return latent_codec(autoencoder.model, params, image_shape[:2])


def latent_shape(autoencoder: Part | None, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(h, w, z) of the latents of images; without an autoencoder that of the images.

    Raises:
        InputError: the autoencoder does not take such images.
    """
    if autoencoder is None:
        return image_shape
    model: Any = autoencoder.model
    model.check(image_shape)
    return image_shape[0] // model.factor, image_shape[1] // model.factor, model.latent_channels


IN_PIXELS = ("reference_image", "control_image", "masked_image", "low_res")
"""Conditions that are images, which a model of latents does not take."""


def check(network: Any, shape: tuple[int, int, int]) -> None:
    """Raises `InputError` for a network of latents `(h, w, z)` that is conditioned on images."""
    taken = [name for name in condition_specs(network, shape) if name in IN_PIXELS]
    require(
        not taken,
        f"model.autoencoder: the model takes {', '.join(taken)} in pixels, which a latent model does not; leave it out "
        "(inpainting and image-to-image work without)",
    )


def encode_images(
    data: Dataset, autoencoder: Part, *, flip: bool = False, cache_dir: epath.PathLike | None = None
) -> Dataset:
    """The data set with latents in the place of its images, computed once and cached.

    `read` gives as "image" mean and standard deviation of the posterior, float32 `[n h w 2z]`, without the scaling
    factor; with `flip` also "mirrored", those of the mirrored images. Other images are left out.

    Args:
        data: images, of which the captions may be encoded.
        autoencoder: see `load_autoencoder`.
        flip: whether the mirrored images are needed.
        cache_dir: where the files go, `latents/`, if the data set's own folder cannot be written to. Without either
            they are computed in memory.

    Raises:
        InputError: the autoencoder does not take such images, or an image cannot be read.
    """
    shape = latent_shape(autoencoder, data.image_shape)
    known = json.dumps([data.fingerprint() | {"name": ""}, describe(autoencoder), flip])
    name = f"latents-{hashlib.sha256(known.encode()).hexdigest()[:16]}.npy"
    places = [epath.Path(folder) / "latents" / name for folder in (data.home, cache_dir) if folder is not None]
    stored = next((path for path in places if path.exists() and path.with_suffix(".npz").exists()), None)
    others: dict[str, Any] = {}
    if stored is not None:
        table = row_files.read(stored)
        with stored.with_suffix(".npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            others = {key: arrays[key] for key in arrays}
    else:
        table = _compute(data, autoencoder, flip, places, others)
    others = {key: values.astype(object) if values.dtype.kind == "U" else values for key, values in others.items()}
    conditions = array_reader(others)

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = np.asarray(table[indices], np.float32)
        return {**conditions(indices), **dict(zip(("image", "mirrored"), rows.swapaxes(0, 1), strict=False))}

    return dataclasses.replace(data, image_shape=shape, read=read, in_memory=True, has_reference=False)


def _compute(
    data: Dataset, autoencoder: Part, flip: bool, places: list[epath.Path], others: dict[str, Any]
) -> np.ndarray:
    """Latents `[n variants h w 2z]`; their file, and one of all that is no image, go to the first place that works.

    `others` gets what is no image.
    """

    def parts() -> Iterator[np.ndarray]:
        collected: dict[str, list[np.ndarray]] = {}
        for rows, columns in _encoded(data, autoencoder, flip):
            for key, values in columns.items():
                collected.setdefault(key, []).append(values)
            yield rows
        found = {key: np.concatenate(values) for key, values in collected.items()}
        others.update({key: values.astype(str) if values.dtype == object else values for key, values in found.items()})

    for path in places:
        try:
            row_files.write(path, len(data), parts())
        except InputError as error:
            if isinstance(error.__cause__, OSError):  # such as a folder that is read only
                continue
            raise
        with atomic_write(path.with_suffix(".npz")) as file:
            np.savez(file, **others)
        return row_files.read(path)
    return np.concatenate([rows.astype(np.float16) for rows in parts()])


def _encoded(data: Dataset, autoencoder: Part, flip: bool) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Latents of a batch, `[b variants h w 2z]`, and what of it is no image, over the devices of this process."""
    devices = jax.local_devices()
    size = -(-BATCH // len(devices)) * len(devices)
    mesh = Mesh(np.array(devices), "batch")
    everywhere, divided = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("batch",)))
    params = jax.device_put(autoencoder.params, everywhere)
    encode = jax.jit(functools.partial(_moments, autoencoder.model))
    with notices.progress(len(data), f"latents of {data.name}", " images", leave=False) as bar:
        for start in range(0, len(data), size):
            indices = np.arange(start, min(start + size, len(data)))
            batch = data.read(indices)
            images = to_float(batch["image"][np.minimum(np.arange(size), len(indices) - 1)])
            variants = [images, images[:, :, ::-1]][: 1 + flip]
            with notices.compiling("the encoder", params, images):
                rows = [np.asarray(encode(params, jax.device_put(each, divided))) for each in variants]
            yield (
                np.stack(rows, axis=1)[: len(indices)],
                {key: values for key, values in batch.items() if key not in IMAGE_KEYS},
            )
            bar.update(len(indices))


def _moments(model: Any, params: Params, images: Images) -> Float[Array, "b h2 w2 z2"]:
    """Mean and standard deviation of the posterior."""
    posterior = model.apply({"params": params}, images, method="encode")
    return jnp.concatenate([posterior.mean, posterior.std], axis=-1)
