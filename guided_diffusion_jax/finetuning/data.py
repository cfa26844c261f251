"""What fine-tuning reads: latents and encoded captions of a data set, and class images beside them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from guided_diffusion_jax.data import from_arrays
from guided_diffusion_jax.data.augmentation import flip_batch
from guided_diffusion_jax.data.dataset import CHUNK, Dataset, array_reader
from guided_diffusion_jax.data.images import to_float
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.interop.stable_diffusion.prompts import ClipPrompts
from guided_diffusion_jax.models.autoencoder import AutoencoderKL, Posterior
from guided_diffusion_jax.stable_diffusion import StableDiffusion

AT_ONCE = 8
"""Images that the autoencoder sees at a time."""

PRIOR = "prior_"
"""What the keys of class images begin with, in a batch of `with_prior`."""

Prompt = str | Sequence[str]


def encode(pipe: StableDiffusion, data: Dataset, *, prompt: Prompt | None = None, tokens: bool = False) -> Dataset:
    """The data set as the networks see it, computed once and held in memory.

    Its batches have "image", the mean of the latents' posterior times the scaling factor, float32 `[n h w z]`;
    "latent_std", its standard deviation; the captions' "text" (and "text_time" of SDXL), or their "tokens", int32
    `[n k length]` for k text encoders (and "sizes" of SDXL); and "control_image" where the data set has it.

    Args:
        pipe: with the autoencoder and the text encoders.
        data: images uint8 of the size that is trained, and captions.
        prompt: caption of all images in the place of their own, or several in turn.
        tokens: captions are encoded in each step, because the text encoder is trained.

    Raises:
        InputError: images that the autoencoder cannot make smaller, or no captions.
    """
    pipe = pipe.at_size(*data.image_shape[:2])
    require(data.image_shape[2] == 3, f"{data.name} has {data.image_shape[2]} channels; use data.with_channels(3)")
    mean, std, captions, controls = [], [], [], []
    for start in range(0, len(data), CHUNK):
        batch = data.read(np.arange(start, min(start + CHUNK, len(data))))
        for i in range(0, len(batch["image"]), AT_ONCE):
            posterior = _posterior(pipe, to_float(batch["image"][i : i + AT_ONCE]))
            mean.append(posterior[0])
            std.append(posterior[1])
        captions += list(batch.get("text", ()))
        controls += [batch["control_image"]] if "control_image" in batch else []
    if prompt is not None:
        captions = list(np.resize(np.array([prompt] if isinstance(prompt, str) else list(prompt), object), len(data)))
    require(
        len(captions) == len(data) and all(isinstance(caption, str) for caption in captions),
        f"{data.name} has no captions; give prompt='a photo of ...', or captions in its folder",
    )
    arrays = {"image": np.concatenate(mean), "latent_std": np.concatenate(std), "label": np.zeros(len(data), np.int32)}
    arrays |= {"control_image": np.concatenate(controls)} if controls else {}
    distinct, which = np.unique(np.array(captions, object), return_inverse=True)
    texts = token_rows(pipe, list(distinct)) if tokens else _text_rows(pipe, list(distinct))
    reader = array_reader(arrays)

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        return reader(indices) | {name: rows[which[indices]] for name, rows in texts.items()}

    shape = arrays["image"].shape[1:]
    return dataclasses.replace(data, image_shape=shape, read=read, in_memory=True, has_reference=False, raw=data)


def token_rows(pipe: StableDiffusion, captions: Sequence[str]) -> dict[str, np.ndarray]:
    """Numbers of tokens, and SDXL's sizes, where the text encoder is part of a step."""
    reader = prompts_of(pipe)
    rows = {"tokens": reader.tokens(captions)}
    if reader.sizes:
        rows["sizes"] = np.repeat(reader.read([""])["text_time"][:, -6:], len(captions), axis=0)
    return rows


def _text_rows(pipe: StableDiffusion, captions: Sequence[str]) -> dict[str, np.ndarray]:
    reader = prompts_of(pipe)
    for caption in captions:
        if cut := reader.overflow(caption):
            print(f"warning: a caption has {cut}", flush=True)
    return reader.read(captions)


def absent(pipe: StableDiffusion, *, tokens: bool = False) -> dict[str, np.ndarray]:
    """What stands for no caption, as when images are made: the encoding of "", or zeros in SDXL; without sizes."""
    reader = prompts_of(pipe)
    found = dict(reader.absent())
    if reader.sizes:
        found["text_time"] = found["text_time"][:, :-6]
    if not tokens:
        return found
    return {"tokens": reader.tokens([""]), **(found if reader.zero_negative else {})}


def prompts_of(pipe: StableDiffusion) -> ClipPrompts:
    """The reader of prompts."""
    assert isinstance(pipe.prompts, ClipPrompts)
    return pipe.prompts


def _posterior(pipe: StableDiffusion, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the latents, times the scaling factor; batches are filled up to one size."""
    model: Any = pipe.parts.autoencoder.model
    filled = np.resize(images, (AT_ONCE, *images.shape[1:]))
    posterior = _encode(model, pipe.parts.autoencoder.params, filled)
    scaled = (value * model.scaling_factor for value in (posterior.mean, posterior.std))
    mean, std = (np.asarray(value)[: len(images)] for value in scaled)
    return mean, std


def _encoded(model: AutoencoderKL, params: Any, images: Any) -> Posterior:
    posterior: Any = model.apply({"params": params}, images, method="encode")
    return posterior


_encode = jax.jit(_encoded, static_argnums=0)


def class_images(pipe: StableDiffusion, prompt: str, count: int, **wishes: Any) -> Dataset:
    """Images of a class by the pipeline itself, before fine-tuning: what it should not forget (Ruiz et al. 2023).

    Args:
        pipe: as it is before.
        prompt: of the class, "a photo of a dog".
        count: of images; 100 to 200 are usual.
        **wishes: keywords of the pipeline, such as `steps`.
    """
    wishes.setdefault("batch_size", AT_ONCE)
    images = pipe(prompt=prompt, count=count, **wishes)
    return from_arrays(images, text=[prompt] * count, name=f"class images of {prompt!r}")


def mirrored(data: Dataset) -> Dataset:
    """The examples, and each of them mirrored left to right."""

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        return flip_batch(data.read(indices % len(data)), indices >= len(data))

    return dataclasses.replace(data, read=read, length=2 * len(data), labels=None)


def with_prior(data: Dataset, prior: Dataset) -> Dataset:
    """Pairs of an example and a class image, both encoded; the shorter data set is repeated.

    Raises:
        InputError: images of two sizes.
    """
    require(
        data.image_shape == prior.image_shape,
        f"the class images have latents of {prior.image_shape} and {data.name} of {data.image_shape}; use one size",
    )

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        beside: Mapping[str, np.ndarray] = prior.read(indices % len(prior))
        return {**data.read(indices % len(data)), **{PRIOR + name: value for name, value in beside.items()}}

    return dataclasses.replace(data, read=read, length=max(len(data), len(prior)))
