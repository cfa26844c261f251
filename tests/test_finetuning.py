"""Fine-tuning: each kind changes what it says and nothing else, learns, and is written as others read it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_sd
from flax.traverse_util import flatten_dict

import guided_diffusion_jax as gd
from guided_diffusion_jax import finetuning
from guided_diffusion_jax.finetuning import accounts
from guided_diffusion_jax.finetuning.objective import LORA, WORDS
from guided_diffusion_jax.interop import stable_diffusion
from guided_diffusion_jax.interop.stable_diffusion import Preset, settings
from guided_diffusion_jax.models.lora import Factors, adapted, from_params, merge
from guided_diffusion_jax.random import sample_keys
from guided_diffusion_jax.training.settings import TrainSettings

PIPE = tiny_sd.pipeline()
X = jax.random.normal(jax.random.key(3), (2, 8, 8, 4))
TIME = jnp.array([10.0, 700.0])
TEXT = jnp.asarray(PIPE.prompts.read(["a red fox", "a dog"])["text"])


def differing(one, other):
    """Paths of parameters that are not the same."""
    one, other = flatten_dict(jax.device_get(one)), flatten_dict(jax.device_get(other))
    assert one.keys() == other.keys()
    return {path for path, value in one.items() if not np.array_equal(value, other[path])}


@pytest.fixture(scope="module")
def tuned():
    """LoRA of the U-Net and of the text encoder, taught one image; and the losses of its steps."""
    options = dict(rank=4, alpha=8.0, text_encoder=True, layers="transformer")
    tuner = finetuning.lora(PIPE, tiny_sd.data(1), learning_rate=2e-2, **options)
    return tuner, [metrics["loss"] for metrics in tuner.steps(steps=60, batch_size=16, log_every=1)]


def test_lora_learns_an_image_and_changes_nothing_else(tuned):
    tuner, losses = tuned
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])
    frozen = tuner.state.frozen
    assert not differing(frozen["unet"], PIPE.parts.unet.params)
    assert not differing(frozen["text_encoder"], PIPE.parts.text_encoders[0].params)
    assert set(tuner.state.params) == {LORA}
    factors = from_params(tuner.state.params[LORA]["unet"])
    assert all(np.abs(pair.up).max() > 0 for pair in factors.values())
    assert {path[-2] for path in factors} == {"query", "key", "value", "out", "hidden"}


def test_lora_gives_the_same_as_part_of_the_weights_and_from_its_file(tuned, tmp_path):
    tuner, _ = tuned
    networks, whole = tuner.kind.networks, tuner.learned()
    separate = networks.predict(whole, X, TIME, {"text": TEXT})
    changed = tuner.pipeline()
    together = changed.apply(changed.params, X, TIME, {"text": TEXT})
    np.testing.assert_allclose(separate, together, atol=1e-5 * float(jnp.abs(together).max()))
    assert float(jnp.abs(together - PIPE.apply(PIPE.params, X, TIME, {"text": TEXT})).max()) > 1e-3
    state, _ = networks.text(whole, jnp.asarray(PIPE.prompts.tokens(["a red fox"])))
    np.testing.assert_allclose(state, changed.prompts.read(["a red fox"])["text"], atol=1e-5)
    tuner.save(tmp_path / "fox.safetensors")
    read = PIPE.with_lora(tmp_path / "fox.safetensors")
    assert not differing(read.params, changed.params)
    with pytest.raises(gd.InputError, match="another base"):
        tiny_sd.pipeline("sd2v").with_lora(tmp_path / "fox.safetensors")


class Halving(nn.Module):
    """A convolution with a stride."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(5, (3, 3), strides=2, padding=[(0, 1), (0, 1)], name="conv")(x)


def test_a_convolutions_change_keeps_stride_and_padding():
    params = Halving().init(jax.random.key(0), X)["params"]
    keys = jax.random.split(jax.random.key(1))
    change = {("conv", "kernel"): Factors(jax.random.normal(keys[0], (3, 3, 4, 2)), jax.random.normal(keys[1], (2, 5)))}
    with adapted(change, 0.3):
        separate = Halving().apply({"params": params}, X)
    together = Halving().apply({"params": merge(params, change, 0.3)}, X)
    np.testing.assert_allclose(separate, together, atol=1e-5)


def test_a_new_word_is_all_that_textual_inversion_changes(tmp_path):
    tuner = finetuning.textual_inversion(
        PIPE, tiny_sd.data(2), "<fox>", initial="fox", vectors=2, prompt=["a photo of <fox>", "<fox> in the snow"]
    )  # fmt: skip
    begun = tuner.pipe.parts.text_encoders[0].params
    state = tuner.fit(steps=2, batch_size=2)
    assert set(state.params) == {WORDS} and not differing(state.frozen["text_encoder"], begun)
    changed = tuner.pipeline()
    table = ("tokens", "embedding")
    assert differing(changed.parts.text_encoders[0].params, begun) == {table}
    rows, before = (np.asarray(flatten_dict(p)[table]) for p in (changed.parts.text_encoders[0].params, begun))
    assert (rows[:-2] == before[:-2]).all() and (rows[-2:] != before[-2:]).any(axis=1).all()
    tuner.save(tmp_path / "learned_embeds.safetensors")
    read = PIPE.with_embedding(tmp_path / "learned_embeds.safetensors")
    prompt = ["a photo of <fox>"]
    np.testing.assert_array_equal(read.prompts.read(prompt)["text"], changed.prompts.read(prompt)["text"])
    with pytest.raises(gd.InputError, match="no caption has '<cat>'; give prompt='a photo of <cat>'"):
        finetuning.textual_inversion(PIPE, tiny_sd.data(2), "<cat>", initial="cat")


@pytest.mark.slow
def test_a_controlnet_begins_as_nothing_and_leaves_the_unet_as_it_is(tmp_path):
    hints = np.random.default_rng(2).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    tuner = finetuning.controlnet(PIPE, tiny_sd.data(control_image=hints), learning_rate=1e-3)
    given = {"text": TEXT, "control_hints": jnp.asarray(hints[:2, None] / 255.0, jnp.float32)}
    given |= {"control_scales": jnp.ones((2, 1, tuner.kind.networks.unet.controlnets[0].summands))}
    given |= {"control_times": jnp.full((2, 1, 2), jnp.array([0.0, 999.0]))}
    begun = tuner._begin(tuner._pretrained())
    out = tuner.kind.networks.predict(begun.network(), X, TIME, given)
    np.testing.assert_allclose(out, PIPE.apply(PIPE.params, X, TIME, {"text": TEXT}), atol=1e-6)
    name = "controlnets_0"
    assert not differing(begun.params[name]["encoder"], PIPE.parts.unet.params["encoder"])
    state = tuner.fit(steps=3, batch_size=2)
    assert set(state.params) == {name} and not differing(state.frozen["unet"], PIPE.parts.unet.params)
    assert differing(state.params[name], begun.params[name])
    tuner.save(tmp_path / "controlnet")
    read = stable_diffusion.load_part(tmp_path / "controlnet", settings.controlnet)
    assert not differing(read.params, state.params[name])
    assert read.model.hint_channels == tuner.pipeline()._controlnets[0].model.hint_channels == (16, 32, 96, 256)
    with pytest.raises(gd.InputError, match="no control images"):
        finetuning.controlnet(PIPE, tiny_sd.data())


@pytest.mark.slow
def test_class_images_add_their_loss_and_all_parameters_are_trained():
    prior = finetuning.class_images(PIPE, "a dog", 2, steps=1)
    assert prior.image_shape == (64, 64, 3) and len(prior) == 2
    options = dict(prompt="a photo of sks dog", condition_dropout=0.2, loss_weighting="min_snr")
    tuner = finetuning.full(PIPE, tiny_sd.data(3), prior=prior, prior_weight=0.5, **options)
    assert len(tuner.data) == 3
    state = tuner._begin(tuner._pretrained())
    batch = jax.tree.map(jnp.asarray, tuner.data.read(np.arange(3)))
    alone = {name: value for name, value in batch.items() if not name.startswith("prior_")}
    keys = sample_keys(jax.random.key(0), jnp.arange(3))
    loss = jax.jit(lambda batch: tuner.objective.loss(state.params, state.ema, {}, keys, batch))
    both, one = loss(batch), loss(alone)
    np.testing.assert_allclose(both.loss, one.loss + 0.5 * both.figures["prior"], rtol=1e-4)
    tuner.fit(steps=1, batch_size=2)
    changed = differing(tuner.pipeline().parts.unet.params, PIPE.parts.unet.params)
    assert len(changed) > 0.9 * len(flatten_dict(state.params))


def test_captions_are_lost_to_what_the_pipeline_takes_for_none():
    tuner = finetuning.lora(PIPE, tiny_sd.data(3))
    loss = finetuning.objective.objective(
        tuner.kind.networks, PIPE.process, lambda key: {}, finetuning.data.absent(PIPE), condition_dropout=1.0,
        scaling_factor=PIPE.parts.autoencoder.model.scaling_factor,
    ).loss  # fmt: skip
    batch = jax.tree.map(jnp.asarray, tuner.data.read(np.arange(2)))
    empty = batch | {"text": jnp.repeat(jnp.asarray(PIPE.prompts.read([""])["text"]), 2, 0)}
    params, keys = {"unet": PIPE.parts.unet.params}, sample_keys(jax.random.key(0), jnp.arange(2))
    dropped, given = (jax.jit(loss)(params, params, {}, keys, b).loss for b in (batch, empty))
    np.testing.assert_allclose(dropped, given, rtol=1e-6)


def test_latents_are_the_posteriors_and_captions_are_encoded_once(tmp_path, monkeypatch):
    found = finetuning.encode(PIPE, tiny_sd.data(3), flip=True, cache_dir=tmp_path)
    batch = found.read(np.arange(3))
    images = tiny_sd.data(3).read(np.arange(3))["image"]
    scale = PIPE.parts.autoencoder.model.scaling_factor
    for key, seen in (("image", images), ("mirrored", images[:, :, ::-1])):
        mean, std = np.split(batch[key], 2, axis=-1)
        latents = np.asarray(PIPE.codec.encode(jnp.asarray(seen / 127.5 - 1, jnp.float32)))
        np.testing.assert_allclose(scale * mean, latents, rtol=1e-3, atol=1e-4)  # float16 in the file
        assert (std > 0).all()
    text = PIPE.prompts.read(["a red fox"])["text"]
    np.testing.assert_allclose(batch["text"][:1], text, rtol=1e-3, atol=1e-4)
    assert found.image_shape == (8, 8, 4)
    monkeypatch.setattr(type(PIPE.prompts), "read", None)  # a second time nothing is encoded
    again = finetuning.encode(PIPE, tiny_sd.data(3), flip=True, cache_dir=tmp_path).read(np.arange(3))
    jax.tree.map(np.testing.assert_array_equal, again, batch)
    with pytest.raises(gd.InputError, match="arrays has no captions; give prompt="):
        finetuning.encode(PIPE, tiny_sd.data(text=None))


def test_zero_snr_is_for_networks_that_predict_v():
    with pytest.raises(gd.InputError, match="this network predicts it; use one that predicts v"):
        finetuning.with_zero_snr(PIPE)
    pipe = finetuning.with_zero_snr(tiny_sd.pipeline("sd2v"))
    assert pipe.process.levels.alpha[-1] == 0 and pipe.process.prediction == "v"


SCRIPT = """
import sys; sys.path.insert(0, "tests")
import json, jax, optax, tiny_sd
from guided_diffusion_jax import finetuning
from guided_diffusion_jax.training.settings import TrainSettings
assert jax.device_count() == 8
tuner = finetuning.lora(tiny_sd.pipeline(), tiny_sd.data(3), rank=4, optimizer=optax.sgd(1e-2),
                        settings=TrainSettings(parallel="fsdp"))
print(json.dumps([metrics["loss"] for metrics in tuner.steps(steps=3, batch_size=8, log_every=1)]))
shards = {leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(tuner.state.frozen)}
assert 1 / 8 in shards, shards
"""


@pytest.mark.slow
def test_fsdp_on_eight_devices_trains_as_one_does():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    root, command = Path(__file__).parent.parent, [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    spread = json.loads(done.stdout.strip().splitlines()[-1])
    tuner = finetuning.lora(PIPE, tiny_sd.data(3), rank=4, optimizer=optax.sgd(1e-2), settings=TrainSettings())
    alone = [metrics["loss"] for metrics in tuner.steps(steps=3, batch_size=8, log_every=1)]
    np.testing.assert_allclose(spread, alone, rtol=1e-5)


def test_the_account_counts_the_frozen_parameters_once_and_in_their_precision():
    parts = PIPE.parts
    texts = tuple(part.model for part in parts.text_encoders)
    preset = Preset(parts.unet.model, parts.autoencoder.model, texts, 8, parts.scheduler)
    found = accounts.account(preset, "lora", rank=2, batch_size=2)
    flat = flatten_dict(parts.unet.params)
    bytes_of = {path: value.size * (2 if path[-1] == "kernel" else 4) for path, value in flat.items()}
    assert found.state["frozen"] == sum(bytes_of.values())
    assert found.state["optimizer"] > 2 * found.state["parameters"] and found.flops > 0
    lines = list(accounts.sampling(preset))
    assert len(lines) == 2 and "TFLOP" in lines[0]
