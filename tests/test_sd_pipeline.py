"""Stable Diffusion as a pipeline: what compiles, prompts, sizes, images to begin with, LoRA, files, wrong input."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_sd_arrays import GOLDEN
from safetensors.numpy import load_file, save_file

import guided_diffusion_jax as gd
from guided_diffusion_jax import exported
from guided_diffusion_jax.commands import cli
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.generation import Blend
from guided_diffusion_jax.interop.stable_diffusion.prompts import pieces

KOHYA = GOLDEN / "lora/kohya.safetensors"
IMAGE = np.linspace(-1, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
MASK = np.zeros((64, 64), np.float32)
MASK[:, 32:] = 1


@pytest.fixture(scope="module")
def sd1():
    return gd.load(GOLDEN / "sd1")


@pytest.fixture(scope="module")
def sdxl():
    return gd.load(GOLDEN / "sdxl_single.safetensors", config=GOLDEN / "sdxl")


def programs(pipe):
    return sum(one._cache_size() for one in pipe._program(True, False, False)._programs.values())


def test_one_program_for_prompts_weights_seeds_steps_schedulers_settings_and_loras(sd1, capsys):
    pipe = sd1.with_lora(KOHYA, 0.5)
    first = pipe(prompt="a cat", steps=3, sampler="ddim", seed=1)
    assert first.shape == (1, 64, 64, 3) and first.dtype == np.uint8 and first.std() > 0
    others = [
        pipe(prompt="a river", steps=3, sampler="ddim", seed=1),
        pipe(prompt="a cat", negative="blurry", steps=3, sampler="ddim", seed=1),
        pipe(prompt="a cat", weight=2.0, steps=3, sampler="ddim", seed=1),
        pipe(prompt="a cat", steps=5, sampler="ddim", seed=1),
        pipe(prompt="a cat", steps=3, sampler="ddim", seed=2),
        pipe(prompt="a cat", steps=3, sampler="ddim", seed=1, lora_scale=1.0),
        pipe(prompt="a (cat:1.5)", steps=3, sampler="ddim", seed=1, prompt_weights=True),
    ]
    assert all((other != first).any() for other in others)
    assert programs(pipe) == 1
    plain = pipe(prompt="a cat", steps=3, sampler="ddim", seed=1, lora_scale=0.0)
    np.testing.assert_array_equal(plain, sd1(prompt="a cat", steps=3, sampler="ddim", seed=1))
    assert "fewer" not in capsys.readouterr().out


def test_the_default_scheduler_and_weight_are_the_models_own(sd1, sdxl):
    asked = sd1.request(prompt="a cat", steps=7)
    assert asked.num_steps == 8  # PNDM makes its first step twice
    np.testing.assert_allclose(asked.weights, 6.5)
    assert asked.levels.time[0] == 1 + 6 * (1000 // 7)  # leading, with the offset
    assert sd1.request(prompt="a cat", guidance_scale=3.0).weights == (2.0,)
    assert sdxl.request(prompt="a cat").weights == (4.0,)
    trailing = sd1.request(prompt="a cat", sampler="ddim", steps=5, scheduler={"timestep_spacing": "trailing"})
    assert trailing.levels.time[0] == 999
    ours = sd1.request(prompt="a cat", sampler="dpmpp_2m", steps=5, spacing="logsnr")
    assert ours.num_steps == 5 and ours.start.scale is None
    with pytest.raises(InputError, match="leave spacing out"):
        sd1.request(prompt="a cat", spacing="logsnr", scheduler="native")


def test_no_negative_prompt_is_the_empty_one_or_zeros_beside_the_sizes(sd1, sdxl):
    empty = sd1.request(prompt="a cat", negative=[""])
    np.testing.assert_array_equal(sd1.request(prompt="a cat").null["text"], empty.null["text"])
    asked = sdxl.request(prompt="a cat", original_size=(10, 20), crop=(3, 4), negative_crop=(5, 6))
    assert not asked.null["text"].any() and not asked.null["text_time"][0, :-6].any()
    height, width = sdxl.info.image_shape[:2]
    np.testing.assert_array_equal(asked.branches[0]["text_time"][0, -6:], [10, 20, 3, 4, height, width])
    np.testing.assert_array_equal(asked.null["text_time"][0, -6:], [10, 20, 5, 6, height, width])
    second = sdxl.request(prompt="a cat", prompt_2="a river")
    first = sdxl.request(prompt="a cat")
    widths = [part.model.width for part in sdxl.parts.text_encoders]
    np.testing.assert_array_equal(*(one.branches[0]["text"][..., : widths[0]] for one in (first, second)))
    assert (first.branches[0]["text"] != second.branches[0]["text"])[..., widths[0] :].any()


def test_weighted_words_change_their_features_and_keep_the_mean(sd1):
    assert pieces(r"a (red:1.3) fox \(1\) (b:2)") == [("a ", 1.0), ("red", 1.3), (" fox (1) ", 1.0), ("b", 2.0)]
    read = sd1.prompts.read
    plain, ones = read(["a cat"])["text"], read(["a (cat:1.0)"], prompt_weights=True)["text"]
    np.testing.assert_array_equal(plain, ones)
    heavy = read(["a (cat:1.5)"], prompt_weights=True)["text"]
    np.testing.assert_allclose(heavy.mean(), plain.mean(), rtol=1e-4)
    ratio = heavy / plain
    tokens = len(sd1.parts.tokenizers[0].tokens("a"))
    np.testing.assert_allclose(ratio[0, 1 + tokens] / ratio[0, 0], 1.5, rtol=1e-3)


def test_what_is_cut_of_a_long_prompt_is_said(sd1, capsys):
    sd1.request(prompt="cat " * 100)
    assert "warning: the prompt has" in capsys.readouterr().out


def test_an_image_to_begin_with_leaves_the_first_steps_out(sd1):
    latents = np.asarray(sd1.codec.encode(jnp.asarray(IMAGE)[None]))[0]
    asked = sd1.request(prompt="a cat", image=IMAGE, strength=0.6, steps=10, sampler="ddim")
    assert asked.num_steps == 6
    np.testing.assert_allclose(asked.start.image[0], latents, rtol=1e-4, atol=1e-4)
    level = jax.tree.map(lambda column: column[0], asked.levels)
    noise = np.random.default_rng(0).normal(size=latents.shape).astype(np.float32)
    noisy = sd1.request(
        prompt="a cat", image=latents, strength=0.6, steps=10, sampler="ddim",
        latents=level.alpha * latents + level.sigma * noise,
    )  # fmt: skip
    np.testing.assert_allclose(noisy.start.noise[0], noise, rtol=1e-4, atol=1e-4)
    for wrong, words in (
        ({"image": IMAGE}, "strength"),
        ({"strength": 0.5}, "give image"),
        ({"image": IMAGE, "strength": 0.01, "steps": 10}, "leaves none of 10 steps"),
        ({"image": IMAGE, "strength": 1.5}, "strength"),
        ({"inpaint_mask": MASK}, "belong together"),
        ({"latents": IMAGE}, "latents has shape"),
    ):
        with pytest.raises(InputError, match=words):
            sd1.request(prompt="a cat", **wrong)


def test_a_mask_keeps_latents_by_their_first_pixel(sd1):
    asked = sd1.request(prompt="a cat", image=IMAGE, inpaint_mask=MASK, steps=4)
    assert isinstance(asked.inpaint, Blend) and asked.num_steps == 5
    np.testing.assert_array_equal(asked.inpaint.mask[0, :, :, 0], np.repeat([[1.0] * 4 + [0.0] * 4], 8, axis=0))
    images = sd1(prompt="a cat", image=IMAGE, inpaint_mask=MASK, steps=4, sampler="ddim", output="latent")
    np.testing.assert_allclose(images[0, :, :4], asked.inpaint.images[0, :, :4], atol=1e-6)  # exact at the end


def test_a_lora_is_the_same_fused_and_not_and_survives_in_a_folder(sd1, tmp_path):
    apart, fused = sd1.with_lora(KOHYA, 0.5), sd1.with_lora(KOHYA, 0.5, fuse=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), apart.params, fused.params)
    texts = (pipe.request(prompt="a cat").branches[0]["text"] for pipe in (apart, fused))
    np.testing.assert_allclose(*texts, atol=1e-5)
    twice = apart.with_lora(KOHYA, 0.5)
    one = sd1.with_lora(KOHYA, 1.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), twice.params, one.params)  # float16
    apart.save(tmp_path / "saved")
    again = gd.load(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, apart.params, again.params)
    with pytest.raises(InputError, match="no LoRA was loaded"):
        sd1.with_lora_scale(0.5)
    with pytest.raises(InputError, match="2 numbers for 1"):
        apart.with_lora_scale([0.5, 1.0])


def test_words_of_textual_inversion_are_further_tokens(sd1, tmp_path):
    rows = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    save_file({"<toy>": rows}, tmp_path / "learned.safetensors")
    pipe = sd1.with_embedding(tmp_path / "learned.safetensors")
    tokens = pipe.parts.tokenizers[0].tokens("a <toy> b")
    size = sd1.parts.text_encoders[0].model.vocabulary
    assert tokens[1:3] == [size, size + 1] and len(tokens) == 4
    pipe.save(tmp_path / "saved")
    assert gd.load(tmp_path / "saved").parts.tokenizers == pipe.parts.tokenizers
    with_word, without = (pipe.request(prompt=text).branches[0]["text"] for text in ("a <toy> cat", "a cat"))
    assert (with_word != without).any()
    np.testing.assert_array_equal(without, sd1.request(prompt="a cat").branches[0]["text"])
    with pytest.raises(InputError, match="another base"):
        save_file({"<toy>": rows[:, :8]}, tmp_path / "other.safetensors")
        sd1.with_embedding(tmp_path / "other.safetensors")


def test_a_saved_pipeline_is_of_its_kind_and_keeps_what_stands_for_no_prompt(sdxl, tmp_path):
    unet = sdxl.parts.unet
    other = unet.model.clone(control_channels=5)
    seen = {**unet.params["encoder"]["input_conv"], "kernel": jnp.zeros((3, 3, 9, other.width))}
    params = {**unet.params, "encoder": {**unet.params["encoder"], "input_conv": seen}}
    parts = sdxl.parts._replace(unet=unet._replace(model=other, params=params), zero_negative=False)
    sdxl.with_parts(parts).save(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLInpaintPipeline"
    again = gd.load(tmp_path).parts
    assert again.unet.model == other and not again.zero_negative


def test_another_size_is_another_pipeline_of_the_same_weights(sd1):
    wide = sd1.at_size(64, 96)
    assert wide.codec.shape == (8, 12, 4) and wide is sd1.at_size(64, 96) and sd1.at_size(64, 64) is sd1
    first, other = (jax.tree.leaves(pipe.params)[0].unsafe_buffer_pointer() for pipe in (wide, sd1))
    assert first == other
    with pytest.raises(InputError, match="divisible"):
        sd1.at_size(60, 64)


def test_parts_of_different_models_are_refused(sd1, sdxl):
    for parts, words in (
        (sd1.parts._replace(unet=sdxl.parts.unet), "features of text, and the text encoders give 32"),
        (sdxl.parts._replace(text_encoders=sdxl.parts.text_encoders[:1]), "are of different models"),
    ):
        with pytest.raises(InputError, match=words):
            sd1.with_parts(parts)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"negatve": "a"}, "negatve is no keyword"),
        ({"prompt": "a", "original_size": (1, 2)}, "original_size is no keyword"),
        ({"prompt": "a", "clip_skip": 9}, "clip_skip=9"),
        ({"prompt": "a", "sampler": "dpmpp2m"}, "dpmpp_2m"),
        ({"labels": [1]}, "labels"),
        ({"prompt": "a", "control_image": IMAGE}, "control_image"),
        ({"prompt": "a", "scheduler": "Euler"}, "must be 'native'"),
        ({"prompt": "a", "guidance_rescale": 2.0}, "phi"),
    ],
)
def test_wrong_wishes_are_refused(sd1, wishes, words):
    with pytest.raises(InputError, match=words):
        sd1.request(**wishes)


def test_folders_of_other_models_or_without_parts_are_refused(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(GOLDEN / "sd1", copy)
    index = json.loads((copy / "model_index.json").read_text())
    for kind in ("FluxPipeline", "StableDiffusion3Pipeline"):
        (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
        with pytest.raises(InputError, match=f"{kind}.*not supported"):
            gd.load(copy)
    (copy / "model_index.json").write_text(json.dumps({**index, "text_encoder": [None, None]}))
    with pytest.raises(InputError, match="no text_encoder"):
        gd.load(copy)
    (copy / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(copy / "vae")
    with pytest.raises(InputError, match="no folder vae"):
        gd.load(copy)
    with pytest.raises(InputError, match="another base"):
        other = load_file(KOHYA)
        save_file(
            {name.replace("down_blocks_0", "down_blocks_7"): value for name, value in other.items()},
            tmp_path / "l.safetensors",
        )
        gd.load(GOLDEN / "sd1").with_lora(tmp_path / "l.safetensors")


def test_the_command_draws_with_a_folder_and_writes_where_it_is_told(tmp_path, capsys):
    code = cli.main([
        "main.py", f"--workdir={GOLDEN / 'sd1'}", "--mode=sample", f"--out={tmp_path / 'out'}",
        "--config.sample.prompt=a cat", "--config.sample.count=1", "--config.sample.sampler=ddim",
        "--config.sample.steps=3", "--config.sample.guidance.weight=2",
        f'--config.weights.loras=(("{KOHYA}", 0.5),)',
    ])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    written = np.load(tmp_path / "out/samples.npz")["arr_0"]
    pipe = gd.load(GOLDEN / "sd1").with_lora(KOHYA, 0.5)
    np.testing.assert_array_equal(written, pipe(prompt="a cat", sampler="ddim", steps=3, weight=2.0))


@pytest.mark.slow  # it compiles the network twice
def test_an_exported_sampler_is_told_features(sd1, tmp_path):
    header = gd.export(sd1, tmp_path / "x.zip", sampler="ddim", steps=3, platforms=("cpu",))
    assert header["inputs"]["text"]["shape"] == [77, 32]
    features, none = sd1.prompts.read(["a cat"])["text"], sd1.prompts.absent()["text"]
    made = exported.load(tmp_path / "x.zip")(prompt=features, negative=none, weight=2.0, seed=3)
    own = sd1(prompt="a cat", sampler="ddim", steps=3, weight=2.0, seed=3)
    # Two programs: where a value lies between two levels of 8 bits, either may come.
    np.testing.assert_allclose(made.astype(int), own.astype(int), atol=1)
    assert (made == own).mean() > 0.99


def test_overflow_of_float16_names_the_part_and_the_remedy(sd1):
    infinite = sd1.with_params(jax.tree.map(lambda value: value * jnp.inf, sd1.params))
    with pytest.raises(InputError, match=r"U-Net.*float32"):
        infinite(prompt="a cat", sampler="ddim", steps=3, output="latent")
