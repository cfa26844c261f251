"""What is trained and saved here, loaded by diffusers and transformers (the extra `slow`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sd
from golden_sd_arrays import nchw

import guided_diffusion_jax as gd
from guided_diffusion_jax import finetuning

pytestmark = pytest.mark.slow
diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

X = jax.random.normal(jax.random.key(3), (2, 8, 8, 4))
TIME = jnp.array([10.0, 700.0])
PROMPTS = ["a red fox", "a dog"]


@pytest.fixture(scope="module", params=["sd1", "sd2v", "sdxl"])
def saved(request, tmp_path_factory):
    """A pipeline, and diffusers' of the folder that it saved."""
    pipe, folder = tiny_sd.pipeline(request.param), tmp_path_factory.mktemp("saved")
    pipe.save(folder)
    return pipe, folder, diffusers.DiffusionPipeline.from_pretrained(folder)


def output(theirs, pipe, **options):
    """Their U-Net's output on our conditions, `[n h w c]`."""
    given = pipe.prompts.read(PROMPTS)
    if "text_time" in given:
        numbers = torch.from_numpy(given["text_time"])
        options["added_cond_kwargs"] = {"text_embeds": numbers[:, :-6], "time_ids": numbers[:, -6:]}
    with torch.no_grad():
        x, time, text = (torch.from_numpy(np.array(a)) for a in (nchw(X), TIME, given["text"]))
        return np.moveaxis(theirs.unet(x, time, encoder_hidden_states=text, **options).sample.numpy(), 1, -1)


def ours(pipe):
    return np.asarray(pipe.apply(pipe.params, X, TIME, jax.tree.map(jnp.asarray, pipe.prompts.read(PROMPTS))))


def test_a_lora_trained_here_gives_the_same_there(saved, tmp_path):
    pipe, folder, _ = saved
    tuner = finetuning.lora(
        pipe, tiny_sd.data(), rank=4, alpha=8.0, layers="all", text_encoder=True, learning_rate=1e-2
    )  # fmt: skip
    tuner.fit(steps=3, batch_size=2)
    tuner.save(tmp_path / "fox.safetensors")
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder)
    theirs.load_lora_weights(tmp_path, weight_name="fox.safetensors")
    changed = tuner.pipeline()
    assert np.abs(ours(changed) - ours(pipe)).max() > 0.01
    np.testing.assert_allclose(output(theirs, changed), ours(changed), atol=1e-4)
    encoded = theirs.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    np.testing.assert_allclose(encoded[0].detach().numpy(), changed.prompts.read(PROMPTS)["text"], atol=1e-4)


def test_a_folder_goes_through_here_and_gives_the_same_pictures_there(saved, tmp_path):
    _, folder, theirs = saved
    gd.load(folder).save(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    noise = torch.from_numpy(np.array(nchw(X[:1])))
    made = []
    for each in (theirs, again):
        each.set_progress_bar_config(disable=True)
        made.append(each("a red fox", num_inference_steps=3, latents=noise.clone(), output_type="np").images[0])
    np.testing.assert_allclose(made[0], made[1], atol=1e-4)
    mine = gd.load(tmp_path)(prompt="a red fox", steps=3, latents=np.asarray(X[:1]), guidance_scale=None)
    assert np.abs(mine[0] / 255.0 - made[0]).max() < 2 / 255


def test_a_controlnet_and_a_word_trained_here_are_read_there(saved, tmp_path):
    pipe, folder, _ = saved
    hints = np.random.default_rng(2).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    tuner = finetuning.controlnet(pipe, tiny_sd.data(control_image=hints), learning_rate=1e-3)
    tuner.fit(steps=3, batch_size=2)
    tuner.save(tmp_path / "controlnet")
    net = diffusers.ControlNetModel.from_pretrained(tmp_path / "controlnet")
    part = tuner.pipeline()._controlnets[0]
    given = pipe.prompts.read(PROMPTS)
    size = 8 * part.model.factor  # of X
    hint = jnp.asarray(hints[:2, :size, :size] / 255.0, jnp.float32)
    middle, skips = part.model.apply({"params": part.params}, X, TIME, jax.tree.map(jnp.asarray, given), hint)
    more = {}
    if "text_time" in given:
        numbers = torch.from_numpy(given["text_time"])
        more["added_cond_kwargs"] = {"text_embeds": numbers[:, :-6], "time_ids": numbers[:, -6:]}
    with torch.no_grad():
        x, time, text, image = (torch.from_numpy(np.array(a)) for a in (nchw(X), TIME, given["text"], nchw(hint)))
        down, mid = net(x, time, text, image, return_dict=False, **more)
    assert np.abs(nchw(middle)).max() > 0
    np.testing.assert_allclose(nchw(middle), mid.numpy(), atol=1e-4)
    for own, other in zip(skips, down, strict=True):
        np.testing.assert_allclose(nchw(own), other.numpy(), atol=1e-4)

    word = finetuning.textual_inversion(pipe, tiny_sd.data(), "<fox>", initial="fox", prompt="a photo of <fox>")
    word.fit(steps=2, batch_size=2)
    word.save(tmp_path / "learned_embeds.safetensors")
    if "text_time" in given:  # diffusers reads SDXL's one encoder at a time
        return
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder)
    theirs.load_textual_inversion(tmp_path, weight_name="learned_embeds.safetensors")
    encoded, _ = theirs.encode_prompt(["a <fox>"], "cpu", 1, False)
    found = word.pipeline().prompts.read(["a <fox>"])["text"]
    np.testing.assert_allclose(encoded.detach().numpy(), found, atol=1e-4)
