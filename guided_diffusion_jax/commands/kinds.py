"""Which kinds of conditions a run has, and how a batch of its data becomes them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike
from ml_collections import ConfigDict

from guided_diffusion_jax.data import TextEncoder, text_encoder
from guided_diffusion_jax.data.augmentation import random_mask
from guided_diffusion_jax.data.dataset import Columns
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.samplers.noise import fold
from guided_diffusion_jax.typing import Conditions, Images, Keys

OF_KNOWN = 2**31 - 2
"""Folded into a picture's key for what is cut out of it; far from what training and evaluation fold in or split off."""

COLUMNS = {"style": "reference_image", "map": "control_image"}
"""The keys of a batch of data that are not the kinds' own names."""


def columns(config: ConfigDict) -> Columns:
    """The features of the data set that a config makes conditions of."""
    d = config.data
    return Columns(attributes=tuple(d.attributes), text=d.text, reference_image=d.style, control_image=d.map)


def names(config: ConfigDict) -> tuple[str, ...]:
    """The kinds that a resolved config's network takes."""
    d, m = config.data, config.model
    taken = {
        "label": m.num_classes,
        "attributes": d.attributes,
        "text": d.text,
        "style": d.style,
        "map": d.map,
        "known": m.known,
        "low_res": d.low_res_size,
    }
    return tuple(kind for kind, there in taken.items() if there)


def null(config: ConfigDict, rows: int) -> Conditions:
    """Every kind that the network takes, absent from all of so many pictures; NumPy arrays.

    A low-resolution picture, which has no null, is grey.
    """
    d, m = config.data, config.model
    size, channels, small = d.image_size, d.channels, d.low_res_size
    every = {
        "label": lambda: np.full(rows, m.num_classes, np.int32),
        "attributes": lambda: np.zeros((rows, len(d.attributes)), np.int32),
        "text": lambda: np.repeat(reader(config).encode([""]), rows, axis=0),
        "style": lambda: np.zeros((rows, size, size, channels), np.float32),
        "map": lambda: np.zeros((rows, size, size, d.map_channels), np.float32),
        "known": lambda: np.zeros((rows, size, size, channels), np.float32),
        "low_res": lambda: np.zeros((rows, small, small, channels), np.float32),
    }
    return Conditions(**{kind: every[kind]() for kind in names(config)})


def reader(config: ConfigDict) -> TextEncoder:
    """By bytes, or by a pre-trained encoder.

    Raises:
        InputError: an encoder that cannot be had.
    """
    name, length = config.model.text_encoder, config.model.text_length
    require(length >= 1, f"model.text_length={length} must be at least 1")
    return text_encoder(name, length)


def of_batch(config: ConfigDict) -> Callable[[dict[str, Any], Keys], Conditions]:
    """A function that makes the conditions of a batch of data, `(batch, keys)`, one key a picture.

    The parts that are cut out of pictures to be completed, and the small pictures that an upsampler enlarges, are made
    of the images themselves.
    """
    kinds, small = names(config), config.data.low_res_size

    def conditions(batch: dict[str, Any], keys: Keys) -> Conditions:
        images = batch["image"]
        made: dict[str, Callable[[], Any]] = {
            "known": lambda: random_mask(fold(keys, OF_KNOWN), images),
            "low_res": lambda: reduced(images, small),
        }
        return Conditions(
            **{kind: made[kind]() if kind in made else jnp.asarray(batch[COLUMNS.get(kind, kind)]) for kind in kinds}
        )

    return conditions


def reduced(images: ArrayLike, size: int) -> Images:
    """The small pictures that an upsampler learns to enlarge."""
    n, _, _, channels = jnp.shape(images)
    return jax.image.resize(jnp.asarray(images), (n, size, size, channels), "linear")
