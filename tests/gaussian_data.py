"""Data with an exact denoiser: every pixel is N(mean, std^2), so that all of diffusion has a closed form.

x = alpha x0 + sigma eps has the variance `total` = alpha^2 std^2 + sigma^2, and x0 given x is Gaussian with

    mean      m + std^2 alpha (x - alpha m) / total
    variance  std^2 sigma^2 / total
"""

from typing import NamedTuple

import jax.numpy as jnp

from guided_diffusion_jax.typing import Level, Prediction


class GaussianData(NamedTuple):
    """Independent pixels; `mean` and `std` are scalars or `[1 h w c]`."""

    mean: jnp.ndarray | float
    std: jnp.ndarray | float

    def total(self, level):
        return level.alpha**2 * self.std**2 + level.sigma**2

    def denoise(self, x, level):
        centred = (x - level.alpha * self.mean) / self.total(level)
        return Prediction(self.mean + self.std**2 * level.alpha * centred, level.sigma * centred)

    def x0_variance(self, level):
        """Of x0 given x: the least squared error that any denoiser has."""
        return self.std**2 * level.sigma**2 / self.total(level)

    def flow(self, x, now, nxt):
        """The probability flow's exact map between two levels: it conserves (x - alpha m) / sqrt(total)."""
        ratio = jnp.sqrt(self.total(nxt) / self.total(now))
        return nxt.alpha * self.mean + (x - now.alpha * self.mean) * ratio


CLEAN = Level(jnp.float32(1), jnp.float32(0), jnp.float32(0))


def row(levels, i):
    return Level(*(jnp.asarray(column)[i] for column in levels))
