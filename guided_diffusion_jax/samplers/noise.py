"""Random numbers of a sampler: every sample has a key of its own, and so its own noise, whatever batch it is in."""

import jax
from jaxtyping import Array, Int, Key

from guided_diffusion_jax.typing import Images, Keys


def sample_keys(key: Key[Array, ""], numbers: Int[Array, " b"]) -> Keys:
    """The keys of the samples with these numbers: sample i uses `fold_in(key, i)`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def fold(keys: Keys, number: Int[Array, ""] | int) -> Keys:
    """Each sample's key for one of its draws: 0 is the prior's, i + 1 that of step i."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def standard_normal(keys: Keys, shape: tuple[int, ...]) -> Images:
    """Noise eps ~ N(0, I), `[b *shape]`, each sample's from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def prior(keys: Keys, shape: tuple[int, ...]) -> Images:
    """x_T, where every sample starts: pure noise of `shape` = (h, w, c)."""
    return standard_normal(fold(keys, 0), shape)
