"""What fine-tuning reads: latents and encoded captions of a data set, and class images beside them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from guided_diffusion_jax.data import from_arrays, text
from guided_diffusion_jax.data.dataset import CHUNK, Dataset, Read, cached, grouped
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.interop.stable_diffusion.prompts import ClipPrompts
from guided_diffusion_jax.runtime import distributed, npz
from guided_diffusion_jax.stable_diffusion import StableDiffusion
from guided_diffusion_jax.training import latents

AT_ONCE = 8
"""Class images that are made at a time."""

PRIOR = "prior_"
"""What the keys of class images begin with, in a batch of `with_prior`."""

Prompt = str | Sequence[str]


def encode(
    pipe: StableDiffusion,
    data: Dataset,
    *,
    prompt: Prompt | None = None,
    tokens: bool = False,
    flip: bool = False,
    cache_dir: epath.PathLike | None = None,
) -> Dataset:
    """The data set as the networks see it, computed once and cached (see `training.latents.encode_images`).

    Its batches have "image", mean and standard deviation of the latents' posterior, float32 `[n h w 2z]`, and with
    `flip` "mirrored", those of the mirrored images; the captions' "text" (and "text_time" of SDXL), or their "tokens",
    int32 `[n k length]` for k text encoders (and "sizes" of SDXL); and "control_image" where the data set has it.

    Args:
        pipe: with the autoencoder and the text encoders.
        data: images uint8 of the size that is trained, and captions.
        prompt: caption of all images in the place of their own, or several in turn.
        tokens: captions are encoded in each step, because the text encoder is trained.
        flip: whether the mirrored images are needed.
        cache_dir: where files go if the data set's own folder cannot be written to; without either all is in memory.

    Raises:
        InputError: images that the autoencoder cannot make smaller, or no captions.
    """
    if data.parts:
        how: dict[str, Any] = {"prompt": prompt, "tokens": tokens, "flip": flip, "cache_dir": cache_dir}
        return grouped([encode(pipe, part, **how) for part in data.parts])
    require(data.image_shape[2] == 3, f"{data.name} has {data.image_shape[2]} channels; use data.with_channels(3)")
    pipe = pipe.at_size(*data.image_shape[:2])
    images = latents.encode_images(data, pipe.parts.autoencoder, flip=flip, cache_dir=cache_dir)
    controls = cached(data) if data.control_channels else None
    if prompt is not None:
        given = np.array([prompt] if isinstance(prompt, str) else list(prompt), object)
        captions = np.resize(given, len(data)).tolist()
    else:
        starts = range(0, len(data), CHUNK)
        parts = [images.read(np.arange(i, min(i + CHUNK, len(data)))).get("text", ()) for i in starts]
        captions = np.concatenate(parts).tolist()
    require(
        len(captions) == len(data) and all(isinstance(caption, str) for caption in captions),
        f"{data.name} has no captions; give prompt='a photo of ...', or captions in its folder",
    )
    places = [epath.Path(folder) for folder in (data.home, cache_dir) if folder is not None]
    texts = token_reader(pipe, captions) if tokens else _text_reader(pipe, captions, places)

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = {name: value for name, value in images.read(indices).items() if name not in ("text", "attributes")}
        beside = {} if controls is None else {"control_image": controls.read(indices)["control_image"]}
        return batch | texts(indices) | beside

    return dataclasses.replace(images, read=read, raw=data)


def token_reader(pipe: StableDiffusion, captions: Sequence[str]) -> Read:
    """Numbers of tokens, and SDXL's sizes, where the text encoder is part of a step."""
    reader = prompts_of(pipe)
    distinct, which = np.unique(np.asarray(captions, object), return_inverse=True)
    rows = {"tokens": reader.tokens(list(distinct))}
    if reader.sizes:
        rows["sizes"] = np.repeat(_sizes(reader), len(distinct), axis=0)
    return lambda indices: {name: values[which[indices]] for name, values in rows.items()}


def _sizes(reader: ClipPrompts) -> np.ndarray:
    return reader.read([""])["text_time"][:, -6:]


class _Features(NamedTuple):
    """One of the conditions of a prompt, to be cached (`data.text.TextEncoder`)."""

    reader: ClipPrompts
    name: str
    identity: str
    length: int
    cached: bool = True

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        found = self.reader.read(captions)[self.name]
        return found if self.name == "text" else found[:, None, :-6]

    def overflow(self, caption: str) -> str:
        return self.reader.overflow(caption)


def _text_reader(pipe: StableDiffusion, captions: Sequence[str], places: Sequence[epath.Path]) -> Read:
    """Features of captions, from files in the first of the places that can be written to; SDXL's sizes beside them."""
    reader = prompts_of(pipe)
    for caption in set(captions):
        if cut := reader.overflow(caption):
            print(f"warning: a caption has {cut}", flush=True)
    encoders = zip(reader.encoders, reader.params, strict=True)
    digests = [latents.digest(repr(net), params) for net, params in encoders] if places else []
    known = " ".join([*digests, *(tokenizer.identity for tokenizer in reader.tokenizers)])
    lengths = reader.encoders[0].length
    names = ("text", "text_time") if reader.sizes else ("text",)
    tables = {
        name: text.cached_anywhere(captions, _Features(reader, name, f"{name} {known}", lengths), places)
        for name in names
    }
    sizes = _sizes(reader) if reader.sizes else None

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = {name: table.rows(indices) for name, table in tables.items()}
        if sizes is not None:
            numbers = np.repeat(sizes, len(indices), axis=0)
            batch["text_time"] = np.concatenate([batch["text_time"][:, 0], numbers], axis=1)
        return batch

    return read


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


def class_images(
    pipe: StableDiffusion, prompt: str, count: int, *, file: epath.PathLike | None = None, **wishes: Any
) -> Dataset:
    """Images of a class by the pipeline itself, before fine-tuning: what it should not forget (Ruiz et al. 2023).

    Args:
        pipe: as it is before.
        prompt: of the class, "a photo of a dog".
        count: of images; 100 to 200 are usual.
        file: an `.npz` where they are kept: those that it holds already are not made again.
        **wishes: keywords of the pipeline, such as `steps`.
    """
    wishes.setdefault("batch_size", AT_ONCE)
    kept = None if file is None else epath.Path(file)
    if kept is not None and kept.exists():
        with kept.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            images = arrays["arr_0"]
    else:
        images = pipe(prompt=prompt, count=count, **wishes)
        if kept is not None and distributed.is_main_process():
            kept.parent.mkdir(parents=True, exist_ok=True)
            npz.write(kept, images, np.zeros(count, np.int32))
    return from_arrays(images, text=[prompt] * len(images), name=f"class images of {prompt!r}")


def with_prior(data: Dataset, prior: Dataset) -> Dataset:
    """Pairs of an example and a class image, both encoded; the shorter data set is repeated.

    Raises:
        InputError: images of two sizes.
    """
    require(not data.parts, f"class images have one size, and {data.name} has several; leave buckets out")
    require(
        data.image_shape == prior.image_shape,
        f"the class images have latents of {prior.image_shape} and {data.name} of {data.image_shape}; use one size",
    )

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        beside: Mapping[str, np.ndarray] = prior.read(indices % len(prior))
        return {**data.read(indices % len(data)), **{PRIOR + name: value for name, value in beside.items()}}

    return dataclasses.replace(data, read=read, length=max(len(data), len(prior)))
