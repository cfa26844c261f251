"""Random numbers: every sample has a key of its own, and so its own noise, whatever batch it is in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from guided_diffusion_jax.typing import Images, Keys, Level

TIMESTEP_STREAM = 2**31 - 1
"""Folded into a training sample's key for the choice of its noise level."""

MASK_STREAM = 2**31 - 2
"""Folded into a training sample's key for the random mask of a masked image."""

LATENT_STREAM = 2**31 - 3
"""Folded into a training sample's key for its draw of the posterior of latents."""

CONDITION_STREAM = 1 << 16
"""The first stream of `conditions.CONDITIONS`, which has one for each condition type, for its dropout.

All stream numbers are far from 0, 1, 2, ..: `jax.random.split(key)[i]` is `fold_in(key, i)`, and others split the same
keys.
"""


def sample_keys(key: Key[Array, "*b"], indices: Int[Array, " b"]) -> Keys:
    """Keys of the samples with these indices: sample i uses `fold_in(key, i)`, of one key or of its own, `[b]`."""
    return jax.vmap(jax.random.fold_in, (0 if key.ndim else None, 0))(key, indices)


def fold(keys: Keys, number: Int[Array, ""] | int) -> Keys:
    """Each sample's key for one of its draws: 0 is the prior, i + 1 is step i."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def standard_normal(keys: Keys, shape: tuple[int, ...]) -> Images:
    """Noise eps ~ N(0, I), `[b *shape]`, each sample from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def prior(keys: Keys, shape: tuple[int, ...], level: Level | None = None) -> Images:
    """Noise that sampling starts from, `[b *shape]`.

    Its standard deviation is sqrt(alpha**2 + sigma**2) of the first `level`: 1 for variance-preserving levels and
    rectified flow (and without a level).
    """
    noise = standard_normal(fold(keys, 0), shape)
    return noise if level is None else noise * jnp.sqrt(level.alpha**2 + level.sigma**2)
