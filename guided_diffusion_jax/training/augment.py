"""Changes of training images: some that leave what they show, some that take a part of it away."""

import jax
import jax.numpy as jnp

from guided_diffusion_jax.typing import Images, Keys


def random_crop(keys: Keys, images: Images, pixels: int) -> Images:
    """Each image after its edges were repeated outwards by `pixels`, cropped back to its size at a random place."""
    h, w, c = images.shape[1:]
    margin = ((pixels, pixels), (pixels, pixels), (0, 0))

    def crop(key, image):
        down, right = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        return jax.lax.dynamic_slice(jnp.pad(image, margin, mode="edge"), (down, right, 0), (h, w, c))

    return jax.vmap(crop)(keys, images)


def random_known(keys: Keys, images: Images) -> Images:
    """Each image with a random rectangle at 0, which stands for "not known".

    Its sides are 1/4 to all of the image's, its centre is anywhere.
    """
    h, w = images.shape[1:3]

    def cut(key, image):
        of_size, of_centre = jax.random.split(key)
        half = jax.random.uniform(of_size, (2,), minval=1 / 8, maxval=1 / 2)
        centre = jax.random.uniform(of_centre, (2,))
        rows = jnp.abs((jnp.arange(h) + 0.5) / h - centre[0]) < half[0]
        columns = jnp.abs((jnp.arange(w) + 0.5) / w - centre[1]) < half[1]
        return jnp.where(rows[:, None, None] & columns[None, :, None], 0.0, image)

    return jax.vmap(cut)(keys, images)
