"""Our networks, given OpenAI's guided-diffusion weights, against that code's outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adm_arguments import MODULES
from conftest import GOLDEN, relative_error

from guided_diffusion_jax.interop import adm
from guided_diffusion_jax.models.attention import attention
from guided_diffusion_jax.models.embeddings import timestep_embedding

NETWORKS = sorted(path.stem for kind in ("unet", "superres") for path in GOLDEN.glob(f"net*{kind}*.npz"))


def nhwc(images):
    return jnp.asarray(np.moveaxis(images, 1, -1))


@pytest.mark.parametrize("name", NETWORKS)
def test_network_gives_openais_outputs_and_gradients(golden, name):
    data = golden(name)
    args = data.config["args"]
    prefix = "params/"
    weights = {key.removeprefix(prefix): data[key] for key in data.arrays.files if key.startswith(prefix)}
    module = MODULES[data.config["cls"]](args)
    order = "new" if args["use_new_attention_order"] else "legacy"
    params = adm.params_from_state_dict(module, weights, image_size=args["image_size"], attention_order=order)
    has = set(data.arrays.files)
    inputs = {"x": nhwc(data["x"])} | ({"low_res": nhwc(data["low_res"])} if "low_res" in has else {})
    label = {"label": jnp.asarray(data["y"], jnp.int32)} if "y" in has and args["num_classes"] else {}
    time = data["timesteps"]
    time = jnp.asarray(time, jnp.int32 if time.dtype == np.int64 else jnp.float32)

    def score(inputs):
        conditions = label | {name: inputs[name] for name in inputs if name != "x"}
        out = module.apply({"params": params}, inputs["x"], time, conditions)
        return jnp.sum(out * nhwc(data["probe"])), out

    (_, out), gradients = jax.jit(jax.value_and_grad(score, has_aux=True))(inputs)
    errors = {"out": relative_error(out, nhwc(data["out"]))}
    for key, gradient in gradients.items():
        errors[f"grad_{key}"] = relative_error(gradient, nhwc(data[f"grad_{key}"]))
    assert errors.pop("out") <= 5e-4
    assert max(errors.values()) <= 1e-3, errors

    back = adm.state_dict_from_params(module, params, image_size=args["image_size"], attention_order=order)
    assert set(back) == set(weights)
    for key, array in weights.items():
        np.testing.assert_array_equal(back[key], array)


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("dim", [32, 33])
def test_timestep_embedding_gives_openais_numbers(golden, kind, dim):
    data = golden("primitives")
    time = data[f"temb/t_{kind}"]
    ours = timestep_embedding(jnp.asarray(time, {"int": jnp.int32, "float": jnp.float32}[kind]), dim)
    np.testing.assert_allclose(ours, data[f"temb/{kind}_dim{dim}"], rtol=0, atol=2e-4)


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_attention_gives_openais_numbers_in_either_channel_order(golden, order):
    data = golden("primitives")
    heads = int(data["attn/heads"])
    vector = adm.ORDERS[order](heads, adm.VECTOR)
    qkv = np.stack([vector.from_adm(sample) for sample in data["attn/qkv"]])
    ours = attention(jnp.asarray(qkv).swapaxes(1, 2), heads).swapaxes(1, 2)
    np.testing.assert_allclose(ours, data[f"attn/{order}"], rtol=1e-5, atol=2e-5)
