"""What networks promise about their conditions, whatever their weights are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from guided_diffusion_jax.models.control import Controlled, branch_from
from guided_diffusion_jax.models.inputs import with_pictures

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.models import control
from guided_diffusion_jax.models.attention import CrossAttention
from guided_diffusion_jax.models.image_encoder import ImageEncoder
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.text import ByteEncoder, FeatureEncoder
from guided_diffusion_jax.models.unet import UNet, check
from guided_diffusion_jax.typing import Conditions

RNG = np.random.default_rng(0)
SIZE, B = 8, 3
TEXT = ByteEncoder(width=8, depth=1, heads=2, length=8)
STYLE = ImageEncoder(channels=1, width=8, depth=2)
TWO_LEVELS = UNet(
    width=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(), head_width=8, out_channels=1
)
# One level has every way for a condition to enter and compiles fast.
EVERY = TWO_LEVELS.clone(
    channel_mult=(1,), num_classes=2, attribute_sizes=(2, 3), text=TEXT, style=STYLE, map_channels=2, known_channels=1
)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X, TIME = normal(B, SIZE, SIZE, 1), jnp.array([0, 10, 999])
GIVEN = Conditions(
    label=jnp.array([0, 1, 0]),
    attributes=jnp.array([[1, 3], [2, 0], [0, 1]]),
    text=jnp.asarray([list(b"red\0\0"), list(b"a cat"), list(b"a red")], jnp.uint8),
    style=normal(B, SIZE, SIZE, 1),
    map=normal(B, SIZE, SIZE, 2),
    known=normal(B, SIZE, SIZE, 1),
)
NULL = Conditions(
    label=jnp.full(B, 2),
    attributes=jnp.zeros((B, 2), jnp.int32),
    text=jnp.zeros((B, 5), jnp.uint8),
    style=jnp.zeros((B, SIZE, SIZE, 1)),
    map=jnp.zeros((B, SIZE, SIZE, 2)),
    known=jnp.zeros((B, SIZE, SIZE, 1)),
)
KINDS = ("label", "attributes", "text", "style", "map", "known")


def shapes(module, *inputs):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def random_params(module, *inputs):
    """Nothing at zero: a fresh network's output is zero whatever its input."""
    return jax.tree.map(lambda leaf: normal(*leaf.shape) / 4, shapes(module, *inputs))


def paths(unet, conditions=None):
    return set(flatten_dict(shapes(unet, X, TIME, conditions or Conditions()), sep="/"))


PARAMS = random_params(EVERY, X, TIME, GIVEN)
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
every = quick(EVERY.apply)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_absent_is_null_for_every_kind_and_given_is_not():
    null = every({"params": PARAMS}, X, TIME, NULL)
    close(every({"params": PARAMS}, X, TIME, Conditions()), null)
    for kind in KINDS:
        told = every({"params": PARAMS}, X, TIME, NULL.replace(**{kind: getattr(GIVEN, kind)}))
        assert np.abs(told - null).max() > 1e-3, kind


def test_parameters_do_not_depend_on_which_conditions_are_given():
    assert shapes(EVERY, X, TIME, Conditions()) == shapes(EVERY, X, TIME, GIVEN)
    inner = EVERY.clone(inject=((SIZE, ("map",)),))
    assert shapes(inner, X, TIME, Conditions()) == shapes(inner, X, TIME, GIVEN)


def test_one_batch_mixes_samples_with_and_without_and_they_do_not_see_each_other():
    mixed = jax.tree.map(lambda given, null: jnp.stack([given[0], null[1], given[2]]), GIVEN, NULL)
    together = every({"params": PARAMS}, X, TIME, mixed)
    close(together[::2], every({"params": PARAMS}, X, TIME, GIVEN)[::2])
    close(together[1], every({"params": PARAMS}, X, TIME, NULL)[1])


def test_every_parameter_has_a_gradient_and_dropped_tables_none():
    def loss(params):
        return jnp.sum(jnp.square(EVERY.apply({"params": params}, X, TIME, GIVEN)))

    gradients = flatten_dict(quick(jax.grad(loss))(PARAMS), sep="/")
    assert not [path for path, gradient in gradients.items() if not np.abs(gradient).max() > 0]
    rows = gradients["embedding/attribute_1/rows/embedding"]
    np.testing.assert_array_equal(np.abs(rows).max(1) > 0, [True, True, False, True])  # the values 3, 0 and 1


def test_bfloat16_and_remat_are_the_same_network():
    half = EVERY.clone(
        dtype=jnp.bfloat16, remat=True, text=TEXT.clone(dtype=jnp.bfloat16), style=STYLE.clone(dtype=jnp.bfloat16)
    )
    assert shapes(half, X, TIME, GIVEN) == shapes(EVERY, X, TIME, GIVEN)
    out, full = quick(half.apply)({"params": PARAMS}, X, TIME, GIVEN), every({"params": PARAMS}, X, TIME, GIVEN)
    assert out.dtype == jnp.float32
    assert 0 < np.abs(out - full).max() < 0.1 * np.abs(full).max()


# Where conditions enter


def blocks_with(unet, name):
    """The stages whose blocks have parameters of this name."""
    return {path.split("/")[1] for path in paths(unet) if f"/{name}/" in path}


SMALL, LARGE = {"down_1_0", "middle_0", "middle_1", "up_1_0", "up_1_1"}, {"down_0_0", "up_0_0", "up_0_1"}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({}, SMALL),
        ({"attention_resolutions": (8,)}, SMALL | LARGE),
        ({"inject": ((8, ("text",)),)}, LARGE),
        ({"inject": ((8, ("text",)), (4, ("text",)))}, SMALL | LARGE),
    ],
)
def test_cross_attention_is_in_the_blocks_of_exactly_the_listed_heights(change, stages):
    assert blocks_with(TWO_LEVELS.clone(text=TEXT, **change), "cross_attention") == stages


def test_a_map_enters_the_blocks_of_exactly_the_listed_heights_or_beside_the_input():
    plain = TWO_LEVELS.clone(map_channels=2)
    assert blocks_with(plain, "map") == set()
    assert shapes(plain, X, TIME, GIVEN)["encoder"]["input_conv"]["kernel"].shape[2] == 3
    inner = plain.clone(inject=((4, ("map",)),))
    assert blocks_with(inner, "map") == SMALL
    assert shapes(inner, X, TIME, GIVEN)["encoder"]["input_conv"]["kernel"].shape[2] == 1


def test_signals_differ_at_exactly_the_listed_heights():
    unet = EVERY.clone(
        channel_mult=(1, 1, 1), inject=((8, ("label",)), (4, ("label", "attributes", "text")), (2, ("map",)))
    )
    params = random_params(unet, X, TIME, GIVEN)

    @quick
    def told_all(conditions):
        return unet.apply({"params": params}, TIME, conditions, SIZE, method=lambda unet, *a: unet.embedding(*a))

    base = told_all(NULL)

    def told(kind):
        signals = told_all(NULL.replace(**{kind: getattr(GIVEN, kind)}))
        changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), signals, base)
        return {
            field: {pixels for pixels, signal in changed.items() if getattr(signal, field)}
            for field in ("emb", "tokens", "map")
        }

    assert told("label") == {"emb": {8, 4}, "tokens": set(), "map": set()}
    assert told("attributes") == {"emb": {4}, "tokens": set(), "map": set()}
    assert told("text") == {"emb": {4}, "tokens": {4}, "map": set()}
    assert told("style") == {"emb": {8, 4, 2}, "tokens": {2}, "map": set()}
    assert told("map") == {"emb": set(), "tokens": set(), "map": {2}}
    assert {pixels: signal.mask is not None for pixels, signal in base.items()} == {8: False, 4: True, 2: True}
    assert [base[pixels].tokens.shape[1] for pixels in (4, 2)] == [6, 5]  # the sentence's here, the picture's there


def test_a_network_without_the_kinds_has_none_of_their_parameters():
    assert paths(TWO_LEVELS) == paths(TWO_LEVELS, GIVEN)
    assert {path.split("/")[0] for path in paths(TWO_LEVELS)} == {"embedding", "encoder", "decoder"}
    assert {path.split("/")[1] for path in paths(TWO_LEVELS) if path.startswith("embedding")} == {"time"}


def test_known_is_seen_with_where_it_is_known():
    known = jnp.zeros((1, 2, 2, 3)).at[0, 0, 1].set(jnp.array([0.0, -0.5, 0.0]))
    unet, x = UNet(known_channels=3), normal(1, 2, 2, 3)
    seen = with_pictures(unet, Conditions(known=known), x)
    np.testing.assert_array_equal(seen[..., :3], x)
    np.testing.assert_array_equal(seen[..., 3:6], known)
    np.testing.assert_array_equal(seen[0, ..., 6], [[0, 1], [0, 0]])


def test_an_upsampler_takes_the_other_conditions_as_well():
    upsampler = SuperResolution(EVERY.clone(text=None, style=None, attribute_sizes=()))
    low_res = normal(B, 4, 4, 1)
    tree = shapes(upsampler, X, TIME, GIVEN.replace(low_res=low_res))
    assert tree["unet"]["encoder"]["input_conv"]["kernel"].shape[2] == 1 + 1 + 2 + 2
    with pytest.raises(InputError, match=r"conditions\.low_res=None"):
        shapes(upsampler, X, TIME, GIVEN)


# Encoders


def test_padding_has_no_influence_and_order_has():
    params = random_params(TEXT, GIVEN.text)
    apply = quick(TEXT.apply)
    tokens = apply({"params": params}, GIVEN.text)
    longer = apply({"params": params}, jnp.pad(GIVEN.text, ((0, 0), (0, 3))))
    close(longer.pooled, tokens.pooled)
    close(jnp.where(longer.mask[:, :6, None], longer.values[:, :6], 0), tokens.values * tokens.mask[..., None])
    np.testing.assert_array_equal(longer.mask.sum(1), [4, 6, 6])
    close(tokens.pooled, jnp.where(tokens.mask[..., None], tokens.values, -jnp.inf).max(1))

    turned = apply({"params": params}, GIVEN.text[:, ::-1])
    assert np.abs(turned.pooled - tokens.pooled)[1:].max() > 1e-3


def test_the_empty_sentence_is_a_value():
    for encoder in (TEXT, FeatureEncoder(features=4, width=8)):
        null = encoder.null(2)
        params = random_params(encoder, null)
        tokens = encoder.apply({"params": params}, null)
        np.testing.assert_array_equal(tokens.mask, [[True], [True]])
        assert np.abs(tokens.pooled).max() > 0


def test_a_sentence_that_is_too_long_is_refused():
    with pytest.raises(InputError, match=r"conditions.text has 9 bytes, but the encoder reads 8; cut it"):
        shapes(TEXT, jnp.zeros((1, 9), jnp.uint8))


def test_features_of_a_frozen_encoder_end_where_the_rows_of_zeros_begin():
    encoder, rows = FeatureEncoder(features=4, width=8), normal(2, 3, 4).at[0, 1:].set(0)
    params = random_params(encoder, rows)
    tokens = encoder.apply({"params": params}, rows)
    np.testing.assert_array_equal(tokens.mask, [[True, True, False, False], [True] * 4])
    shorter = encoder.apply({"params": params}, rows[:1, :1])
    close(shorter.pooled, tokens.pooled[:1])
    close(shorter.values, tokens.values[:1, :2])


def test_a_null_picture_leaves_the_start_token_only():
    params = random_params(STYLE, GIVEN.style)
    picture = GIVEN.style.at[1].set(0)
    tokens = STYLE.apply({"params": params}, picture)
    assert tokens.values.shape == (B, 5, 8)
    np.testing.assert_array_equal(tokens.mask[1], [True] + [False] * 4)
    assert tokens.mask[::2].all()
    close(tokens.pooled[1], params["start"])
    assert np.abs(tokens.pooled[0] - tokens.pooled[2]).max() > 1e-3
    close(STYLE.apply({"params": params}, STYLE.null(1)).pooled[0], tokens.pooled[1])


def test_cross_attention_begins_as_the_identity_and_sees_no_masked_token_nor_the_order():
    attend, x, tokens = CrossAttention(heads=2), normal(2, 2, 2, 8), normal(2, 4, 6)
    mask = jnp.array([[True, True, False, False], [True, False, True, True]])
    fresh = attend.init(jax.random.key(0), x, tokens, mask)
    np.testing.assert_array_equal(attend.apply(fresh, x, tokens, mask), x)

    params = random_params(attend, x, tokens, mask)

    def score(tokens):
        return jnp.sum(jnp.sin(attend.apply({"params": params}, x, tokens, mask)))

    np.testing.assert_array_equal(np.abs(jax.grad(score)(tokens)).max(2) > 0, mask)
    order = jnp.array([3, 1, 0, 2])
    close(
        attend.apply({"params": params}, x, tokens[:, order], mask[:, order]),
        attend.apply({"params": params}, x, tokens, mask),
    )


# Control branches

BASE = TWO_LEVELS.clone(channel_mult=(1,), num_classes=2, text=TEXT)
CONTROLLED = Controlled(BASE, map_channels=2)
BASE_PARAMS = random_params(BASE, X, TIME, GIVEN)


@pytest.fixture(scope="module")
def branch():
    fresh = quick(CONTROLLED.init)(jax.random.key(1, impl="unsafe_rbg"), X, TIME, GIVEN)["params"]
    assert set(flatten_dict(fresh["unet"])) == set(flatten_dict(BASE_PARAMS))
    return branch_from(BASE_PARAMS, fresh["branch"])


controlled, base = jax.jit(CONTROLLED.apply), jax.jit(BASE.apply)


def test_a_fresh_branch_changes_no_bit_and_starts_from_the_bases_encoder(branch):
    jax.tree.map(np.testing.assert_array_equal, branch["encoder"], BASE_PARAMS["encoder"])
    out = controlled({"params": {"unet": BASE_PARAMS, "branch": branch}}, X, TIME, GIVEN)
    np.testing.assert_array_equal(out, base({"params": BASE_PARAMS}, X, TIME, GIVEN))


def test_a_trained_branch_leaves_samples_without_a_map_as_they_are(branch):
    trained = {"unet": BASE_PARAMS, "branch": jax.tree.map(lambda leaf: leaf + normal(*leaf.shape) / 4, branch)}
    some = GIVEN.replace(map=GIVEN.map.at[1].set(0))
    out = controlled({"params": trained}, X, TIME, some)
    plain = base({"params": BASE_PARAMS}, X, TIME, GIVEN)
    np.testing.assert_array_equal(out[1], plain[1])
    assert np.abs(out - plain)[::2].max() > 1e-2
    null = GIVEN.replace(map=jnp.zeros_like(GIVEN.map))
    np.testing.assert_array_equal(controlled({"params": trained}, X, TIME, null), plain)
    absent = jax.eval_shape(CONTROLLED.apply, {"params": trained}, X, TIME, GIVEN.replace(map=None))
    assert absent.shape == plain.shape


def test_gradients_reach_every_projection_of_a_fresh_branch(branch):
    def loss(branch):
        params = {"unet": BASE_PARAMS, "branch": branch}
        return jnp.sum(jnp.square(CONTROLLED.apply({"params": params}, X, TIME, GIVEN)))

    gradients = flatten_dict(quick(jax.grad(loss))(branch), sep="/")
    projections = ["middle", *(f"skip_{i}" for i in range(2))]
    assert {path.split("/")[0] for path in gradients} == {"encoder", "hint_0", "hint_1", "hint_out", *projections}
    for name in projections:
        assert np.abs(gradients[f"{name}/kernel"]).max() > 0, name
    # All else waits behind them for the first step.
    assert not np.abs(gradients["hint_out/kernel"]).max()


# Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attribute_sizes": (2, 0)}, "model.attribute_sizes=0 must be a whole number, 1 or more."),
        ({"map_channels": -1}, "model.map_channels=-1"),
        ({"known_channels": -1}, "model.known_channels=-1"),
        ({"inject": ((5, ("text",)),)}, "model.inject=5 is the height of no feature map, in pixels; use 8, 4."),
        ({"inject": ((4, ("txt",)),)}, "model.inject='txt' is not one of label, .*; did you mean 'text'?"),
        ({"inject": ((4, ("map",)),)}, "'map' at 4 pixels, but the network takes label, text, style; leave it out."),
        ({"style": STYLE.clone(width=4)}, "model.style_width=4 is not model.text_width=8, .*; use one width."),
        ({"text": TEXT.clone(heads=3)}, "model.text_width=8 is not divisible by its 3 heads; use 9."),
        ({"text": FeatureEncoder(features=0)}, "model.text_features=0"),
        ({"style": STYLE.clone(depth=0)}, "model.style_depth=0"),
        (
            {"head_width": 16, "inject": ((8, ("text",)), (4, ("style",)))},
            r"model.head_width=16 does not divide the 8 channels that attend at 8 pixels \(down_0_0\); use 8.",
        ),
    ],
)
def test_wrong_settings_are_refused_with_a_remedy(change, message):
    unet = TWO_LEVELS.clone(num_classes=2, text=TEXT, style=STYLE)
    check(unet, SIZE)
    with pytest.raises(InputError, match=message):
        check(unet.clone(**change), SIZE)


def test_a_branch_refuses_what_cannot_work():
    control.check(CONTROLLED, SIZE)
    with pytest.raises(InputError, match=r"control\.map_channels=0"):
        control.check(CONTROLLED.clone(map_channels=0), SIZE)
    with pytest.raises(InputError, match=r"model\.width=0"):
        control.check(CONTROLLED.clone(unet=BASE.clone(width=0)), SIZE)
    with pytest.raises(InputError, match=r"model\.map_channels=2, but the map is the control branch's; use 0\."):
        control.check(CONTROLLED.clone(unet=BASE.clone(map_channels=2)), SIZE)
