"""Images in the size that a network was trained at, resized as the reference code of its metric does.

A figure depends on this visibly (Parmar et al. 2022), so each network has its own rule and none is shared.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def bilinear_tf1(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b {size} {size} c"]:
    """TensorFlow 1's bilinear resizing, which the FID standard's graph begins with.

    Output pixel i is read at i * n / size, without the half-pixel shift and without antialiasing
    (`align_corners=False, half_pixel_centers=False`), between the pixels at its floor and the next one, or the last.
    """
    rows, columns = (_places(n, size) for n in images.shape[1:3])
    low, high, share = columns
    wide = images[:, :, low] + (images[:, :, high] - images[:, :, low]) * share[:, None]
    low, high, share = rows
    return wide[:, low] + (wide[:, high] - wide[:, low]) * share[:, None, None]


def _places(n: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels below and above each output's place, and the second's share, in float32 as in TensorFlow."""
    place = np.arange(size, dtype=np.float32) * np.float32(n / size)
    low = np.minimum(place.astype(np.int32), n - 1)
    return low, np.minimum(low + 1, n - 1), place - low


def bicubic_8bit(images: Float[Array, "b h w c"], size: int) -> Float[Array, "b {size} {size} c"]:
    """Antialiased bicubic resizing (Keys's kernel, a = -1/2) with 8-bit results, as Pillow does it up to version 12.

    First the width changes, then the height, and both results are rounded to 0 .. 255. (Pillow 13 sometimes begins with
    the height, which moves a quarter of the pixels by a grey level.)
    """
    b, h, _, c = images.shape
    for shape in ((b, h, size, c), (b, size, size, c)):
        if shape != images.shape:
            resized = jax.image.resize(images, shape, "cubic", antialias=True)
            images = jnp.floor(jnp.clip(resized, 0, 255) + 0.5)
    return images


def bicubic_grid(n: int, size: int) -> Float[np.ndarray, "{size} {n}"]:
    """The matrix of torch's bicubic interpolation from n points to `size`, float64: a = -3/4, no antialiasing.

    Pixels are half-way centred; beyond the edge the last pixel is repeated. (`align_corners=False`.)
    """
    place = (np.arange(size) + 0.5) * n / size - 0.5
    low = np.floor(place).astype(int)
    matrix = np.zeros((size, n))
    for tap in range(-1, 3):
        np.add.at(matrix, (np.arange(size), np.clip(low + tap, 0, n - 1)), _keys(place - low - tap, a=-0.75))
    return matrix


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel (Keys 1981, eq. 4, with its free parameter a)."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
