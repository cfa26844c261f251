"""Reference arrays of diffusers and transformers, and their order of axes."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

GOLDEN = Path(__file__).parent / "golden_sd"


def arrays(name):
    return np.load(GOLDEN / f"{name}.npz", allow_pickle=False)


def nhwc(images):
    return jnp.asarray(np.moveaxis(images, 1, -1))


def nchw(images):
    return np.moveaxis(np.asarray(images), -1, 1)
