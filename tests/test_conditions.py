"""Conditions that are absent: their nulls, one condition alone, and dropout in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guided_diffusion_jax.conditions import CONDITIONS, check_rates, condition_specs, drop, fill_nulls, keep_only, nulls
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.models import ByteEncoder, ImageEncoder, SuperResolution, UNet
from guided_diffusion_jax.models.embeddings import TextTimeEmbedding

CLASSES, N = 10, 20_000
NAMES = tuple(name for name, kind in CONDITIONS.items() if kind.place != "controlnet")
DROPPED = tuple(name for name in NAMES if CONDITIONS[name].stream is not None)
SPECS = condition_specs(
    SuperResolution(
        UNet(
            num_classes=CLASSES, attribute_sizes=(2, 2, 2), text=ByteEncoder(length=5), reference=ImageEncoder(1),
            control_channels=3, masked_channels=1, text_time=TextTimeEmbedding(pooled=2, features=512, frequencies=2),
        ),
        low_res_size=1,
    ),
    (2, 2, 1),
)  # fmt: skip
KEYS = jax.random.split(jax.random.key(0), N)


def everything(n=N):
    """All conditions, none of them at its null anywhere."""
    return {
        "label": jnp.arange(n) % CLASSES,
        "attributes": jnp.ones((n, 3), jnp.int32),
        "text": jnp.full((n, 5), 65, jnp.uint8),
        "reference_image": jnp.ones((n, 2, 2, 1)),
        "control_image": jnp.ones((n, 2, 2, 3)),
        "masked_image": jnp.ones((n, 2, 2, 1)),
        "text_time": jnp.ones((n, 8)),
        "low_res": jnp.ones((n, 1, 1, 1)),
    }


GIVEN = everything()
NULL = nulls(SPECS, N)


def lost(conditions):
    """Condition to which samples (of attributes, which columns) are at their null; all of a sample is or nothing."""
    found = {}
    for kind in NAMES:
        value = np.asarray(conditions[kind])
        gone = value == (CLASSES if kind == "label" else 0)
        if kind != "attributes":
            gone = gone.reshape(len(value), -1)
            assert (gone == gone[:, :1]).all(), kind
            gone = gone[:, 0]
        found[kind] = gone
    return found


def test_nulls_are_the_label_after_the_last_and_zeros():
    assert (NULL["label"] == CLASSES).all() and tuple(SPECS) == NAMES
    for kind in NAMES:
        given, null = GIVEN[kind], NULL[kind]
        assert (given.shape, given.dtype) == (null.shape, null.dtype)
        assert kind == "label" or not null.any(), kind
    assert nulls({}, 3) == {}


def test_conditions_that_are_not_given_are_filled_and_others_left_out():
    specs = {name: SPECS[name] for name in ("label", "text")}
    filled = fill_nulls({"label": jnp.array([1, 2]), "text": None, "unknown": jnp.zeros(2)}, specs, 2)
    assert list(filled) == ["label", "text"] and filled["text"].dtype == jnp.uint8
    np.testing.assert_array_equal(filled["label"], [1, 2])
    np.testing.assert_array_equal(filled["text"], np.zeros((2, 5)))


def test_random_streams_are_numbered_as_in_runs_before():
    streams = {name: CONDITIONS[name].stream for name in NAMES}
    assert streams == {name: (1 << 16) + i for i, name in enumerate(DROPPED)} | {"text_time": None, "low_res": None}


def test_a_branch_keeps_the_kinds_that_it_is_about():
    few = everything(4)
    gone = lost(keep_only(few, ("text", "control_image"), SPECS))
    assert {kind for kind in NAMES if not gone[kind].any()} == {"text", "control_image", "text_time", "low_res"}
    assert all(gone[kind].all() for kind in ("label", "attributes", "reference_image", "masked_image"))
    np.testing.assert_array_equal(keep_only(few, (), SPECS)["label"], NULL["label"][:4])
    with pytest.raises(InputError, match=r"condition='txt' is not one of .*did you mean 'text'"):
        keep_only(few, ("txt",), SPECS)
    with pytest.raises(InputError, match="condition='text' is not one of label"):
        keep_only({"label": few["label"], "text": None}, ("text",), SPECS)


def rate_of(values, rate):
    return values.mean() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / values.size) ** 0.5)


def test_all_conditions_are_dropped_together_at_the_rate_and_never_at_0_and_always_at_1():
    labels = lambda rate: np.asarray(drop(KEYS, GIVEN, SPECS, rate)["label"])  # noqa: E731
    np.testing.assert_array_equal(labels(0.0), GIVEN["label"])
    np.testing.assert_array_equal(labels(1.0), NULL["label"])
    for rate in (0.1, 0.5):
        gone = lost(drop(KEYS, GIVEN, SPECS, rate))
        assert rate_of(gone["label"], rate) and not gone["low_res"].any()
        for kind in DROPPED:
            np.testing.assert_array_equal(gone[kind].T, np.broadcast_to(gone["label"], gone[kind].T.shape))
        # Runs that were trained before kinds had rates go on with the same draws.
        np.testing.assert_array_equal(gone["label"], jax.vmap(lambda k, p=rate: jax.random.bernoulli(k, p))(KEYS))


def test_kinds_are_dropped_at_their_own_rates_independently():
    rates = {"label": 0.1, "attributes": 0.3, "text": 0.5, "reference_image": 1.0, "control_image": 0.2}
    gone = lost(drop(KEYS, GIVEN, SPECS, 0.0, rates))
    for kind, rate in rates.items():
        assert rate_of(gone[kind], rate), kind
    assert not gone["masked_image"].any() and not gone["low_res"].any() and gone["reference_image"].all()
    columns = np.stack([gone["label"], gone["text"], gone["control_image"], *gone["attributes"].T]).astype(float)
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 4.5 / N**0.5  # all of them, the columns of the attributes included
    for column in gone["attributes"].T:
        assert rate_of(column, 0.3)


def test_who_splits_the_same_keys_gets_draws_of_its_own():
    halves = jax.vmap(lambda key: jax.random.split(key, 8), out_axes=1)(KEYS)
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(halves)
    gone = lost(drop(KEYS, GIVEN, SPECS, 0.0, dict.fromkeys(DROPPED, 0.5)))
    for kind in set(DROPPED) - {"attributes"}:
        columns = np.stack([gone[kind].astype(float), *np.asarray(uniform)])
        assert np.abs(np.corrcoef(columns)[0, 1:]).max() < 4.5 / N**0.5, kind


def test_joint_and_own_rates_add_as_independent_events():
    joint, own = 0.2, {"label": 0.5, "text": 0.1}
    gone = lost(drop(KEYS, GIVEN, SPECS, joint, own))
    together = lost(drop(KEYS, GIVEN, SPECS, joint))["label"]
    np.testing.assert_array_equal(gone["control_image"], together)  # no rate of its own
    for kind, rate in own.items():
        assert gone[kind][together].all() and rate_of(gone[kind][~together], rate)
        # Its stream is its own: other kinds' rates change nothing.
        alone = lost(drop(KEYS, GIVEN, SPECS, joint, {kind: rate}))[kind]
        np.testing.assert_array_equal(gone[kind], alone)


def test_each_samples_own_key_decides():
    rates = {"label": 0.5, "attributes": 0.5, "reference_image": 0.5}
    whole = drop(KEYS, GIVEN, SPECS, 0.3, rates)
    rows = lambda tree: jax.tree.map(lambda a: a[5:9], tree)  # noqa: E731
    few = drop(KEYS[5:9], rows(GIVEN), SPECS, 0.3, rates)
    jax.tree.map(np.testing.assert_array_equal, few, rows(whole))


def test_rates_are_data_and_absent_kinds_stay_absent():
    given = {"label": GIVEN["label"], "text": None}
    dropped = jax.jit(lambda rate, own: drop(KEYS, given, SPECS, rate, {"label": own, "text": own}))
    kept, gone = dropped(0.0, 0.0)["label"], dropped(0.0, 1.0)["label"]
    assert (kept == given["label"]).all() and (gone == CLASSES).all()
    assert dropped._cache_size() == 1 and list(dropped(0.5, 0.5)) == ["label"]


def test_rates_that_cannot_be_are_refused():
    for rates, words in [
        ({"lable": 0.1}, "train.dropout='lable' is not one of label, .*did you mean 'label'"),
        ({"low_res": 0.1}, "train.dropout='low_res' is not one of"),
        ({"text": -0.1}, r"train.dropout: text=-0.1 must lie in \[0, 1\]"),
        ({"text": 1.1}, r"train.dropout: text=1.1 must lie in \[0, 1\]"),
    ]:
        with pytest.raises(InputError, match=words):
            check_rates(rates, "train.dropout")
    check_rates({"text": 0.0, "control_image": 1}, "train.dropout")
    with pytest.raises(InputError, match="rates='low_res' is not one of"):
        drop(KEYS[:1], everything(1), SPECS, 0.1, {"low_res": 0.5})
