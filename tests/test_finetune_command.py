"""`--mode=finetune`: a run from the weights of a folder to a changed pipeline, and what its folder holds."""

import json
import signal

import jax
import numpy as np
import pytest
import tiny_sd
from flax.traverse_util import flatten_dict
from PIL import Image

import guided_diffusion_jax as gd
from guided_diffusion_jax import finetuning
from guided_diffusion_jax.commands.cli import main
from guided_diffusion_jax.finetuning import results
from guided_diffusion_jax.finetuning.tuner import save_run
from guided_diffusion_jax.training import loop


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder of weights and one of captioned pictures."""
    base, pictures = (tmp_path_factory.mktemp(name) for name in ("base", "pictures"))
    tiny_sd.pipeline().save(base)
    batch = tiny_sd.data(3).read(np.arange(3))
    lines = []
    for i, (image, caption) in enumerate(zip(batch["image"], batch["text"], strict=True)):
        Image.fromarray(image).save(pictures / f"{i}.png")
        lines.append(json.dumps({"file": f"{i}.png", "caption": caption}))
    (pictures / "captions.jsonl").write_text("\n".join(lines))
    return base, pictures


def run(workdir, *changes):
    return main(["main.py", f"--workdir={workdir}", "--mode=finetune", *(f"--config.{change}" for change in changes)])


def same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)


def begin(folder, base, pictures, *changes):
    flags = (f"finetune.base={base}", f"data.data_dir={pictures}", "train.batch_size=2", "train.log_every=1", *changes)
    return main([
        "main.py", "--config=stable_diffusion", f"--workdir={folder}", "--mode=finetune",
        *(f"--config.{one}" for one in flags),
    ])  # fmt: skip


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_stopped_by_ctrl_c_goes_on_bit_for_bit(places, tmp_path, monkeypatch, capsys):
    settings = ("data.image_size=64", "data.flip=True", "finetune.rank=2", "train.steps=4", "train.learning_rate=0.01")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert begin(straight, *places, *settings) == 0
    add, calls = loop.StepQueue.add, []

    def press(queue, result):
        calls.append(signal.raise_signal(signal.SIGINT) if len(calls) == 1 else None)
        add(queue, result)

    with monkeypatch.context() as patched:
        patched.setattr(loop.StepQueue, "add", press)
        assert begin(stopped, *places, *settings) == 1 and "stopped by SIGINT" in capsys.readouterr().err
    assert not (stopped / "lora.safetensors").exists() and len(logged(stopped)) == 2
    with pytest.raises(gd.InputError, match="has not ended"):
        gd.load(stopped)
    assert run(stopped, "train.steps=4") == 0
    files = [(folder / "lora.safetensors").read_bytes() for folder in (straight, stopped)]
    assert files[0] == files[1]
    losses = [[(line["step"], line["loss"]) for line in logged(folder)] for folder in (straight, stopped)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_dreambooth_by_command_makes_class_images_once_and_of_the_size_that_is_trained(places, tmp_path, capsys):
    settings = ("data.image_size=32", "sample.steps=1", "finetune.prompt=a photo of sks dog", "finetune.rank=2")
    prior = ("finetune.prior_prompt=a dog", "finetune.prior_count=2", "finetune.prior_weight=0.5", "train.steps=1")
    assert begin(tmp_path, *places, *settings, *prior) == 0, capsys.readouterr().err
    file = tmp_path / "class_images.npz"
    made = file.stat().st_mtime_ns, np.load(file)["arr_0"].shape
    assert made[1] == (2, 32, 32, 3)
    assert run(tmp_path, "train.steps=2") == 0
    assert file.stat().st_mtime_ns == made[0]
    assert all(any(key.startswith("prior_q") for key in line) for line in logged(tmp_path))


def test_a_new_word_at_zero_snr_by_command_keeps_its_name_levels_and_precision(places, tmp_path, capsys):
    base, folder = tmp_path / "base", tmp_path / "run"
    tiny_sd.pipeline("sd2v").save(base)
    word = ("finetune.token=<toy>", "finetune.initial=fox", "finetune.vectors=2", "finetune.prompt=a <toy>")
    settings = ("finetune.method=textual_inversion", "finetune.zero_snr=True", "data.image_size=16", "train.steps=2")
    code = begin(folder, base, places[1], *settings, *word, "model.dtype=bfloat16")
    assert code == 0, capsys.readouterr().err
    pipe, plain = gd.load(folder), gd.load(base)
    assert pipe.process.levels.alpha[-1] == 0 < plain.process.levels.alpha[-1]
    assert (pipe.model.dtype, gd.load(folder, dtype=np.float32).model.dtype) == (jax.numpy.bfloat16, np.float32)
    assert pipe.parts.tokenizers[0].added == ("<toy>", "<toy>_1")
    tables = [one.parts.text_encoders[0].params["tokens"]["embedding"] for one in (pipe, plain)]
    np.testing.assert_array_equal(tables[0][:-2], tables[1])
    learned = plain.parts.tokenizers[0].tokens("fox")
    assert (tables[0][-2:] != tables[1][np.resize(learned, 2)]).any(axis=1).all()
    assert pipe(prompt="a <toy>", steps=1).shape == (1, 16, 16, 3)


@pytest.mark.slow  # test_buckets.py trains on them
def test_buckets_by_command_train_images_of_each_shape(places, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, size in enumerate([(64, 64), (64, 64), (128, 32), (128, 32)]):
        Image.effect_noise(size, 50).convert("RGB").save(pictures / f"{i}.png")
    settings = (
        "data.image_size=64",
        "finetune.buckets=32",
        "finetune.prompt=a dog",
        "finetune.rank=2",
        "train.steps=2",
    )
    assert begin(tmp_path / "run", places[0], pictures, *settings) == 0, capsys.readouterr().err
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2]
    assert len(list((pictures / "latents").glob("*.npy"))) == 2  # a file for each shape


def test_a_run_of_lora_goes_on_and_becomes_a_pipeline(places, tmp_path, capsys):
    base, pictures = places
    folder = tmp_path / "run"
    settings = ("data.image_size=64", "finetune.rank=2", "train.steps=2", "train.learning_rate=0.01")
    assert begin(folder, base, pictures, *settings) == 0, capsys.readouterr().err
    first = gd.load(folder)
    assert run(folder, "train.steps=3") == 0, capsys.readouterr().err
    assert [line["step"] for line in logged(folder)] == [1, 2, 3]
    pipe, plain = gd.load(folder), gd.load(base)
    same(pipe.params, plain.with_lora(folder / "lora.safetensors").params)
    changed = [
        not np.array_equal(a, b) for a, b in zip(*(jax.tree.leaves(p.params) for p in (pipe, first)), strict=True)
    ]
    assert any(changed)
    assert flatten_dict(pipe.params).keys() == flatten_dict(plain.params).keys()
    assert run(folder, "finetune.rank=4", "train.steps=4") == 2
    assert "finetune.rank=4 (the run's is 2)" in capsys.readouterr().err
    (base / "model_index.json").rename(base / "hidden.json")
    assert run(folder, "train.steps=4") == 2
    (base / "hidden.json").rename(base / "model_index.json")


@pytest.mark.parametrize(
    ("kind", "options"),
    [("full", {}), ("controlnet", {}), ("textual_inversion", {"token": "<fox>", "initial": "fox", "prompt": "<fox>"})],
)
def test_what_each_kind_learned_is_found_in_its_folder(kind, options, places, tmp_path):
    base, _ = places
    hints = {"control_image": np.zeros((3, 64, 64, 3), np.uint8)} if kind == "controlnet" else {}
    tuner = getattr(finetuning, kind)(gd.load(base), tiny_sd.data(3, **hints), **options)
    with pytest.raises(gd.InputError, match="has not ended"):
        results.load(results.epath.Path(tmp_path))
    tuner.state = jax.jit(tuner._begin)(tuner._pretrained())
    tuner.state = tuner.state.replace(params=jax.tree.map(lambda leaf: leaf + 0.01, tuner.state.params))
    save_run(tuner, tmp_path, base)
    found, made = results.load(results.epath.Path(tmp_path)), tuner.pipeline()
    same(found.params, made.params)
    same(*([part.params for part in pipe.parts.text_encoders] for pipe in (found, made)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("finetune.base=sd15", "is for --dry_run"),
        ("finetune.base=nowhere", "nowhere"),
        ("finetune.method=dora", "lora"),
    ],
)
def test_what_cannot_work_is_refused_first(change, words, places, tmp_path, capsys):
    flags = ("--config=stable_diffusion", f"--config.data.data_dir={places[1]}", "--config.data.image_size=64")
    code = main(["main.py", *flags, f"--workdir={tmp_path / 'run'}", "--mode=finetune", f"--config.{change}"])
    assert code == 2 and words in capsys.readouterr().err
    assert run(places[0]) == 2 and "holds weights" in capsys.readouterr().err


@pytest.mark.slow  # test_finetuning.py has the account, test_dry_run.py the command
def test_a_dry_run_tells_of_sampling_and_of_each_method(places, capsys):
    flags = ["--config.data.image_size=64", "--config.train.batch_size=2", "--devices=1"]
    assert main(["main.py", f"--workdir={places[0]}", "--dry_run", *flags]) == 0
    said = capsys.readouterr().out
    assert all(f"finetune.method={method}:" in said for method in ("full", "lora", "controlnet"))
    assert said.count("GB in total") == 3 and "a step of 4 image(s) of 64 pixels" in said
