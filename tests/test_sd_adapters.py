"""ControlNets and LoRA for Stable Diffusion against the outputs of diffusers, and the codec of its latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error
from flax.traverse_util import flatten_dict
from golden_sd_arrays import GOLDEN, arrays, nchw, nhwc
from safetensors.numpy import load_file, save_file

from guided_diffusion_jax.interop import stable_diffusion
from guided_diffusion_jax.interop.stable_diffusion import folder, lora, settings
from guided_diffusion_jax.models.autoencoder import Posterior, latent_codec
from guided_diffusion_jax.models.controlnet import guess_scales
from guided_diffusion_jax.models.lora import init, merge
from guided_diffusion_jax.stable_diffusion import ENCODERS


@pytest.fixture(scope="module")
def sd1():
    """sd1's U-Net and its text encoder."""
    unet = stable_diffusion.load_part(GOLDEN / "sd1/unet", settings.unet, dtype=jnp.float32)
    return unet, stable_diffusion.load_part(GOLDEN / "sd1/text_encoder", settings.text_encoder, dtype=jnp.float32)


def test_controlnets_give_diffusers_residuals_and_outputs(sd1):
    data, (unet, _) = arrays("controlnet"), sd1
    control = stable_diffusion.load_part(GOLDEN / "controlnet", settings.controlnet, dtype=jnp.float32)
    x, time, conditions = nhwc(data["x"]), jnp.asarray(data["timesteps"], jnp.float32), {"text": data["context"]}

    @jax.jit
    def run(scale):
        inputs = x, time, jax.tree.map(jnp.asarray, conditions)
        options = {"scale": scale, "capture_intermediates": lambda module, _: module.name == "hint"}
        added, captured = control.model.apply(
            {"params": control.params}, *inputs, nhwc(data["hint"]), mutable=["intermediates"], **options
        )
        hint = captured["intermediates"]["hint"]["__call__"][0]
        return added, hint, unet.model.apply({"params": unet.params}, *inputs, added=added)

    for name, scale in (("scale1.0", 1.0), ("scale0.7", 0.7), ("guess", guess_scales(10, 0.7))):
        (middle, skips), hint, out = run(jnp.broadcast_to(scale, (10,)))
        assert relative_error(nchw(out), data[f"{name}/unet_out"]) <= 5e-5
        if f"{name}/mid" in data.files:
            assert relative_error(nchw(middle), data[f"{name}/mid"]) <= 5e-5
            for i, skip in enumerate(skips):
                stored = data[f"{name}/down.{i}"]
                assert relative_error(nchw(skip)[: len(stored)], stored) <= 5e-5
    assert relative_error(nchw(hint), data["hint_embedding"]) <= 5e-5
    (middle, skips), _, out = run(jnp.zeros(10))
    assert relative_error(nchw(out), data["unet_out_no_control"]) <= 5e-5


def test_lora_files_change_the_networks_as_in_diffusers(sd1):
    data, (unet, text) = arrays("lora"), sd1
    models = {"unet": unet.model, "text_encoder": text.model}
    ids = jnp.asarray(data["input_ids"], jnp.int32)
    inputs = nhwc(data["x"]), jnp.asarray(data["timesteps"], jnp.float32), {"text": jnp.asarray(data["context"])}

    @jax.jit
    def run(changes, scale):
        params = {"unet": unet.params, "text_encoder": text.params}
        params = {part: merge(value, changes.get(part, {}), scale) for part, value in params.items()}
        out = unet.model.apply({"params": params["unet"]}, *inputs)
        return out, text.model.apply({"params": params["text_encoder"]}, ids).last

    loras = {file.stem: lora.load(file, models) for file in (GOLDEN / "lora").glob("*.safetensors")}
    only = loras.pop("diffusers_old_attn_only")
    assert len(loras) == 3 and set(only) == {"unet"}
    for scale in (1.0, 0.5):
        out, last = run(loras["kohya"], scale)
        assert relative_error(nchw(out), data[f"all/unet@{scale}"]) <= 5e-5
        assert relative_error(last, data[f"all/text@{scale}"]) <= 5e-5
        assert relative_error(nchw(run(only, scale)[0]), data[f"attn_only/unet@{scale}"]) <= 5e-5
    assert relative_error(run(only, 0.5)[1], data["attn_only/text@0.5"]) <= 5e-5  # it leaves the text encoder
    assert run._cache_size() == 2  # the scale compiles nothing
    for other in (loras["pytorch_lora_weights"], loras["peft_metadata"]):
        for part, changes in other.items():
            assert set(changes) == set(loras["kohya"][part])
            for path, factors in changes.items():
                np.testing.assert_allclose(factors.up, loras["kohya"][part][path].up, rtol=1e-6)
                np.testing.assert_array_equal(factors.down, loras["kohya"][part][path].down)

    written = lora.tensors_of(loras["pytorch_lora_weights"], models, linear=False)
    read = load_file(GOLDEN / "lora/pytorch_lora_weights.safetensors")
    assert set(written) == set(read)
    for name, value in read.items():
        np.testing.assert_array_equal(written[name], value)


KOHYA_SDXL = {
    "unet_input_blocks_3_1_transformer_blocks_1_attn2_to_k": (
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
    ),
    "unet_middle_block_1_transformer_blocks_0_ff_net_0_proj": (
        "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
    ),
    "unet_output_blocks_1_1_proj_in": "unet.up_blocks.0.attentions.1.proj_in",
    "unet_output_blocks_3_0_skip_connection": "unet.up_blocks.1.resnets.1.conv_shortcut",
    "te1_text_model_encoder_layers_0_self_attn_q_proj": "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    "te2_text_model_encoder_layers_2_mlp_fc2": "text_encoder_2.text_model.encoder.layers.2.mlp.fc2",
}
"""Names of the same layers of golden_sd's SDXL: kohya's with the original ones, and diffusers'."""


def test_kohyas_names_of_sdxl_and_both_of_its_text_encoders(tmp_path):
    parts = [folder.epath.Path(GOLDEN / "sdxl" / name / "config.json") for name in ("unet", *ENCODERS)]
    unet, *texts = map(folder.read_json, parts)
    models = {"unet": settings.unet(unet), **dict(zip(ENCODERS, map(settings.text_encoder, texts), strict=True))}
    shapes = {
        f"{part}.{row.name}": shapes[row.path].shape
        for part, model in models.items()
        for rows, shapes in [stable_diffusion.names.table(model, "diffusers")]
        for row in rows
    }
    kohya, theirs, rng = {}, {}, np.random.default_rng(0)
    for name, other in KOHYA_SDXL.items():
        *_, features, out = shapes[f"{other}.weight"]
        down, up = rng.normal(size=(2, features)), rng.normal(size=(out, 2))
        kohya |= {f"lora_{name}.lora_down.weight": down, f"lora_{name}.lora_up.weight": up}
        kohya[f"lora_{name}.alpha"] = np.float64(1)[None]
        theirs |= {f"{other}.lora_A.weight": down, f"{other}.lora_B.weight": up / 2}
    save_file(kohya, tmp_path / "kohya.safetensors")
    save_file(theirs, tmp_path / "theirs.safetensors")
    one, other = (lora.load(tmp_path / f"{name}.safetensors", models) for name in ("kohya", "theirs"))
    assert one.keys() == set(models) and sum(map(len, one.values())) == len(KOHYA_SDXL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)
    save_file({"lora_unet_input_blocks_3_1_proj_in.hada_w1_a": np.zeros((2, 2))}, tmp_path / "loha.safetensors")
    with pytest.raises(ValueError, match="holds LoHa, which is not supported"):
        lora.load(tmp_path / "loha.safetensors", models)


def test_fresh_factors_change_nothing_and_wrong_ones_are_named(sd1, tmp_path):
    unet, text = sd1
    fresh = init(jax.random.key(0), unet.params, 2, lambda path: "self_attention" in path)
    assert len(fresh) == 4 * 11
    changed = flatten_dict(merge(unet.params, fresh, 3.0))
    before = flatten_dict(unet.params)
    assert changed.keys() == before.keys() and all((changed[path] == before[path]).all() for path in fresh)
    wrong = settings.text_encoder(folder.read_json(folder.epath.Path(GOLDEN / "sd2v/text_encoder/config.json")))
    with pytest.raises(ValueError, match="may be for another base"):
        lora.load(GOLDEN / "lora/kohya.safetensors", {"unet": unet.model, "text_encoder": wrong})
    with pytest.raises(ValueError, match=r"is .* times .*, but the layer has a kernel of"):
        wrong = text.model.clone(width=64)
        lora.load(GOLDEN / "lora/kohya.safetensors", {"unet": unet.model, "text_encoder": wrong})


def test_the_codec_is_the_autoencoder_with_its_scale():
    """Of images that are a constant, at another size than the golden ones."""
    part = stable_diffusion.load_part(GOLDEN / "sd1/vae", settings.autoencoder)
    codec = latent_codec(part.model, part.params, (16, 8))
    assert codec.shape == (2, 1, 4) and codec.image_shape == (16, 8, 3)
    images = jnp.full((1, 16, 8, 3), 0.5)
    latents, decoded = jax.jit(lambda encode, decode: (z := encode(images), decode(z)))(codec.encode, codec.decode)
    out, posterior = part.model.apply({"params": part.params}, images)
    np.testing.assert_allclose(latents, posterior.mean * part.model.scaling_factor, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decoded, out, rtol=1e-3, atol=1e-4)
    assert (posterior.kl() > 0).all()
    np.testing.assert_allclose(Posterior(jnp.zeros((1, 1, 1, 2)), jnp.zeros((1, 1, 1, 2))).kl(), 0.0)
    with pytest.raises(ValueError, match="not divisible by 8"):
        latent_codec(part.model, part.params, 12)
