"""What networks promise about their conditions, whatever their weights are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.models.attention import CrossAttention
from guided_diffusion_jax.models.controlnet import ControlNet, branch_from
from guided_diffusion_jax.models.image_encoder import ImageEncoder
from guided_diffusion_jax.models.placement import beside_input
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.text import ByteEncoder, FeatureEncoder
from guided_diffusion_jax.models.unet import UNet

RNG = np.random.default_rng(0)
SIZE, B = 8, 3
TEXT = ByteEncoder(width=8, depth=1, heads=2, length=8)
REFERENCE = ImageEncoder(channels=1, width=8, depth=2)
TWO_LEVELS = UNet(
    width=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(), head_width=8, out_channels=1
)
# One level has every way for a condition to enter and compiles fast.
EVERY = TWO_LEVELS.clone(
    channel_mult=(1,),
    num_classes=2,
    attribute_sizes=(2, 3),
    text=TEXT,
    reference=REFERENCE,
    control_channels=2,
    masked_channels=1,
)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


X, TIME = normal(B, SIZE, SIZE, 1), jnp.array([0, 10, 999])
GIVEN = {
    "label": jnp.array([0, 1, 0]),
    "attributes": jnp.array([[1, 3], [2, 0], [0, 1]]),
    "text": jnp.asarray([list(b"red\0\0"), list(b"a cat"), list(b"a red")], jnp.uint8),
    "reference_image": normal(B, SIZE, SIZE, 1),
    "control_image": normal(B, SIZE, SIZE, 2),
    "masked_image": normal(B, SIZE, SIZE, 1),
}
NULL = {
    "label": jnp.full(B, 2),
    "attributes": jnp.zeros((B, 2), jnp.int32),
    "text": jnp.zeros((B, 5), jnp.uint8),
    "reference_image": jnp.zeros((B, SIZE, SIZE, 1)),
    "control_image": jnp.zeros((B, SIZE, SIZE, 2)),
    "masked_image": jnp.zeros((B, SIZE, SIZE, 1)),
}
KINDS = ("label", "attributes", "text", "reference_image", "control_image", "masked_image")


def shapes(module, *inputs):
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def random_params(module, *inputs):
    """Nothing at zero: a fresh network's output is zero whatever its input."""
    return jax.tree.map(lambda leaf: normal(*leaf.shape) / 4, shapes(module, *inputs))


def paths(unet, conditions=None):
    return set(flatten_dict(shapes(unet, X, TIME, conditions or {}), sep="/"))


PARAMS = random_params(EVERY, X, TIME, GIVEN)
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
every = quick(EVERY.apply)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_absent_is_null_for_every_kind_and_given_is_not():
    null = every({"params": PARAMS}, X, TIME, NULL)
    close(every({"params": PARAMS}, X, TIME, {}), null)
    for kind in KINDS:
        given = every({"params": PARAMS}, X, TIME, {**NULL, kind: GIVEN[kind]})
        assert np.abs(given - null).max() > 1e-3, kind


def test_parameters_do_not_depend_on_which_conditions_are_given():
    assert shapes(EVERY, X, TIME, {}) == shapes(EVERY, X, TIME, GIVEN)
    inner = EVERY.clone(condition_resolutions=(("control_image", (SIZE,)),))
    assert shapes(inner, X, TIME, {}) == shapes(inner, X, TIME, GIVEN)


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
    rows = gradients["embedding/attributes/table_1/rows/embedding"]
    np.testing.assert_array_equal(np.abs(rows).max(1) > 0, [True, True, False, True])  # the values 3, 0 and 1


def test_bfloat16_and_remat_are_the_same_network():
    half = EVERY.clone(
        dtype=jnp.bfloat16,
        remat=True,
        text=TEXT.clone(dtype=jnp.bfloat16),
        reference=REFERENCE.clone(dtype=jnp.bfloat16),
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
        ({"condition_resolutions": (("text", (8,)),)}, LARGE),
        ({"condition_resolutions": (("text", (8, 4)),)}, SMALL | LARGE),
    ],
)
def test_cross_attention_is_in_the_blocks_of_exactly_the_listed_heights(change, stages):
    assert blocks_with(TWO_LEVELS.clone(text=TEXT, **change), "cross_attention") == stages


def test_a_map_enters_the_blocks_of_exactly_the_listed_heights_or_beside_the_input():
    plain = TWO_LEVELS.clone(control_channels=2)
    assert blocks_with(plain, "map") == set()
    assert shapes(plain, X, TIME, GIVEN)["encoder"]["input_conv"]["kernel"].shape[2] == 3
    inner = plain.clone(condition_resolutions=(("control_image", (4,)),))
    assert blocks_with(inner, "map") == SMALL
    assert shapes(inner, X, TIME, GIVEN)["encoder"]["input_conv"]["kernel"].shape[2] == 1


def test_conditioning_differs_at_exactly_the_listed_heights():
    unet = EVERY.clone(
        channel_mult=(1, 1, 1),
        condition_resolutions=(("label", (8, 4)), ("attributes", (4,)), ("text", (4,)), ("control_image", (2,))),
    )
    params = random_params(unet, X, TIME, GIVEN)

    @quick
    def conditioning(conditions):
        return unet.apply({"params": params}, X, TIME, conditions, method="condition")[1]

    base = conditioning(NULL)

    def entry_points(kind):
        changed_by = conditioning({**NULL, kind: GIVEN[kind]})
        changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), changed_by, base)
        return {
            field: {pixels for pixels, block in changed.items() if getattr(block, field)}
            for field in ("vector", "tokens", "map")
        }

    assert entry_points("label") == {"vector": {8, 4}, "tokens": set(), "map": set()}
    assert entry_points("attributes") == {"vector": {4}, "tokens": set(), "map": set()}
    assert entry_points("text") == {"vector": {4}, "tokens": {4}, "map": set()}
    assert entry_points("reference_image") == {"vector": {8, 4, 2}, "tokens": {2}, "map": set()}
    assert entry_points("control_image") == {"vector": set(), "tokens": set(), "map": {2}}
    assert {pixels: block.mask is not None for pixels, block in base.items()} == {8: False, 4: True, 2: True}
    assert [base[pixels].tokens.shape[1] for pixels in (4, 2)] == [6, 5]  # the sentence's here, the picture's there


def test_a_network_without_the_kinds_has_none_of_their_parameters():
    assert paths(TWO_LEVELS) == paths(TWO_LEVELS, GIVEN)
    assert {path.split("/")[0] for path in paths(TWO_LEVELS)} == {"embedding", "encoder", "decoder"}
    assert {path.split("/")[1] for path in paths(TWO_LEVELS) if path.startswith("embedding")} == {"time"}


def test_known_is_seen_with_where_it_is_known():
    known = jnp.zeros((1, 2, 2, 3)).at[0, 0, 1].set(jnp.array([0.0, -0.5, 0.0]))
    unet, x = UNet(masked_channels=3), normal(1, 2, 2, 3)
    seen = beside_input(unet, x, {"masked_image": known}, {})
    np.testing.assert_array_equal(seen[..., :3], x)
    np.testing.assert_array_equal(seen[..., 3:6], known)
    np.testing.assert_array_equal(seen[0, ..., 6], [[0, 1], [0, 0]])


def test_an_upsampler_takes_the_other_conditions_as_well():
    upsampler = SuperResolution(EVERY.clone(text=None, reference=None, attribute_sizes=()))
    low_res = normal(B, 4, 4, 1)
    tree = shapes(upsampler, X, TIME, {**GIVEN, "low_res": low_res})
    assert tree["unet"]["encoder"]["input_conv"]["kernel"].shape[2] == 1 + 1 + 2 + 2
    with pytest.raises(InputError, match=r"the condition low_res is missing"):
        shapes(upsampler, X, TIME, GIVEN)


# Encoders


def test_padding_has_no_influence_and_order_has():
    params = random_params(TEXT, GIVEN["text"])
    apply = quick(TEXT.apply)
    tokens = apply({"params": params}, GIVEN["text"])
    longer = apply({"params": params}, jnp.pad(GIVEN["text"], ((0, 0), (0, 3))))
    close(longer.vector, tokens.vector)
    close(jnp.where(longer.mask[:, :6, None], longer.tokens[:, :6], 0), tokens.tokens * tokens.mask[..., None])
    np.testing.assert_array_equal(longer.mask.sum(1), [4, 6, 6])
    close(tokens.vector, jnp.where(tokens.mask[..., None], tokens.tokens, -jnp.inf).max(1))

    turned = apply({"params": params}, GIVEN["text"][:, ::-1])
    assert np.abs(turned.vector - tokens.vector)[1:].max() > 1e-3


def test_the_empty_sentence_is_a_value():
    for encoder in (TEXT, FeatureEncoder(features=4, width=8)):
        null = jnp.zeros((2, *encoder.input_shape), encoder.input_dtype)
        params = random_params(encoder, null)
        tokens = encoder.apply({"params": params}, null)
        np.testing.assert_array_equal(tokens.mask.sum(1), [1, 1])
        assert np.abs(tokens.vector).max() > 0


def test_a_sentence_that_is_too_long_is_refused():
    with pytest.raises(InputError, match=r"conditions.text has 9 bytes, but the encoder reads 8; cut it"):
        shapes(TEXT, jnp.zeros((1, 9), jnp.uint8))


def test_features_of_a_frozen_encoder_end_where_the_rows_of_zeros_begin():
    encoder, rows = FeatureEncoder(features=4, width=8), normal(2, 3, 4).at[0, 1:].set(0)
    params = random_params(encoder, rows)
    tokens = encoder.apply({"params": params}, rows)
    np.testing.assert_array_equal(tokens.mask, [[True, True, False, False], [True] * 4])
    shorter = encoder.apply({"params": params}, rows[:1, :1])
    close(shorter.vector, tokens.vector[:1])
    close(shorter.tokens, tokens.tokens[:1, :2])


def test_a_null_picture_leaves_the_start_token_only():
    params = random_params(REFERENCE, GIVEN["reference_image"])
    picture = GIVEN["reference_image"].at[1].set(0)
    tokens = REFERENCE.apply({"params": params}, picture)
    assert tokens.tokens.shape == (B, 5, 8)
    np.testing.assert_array_equal(tokens.mask[1], [True] + [False] * 4)
    assert tokens.mask[::2].all()
    close(tokens.vector[1], params["start"])
    assert np.abs(tokens.vector[0] - tokens.vector[2]).max() > 1e-3
    close(REFERENCE.apply({"params": params}, jnp.zeros_like(picture[:1])).vector[0], tokens.vector[1])


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
CONTROLLED = ControlNet(BASE, control_channels=2)
BASE_PARAMS = random_params(BASE, X, TIME, GIVEN)


@pytest.fixture(scope="module")
def branch():
    fresh = quick(CONTROLLED.init)(jax.random.key(1, impl="unsafe_rbg"), X, TIME, GIVEN)["params"]
    assert set(flatten_dict(fresh["unet"])) == set(flatten_dict(BASE_PARAMS))
    return branch_from(BASE_PARAMS, fresh["controlnet"])


bitwise = functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})  # as outside of tests
controlled, base = bitwise(CONTROLLED.apply), bitwise(BASE.apply)


def test_a_fresh_branch_changes_no_bit_and_starts_from_the_bases_encoder(branch):
    jax.tree.map(np.testing.assert_array_equal, branch["encoder"], BASE_PARAMS["encoder"])
    out = controlled({"params": {"unet": BASE_PARAMS, "controlnet": branch}}, X, TIME, GIVEN)
    np.testing.assert_array_equal(out, base({"params": BASE_PARAMS}, X, TIME, GIVEN))


def test_a_trained_branch_leaves_samples_without_a_map_as_they_are(branch):
    trained = {"unet": BASE_PARAMS, "controlnet": jax.tree.map(lambda leaf: leaf + normal(*leaf.shape) / 4, branch)}
    some = {**GIVEN, "control_image": GIVEN["control_image"].at[1].set(0)}
    out = controlled({"params": trained}, X, TIME, some)
    plain = base({"params": BASE_PARAMS}, X, TIME, GIVEN)
    np.testing.assert_array_equal(out[1], plain[1])
    assert np.abs(out - plain)[::2].max() > 1e-2
    null = {**GIVEN, "control_image": jnp.zeros_like(GIVEN["control_image"])}
    np.testing.assert_array_equal(controlled({"params": trained}, X, TIME, null), plain)
    absent = jax.eval_shape(CONTROLLED.apply, {"params": trained}, X, TIME, {**GIVEN, "control_image": None})
    assert absent.shape == plain.shape


def test_gradients_reach_every_projection_of_a_fresh_branch(branch):
    def loss(branch):
        params = {"unet": BASE_PARAMS, "controlnet": branch}
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
        ({"control_channels": -1}, "model.control_channels=-1"),
        ({"masked_channels": -1}, "model.masked_channels=-1"),
        (
            {"condition_resolutions": (("text", (5,)),)},
            "=5 for 'text' is the height of no feature map, in pixels; use 8, 4.",
        ),
        (
            {"condition_resolutions": (("txt", (4,)),)},
            "model.condition_resolutions='txt' is not one of label, .*; did you mean 'text'?",
        ),
        (
            {"condition_resolutions": (("control_image", (4,)),)},
            "'control_image', but the network takes label, text, reference_image; leave it out.",
        ),
        (
            {"reference": REFERENCE.clone(width=4)},
            "model.text_width=8 and model.reference_width=4 differ, .*; use one width.",
        ),
        ({"text": TEXT.clone(heads=3)}, "model.text_width=8 is not divisible by its 3 heads; use 9."),
        ({"text": FeatureEncoder(features=0)}, "model.text_features=0"),
        ({"reference": REFERENCE.clone(depth=0)}, "model.reference_depth=0"),
        (
            {"head_width": 16, "condition_resolutions": (("text", (8,)), ("reference_image", (4,)))},
            r"model.head_width=16 does not divide the 8 channels that attend at 8 pixels \(down_0_0\); use 8.",
        ),
    ],
)
def test_wrong_settings_are_refused_with_a_remedy(change, message):
    unet = TWO_LEVELS.clone(num_classes=2, text=TEXT, reference=REFERENCE)
    unet.check((SIZE, SIZE, 1))
    with pytest.raises(InputError, match=message):
        unet.clone(**change).check((SIZE, SIZE, 1))


def test_a_branch_refuses_what_cannot_work():
    CONTROLLED.check((SIZE, SIZE, 1))
    with pytest.raises(InputError, match=r"model\.control_channels=0"):
        CONTROLLED.clone(control_channels=0).check((SIZE, SIZE, 1))
    with pytest.raises(InputError, match=r"model\.width=0"):
        CONTROLLED.clone(unet=BASE.clone(width=0)).check((SIZE, SIZE, 1))
    with pytest.raises(
        InputError, match=r"model\.control_channels=2 of the U-Net, but the control image is the branch's; use 0\."
    ):
        CONTROLLED.clone(unet=BASE.clone(control_channels=2)).check((SIZE, SIZE, 1))
