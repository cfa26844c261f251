"""What the networks promise whatever their weights are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adm_arguments import unet_from_args

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.interop import adm
from guided_diffusion_jax.models.layers import GroupNorm
from guided_diffusion_jax.models.plan import decoder_plan, encoder_plan
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.unet import UNet

CLASSES = 3
SIZE = 4
TINY = UNet(
    width=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2,),
    head_width=0,
    num_heads=2,
    dropout=0.5,
    num_classes=CLASSES,
    out_channels=2,
)
X = jnp.asarray(np.random.default_rng(0).normal(size=(3, SIZE, SIZE, 1)), jnp.float32)
TIME = jnp.array([0, 10, 999])
KEY = jax.random.key(2, impl="unsafe_rbg")  # compiles several times faster than threefry
LABEL = {"label": jnp.array([0, 2, CLASSES])}


def shapes(module, x=X, conditions=LABEL):
    tree = jax.eval_shape(module.init, jax.random.key(0), x, TIME, conditions)["params"]
    return jax.tree.map(lambda leaf: leaf.shape, tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))


def random_params(module, seed=1, **inputs):
    """Parameters with nothing at zero, since at initialisation the output is zero whatever the input."""
    rng = np.random.default_rng(seed)
    tree = shapes(module, **inputs)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape) / 4, jnp.float32), tree, is_leaf=lambda t: isinstance(t, tuple)
    )


# One level has every kind of block (the golden tests see to the resampling) and compiles fast.
ONE_LEVEL = TINY.clone(channel_mult=(1,))
PARAMS = random_params(ONE_LEVEL)


@jax.jit
def tiny(params, x, time, conditions):
    return ONE_LEVEL.apply({"params": params}, x, time, conditions)


def test_output_is_zero_at_initialisation_and_params_are_float32():
    out, variables = jax.jit(ONE_LEVEL.init_with_output)(KEY, X, TIME, LABEL)
    np.testing.assert_array_equal(out, np.zeros((3, SIZE, SIZE, 2)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_remat_changes_neither_the_tree_nor_the_gradients():
    def gradients(unet):
        def loss(x):
            out = unet.apply({"params": PARAMS}, x, TIME, LABEL, train=True, rngs={"dropout": KEY})
            return jnp.sum(jnp.square(out))

        return jax.jit(jax.value_and_grad(loss))(X)

    assert shapes(TINY.clone(remat=True)) == shapes(TINY)
    plain, again = gradients(ONE_LEVEL), gradients(ONE_LEVEL.clone(remat=True))
    np.testing.assert_allclose(again[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(again[1], plain[1], rtol=1e-4, atol=1e-5 * jnp.abs(plain[1]).max())


def test_label_gradient_reaches_its_own_row_only():
    def loss(rows, label):
        embedding = PARAMS["embedding"] | {"label": {"rows": {"embedding": rows}}}
        return jnp.sum(jnp.square(tiny(PARAMS | {"embedding": embedding}, X, TIME, {"label": label})))

    gradient = jax.jit(jax.grad(loss))
    for label in (1, CLASSES):
        rows = gradient(PARAMS["embedding"]["label"]["rows"]["embedding"], jnp.full(3, label))
        np.testing.assert_array_equal(np.abs(rows).max(1) > 0, np.arange(CLASSES + 1) == label)


def test_absent_label_is_the_null_class():
    null = tiny(PARAMS, X, TIME, {"label": jnp.full(3, CLASSES)})
    np.testing.assert_array_equal(tiny(PARAMS, X, TIME, {}), null)
    assert not np.allclose(tiny(PARAMS, X, TIME, {"label": jnp.zeros(3, int)}), null)


def test_without_classes_the_label_is_ignored():
    unet = TINY.clone(num_classes=0)
    assert "label" not in shapes(unet)["embedding"]
    assert shapes(unet) == shapes(unet, conditions={})


def test_samples_do_not_see_each_other():
    together = tiny(PARAMS, X, TIME, LABEL)
    alone = tiny(PARAMS, X[1:2], TIME[1:2], {"label": LABEL["label"][1:2]})
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_the_same_network_roughly_and_returns_float32():
    half = ONE_LEVEL.clone(dtype=jnp.bfloat16)
    out = jax.jit(half.apply)({"params": PARAMS}, X, TIME, LABEL)
    full = tiny(PARAMS, X, TIME, LABEL)
    assert out.dtype == jnp.float32
    assert shapes(half) == shapes(ONE_LEVEL)
    assert 0 < jnp.abs(out - full).max() < 0.1 * jnp.abs(full).max()


@pytest.mark.parametrize(
    "variant", [{"class_fusion": "concat"}, {"time_injection": "add"}, {"resample": "conv"}, {"channel_mult": (1, 1.5)}]
)
def test_variants_are_other_networks(variant):
    unet = TINY.clone(**variant)
    unet.check((SIZE, SIZE, 1))
    assert shapes(unet) != shapes(TINY)


def test_encoder_and_decoder_plans_fit_together():
    unet = UNet(width=16, channel_mult=(1, 2, 4), num_res_blocks=3, attention_resolutions=(16, 8), head_width=8)
    encoder, decoder = list(encoder_plan(unet, 32)), list(decoder_plan(unet, 32))
    takers = [stage for stage in decoder if stage.kind == "block"]
    assert [stage.pixels for stage in takers] == [stage.pixels for stage in reversed(encoder)]
    assert {stage.pixels for stage in encoder + decoder if stage.heads is not None} == {16, 8}
    assert {stage.heads for stage in encoder if stage.pixels == 16} == {None, 4}


def test_group_norm_is_exact_where_contrast_is_low():
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(2, 8, 8, 64)) * 0.01 + 100).astype(np.float32)
    grouped = x.astype(np.float64).reshape(2, 64, 32, 2)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    expected = centred / np.sqrt(np.square(centred).mean((1, 3), keepdims=True) + 1e-5)
    params = {"scale": jnp.ones(64), "bias": jnp.zeros(64)}
    np.testing.assert_allclose(
        GroupNorm().apply({"params": params}, jnp.asarray(x)), expected.reshape(x.shape), atol=5e-3
    )


def test_super_resolution_sees_the_small_picture_and_needs_it():
    module = SuperResolution(ONE_LEVEL.clone(num_classes=0))
    low_res = jnp.ones((3, SIZE // 2, SIZE // 2, 1))
    params = random_params(module, conditions={"low_res": low_res})
    apply = jax.jit(lambda low_res: module.apply({"params": params}, X, TIME, {"low_res": low_res}))
    assert not np.allclose(apply(low_res), apply(-low_res))
    with pytest.raises(InputError, match=r"the condition low_res is missing"):
        jax.eval_shape(module.init, jax.random.key(0), X, TIME, LABEL)


@pytest.mark.parametrize(
    ("change", "size", "message"),
    [
        ({"channel_mult": (1, 2, 2)}, 30, "data.image_size=30 is not divisible by 4, .* 3 levels; use 28 or 32."),
        ({"channel_mult": (1, 2, 2)}, 2, "data.image_size=2 is not divisible by 4, .*; use 4."),
        ({"head_width": 5}, 4, "model.head_width=5 does not divide the 16 channels .* 2 pixels .*; use 4 or 8."),
        ({"head_width": 64}, 4, r"model.head_width=64 .* 16 channels .* \(down_1_0\); use 16."),
        ({"attention_resolutions": (), "num_heads": 32}, 4, r"model.num_heads=32 .* \(middle_0\); use 16."),
        ({"num_heads": 3}, 4, "model.num_heads=3 does not divide the 16 channels .*; use 2 or 4."),
        (
            {"class_fusion": "concta"},
            4,
            "model.class_fusion='concta' is not one of add, concat; did you mean 'concat'?",
        ),
        (
            {"time_injection": "scale"},
            4,
            "model.time_injection='scale' is not one of scale_shift, add; .*'scale_shift'",
        ),
        ({"resample": "blok"}, 4, "model.resample='blok' is not one of conv, block, conv_same; did you mean 'block'?"),
        ({"width": 0}, 4, "model.width=0 must be a whole number, 1 or more."),
        ({"num_res_blocks": -1}, 4, "model.num_res_blocks=-1 must be"),
        ({"num_classes": -1}, 4, "model.num_classes=-1 must be a whole number, 0 or more."),
        ({"out_channels": 0}, 4, "model.out_channels=0"),
        ({"channel_mult": ()}, 4, "model.channel_mult="),
        ({"channel_mult": (1, 0.01)}, 4, "model.channel_mult="),
        ({"attention_resolutions": (0,)}, 4, "model.attention_resolutions=0"),
        ({"dropout": 1.0}, 4, r"model.dropout=1.0 must lie in \[0, 1\); 0 turns dropout off."),
        ({}, 0, "data.image_size=0"),
    ],
)
def test_wrong_settings_are_refused_with_a_remedy(change, size, message):
    TINY.check((SIZE, SIZE, 1))
    with pytest.raises(InputError, match=message):
        TINY.clone(**change).check((size, size, 1))


TINY_PARAMS = random_params(TINY)


@pytest.fixture(scope="module")
def weights():
    return adm.state_dict_from_params(TINY, TINY_PARAMS, image_size=SIZE, attention_order="legacy")


def convert(weights):
    return adm.params_from_state_dict(TINY, weights, image_size=SIZE, attention_order="legacy")


def test_converting_there_and_back_keeps_all_but_the_null_class(weights):
    back = convert(weights)
    rows = back["embedding"]["label"]["rows"]["embedding"]
    np.testing.assert_array_equal(rows[-1], 0)
    back["embedding"]["label"]["rows"]["embedding"] = rows.at[-1].set(
        TINY_PARAMS["embedding"]["label"]["rows"]["embedding"][-1]
    )
    jax.tree.map(np.testing.assert_array_equal, back, TINY_PARAMS)


def test_converter_names_what_does_not_fit(weights):
    wrong = dict(weights)
    del wrong["out.2.bias"], wrong["input_blocks.0.0.weight"]
    wrong["head.weight"] = np.zeros(3)
    wrong["label_emb.weight"] = np.zeros((4, 32))
    with pytest.raises(InputError) as error:
        convert(wrong)
    line = str(error.value)
    assert "2 missing (input_blocks.0.0.weight, out.2.bias)" in line
    assert "1 extra (head.weight)" in line
    assert "1 misshapen (label_emb.weight (4, 32) instead of (3, 32))" in line


def test_converter_refuses_what_has_no_counterpart(weights):
    args = {
        "image_size": 4,
        "model_channels": 8,
        "out_channels": 3,
        "num_res_blocks": 1,
        "attention_resolutions": [2],
    }
    assert unet_from_args(args).attention_resolutions == (2,)
    for key, value in {"dims": 3, "conv_resample": False, "num_heads_upsample": 2}.items():
        with pytest.raises(InputError, match=f"ADM's {key}={value}"):
            unet_from_args({**args, key: value})
    with pytest.raises(InputError, match="lack image_size"):
        unet_from_args({})
    with pytest.raises(InputError, match="attention_order='old' is not one of legacy, new"):
        adm.params_from_state_dict(TINY, weights, image_size=SIZE, attention_order="old")
    with pytest.raises(InputError, match=r"model.class_fusion='concat' .*; use 'add'"):
        list(adm.rows(TINY.clone(class_fusion="concat"), SIZE, "new"))
    with pytest.raises(InputError, match="takes attributes, control_image has no counterpart in ADM"):
        list(adm.rows(TINY.clone(attribute_sizes=(2,), control_channels=1), SIZE, "new"))
