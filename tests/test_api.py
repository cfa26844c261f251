"""The public interface: what is exported, what importing it costs, and its documented use from end to end."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import guided_diffusion_jax as gd

ROOT = Path(__file__).parent.parent

EXPORTS = """
    Codec Conditions Generator Guidance InputError Level Objective Pipeline Prediction Process Request Sampler
    StableDiffusion TrainSettings TrainState Trainer __version__ codecs conditions data denoisers export exported
    finetuning finish_autoencoder gaussian generation guidance guides load load_autoencoder metrics models
    objectives pipeline prediction samplers schedules trajectories
"""

LATE = ("matplotlib", "tensorflow_datasets", "grain", "orbax", "tensorflow", "torch", "sklearn", "PIL")
"""What is imported where it is used, and not before."""


def python(code, folder=ROOT):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_exports_are_these_and_all_can_be_had():
    assert gd.__all__ == dir(gd) == sorted(EXPORTS.split())
    for name in gd.__all__:
        assert getattr(gd, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Piepline'"):
        _ = gd.Piepline


def test_importing_brings_in_nothing_that_is_not_needed():
    assert python(f"import sys, guided_diffusion_jax; print({set(LATE)} & set(sys.modules))") == "set()"
    core = "gd.Process, gd.schedules, gd.samplers, gd.guidance, gd.models, gd.Generator, gd.objectives"
    late = set(LATE) - {"PIL"}
    assert python(f"import sys, guided_diffusion_jax as gd; {core}; print({late} & set(sys.modules))") == "set()"
    sampling = "gd.load('digits').request(labels=[3], steps=2)"
    late |= {"optax", "tensorboardX"}
    assert python(f"import sys, guided_diffusion_jax as gd; {sampling}; print({late} & set(sys.modules))") == "set()"


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    return np.round(found.images[..., None] * 255 / 16).astype(np.uint8), found.target


SMALL = dict(channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), head_width=8)


def test_the_interface_is_used_as_the_design_writes_it(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = digits
    captions = [f"the digit {label}" for label in labels]
    import jax
    import jax.numpy as jnp
    import optax

    text = gd.models.ByteEncoder(width=8, depth=1, heads=1, length=16)
    data = gd.data.from_arrays(images, labels, text=captions)
    model = gd.models.UNet(width=8, **SMALL, num_classes=10, text=text, out_channels=1)
    process = gd.Process(gd.schedules.cosine(1000), prediction="v")
    trainer = gd.Trainer(
        model, process, data, optimizer=optax.adamw(2e-4), condition_dropout=0.1, workdir="runs/x"
    )  # fmt: skip
    trainer.fit(steps=2, batch_size=8)
    assert [metrics["step"] for metrics in trainer.steps(steps=4, batch_size=8, log_every=1)] == [3, 4]

    pipe = gd.load("runs/x")
    images = pipe(labels=[3, 7], weight=2.0, sampler=gd.samplers.dpmpp_2m(), steps=20, seed=0)
    assert images.shape == (2, 8, 8, 1) and images.dtype == np.uint8
    same = pipe(labels=[3, 7], guidance_scale=3.0, sampler="dpmpp_2m", steps=20, seed=0)
    np.testing.assert_array_equal(same, images)
    images = pipe(prompt="the digit 5", negative="blurry", weight=6.5, seed=0)
    assert images.shape == (1, 8, 8, 1)
    sweep = pipe.sweep(labels=[3, 7], weight=[0, 1, 2, 4])
    assert sweep.shape == (4, 2, 8, 8, 1)
    np.testing.assert_array_equal(sweep[2], pipe(labels=[3, 7], weight=2))
    jax.tree.map(lambda leaf: jnp.asarray(leaf), pipe.params)


TWELVE_LINES = """
import guided_diffusion_jax as gd
data = gd.data.from_arrays(images[:1500], labels[:1500])
model = gd.models.UNet(width=8, **SMALL, num_classes=10, out_channels=1)
trainer = gd.Trainer(model, gd.Process(gd.schedules.cosine(1000)), data, optimizer=optax.adamw(2e-4), workdir="run")
trainer.fit(steps=2, batch_size=8)
trainer.fit(steps=4, batch_size=8)
pipe = gd.load("run")
weak, strong = (pipe(labels=list(range(10)) * 30, weight=weight, steps=2) for weight in (0.0, 2.0))
distances = [gd.metrics.fid(samples, images[1500:], features="pixels") for samples in (weak, strong)]
"""


@pytest.mark.slow  # docs/python.md trains, goes on, samples with two weights and measures; test_docs.py runs it
def test_twelve_lines_train_resume_sample_with_two_weights_and_measure(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import optax

    names = {"images": digits[0], "labels": digits[1], "SMALL": SMALL, "optax": optax}
    assert len(TWELVE_LINES.strip().splitlines()) <= 12 and TWELVE_LINES.count("import") == 1
    exec(TWELVE_LINES, names)
    assert int(names["trainer"].state.step) == 4
    assert names["weak"].shape == names["strong"].shape == (300, 8, 8, 1)
    assert (names["weak"] != names["strong"]).any()
    assert all(np.isfinite(distance) and distance > 0 for distance in names["distances"])


@pytest.mark.slow
def test_a_wheel_works_outside_the_checkout(tmp_path):
    """In a virtual environment of its own, which finds the dependencies of this one."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    [site] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    [wheel] = tmp_path.glob("*.whl")
    bin_, environment = tmp_path / "venv" / "bin", {**os.environ, "PYTHONPATH": ""}
    subprocess.run([bin_ / "python", "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    found = subprocess.run(
        [bin_ / "python", "-c", "import guided_diffusion_jax as gd; print(gd.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.startswith(str(tmp_path / "venv"))
    flags = ["--config=digits", "--workdir=run", "--config.train.steps=2", "--config.train.sample_every=0"]
    command = [bin_ / "guided-diffusion-jax", *flags, "--config.model.channel_mult=(1,)", "--config.model.width=8"]
    command += ["--config.model.head_width=8", "--config.model.attention_resolutions=()"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "run.json").exists()
