"""Augmentation of training images.

The pipeline mirrors images on the host (`flip`, drawn in `pipeline.batches` so that resuming is exact); the functions
of keys run on the device inside the training step.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, UInt8

from guided_diffusion_jax.typing import Images, Keys


def flip(images: UInt8[np.ndarray, "n h w c"], chosen: Bool[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w c"]:
    """Mirrors the `chosen` images left to right."""
    flipped = images.copy()
    flipped[chosen] = images[chosen, :, ::-1]
    return flipped


def flip_batch(batch: dict[str, np.ndarray], chosen: Bool[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """Mirrors the `chosen` images with their control images; what is given as "mirrored" stands for its image then."""
    keys = {"image", "control_image"} & batch.keys()
    if "mirrored" in batch:
        image = np.where(chosen[:, None, None, None], batch["mirrored"], batch["image"])
        keys, batch = keys - {"image"}, batch | {"image": image}
    return batch | {key: flip(batch[key], chosen) for key in keys}


def random_crop(keys: Keys, images: Images, pixels: int) -> Images:
    """Pads each image by `pixels` with its edge values and crops it to its size at a random position."""
    h, w, c = images.shape[1:]
    margin = ((pixels, pixels), (pixels, pixels), (0, 0))

    def crop(key, image):
        down, right = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        return jax.lax.dynamic_slice(jnp.pad(image, margin, mode="edge"), (down, right, 0), (h, w, c))

    return jax.vmap(crop)(keys, images)


def random_mask(keys: Keys, images: Images) -> Images:
    """Sets a random rectangle of each image to 0, "unknown" in the condition "masked_image".

    Its sides are 1/4 to all of the image's, its centre is anywhere.
    """
    h, w = images.shape[1:3]

    def mask(key, image):
        size_key, centre_key = jax.random.split(key)
        half = jax.random.uniform(size_key, (2,), minval=1 / 8, maxval=1 / 2)
        centre = jax.random.uniform(centre_key, (2,))
        rows = jnp.abs((jnp.arange(h) + 0.5) / h - centre[0]) < half[0]
        columns = jnp.abs((jnp.arange(w) + 0.5) / w - centre[1]) < half[1]
        return jnp.where(rows[:, None, None] & columns[None, :, None], 0.0, image)

    return jax.vmap(mask)(keys, images)
