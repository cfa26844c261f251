"""Latent diffusion of our own: the autoencoder's objective, cached latents, training on them, decoding in tiles."""

import json
import shlex
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import guided_diffusion_jax as gd
from guided_diffusion_jax import codecs, objectives
from guided_diffusion_jax.commands.cli import main
from guided_diffusion_jax.data.pipeline import batches
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.experiment import build
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.interop.stable_diffusion import Part, save_autoencoder
from guided_diffusion_jax.models.autoencoder import AutoencoderKL, init_params, latent_codec
from guided_diffusion_jax.objectives import Losses
from guided_diffusion_jax.random import sample_keys
from guided_diffusion_jax.training import latents

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)
DATA = gd.data.from_arrays(IMAGES, np.arange(12) % 3, text=[f"number {i}" for i in range(12)])
MODEL = AutoencoderKL(
    width=8, channel_mult=(1, 2), num_res_blocks=1, latent_channels=2, scaling_factor=0.7, norm_groups=8
)
PROCESS = gd.Process(gd.schedules.cosine(20), prediction="v")
UNET = dict(width=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), head_width=8, out_channels=2)


@pytest.fixture(scope="module")
def autoencoder():
    return Part(MODEL, jax.jit(lambda key: init_params(MODEL, key))(jax.random.key(0)))


@pytest.fixture(scope="module")
def encode(autoencoder):
    """Mean and standard deviation of the posterior of images in [-1, 1], by the module itself."""

    @jax.jit
    def moments(images):
        posterior = MODEL.apply({"params": autoencoder.params}, images, method="encode")
        return jnp.concatenate([posterior.mean, jnp.exp(posterior.logvar / 2)], axis=-1)

    return lambda images: np.asarray(moments(images))


def trainer(autoencoder, folder, steps=None, **options):
    unet = gd.models.UNet(num_classes=3, **UNET)
    made = gd.Trainer(
        unet, PROCESS, DATA, optimizer=optax.adamw(1e-3), workdir=folder,
        autoencoder=autoencoder, flip=True, **options,
    )  # fmt: skip
    if steps:
        made.fit(steps, batch_size=4, save_every=steps)
    return made


def test_the_objective_is_the_error_of_the_pixels_and_beta_times_the_kl_divergence(autoencoder, encode):
    """The KL divergence is integrated numerically; both are of an image, divided by its numbers."""
    images, keys = jnp.asarray(IMAGES[:4] / 127.5 - 1, jnp.float32), sample_keys(jax.random.key(1), jnp.arange(4))

    def losses(beta, rows=slice(None), loss="l1"):
        made = objectives.OBJECTIVES["autoencoder"](MODEL, PROCESS, (8, 8, 3), kl_weight=beta, loss=loss)
        return jax.jit(made.loss)(autoencoder.params, {}, {}, keys[rows], {"image": images[rows]})

    without, found = losses(0.0), losses(0.3)
    np.testing.assert_allclose(without.loss, without.figures["l1"], rtol=1e-6)
    mean, std = np.split(np.float64(encode(images)), 2, axis=-1)
    x, step = np.linspace(-1, 1, 4001, retstep=True)
    x = mean[..., None] + 12 * std[..., None] * x
    ours, prior = (stats.norm.logpdf(x, m, s) for m, s in ((mean[..., None], std[..., None]), (0, 1)))
    kl = np.sum(np.exp(ours) * (ours - prior) * 12 * std[..., None] * step, axis=(1, 2, 3, 4))
    np.testing.assert_allclose(found.figures["kl"], kl, rtol=1e-4)
    np.testing.assert_allclose(found.loss - without.loss, 0.3 * kl / (8 * 8 * 3), rtol=1e-3, atol=1e-5)
    alone = losses(0.3, slice(2, 3))  # a sample draws its latents from its own key
    np.testing.assert_allclose(alone.loss[0], found.loss[2], rtol=1e-5)
    squared = losses(0.0, loss="mse")
    np.testing.assert_allclose(squared.loss, 4 * 10 ** (-squared.figures["psnr"] / 10), rtol=1e-4)
    for wrong, match in (({"beta": -1.0}, "kl_weight"), ({"beta": 0.0, "loss": "l2"}, "autoencoder.loss")):
        with pytest.raises(InputError, match=match):
            losses(**wrong)


def test_an_objective_on_latents_sees_the_scaled_posterior():
    seen = objectives.Objective(init=dict, loss=lambda params, ema, frozen, keys, batch: Losses(batch["image"], None))
    mean, std = np.float32([[[[3.0, -1.0]]]]), np.float32([[[[2.0, 0.0]]]])
    moments = np.repeat(np.concatenate([mean, std], axis=-1), 20_000, axis=0)
    keys = sample_keys(jax.random.key(0), jnp.arange(20_000))
    z = np.asarray(objectives.on_latents(seen, 0.5).loss({}, {}, {}, keys, {"image": jnp.asarray(moments)}).loss)[
        :, 0, 0
    ]
    np.testing.assert_allclose(z.mean(0), [1.5, -0.5], atol=0.03)
    np.testing.assert_allclose(z.std(0), [1.0, 0.0], atol=0.03)


def test_latents_are_computed_once_with_those_of_the_mirrored_images(autoencoder, encode, tmp_path, monkeypatch):
    found = latents.encode_images(DATA, autoencoder, flip=True, cache_dir=tmp_path)
    assert found.image_shape == (4, 4, 2)
    rows = np.array([5, 0, 5])
    batch = found.read(rows)
    pixels = (IMAGES[rows] / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(batch["image"], encode(pixels), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(batch["mirrored"], encode(pixels[:, :, ::-1]), rtol=2e-3, atol=2e-3)
    assert batch["text"].tolist() == ["number 5", "number 0", "number 5"] and batch["label"].tolist() == [2, 0, 2]

    chosen = next(iter(batches(found, batch_size=12, seed=3, flip=True)))["image"]
    plain = next(iter(batches(DATA, batch_size=12, seed=3, flip=True)))["image"]  # the same images, mirrored alike
    np.testing.assert_allclose(chosen, encode(plain), rtol=2e-3, atol=2e-3)

    monkeypatch.setattr(latents, "_encoded", None)  # nothing is encoded a second time
    again = latents.encode_images(DATA, autoencoder, flip=True, cache_dir=tmp_path)
    np.testing.assert_array_equal(again.read(rows)["image"], batch["image"])
    with pytest.raises(TypeError):  # but for another autoencoder
        latents.encode_images(DATA, Part(MODEL.clone(scaling_factor=0.5), autoencoder.params), cache_dir=tmp_path)


def test_a_run_on_latents_resumes_exactly_and_needs_nothing_but_its_folder(autoencoder, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    at_once = trainer(autoencoder, whole, 4).state
    trainer(autoencoder, parts, 2)
    in_two = trainer(autoencoder, parts, 4).state
    jax.tree.map(np.testing.assert_array_equal, at_once.params, in_two.params)

    pipe = gd.load(whole)
    assert pipe.codec.shape == (4, 4, 2) and pipe.info.image_shape == (8, 8, 3)
    wishes = {"labels": [0, 2], "steps": 2, "weight": 1.0}
    images, z = pipe(**wishes), pipe(output="latent", **wishes)
    assert images.shape == (2, 8, 8, 3) and z.shape == (2, 4, 4, 2)
    decoded = jax.jit(lambda z: MODEL.apply({"params": autoencoder.params}, z, method="decode"))(z / 0.7)
    ours = np.clip(np.round((np.asarray(decoded) + 1) * 127.5), 0, 255)
    assert np.abs(ours - images).max() <= 1
    assert pipe.trajectory(frames=2, **wishes).shape == (2, 2, 8, 8, 3)
    kept = pipe(image=IMAGES[0], inpaint_mask=np.zeros((8, 8, 1), np.float32), labels=[0], steps=2)
    assert kept.shape == (1, 8, 8, 3)

    other = Part(MODEL, jax.tree.map(lambda leaf: leaf + 0.01, autoencoder.params))
    with pytest.raises(InputError, match=r"autoencoder\.sha256"):
        trainer(other, whole, 6)
    save_autoencoder(whole / latents.FOLDER, other)
    with pytest.raises(InputError, match="not the autoencoder"):
        gd.load(whole)


def test_the_preset_is_a_network_of_latents_with_a_prompt():
    config, info = configs.preset("shapes64_latent"), gd.data.DatasetInfo("shapes/64", 1, (64, 64, 3))
    coder = Part(build.autoencoder_model(config, info.image_shape), {})
    shape = latents.latent_shape(coder, info.image_shape)
    made = build.model(config, info, shape)
    assert shape == (16, 16, 4) and made.out_channels == 4 and made.text is not None


def test_what_latents_do_not_take_is_refused(autoencoder, tmp_path):
    unet = gd.models.UNet(masked_channels=2, **UNET)
    with pytest.raises(InputError, match="masked_image in pixels"):
        gd.Trainer(unet, PROCESS, DATA, optimizer=optax.sgd(1.0), autoencoder=autoencoder)
    with pytest.raises(InputError, match="holds no autoencoder"):
        gd.load_autoencoder(tmp_path)


FLAGS = [
    f"--config.{key}={value}"
    for key, value in {
        **{f"model.{key}": value for key, value in UNET.items() if key != "out_channels"},
        "train.steps": 2, "train.batch_size": 8, "train.sample_every": 0, "sample.count": 10, "sample.steps": 2,
        "sample.frames": 0, "autoencoder.model.width": 8, "autoencoder.model.channel_mult": "(1,2)",
        "autoencoder.model.num_res_blocks": 1, "autoencoder.model.latent_channels": 2, "autoencoder.train.steps": 2,
        "autoencoder.train.batch_size": 8, "evaluate.count": 20,
    }.items()
]  # fmt: skip


def test_the_commands_train_an_autoencoder_and_a_model_of_its_latents(tmp_path, capsys):
    run, config = tmp_path / "run", ["main.py", "--config=digits", f"--config.data.data_dir={tmp_path}", *FLAGS]

    def command(*flags):
        code = main([*config, f"--workdir={run}", *flags])
        return code, "".join(capsys.readouterr())

    code, said = command("--mode=autoencoder")
    assert code == 0, said
    found, loaded = json.loads((run / "autoencoder" / "reconstruction.json").read_text()), gd.load_autoencoder(run)
    assert f"PSNR {found['psnr']:.2f} dB" in said and (run / "autoencoder" / "reconstructions.png").exists()
    images = gd.data.load("digits", split="test", image_size=8, data_dir=str(tmp_path)).read(np.arange(found["count"]))
    images = images["image"].astype(np.float64)
    apply = jax.jit(loaded.model.apply, static_argnames="method")
    restored, _ = apply({"params": loaded.params}, np.float32(images / 127.5 - 1))
    restored = np.clip(np.round(np.float64(restored) * 127.5 + 127.5), 0, 255)
    errors = np.mean((images - restored) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(found["psnr"], np.mean(10 * np.log10(255**2 / errors)), atol=0.01)
    train = gd.data.load("digits", split="train", image_size=8, data_dir=str(tmp_path))
    pixels = np.float32(train.read(np.arange(len(train)))["image"] / 127.5 - 1)
    posterior = apply({"params": loaded.params}, pixels, method="encode")
    assert np.std(posterior.sample(jax.random.key(0))) * loaded.model.scaling_factor == pytest.approx(1, abs=0.02)

    on_latents = "--config.model.autoencoder=autoencoder"
    printed = [word for word in shlex.split(said.rsplit("next: ", 1)[1]) if word.startswith("--")]
    assert printed == [f"--workdir={run}", on_latents] and main(["main.py", *printed]) == 0
    shutil.rmtree(run / "autoencoder")
    code, said = command(on_latents, "--mode=sample")
    assert code == 0, said
    assert np.load(run / "samples" / "samples.npz")["arr_0"].shape == (10, 8, 8, 1)
    assert command(on_latents, "--config.train.steps=3")[0] == 0  # with its own copy
    code, said = command(on_latents, "--mode=evaluate", "--config.evaluate.metrics=bpd")
    assert code == 2 and "this model sees latents" in said
    code, said = command(on_latents, "--mode=classifier")
    assert code == 2 and "classifiers of latents" in said


def blurred(z):
    """A decoder that doubles the size and averages each pixel with its neighbours."""
    padded = jnp.pad(doubled(z), ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = padded.shape[1] - 2, padded.shape[2] - 2
    return sum(padded[:, y : y + h, x : x + w] for y in range(3) for x in range(3)) / 9


def doubled(z):
    return jnp.repeat(jnp.repeat(z, 2, axis=1), 2, axis=2)


@pytest.mark.parametrize("size", [(12, 9), (16, 4)])
def test_tiles_give_what_the_whole_gives_but_at_their_seams(size):
    z, away = jnp.asarray(RNG.normal(size=(2, *size, 3)), jnp.float32), []
    for side in size:
        starts = {*range(0, side - 6, 4), side - 6} if side > 6 else set()  # tiles of 6 that share 2 at least
        edges = {2 * s for s in starts if s} | {2 * (s + 6) - 1 for s in starts if s + 6 < side}
        away.append(~np.isin(np.arange(2 * side), list(edges)))
    where = away[0][:, None] & away[1]
    tiled = np.asarray(jax.jit(lambda z: codecs.decode_in_tiles(blurred, z, 6, 2))(z))
    np.testing.assert_allclose(tiled[:, where], np.asarray(blurred(z))[:, where], atol=1e-6)
    assert 0.5 < where.mean() < 1 and np.abs(tiled - blurred(z))[:, ~where].max() > 0.01
    np.testing.assert_allclose(codecs.decode_in_tiles(doubled, z, 6, 2), doubled(z), atol=1e-6)


def test_an_image_of_one_tile_is_decoded_as_without_tiles(autoencoder):
    z = RNG.normal(size=(1, 8, 8, 2)).astype(np.float32)
    plain = latent_codec(*autoencoder, 16)
    one, four = (codecs.tiled(plain, tile) for tile in (16, 8))
    decode = jax.jit(lambda codec_decode, z: codec_decode(z))
    np.testing.assert_allclose(decode(one.decode, z), decode(plain.decode, z), atol=1e-5)
    assert decode(four.decode, z).shape == (1, 16, 16, 3)
    for tile, overlap in ((7, 0.25), (2, 0.25), (8, 1.0)):
        with pytest.raises(InputError, match="tile="):
            codecs.tiled(plain, tile, overlap)
