"""The noise-aware classifier: OpenAI's numbers, and what it promises whatever its weights are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adm_arguments import MODULES, classifier_from_args
from conftest import GOLDEN, relative_error

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.interop import adm
from guided_diffusion_jax.models.classifier import POOLS, AdaptivePool, Classifier, SpatialPool

NAMES = sorted(path.stem for path in GOLDEN.glob("net*classifier*.npz"))
SIZE = 8
TINY = Classifier(
    width=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), head_width=16, dropout=0.5,
    num_classes=5,
)  # fmt: skip
X = jnp.asarray(np.random.default_rng(0).normal(size=(3, SIZE, SIZE, 1)), jnp.float32)
TIME = jnp.array([0, 10, 999])


def nhwc(images):
    return jnp.asarray(np.moveaxis(images, 1, -1))


def shapes(module):
    return jax.eval_shape(module.init, jax.random.key(0), X, TIME)["params"]


def random_params(module, seed=1):
    """Nothing at zero: some of a fresh network's layers are."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 4, jnp.float32), shapes(module))


@pytest.mark.parametrize("name", NAMES)
def test_classifier_gives_openais_logits_and_gradients(golden, name):
    data = golden(name)
    args = data.config["args"]
    prefix = "params/"
    weights = {key.removeprefix(prefix): data[key] for key in data.arrays.files if key.startswith(prefix)}
    module = MODULES[data.config["cls"]](args)
    module.check((args["image_size"], args["image_size"], 3))
    order = {"image_size": args["image_size"]} | {
        "attention_order": "new" if args["use_new_attention_order"] else "legacy"
    }
    params = adm.params_from_state_dict(module, weights, **order)
    time = jnp.asarray(data["timesteps"], jnp.int32 if data["timesteps"].dtype == np.int64 else jnp.float32)
    label = jnp.asarray(data["y"], jnp.int32)

    @jax.jit
    def all_three(x):
        logits, pull = jax.vjp(lambda x: module.apply({"params": params}, x, time), x)
        of_log_prob = jax.nn.one_hot(label, logits.shape[-1]) - jax.nn.softmax(logits)
        return logits, pull(jnp.asarray(data["probe"]))[0], pull(of_log_prob)[0]

    logits, grad_x, guidance_grad = all_three(nhwc(data["x"]))
    assert relative_error(logits, data["out"]) <= 5e-4
    assert relative_error(grad_x, nhwc(data["grad_x"])) <= 1e-3
    assert relative_error(guidance_grad, nhwc(data["guidance_grad"])) <= 1e-3

    back = adm.state_dict_from_params(module, params, **order)
    assert set(back) == set(weights)
    for key, array in weights.items():
        np.testing.assert_array_equal(back[key], array)


def test_there_is_a_golden_classifier():
    assert NAMES


@pytest.mark.parametrize("pool", POOLS)
def test_fresh_classifier_gives_float32_logits_for_every_class(pool):
    module = TINY.clone(pool=pool, dtype=jnp.bfloat16)
    logits, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), X, TIME)
    assert logits.shape == (3, 5)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {jnp.dtype("float32")}


def pooled(pool, params, h, skips):
    """The pool alone, on an encoder's output: `pool` in NumPy, float64, straight from its definition."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["pooling"])
    layer = {name: lambda v, w=w: v @ w["kernel"] + w["bias"] for name, w in p.items() if "kernel" in w}

    def silu(v):
        return v / (1 + np.exp(-v))

    def norm(v):  # [b positions c]
        grouped = v.reshape(*v.shape[:2], 32, -1)
        centred = grouped - grouped.mean((1, 3), keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean((1, 3), keepdims=True) + 1e-5)
        return scaled.reshape(v.shape) * p["norm"]["scale"] + p["norm"]["bias"]

    flat = [np.asarray(stage, np.float64).reshape(len(h), -1, stage.shape[-1]) for stage in (*skips, h)]
    if pool == "adaptive":
        return layer["logits"](silu(norm(flat[-1])).mean(1))
    hidden = layer["hidden"](np.concatenate([stage.mean(1) for stage in flat], axis=-1))
    hidden = np.maximum(hidden, 0) if pool == "spatial" else silu(norm(hidden[:, None])[:, 0])
    return layer["logits"](hidden)


def test_pools_without_golden_arrays_follow_their_definition():
    module = TINY.clone(pool="spatial_v2", channel_mult=(1,), attention_resolutions=())
    params = random_params(module)
    logits, state = jax.jit(lambda: module.apply({"params": params}, X, TIME, capture_intermediates=True))()
    h, skips = state["intermediates"]["encoder"]["__call__"][0]
    expected = pooled("spatial_v2", params, h, skips)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    means = jnp.concatenate([stage.mean((1, 2)) for stage in (*skips, h)], axis=-1)
    for pool, head, features in (("adaptive", AdaptivePool(5), h), ("spatial", SpatialPool(5, False), means)):
        params = random_params(module.clone(pool=pool))
        expected = pooled(pool, params, h, skips)
        got = head.apply({"params": params["pooling"]}, features)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("pool", ["adaptive", "spatial", "spatial_v2"])
def test_converting_there_and_back_keeps_every_pool(pool):
    module = TINY.clone(pool=pool)
    params, how = random_params(module), {"image_size": SIZE, "attention_order": "legacy"}
    weights = adm.state_dict_from_params(module, params, **how)
    # The input's channels, unlike everything else, are read off the weights: here they are grey.
    back = adm.params_from_state_dict(module, weights, **how)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert all(name.split(".")[0] in {"time_embed", "input_blocks", "middle_block", "out"} for name in weights)


def test_another_pools_weights_are_refused():
    module = TINY.clone(pool="spatial")
    how = {"image_size": SIZE, "attention_order": "legacy"}
    weights = adm.state_dict_from_params(module, random_params(module), **how)
    with pytest.raises(InputError, match=r"1 missing \(out.2.positional_embedding|missing .*out\.2\.qkv_proj"):
        adm.params_from_state_dict(TINY, weights, **how)


def test_arguments_of_adms_classifier():
    args = {
        "image_size": 64,
        "model_channels": 32,
        "out_channels": 7,
        "num_res_blocks": 1,
        "attention_resolutions": [2, 8],
        "channel_mult": [1, 2],
        "num_head_channels": 16,
        "pool": "attention",
    }
    module = classifier_from_args(args)
    assert (module.num_classes, module.pool, module.attention_resolutions) == (7, "attention", (32,))
    assert classifier_from_args({**args, "pool": "adaptive", "num_head_channels": -1}).num_heads == 1
    with pytest.raises(InputError, match="num_head_channels=-1 does not go with pool='attention'"):
        classifier_from_args({**args, "num_head_channels": -1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "mean"}, "classifier.pool='mean' is not one of adaptive, attention, spatial, spatial_v2"),
        ({"num_classes": 0}, "classifier.num_classes=0 must be a whole number, 1 or more."),
        ({"width": 0}, "classifier.width=0"),
        ({"head_width": 48}, "classifier.head_width=48 does not divide the 64 channels"),
        ({"dropout": 1.0}, "classifier.dropout=1.0"),
        ({"channel_mult": (1, 1, 1, 1, 1)}, "data.image_size=8 is not divisible by 16"),
    ],
)
def test_wrong_settings_are_refused_with_a_remedy(change, message):
    TINY.check((SIZE, SIZE, 1))
    with pytest.raises(InputError, match=message):
        TINY.clone(**change).check((SIZE, SIZE, 1))
