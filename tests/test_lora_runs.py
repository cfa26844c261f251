"""LoRA on a run of one's own: `LoraUNet`, and `model.name=lora` with `pretrained`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import guided_diffusion_jax as gd
from guided_diffusion_jax import models
from guided_diffusion_jax.commands.cli import main
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.models import lora
from guided_diffusion_jax.models.lora import LoraUNet
from guided_diffusion_jax.objectives import flatten_params

UNET = models.UNet(
    width=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(8,), head_width=8, num_classes=10,
    out_channels=1, text=models.ByteEncoder(width=8, depth=1, heads=1, length=4),
)  # fmt: skip
SHAPE = (8, 8, 1)
RANDOM = np.random.default_rng(0)
X, TIME = jnp.asarray(RANDOM.normal(size=(2, *SHAPE)), jnp.float32), jnp.array([0.2, 0.9])
GIVEN = {"label": np.int32([3, 10]), "text": np.int32([[1, 2, 3, 0], [7, 7, 0, 0]])}


def moved(leaf):
    return leaf + RANDOM.normal(size=leaf.shape).astype(np.float32) / 9


def test_factors_are_a_low_rank_change_of_the_chosen_kernels():
    made = LoraUNet(UNET, rank=2, alpha=3.0, layers="text")
    params = jax.jit(lambda key: models.init_params(made, key, SHAPE))(jax.random.key(0))
    params["unet"] = jax.tree.map(
        lambda leaf: leaf + RANDOM.normal(size=leaf.shape).astype(np.float32) / 9, params["unet"]
    )
    plain = jax.jit(lambda params: UNET.apply({"params": params}, X, TIME, GIVEN))
    changed = jax.jit(lambda params: made.apply({"params": params}, X, TIME, GIVEN))
    np.testing.assert_allclose(changed(params), plain(params["unet"]), atol=2e-6)  # fresh ones change nothing

    params = {**params, "lora": jax.tree.map(moved, params["lora"])}
    flat = flatten_params(params["unet"])
    for path, (down, up) in lora.from_params(params["lora"]).items():
        kernel = flat[*path]
        delta = (np.asarray(down).reshape(-1, 2) @ np.asarray(up)).reshape(kernel.shape)
        flat[*path] = kernel + 3.0 / 2 * delta
    np.testing.assert_allclose(changed(params), plain(gd.objectives.unflatten_params(flat)), rtol=2e-5, atol=2e-5)
    names = {"/".join(path[:-1]) for path in lora.from_params(params["lora"])}
    assert {"embedding/pooled_text", "embedding/text/layer_0/qkv", "encoder/middle_0/attention/qkv"} <= names
    assert not any("conv_in" in name or "time" in name for name in names)
    assert models.create(models.describe(made)) == made


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"layers": "attentoin"}])
def test_settings_that_cannot_work(wrong):
    with pytest.raises(InputError, match=r"model\.lora_"):
        LoraUNet(UNET, **wrong).check(SHAPE)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of one step on digits."""
    folder = tmp_path_factory.mktemp("base")
    data, process = gd.data.load("digits", image_size=8), gd.Process(gd.schedules.cosine(1000))
    unet = UNET.clone(text=None)
    gd.Trainer(unet, process, data, optimizer=optax.adam(1e-3), workdir=folder).fit(steps=1, batch_size=8)
    return folder


def test_a_run_on_a_frozen_base_by_commands(base, tmp_path, capsys):
    run, how = tmp_path / "run", ["--config=configs/digits.py", "--config.train.sample_every=0"]
    few = ["--config.train.batch_size=8", "--config.train.steps=2", "--config.model.lora_rank=2"]
    asked = [f"--workdir={run}", *how, *few, "--config.model.name=lora"]
    assert main(["main.py", *asked]) == 2
    assert "model.name='lora' needs pretrained" in capsys.readouterr().err
    assert main(["main.py", *asked, f"--config.pretrained={base}"]) == 0
    tuned, before = gd.load(run), gd.load(base)
    jax.tree.map(np.testing.assert_array_equal, tuned.params["unet"], before.params)
    learned = flatten_params(tuned.params["lora"])
    assert all(jnp.abs(leaf).max() > 0 for leaf in learned.values())
    assert sum(leaf.size for leaf in learned.values()) < 0.2 * sum(map(jnp.size, jax.tree.leaves(before.params)))
    images = tuned(labels=[3], steps=2, weight=1.0)
    assert images.shape == (1, 8, 8, 1)


def test_examples_are_chosen_by_a_word_of_their_captions():
    images = RANDOM.integers(0, 256, (5, 4, 4, 3), np.uint8)
    texts = ["a pink star", "two Pink rings", "a pinkish star", "a red ring", "a star"]
    data = gd.data.from_arrays(images, text=texts)
    chosen = data.subset([3, 0])
    assert len(chosen) == 2 and chosen.read(np.array([1]))["text"].tolist() == ["a pink star"]
    np.testing.assert_array_equal(chosen.read(np.array([0, 1]))["image"], images[[3, 0]])
    for wrong in ([], [5], [-1]):
        with pytest.raises(InputError, match="subset"):
            data.subset(wrong)
    found = gd.data.by_caption(data, has="pink").read(np.array([0, 1]))["text"].tolist()
    assert found == texts[:2] and len(gd.data.by_caption(data, has="pink")) == 2
    assert len(gd.data.by_caption(data, lacks="pink")) == 3
    assert len(gd.data.by_caption(data, has="star", lacks="pink")) == 2
    with pytest.raises(InputError, match="caption_has='blue'"):
        gd.data.by_caption(data, has="blue")
