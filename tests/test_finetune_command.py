"""`--mode=finetune`: a run from the weights of a folder to a changed pipeline, and what its folder holds."""

import json

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


def test_a_run_of_lora_goes_on_and_becomes_a_pipeline(places, tmp_path, capsys):
    base, pictures = places
    folder = tmp_path / "run"
    settings = (f"finetune.base={base}", f"data.data_dir={pictures}", "data.image_size=64", "finetune.rank=2")
    begun = main([
        "main.py", "--config=stable_diffusion", f"--workdir={folder}", "--mode=finetune",
        *(f"--config.{one}" for one in (*settings, "train.batch_size=2", "train.steps=2", "train.learning_rate=0.01")),
    ])  # fmt: skip
    assert begun == 0, capsys.readouterr().err
    first = gd.load(folder)
    assert run(folder, "train.steps=3") == 0, capsys.readouterr().err
    lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3]
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
    results.save(tuner, tmp_path, base)
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
