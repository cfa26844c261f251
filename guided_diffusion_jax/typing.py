"""Types shared by all modules: images, noise levels, predictions, denoisers, conditions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

Images = Float[Array, "b h w c"]
"""A batch of images, clean or noisy. Clean ones lie in [-1, 1]."""

AnyArray = Array | np.ndarray
"""An array on a device or on the host."""

Keys = Key[Array, " b"]
"""One typed random key for each sample of a batch."""

Params = Any
"""A pytree of a network's parameters."""


class Level(NamedTuple):
    """One noise level, one per sample, or a table of them: x_t = alpha * x0 + sigma * eps.

    One level has scalar entries, a table has `[n]` rows. One level per sample, as `schedules.at` gives it, has `alpha`
    and `sigma` of shape `[b 1 1 1]`, so that both multiply images, and `time` of shape `[b]`.

    Attributes:
        alpha: factor of the clean image, >= 0; alpha**2 is DDPM's alpha_bar on variance-preserving levels.
        sigma: factor of the noise, >= 0. No relation between the two is assumed: alpha**2 + sigma**2 = 1 (variance
            preserving), alpha = 1 - sigma (rectified flow) and alpha = 1 (variance exploding) are all levels.
        time: what the network is given: 0 .. T-1 on the training grid.
    """

    alpha: Any
    sigma: Any
    time: Any


class Prediction(NamedTuple):
    """Prediction for a noisy image x = alpha * x0 + sigma * eps, whatever the network was trained to predict.

    Attributes:
        x0: the clean images.
        eps: the noise.
        variance_fraction: for a learned variance, the share v in log var = v log beta + (1 - v) log beta_tilde
            (Nichol & Dhariwal 2021, eq. 15); None where the variance is fixed.
    """

    x0: Images
    eps: Images
    variance_fraction: Images | None = None


Denoiser = Callable[[Images, Level], Prediction]
"""Noisy images and their level, one for all or one per sample, to a prediction."""


Conditions = Mapping[str, AnyArray]
"""Conditions of a network by name, `[b ...]` each; `conditions.CONDITIONS` lists them with their shapes.

A condition that is absent has its null value, so that one batch mixes samples with and without it. A name that is left
out is absent for all samples.

    label: int `[b]`, class of each sample in 0 .. C-1; the null is C.
    attributes: int `[b k]`, the value of each of k attributes in 1 .. n_k; 0 is its null.
    text: uint8 `[b n]`, UTF-8 bytes, or float `[b n d]`, features of a pre-trained encoder; zeros after the end.
    reference_image: float `[b h w c]`, an image whose style, not content, is wanted, in [-1, 1].
    control_image: float `[b h w m]`, a spatial map in [-1, 1]: a segmentation, edges.
    masked_image: float `[b h w c]`, an image in [-1, 1] to be completed where it is 0.
    low_res: float `[b h2 w2 c2]`, the small image that a super-resolution model enlarges, in [-1, 1]; never absent.

The null of all but the label is zero. No image of 8 bits has a pixel at 0 (x / 127.5 - 1 skips it).
"""

Gradient = Callable[[Images, Level], Images]
"""Noisy images and their level to the gradient of some log-probability with respect to them."""

ConditionalDenoiser = Callable[[Images, Level, Conditions], Prediction]
"""A denoiser before its conditions are chosen; guidance rules call it with the ones that they need."""

Network = Callable[[Images, Array, Conditions], Images]
"""A Flax module with its parameters bound: images, time `[b]` and conditions to the raw output."""


def per_sample(values: ArrayLike) -> Array:
    """One value for all, one per sample `[b]`, or one per pixel `[b h w 1]`, in a shape that multiplies images."""
    values = jnp.asarray(values)
    return values if values.ndim in (0, 4) else values.reshape(-1, 1, 1, 1)
