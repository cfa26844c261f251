"""ControlNets and LoRA for Stable Diffusion against the outputs of diffusers, and the codec of its latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error
from flax.traverse_util import flatten_dict
from golden_sd_arrays import GOLDEN, arrays, nchw, nhwc
from safetensors.numpy import load_file

from guided_diffusion_jax.interop import stable_diffusion
from guided_diffusion_jax.interop.stable_diffusion import folder, lora, settings
from guided_diffusion_jax.models.autoencoder import Posterior, latent_codec
from guided_diffusion_jax.models.controlnet import guess_scales
from guided_diffusion_jax.models.lora import init, merge


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
