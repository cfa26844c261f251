"""Data with an exact denoiser that is not linear: a mixture of isotropic Gaussians, whole or its first component."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guided_diffusion_jax.typing import Prediction


class Mixture(NamedTuple):
    """Means `[k d]`, standard deviations and weights `[k]`; x is `[b 1 1 d]`."""

    means: np.ndarray
    stds: np.ndarray
    weights: np.ndarray

    def denoise(self, x, level):
        shape, x, d = x.shape, x.reshape(len(x), -1), self.means.shape[1]
        total = level.alpha**2 * self.stds**2 + level.sigma**2
        centred = x[:, None] - level.alpha * self.means
        log_p = jnp.log(self.weights) - jnp.sum(centred**2, -1) / (2 * total) - d / 2 * jnp.log(total)
        p = jax.nn.softmax(log_p, -1)[..., None]
        x0 = jnp.sum(p * (self.means + (level.alpha * self.stds**2 / total)[:, None] * centred), 1)
        eps = jnp.sum(p * (level.sigma / total)[:, None] * centred, 1)
        return Prediction(x0.reshape(shape), eps.reshape(shape))

    def guided(self, x, level, weight):
        """Classifier-free guidance towards the first component."""
        first = Mixture(self.means[:1], self.stds[:1], self.weights[:1])
        given, null = first.denoise(x, level), self.denoise(x, level)
        return Prediction(*((1 + weight) * a - weight * b for a, b in zip(given[:2], null[:2], strict=True)))

    @property
    def mean(self):
        return self.weights @ self.means

    @property
    def covariance(self):
        centred = self.means - self.mean
        within = self.weights @ self.stds**2 * np.eye(len(self.mean))
        return within + (self.weights[:, None] * centred).T @ centred


def mixture(dimension):
    """Three components that overlap alike in any dimension: a solver's order shows late where they are far apart."""
    e1, e2 = np.eye(2, dimension)
    means = 0.6 * np.stack([e1, e2, -(e1 + e2) / 2**0.5])
    return Mixture(means, 0.4 + np.array([-0.2, 0.2, 0.0]) / dimension, np.array([0.5, 0.3, 0.2]))
