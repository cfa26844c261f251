"""Stable Diffusion's networks, given its weights, against the outputs of diffusers and transformers."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error
from golden_sd_arrays import GOLDEN, arrays, nchw, nhwc, stage_outputs

from guided_diffusion_jax.data import clip_tokenizer
from guided_diffusion_jax.interop import stable_diffusion
from guided_diffusion_jax.interop.stable_diffusion import folder, settings
from guided_diffusion_jax.interop.stable_diffusion.names import decoder_stages, encoder_stages
from guided_diffusion_jax.models.plan import Backbone, settings_of

SOURCES = {
    "sd1": (GOLDEN / "sd1", {}),
    "sd2v": (GOLDEN / "sd2v_single.safetensors", {"config": GOLDEN / "sd2v"}),
    "sdxl": (GOLDEN / "sdxl_single.safetensors", {"config": GOLDEN / "sdxl"}),
}


@pytest.fixture(scope="module", params=SOURCES)
def loaded(request):
    """A model's name and its parts, from a folder or from a single file."""
    path, options = SOURCES[request.param]
    return request.param, stable_diffusion.load(path, dtype=jnp.float32, **options)


@pytest.mark.parametrize(
    ("padding", "tokenizer"),
    [("pad_eos", "sd1/tokenizer"), ("pad_excl", "sd2v/tokenizer"), ("pad_excl", "sdxl/tokenizer_2")],
)
def test_prompts_become_the_tokens_of_transformers(padding, tokenizer):
    data = arrays("tokens")
    prompts = json.loads(str(data["config"]))["prompts"]
    reads = clip_tokenizer.load(GOLDEN / tokenizer)
    np.testing.assert_array_equal(reads.encode(prompts), data[f"{padding}/input_ids"])
    cut = [bool(reads.overflow(prompt)) for prompt in prompts]
    assert cut == [len(reads.tokens(prompt)) > 75 for prompt in prompts] and any(cut)


def test_a_tokenizer_without_its_parts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no vocab.json and no tokenizer.json"):
        clip_tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ValueError, match=r"vocabulary has no <\|startoftext\|>, <\|endoftext\|>"):
        clip_tokenizer.load(tmp_path)


def test_text_encoders_give_transformers_features(loaded):
    name, parts = loaded
    data = arrays("text")
    for key, encoder in zip(("text_encoder", "text_encoder_2"), parts.text_encoders, strict=False):
        known = {q.split("/")[-1]: data[q] for q in data.files if q.startswith(f"{name}/{key}/")}
        variables = {"params": encoder.params}
        ids = jnp.asarray(known["input_ids"], jnp.int32)
        out = encoder.model.apply(variables, ids)
        pooled = "pooled_before_projection" if encoder.model.projection else "pooler_output"
        found = {"last_hidden_state": out.last, "penultimate": out.states[-2], pooled: out.pooled}
        found |= {"embeddings": out.states[0][:1], "after_layer0": out.states[1][:1]}
        found["clip_skip1"] = encoder.model.apply(variables, ids, skip=1).last
        if encoder.model.projection:
            found["text_embeds"] = out.projected
        assert set(found) == set(known) - {"input_ids"}
        assert max(relative_error(value, known[q]) for q, value in found.items()) <= 2e-5


def test_autoencoders_give_diffusers_latents_and_images(loaded):
    name, parts = loaded
    data = arrays("vae")
    known = {q.removeprefix(f"{name}/"): data[q] for q in data.files if q.startswith(f"{name}/")}
    model, variables = parts.autoencoder.model, {"params": parts.autoencoder.params}

    def run(method, inputs):
        apply = functools.partial(model.apply, method=method, capture_intermediates=True, mutable=["intermediates"])
        output, captured = jax.jit(apply)(variables, inputs)
        return output, captured["intermediates"]

    posterior, encoded = run("encode", nhwc(known["image"]))
    latents = (posterior.mean + jnp.exp(posterior.logvar / 2) * nhwc(known["noise"])) * model.scaling_factor
    decoded, restored = run("decode", nhwc(known["latents"]) / model.scaling_factor)
    found = {"mean": posterior.mean, "logvar": posterior.logvar, "latents": latents, "decoded": decoded}
    assert max(relative_error(nchw(value), known[q]) for q, value in found.items()) <= 3e-4
    net = model.backbone
    middle = encoder_stages(net)[-2:]
    halves = {
        "encoder": stage_outputs(net, encoder_stages(net), encoded["encoder"]["encoder"]),
        "decoder": stage_outputs(net, [encoder_stages(net)[0], *middle, *decoder_stages(net)], restored["decoder"]),
    }
    for q in (q for q in known if q.startswith("stage/")):  # every fourth channel of the first image
        half, module = q.removeprefix("stage/").split(".", 1)
        assert relative_error(nchw(halves[half][module])[:1, ::4], known[q]) <= 3e-4, q


def test_unets_give_diffusers_outputs_and_gradients(loaded):
    name, parts = loaded
    data = arrays(f"unet_{name}")
    model = parts.unet.model
    conditions = {"text": jnp.asarray(data["context"])}
    if "time_ids" in data.files:
        conditions["text_time"] = jnp.concatenate([data["text_embeds"], data["time_ids"]], axis=-1)
    probe = nhwc(data["probe"]) if "probe" in data.files else 1.0

    def score(params, x, conditions, time):
        options = {"capture_intermediates": True, "mutable": ["intermediates"]}
        out, captured = model.apply({"params": params}, x, time, conditions, **options)
        return jnp.sum(out * probe), (out, captured["intermediates"])

    run = jax.jit(jax.grad(score, (0, 1, 2), has_aux=True) if name == "sd1" else score)
    for key, time in (("out_int", data["timesteps_int"]), ("out", data["timesteps"])):
        first, (second, captured) = run(parts.unet.params, nhwc(data["x"]), conditions, jnp.asarray(time, jnp.float32))
        assert relative_error(nchw(second), data[key]) <= 5e-5
    check_stages(data, model, captured)
    if name != "sd1":
        return
    params, x, given = first
    assert relative_error(nchw(x), data["grad_x"]) <= 2e-4
    assert relative_error(given["text"], data["grad_context"]) <= 2e-4
    theirs = stable_diffusion.tensors_from_params(model, params, "diffusers", linear=False)
    named = [q.removeprefix("grad_param/") for q in data.files if q.startswith("grad_param/")]
    assert len(named) >= 5
    for q in named:  # the whole tensor is one sample here
        assert relative_error(theirs[q][None], data[f"grad_param/{q}"][None]) <= 2e-4


def check_stages(data, model, captured):
    """The first sample's activations after each block, by which a mistake is found."""
    net = settings_of(model, Backbone)
    halves = ((encoder_stages, "encoder"), (decoder_stages, "decoder"))
    found = {q: value for of, half in halves for q, value in stage_outputs(net, of(net), captured[half]).items()}
    found["conv_norm_out"] = captured["decoder"]["output_norm"]["__call__"][0]
    found = {q: nchw(value) for q, value in found.items()}
    found["time_embedding"] = captured["embedding"]["time"]["__call__"][0]
    if "text_time" in captured["embedding"]:
        found["add_embedding"] = captured["embedding"]["text_time"]["__call__"][0].vector
    stages = [q for q in data.files if q.startswith("stage/")]
    assert len(stages) >= 10
    for q in stages:
        assert relative_error(found[q.removeprefix("stage/")][:1], data[q]) <= 5e-5, q


def test_the_inpainting_network_sees_mask_and_masked_image_beside_its_latents():
    model = settings.unet(folder.read_json(folder.epath.Path(GOLDEN / "sd1_inpaint/unet/config.json")))
    assert model.control_channels == 5 and model.out_channels == 4
    rows, shapes = stable_diffusion.names.table(model, "diffusers")
    theirs = json.loads((GOLDEN / "names.json").read_text())["sd1_inpaint/unet/diffusion_pytorch_model.safetensors"]
    squeezed = {q: tuple(shape[:2] if shape[2:] == [1, 1] else shape) for q, shape in theirs.items()}
    ours = stable_diffusion.convert.tensor_shapes(rows, shapes)
    assert {q: shape[:2] if shape[2:] == (1, 1) else shape for q, shape in ours.items()} == squeezed


def test_the_inpainting_network_gives_diffusers_output():
    unet = stable_diffusion.load_part(GOLDEN / "sd1_inpaint/unet", settings.unet, dtype=jnp.float32)
    data = arrays("unet_sd1_inpaint")
    x = nhwc(data["x"])
    given = {"text": jnp.asarray(data["context"]), "control_image": x[..., 4:]}
    apply = functools.partial(unet.model.apply, capture_intermediates=True, mutable=["intermediates"])
    run = jax.jit(lambda time: apply({"params": unet.params}, x[..., :4], time, given))
    for key, time in (("out_int", data["timesteps_int"]), ("out", data["timesteps"])):
        out, captured = run(jnp.asarray(time, jnp.float32))
        assert relative_error(nchw(out), data[key]) <= 5e-5
    check_stages(data, unet.model, captured["intermediates"])
