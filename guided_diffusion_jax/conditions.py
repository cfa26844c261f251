"""Conditions that are absent: each kind has a null value, and training drops to it at random."""

import dataclasses
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool

from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.typing import Conditions, Keys

KINDS = tuple(field.name for field in dataclasses.fields(Conditions))
"""The names of all kinds of conditions."""

OPTIONAL = {kind: number for number, kind in enumerate(KINDS, start=1 << 16) if kind != "low_res"}
"""Those that can be absent, each with the number of its random stream (see `drop`).

Small numbers would not do: `jax.random.split(key)[i]` is `fold_in(key, i)`, and others may have split the same key.
"""


def null_like(conditions: Conditions, num_classes: int) -> Conditions:
    """The same kinds of conditions for the same samples, each at its null: the label C, all else zeros.

    A low-resolution picture has no null; an upsampler always sees it.
    """

    def null(kind: str, value: Array | None) -> Array | None:
        if value is None or kind not in OPTIONAL:
            return value
        return jnp.full_like(value, num_classes if kind == "label" else 0)

    return Conditions(**{kind: null(kind, getattr(conditions, kind)) for kind in KINDS})


def only(conditions: Conditions, kinds: Collection[str], num_classes: int) -> Conditions:
    """The same conditions with every kind but these at its null: one branch of `guidance.composed`.

    Raises:
        InputError: a kind that there is not, or that these conditions do not have.
    """
    given = {kind: value for kind in KINDS if (value := getattr(conditions, kind)) is not None}
    return dataclasses.replace(null_like(conditions, num_classes), **{k: choose(given, k, "kind") for k in kinds})


def drop(
    keys: Keys,
    conditions: Conditions,
    null: Conditions,
    rate: ArrayLike,
    rates: Mapping[str, ArrayLike] = MappingProxyType({}),
) -> Conditions:
    """Conditions that a network is trained with: some samples lose all of them, some lose one or other kind.

    With probability `rate` a sample loses all at once (Ho & Salimans 2022, algorithm 1). Each kind in `rates` it also
    loses by itself, and of the attributes each by itself. All draws come from the sample's own key, those of a kind
    from a stream that is its own: whether other kinds have rates changes nothing.

    Args:
        keys: one per sample.
        conditions: of each sample.
        null: the same, each kind at its null.
        rate: in [0, 1].
        rates: kind to rate in [0, 1]; 0 for kinds that are not named.

    Raises:
        InputError: a kind in `rates` that cannot be absent.
    """
    for kind in rates:
        choose(OPTIONAL, kind, "rates")
    all_lost = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)

    def kept(kind: str, value: Array | None, absent: Any) -> Array | None:
        if value is None or kind not in OPTIONAL:
            return value
        # Each attribute is kept or lost by itself, of the other kinds a sample keeps or loses the whole.
        parts = value.shape[1:] if kind == "attributes" else (1,) * (value.ndim - 1)
        lost = all_lost.reshape(-1, *[1] * (value.ndim - 1))
        if kind in rates:
            lost |= _draw(keys, OPTIONAL[kind], parts, rates[kind])
        return jnp.where(lost, absent, value)

    return Conditions(**{kind: kept(kind, getattr(conditions, kind), getattr(null, kind)) for kind in KINDS})


def _draw(keys: Keys, number: int, shape: tuple[int, ...], rate: ArrayLike) -> Bool[Array, "b ..."]:
    """True with probability `rate`, from each sample's stream of this number."""
    return jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, number), rate, shape))(keys)


def check_rates(rates: Mapping[str, float], key: str) -> None:
    """Raises `InputError` for what `drop` cannot take as `rates`, which the config calls `key`.

    >>> check_rates({"label": 0.1, "text": 1.5}, "train.dropout")
    Traceback (most recent call last):
    guided_diffusion_jax.errors.InputError: train.dropout: text=1.5 must lie in [0, 1]; 0 never drops it alone.
    """
    for kind, rate in rates.items():
        choose(OPTIONAL, kind, key)
        require(0 <= rate <= 1, f"{key}: {kind}={rate} must lie in [0, 1]; 0 never drops it alone.")
