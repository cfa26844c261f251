"""Changes of training images that leave what they show."""

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
