"""Conditions that are absent: each kind has a null value, and training drops to it at random."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from guided_diffusion_jax.typing import Conditions, Keys


def null_like(conditions: Conditions, num_classes: int) -> Conditions:
    """The same kinds of conditions for the same samples, each at its null: for a label, the class after the last.

    A low-resolution picture has no null; an upsampler always sees it.
    """
    label = None if conditions.label is None else jnp.full_like(conditions.label, num_classes)
    return dataclasses.replace(conditions, label=label)


def drop(keys: Keys, conditions: Conditions, null: Conditions, rate: ArrayLike) -> Conditions:
    """Each sample keeps all its conditions, or with probability `rate` loses them (Ho & Salimans 2022, algorithm 1)."""
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)

    def select(value, absent):
        return jnp.where(dropped.reshape(-1, *[1] * (value.ndim - 1)), absent, value)

    return jax.tree.map(select, conditions, null)
