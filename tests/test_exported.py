"""Exported samplers: the pipeline's images from one file, in a process without the package's models."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.tree_util import Partial

import guided_diffusion_jax as gd
from guided_diffusion_jax import export_format, exported
from guided_diffusion_jax.generation import as_data
from guided_diffusion_jax.guides import GuidingClassifier

ROOT = Path(__file__).parent.parent
HOW = {"sampler": "dpmpp_2m", "spacing": "logsnr", "steps": 5, "interval": (0.0, 15.0)}
MODEL_CODE = ("flax", "optax", "orbax", *(f"guided_diffusion_jax.{part}" for part in (
    "models", "pipeline", "generation", "samplers", "guidance", "denoisers", "process", "exporting", "conditions",
)))  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    """`sampler.zip`, and `floats.zip` that does not round."""
    folder = tmp_path_factory.mktemp("exported")
    gd.export(pipe, folder / "sampler.zip", **HOW)
    gd.export(pipe, folder / "floats.zip", dtype="float32", platforms=("cpu",), **HOW)
    return folder


@pytest.fixture(scope="module")
def sampler(folder):
    return exported.load(folder / "sampler.zip")


IN_ANOTHER_PROCESS = """
import sys, numpy as np
from guided_diffusion_jax import exported
sampler = exported.load("floats.zip")
np.savez(
    "made.npz", five=sampler(["dog", 0], count=5, weight=2.0, seed=2**40), two=sampler([2, 2], weight=2.0, seed=2**40)
)
assert exported.main(["sampler.zip", "--labels=dog,0", "--count=5", "--weight=2", "--out=x.npz", "--seed=3"]) == 0
print(sorted(set(sys.modules) & set(MODEL_CODE)))
"""


def test_another_process_makes_the_pipelines_images_without_its_code(pipe, folder):
    code = f"MODEL_CODE = {MODEL_CODE}\n{IN_ANOTHER_PROCESS}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    images = jax.jit(gd.Generator(pipe.apply, pipe.process, pipe.codec).images)
    with np.load(folder / "made.npz") as made:
        for name, labels in (("five", [1, 0, 1, 0, 1]), ("two", [2, 2])):
            expected = images(pipe.params, as_data(pipe.request(labels=labels, weight=2.0, seed=2**40, **HOW)))
            assert np.std(expected) > 0.1 and np.abs(made[name] - expected).max() <= 1e-5
    with np.load(folder / "x.npz") as made:
        np.testing.assert_array_equal(made["arr_0"], pipe(labels=[1, 0], count=5, weight=2.0, seed=3, **HOW))
        np.testing.assert_array_equal(made["arr_1"], [1, 0, 1, 0, 1])


def test_an_image_depends_on_its_seed_and_index_alone(sampler):
    together = sampler([0, 1, 2], weight=[0.0, 1.0, 3.0], seed=[5, 5, 6], index=[0, 9, 0], batch_size=2)
    others = sampler([2, 1], weight=[3.0, 1.0], seed=[6, 5], index=[0, 9], batch_size=2)
    np.testing.assert_array_equal(together[[2, 1]], others)
    eleven = sampler([1, 1], weight=1.0, count=11, seed=5, batch_size=2)
    np.testing.assert_array_equal(eleven[9], together[1])
    assert (eleven[:10] != eleven[1:]).any((1, 2, 3)).all() and sampler._call._cache_size() == 1


def test_the_header_says_what_the_file_is(pipe, folder):
    header, _ = export_format.read(folder / "sampler.zip")
    assert header["platforms"] == ["cpu", "cuda", "tpu"] and header["jax"] == jax.__version__
    assert (header["sampler"], header["steps"], header["class_names"]) == ("dpmpp_2m", 5, list(tiny.NAMES))
    assert header["output"] == {"shape": [4, 4, 1], "dtype": "uint8"} and set(header["inputs"]) == {
        "seed", "index", "label", "weight",
    }  # fmt: skip
    assert header["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(pipe.params))
    content = (folder / "sampler.zip").read_bytes()
    assert str(ROOT).encode() not in content  # where a program was made is nobody's business


def test_text_a_negative_prompt_and_a_classifier_are_in_the_file(tmp_path):
    def log_prob(params, label, x, level):
        logits = x.mean((1, 2)) * params
        return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]

    guide = GuidingClassifier(Partial(log_prob, jnp.array([[-3.0, 0.0, 3.0]])), tiny.NAMES)
    text = gd.models.ByteEncoder(width=8, depth=1, heads=1, length=8)
    pipe = tiny.pipeline(tiny.Network(num_classes=3, text=text), load_classifier=lambda attribute: guide)
    how = {"steps": 4, "eta": 1.0}
    gd.export(pipe, tmp_path / "x.zip", classifier_weight=1.0, platforms=("cpu",), **how)
    sampler = exported.load(tmp_path / "x.zip")
    asked = {"prompt": ["a hat", "é"], "negative": "no", "weight": 1.5, "classifier_weight": 40.0, "seed": 4}
    made = sampler(["fish", "cat"], **asked)
    np.testing.assert_array_equal(made, pipe(labels=["fish", "cat"], **asked, **how))
    for other in ({"prompt": "a coat"}, {"negative": None}, {"classifier_weight": 0.0}):
        assert (sampler(["fish", "cat"], **{**asked, **other}) != made).any(), other
    with pytest.raises(gd.InputError, match="labels is missing: this sampler needs it"):
        sampler(prompt="a hat")
    with pytest.raises(gd.InputError, match="composes none with AND or NOT"):
        sampler(0, prompt="a hat AND NOT a coat")


def test_a_model_without_a_trained_null_needs_a_label_and_has_no_weight(tmp_path):
    pipe = tiny.pipeline(null_trained=False)
    header = gd.export(pipe, tmp_path / "x.zip", steps=3, platforms=("cpu",))
    assert "weight" not in header["inputs"] and "default" not in header["inputs"]["label"]
    np.testing.assert_array_equal(exported.load(tmp_path / "x.zip")([0, 2]), pipe(labels=[0, 2], steps=3))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"labels": [1]}, "labels is an input of the exported sampler; give it to the file, not here"),
        ({"seed": 3}, "seed is an input of the exported sampler"),
        ({"sampler": "dimm"}, "did you mean 'ddim'?"),
        ({"dtype": "int8"}, "dtype='int8' is not one of uint8, float32"),
        ({"weight": np.ones(3)}, "weight must be one number"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(wishes, message, pipe, tmp_path):
    with pytest.raises(gd.InputError) as refused:
        gd.export(pipe, tmp_path / "x.zip", **{"steps": 3, **wishes})
    assert message in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"labels": ["dgo"]}, "dgo is no class; use 0 to 2 or a name: 0 cat, 1 dog, 2 fish; did you mean 'dog'?"),
        ({"labels": 3}, "labels: 3 is no class"),
        ({"prompt": "a cat"}, "prompt is no input of this sampler, which takes labels, weight"),
        ({"conditions": {"hue": 1.0}}, "hue is no input of this sampler"),
        ({"weight": float("nan")}, "weight=nan must be a finite number"),
        ({"weight": [1.0, 2.0, 3.0]}, "weight has shape (3,)"),
        ({"seed": -1}, "seed=-1 must be a whole number in 0"),
        ({"count": 0}, "count=0 must be at least 1"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_refused_in_one_line(asked, message, sampler):
    with pytest.raises(gd.InputError) as refused:
        sampler(**asked)
    assert message in str(refused.value)


# --- files that are no samplers, or none any more


def changed(content, **entries):
    """A file with other entries, whose header is the true one of them."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(parts["header.json"]) | entries
    header["checksum"] = export_format.checksum(header)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, part in {**parts, "header.json": json.dumps(header)}.items():
            archive.writestr(name, part)
    return out.getvalue()


def npz(content):
    out = io.BytesIO()
    np.savez(out, arr_0=np.zeros(3))
    return out.getvalue()


def without_the_program(content):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as other:
        for name in ("header.json", "params.safetensors"):
            other.writestr(name, archive.read(name))
    return out.getvalue()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda content: b"", "is no exported sampler, or it is cut or damaged"),
        (lambda content: b"\x89PNG\r\n" * 100, "is no exported sampler, or it is cut or damaged"),
        (npz, "is no exported sampler; --mode=export and gd.export write one: it holds no header.json"),
        (lambda content: content[: len(content) // 2], "it is cut or damaged"),
        (lambda content: content[:-1], "it is cut or damaged"),
        (without_the_program, "is damaged: its program.bin is missing"),
        (lambda content: changed(content, version=2, package="9.9"), "has version 2 of the format, of guided"),
        (lambda content: changed(content, calling_convention=99, jax="9.9"), "was made by jax 9.9, and this is jax"),
        (lambda content: changed(content, sha256={}), "is damaged: its program.bin has changed"),
        (lambda content: changed(content, format="another"), "is no exported sampler"),
    ],
)  # fmt: skip
def test_a_cut_foreign_or_newer_file_gets_one_line_and_exit_code_2(make, message, folder, tmp_path, capsys):
    (tmp_path / "x.zip").write_bytes(make((folder / "sampler.zip").read_bytes()))
    assert exported.main([str(tmp_path / "x.zip"), f"--out={tmp_path}/x.png"]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.err.startswith("error: ") and not said.out


def test_a_changed_byte_is_found_wherever_it_matters(folder, tmp_path):
    """Every entry's content, and its place; what is left are dates and flags that no one reads."""
    content = (folder / "sampler.zip").read_bytes()
    names = (export_format.PROGRAM, export_format.WEIGHTS)
    whole = export_format.read(folder / "sampler.zip", names)
    rng, found = np.random.default_rng(0), 0
    places = [*rng.integers(0, len(content), 60), *rng.integers(len(content) - 300, len(content), 60), *range(60)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        (tmp_path / "x.zip").write_bytes(damaged)
        try:
            assert export_format.read(tmp_path / "x.zip", names) == whole
        except gd.InputError:
            found += 1
    assert found > 100, found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sampler.zip", "--labels=4", "--out=x.png"], "labels: 4 is no class; use 0 to 2"),
        (["sampler.zip", "--out=x.jpg"], "the ending of --out='.jpg' is not one of .png, .npz"),
        (["sampler.zip", "--wieght=2"], "unrecognized arguments: --wieght=2; see --help"),
        (["sampler.zip", "--seed=a"], "invalid int value"),
        (["floats.zip", "--out=x.png"], "floats.zip puts out float32"),
        (["none.zip"], "none.zip is no file"),
        ([], "the following arguments are required: file"),
    ],
)
def test_wrong_arguments_get_one_line_and_exit_code_2(arguments, message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert exported.main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not (folder / "x.png").exists()


def test_the_command_says_what_a_file_is_and_draws_a_page(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert exported.main(["sampler.zip"]) == 0
    assert "classes   0 cat, 1 dog, 2 fish" in capsys.readouterr().out
    assert exported.main(["sampler.zip", "--labels=cat,dog", "--out=pages/page.png"]) == 0
    assert capsys.readouterr().out == "pages/page.png: 2 images\n" and (folder / "pages" / "page.png").exists()
