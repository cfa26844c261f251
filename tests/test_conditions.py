"""Conditions that are absent: their nulls, one kind alone, and who loses what in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guided_diffusion_jax.conditions import KINDS, check_rates, drop, null_like, only
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.typing import Conditions

CLASSES, N = 10, 20_000
KEYS = jax.random.split(jax.random.key(0), N)


def everything(n=N):
    """All kinds, none of them at its null anywhere."""
    return Conditions(
        label=jnp.arange(n) % CLASSES,
        attributes=jnp.ones((n, 3), jnp.int32),
        text=jnp.full((n, 5), 65, jnp.uint8),
        style=jnp.ones((n, 2, 2, 1)),
        map=jnp.ones((n, 1, 2, 3)),
        known=jnp.ones((n, 1, 1, 1)),
        low_res=jnp.ones((n, 1, 1, 1)),
    )


GIVEN = everything()
NULL = null_like(GIVEN, CLASSES)


def lost(conditions):
    """Kind to which samples (of attributes, which columns) are at their null; all of a sample is or nothing."""
    found = {}
    for kind in KINDS:
        value = np.asarray(getattr(conditions, kind))
        gone = value == (CLASSES if kind == "label" else 0)
        if kind != "attributes":
            gone = gone.reshape(len(value), -1)
            assert (gone == gone[:, :1]).all(), kind
            gone = gone[:, 0]
        found[kind] = gone
    return found


def test_nulls_are_the_label_after_the_last_and_zeros():
    assert (NULL.label == CLASSES).all() and NULL.low_res is GIVEN.low_res
    for kind in KINDS:
        given, null = getattr(GIVEN, kind), getattr(NULL, kind)
        assert (given.shape, given.dtype) == (null.shape, null.dtype)
        assert kind in ("label", "low_res") or not null.any(), kind
    assert null_like(Conditions(), CLASSES) == Conditions()


def test_a_branch_keeps_the_kinds_that_it_is_about():
    few = everything(4)
    gone = lost(only(few, ("text", "map"), CLASSES))
    assert {kind for kind in KINDS if not gone[kind].any()} == {"text", "map", "low_res"}
    assert all(gone[kind].all() for kind in ("label", "attributes", "style", "known"))
    np.testing.assert_array_equal(only(few, (), CLASSES).label, NULL.label[:4])
    with pytest.raises(InputError, match=r"kind='txt' is not one of .*did you mean 'text'"):
        only(few, ("txt",), CLASSES)
    with pytest.raises(InputError, match="kind='text' is not one of label"):
        only(Conditions(label=few.label), ("text",), CLASSES)


def rate_of(values, rate):
    return values.mean() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / values.size) ** 0.5)


def test_all_conditions_are_dropped_together_at_the_rate_and_never_at_0_and_always_at_1():
    labels = lambda rate: np.asarray(drop(KEYS, GIVEN, NULL, rate).label)  # noqa: E731
    np.testing.assert_array_equal(labels(0.0), GIVEN.label)
    np.testing.assert_array_equal(labels(1.0), NULL.label)
    for rate in (0.1, 0.5):
        gone = lost(drop(KEYS, GIVEN, NULL, rate))
        assert rate_of(gone["label"], rate) and not gone["low_res"].any()
        for kind in KINDS[:-1]:
            np.testing.assert_array_equal(gone[kind].T, np.broadcast_to(gone["label"], gone[kind].T.shape))
        # Runs that were trained before kinds had rates go on with the same draws.
        np.testing.assert_array_equal(gone["label"], jax.vmap(lambda k, p=rate: jax.random.bernoulli(k, p))(KEYS))


def test_kinds_are_dropped_at_their_own_rates_independently():
    rates = {"label": 0.1, "attributes": 0.3, "text": 0.5, "style": 1.0, "map": 0.2}
    gone = lost(drop(KEYS, GIVEN, NULL, 0.0, rates))
    for kind, rate in rates.items():
        assert rate_of(gone[kind], rate), kind
    assert not gone["known"].any() and not gone["low_res"].any() and gone["style"].all()
    columns = np.stack([gone["label"], gone["text"], gone["map"], *gone["attributes"].T]).astype(float)
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 4.5 / N**0.5  # all of them, the columns of the attributes included
    for column in gone["attributes"].T:
        assert rate_of(column, 0.3)


def test_who_splits_the_same_keys_gets_draws_of_its_own():
    halves = jax.vmap(lambda key: jax.random.split(key, 8), out_axes=1)(KEYS)
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(halves)
    gone = lost(drop(KEYS, GIVEN, NULL, 0.0, dict.fromkeys(KINDS[:-1], 0.5)))
    for kind in set(KINDS[:-1]) - {"attributes"}:
        columns = np.stack([gone[kind].astype(float), *np.asarray(uniform)])
        assert np.abs(np.corrcoef(columns)[0, 1:]).max() < 4.5 / N**0.5, kind


def test_joint_and_own_rates_add_as_independent_events():
    joint, own = 0.2, {"label": 0.5, "text": 0.1}
    gone = lost(drop(KEYS, GIVEN, NULL, joint, own))
    together = lost(drop(KEYS, GIVEN, NULL, joint))["label"]
    np.testing.assert_array_equal(gone["map"], together)  # no rate of its own
    for kind, rate in own.items():
        assert gone[kind][together].all() and rate_of(gone[kind][~together], rate)
        # Its stream is its own: other kinds' rates change nothing.
        alone = lost(drop(KEYS, GIVEN, NULL, joint, {kind: rate}))[kind]
        np.testing.assert_array_equal(gone[kind], alone)


def test_each_samples_own_key_decides():
    rates = {"label": 0.5, "attributes": 0.5, "style": 0.5}
    whole = drop(KEYS, GIVEN, NULL, 0.3, rates)
    rows = lambda tree: jax.tree.map(lambda a: a[5:9], tree)  # noqa: E731
    few = drop(KEYS[5:9], rows(GIVEN), rows(NULL), 0.3, rates)
    jax.tree.map(np.testing.assert_array_equal, few, rows(whole))


def test_rates_are_data_and_absent_kinds_stay_absent():
    given = Conditions(label=GIVEN.label)
    null = null_like(given, CLASSES)
    dropped = jax.jit(lambda rate, own: drop(KEYS, given, null, rate, {"label": own, "text": own}))
    assert (dropped(0.0, 0.0).label == given.label).all() and (dropped(0.0, 1.0).label == CLASSES).all()
    assert dropped._cache_size() == 1 and dropped(0.5, 0.5).text is None


def test_rates_that_cannot_be_are_refused():
    for rates, words in [
        ({"lable": 0.1}, "train.dropout='lable' is not one of label, .*did you mean 'label'"),
        ({"low_res": 0.1}, "train.dropout='low_res' is not one of"),
        ({"text": -0.1}, r"train.dropout: text=-0.1 must lie in \[0, 1\]"),
        ({"text": 1.1}, r"train.dropout: text=1.1 must lie in \[0, 1\]"),
    ]:
        with pytest.raises(InputError, match=words):
            check_rates(rates, "train.dropout")
    check_rates({"text": 0.0, "map": 1}, "train.dropout")
    with pytest.raises(InputError, match="rates='low_res' is not one of"):
        drop(KEYS[:1], everything(1), null_like(everything(1), CLASSES), 0.1, {"low_res": 0.5})
