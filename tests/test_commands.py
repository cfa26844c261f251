"""`main.py` as users type it: what it leaves behind, and what it says to wrong input."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from main import main

TINY = [
    f"--config.{key}={value}"
    for key, value in {
        "model.width": 8,
        "model.channel_mult": "(1,)",
        "model.num_res_blocks": 1,
        "model.attention_resolutions": "()",
        "model.head_width": 8,
        "train.batch_size": 8,
        "train.steps": 4,
        "train.log_every": 2,
        "train.save_every": 2,
        "train.sample_every": 4,
        "classifier.width": 8,
        "classifier.channel_mult": "(1,)",
        "classifier.attention_resolutions": "()",
        "classifier.head_width": 8,
        "classifier.batch_size": 8,
        "classifier.steps": 2,
        "classifier.log_every": 1,
        "classifier.crop": 1,
        "evaluate.steps": "2",
        "evaluate.count": 10,
        "sample.steps": "2",
        "sample.frames": 2,
    }.items()
]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="session")
def train(data_dir):
    """`train(workdir, *flags)`: the tiny digits run, to its exit code."""

    def run(workdir, *flags):
        config = ["--config=configs/digits.py", f"--config.data.data_dir={data_dir}", *TINY]
        return main(["main.py", *config, f"--workdir={workdir}", *flags])

    return run


@pytest.fixture(scope="session")
def finished(train, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    assert train(workdir) == 0
    return workdir


@pytest.fixture
def compiles():
    """Counts XLA's compilations while the test runs."""
    counted = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: counted.append(event) if "backend_compile" in event else None
    )
    return counted


def test_a_run_holds_all_that_made_it(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["model"]["width"] == 8
    assert config["data"]["channels"] == 1 and config["data"]["class_names"] == [str(i) for i in range(10)]
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert {"loss", "grad_norm", "images_per_second"} <= lines[0].keys()
    assert list((finished / "tensorboard").iterdir())
    assert Image.open(finished / "samples" / "step_0000004.png").size[0] > 100
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"2", "4"}


def test_sampling_needs_only_the_workdir(finished, tmp_path):
    flags = ["--mode=sample", "--config.sample.count=7", "--config.sample.labels=3,8", f"--out={tmp_path}"]
    assert main(["main.py", f"--workdir={finished}", *flags]) == 0
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (7, 8, 8, 1) and arrays["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["arr_1"], [3, 8, 3, 8, 3, 8, 3])
    written = json.loads((tmp_path / "samples.json").read_text())
    assert written["checkpoint_step"] == 4 and written["sample"]["guidance"]["weight"] == 1.0
    assert Image.open(tmp_path / "samples.png") and Image.open(tmp_path / "trajectory.png")


def test_sampling_leaves_a_save_that_is_under_way_alone(finished, tmp_path):
    half_written = finished / "checkpoints" / "6.orbax-checkpoint-tmp"
    half_written.mkdir()
    flags = ["--mode=sample", "--config.sample.count=2", "--config.sample.frames=0", f"--out={tmp_path}"]
    assert main(["main.py", f"--workdir={finished}", *flags]) == 0
    assert half_written.exists()
    half_written.rmdir()


def test_a_picture_does_not_depend_on_how_many_are_drawn(finished, tmp_path):
    drawn = []
    for batch_size in (5, 3):
        flags = [f"--config.sample.batch_size={batch_size}", "--config.sample.count=5", f"--out={tmp_path}"]
        ddpm = ["--config.sample.solver=ddpm", "--config.sample.frames=0"]
        assert main(["main.py", f"--workdir={finished}", "--mode=sample", *flags, *ddpm]) == 0
        drawn.append(np.load(tmp_path / "samples.npz")["arr_0"].astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1  # of 255: rounding at the edge of two grey levels


def test_classifiers_are_trained_beside_the_run_and_steer_it_together(finished, tmp_path):
    run = ["main.py", f"--workdir={finished}"]
    for attribute in ("label", "ink"):
        assert main([*run, "--mode=classifier", f"--config.classifier.attribute={attribute}"]) == 0
    accuracy = json.loads((finished / "classifier" / "accuracy.json").read_text())["accuracy"]
    assert len(accuracy) == 20 and all(0 <= share <= 1 for share in accuracy)
    assert Image.open(finished / "classifier_ink" / "accuracy.png")
    lines = (finished / "classifier" / "metrics.jsonl").read_text().splitlines()
    assert any(key.startswith("accuracy_q") for key in json.loads(lines[-1]))

    def drawn(*flags):
        steer = ["--config.sample.count=4", "--config.sample.frames=0", "--config.sample.guidance.weight=-1"]
        assert main([*run, "--mode=sample", f"--out={tmp_path}", *steer, *flags]) == 0
        return np.load(tmp_path / "samples.npz")["arr_0"].astype(int)

    two = [
        "--config.sample.guidance.classifier_weight=50",
        "--config.sample.guidance.attributes=ink",
        "--config.sample.guidance.attribute_labels=1",
    ]
    plain, steered = drawn(), drawn(*two, "--config.sample.guidance.attribute_weights=50.0")
    assert np.abs(steered - plain).max() > 1


def test_a_classifier_that_was_not_trained_is_asked_for(finished, capsys):
    parity = [f"--config.sample.guidance.{key}" for key in ("attributes=parity", "attribute_labels=1")]
    weights = "--config.sample.guidance.attribute_weights=1.0"
    assert main(["main.py", f"--workdir={finished}", "--mode=sample", *parity, weights]) == 2
    assert "--config.classifier.attribute=parity" in capsys.readouterr().err


def test_evaluation_needs_only_the_workdir(finished):
    assert main(["main.py", f"--workdir={finished}", "--mode=evaluate"]) == 0
    found = json.loads((finished / "evaluate.json").read_text())
    assert found["count"] == 10 and found["metrics"]["bpd"]["total"] > 0


def test_an_upsampler_learns_from_its_own_pictures_made_small(train, tmp_path):
    steps = [f"--config.train.{key}=2" for key in ("steps", "sample_every")]
    assert train(tmp_path, "--config.data.low_res_size=4", *steps) == 0
    assert Image.open(tmp_path / "samples" / "step_0000002.png")


def test_help_lists_the_keys(capsys):
    assert main(["main.py", "--help"]) == 0
    assert "--config.train.learning_rate=" in capsys.readouterr().out


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), "red").save(tmp_path / name / "a.png")
    return tmp_path


WRONG = {
    "a key": (["--config.model.widht=8"], "model.widht is no key of the config; did you mean 'model.width'?"),
    "a part": (["--config.modle.width=8"], "did you mean 'model.width'?"),
    "a flag": (["--wokrdir=x"], "workdir"),
    "a mode": (["--mode=smaple"], "did you mean 'sample'?"),
    "a type": (["--config.train.steps=many"], "train.steps=many"),
    "a schedule": (["--config.diffusion.schedule=cosin"], "did you mean 'cosine'?"),
    "a prediction": (["--config.diffusion.prediction=noise"], "diffusion.prediction='noise' is not one of eps, x0, v"),
    "a variance": (["--config.diffusion.variance=fixed"], "diffusion.variance='fixed'"),
    "a solver": (["--config.sample.solver=dimm"], "did you mean 'ddim'?"),
    "a class": (["--config.sample.labels=3,10"], "sample.labels: 10 is no class; use 0 to 9"),
    "a number of classes": (["--config.model.num_classes=7"], "model.num_classes=7, but digits (train) has 10"),
    "an image size": (["--config.model.channel_mult=(1,2)", "--config.data.image_size=9"], "data.image_size=9 is not"),
    "heads": (["--config.model.head_width=3"], "model.head_width=3 does not divide"),
    "an EMA": (["--config.train.ema_decay=1.0"], "train.ema_decay=1.0 must lie in [0, 1); 0 turns EMA off."),
    "a dropout": (["--config.train.condition_dropout=2.0"], "train.condition_dropout=2.0 must lie in [0, 1]"),
    "steps to sample": (["--config.sample.steps=ddim37"], "no stride leaves just 37"),
    "too many steps": (["--config.sample.steps=2000"], "asks for 2000 of 1000 steps"),
    "a data set": (["--config.data.name=no_such_set"], "no_such_set"),
    "an empty batch": (["--config.train.batch_size=0"], "train.batch_size=0"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_gives_one_clear_line_before_any_compile(what, train, tmp_path, capsys, compiles):
    flags, expected = WRONG[what]
    capsys.readouterr()
    assert train(tmp_path / "run", *flags) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and expected in message, message
    assert not compiles
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_batch_that_devices_cannot_share_is_refused(train, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert train(tmp_path, "--config.train.batch_size=100") == 2
    assert "train.batch_size=100 is not divisible by 8 devices; use 96 or 104." in capsys.readouterr().err


def test_an_unreadable_image_is_named(train, folder, capsys):
    (folder / "dog" / "broken.png").write_bytes(b"no picture")
    flags = ["--config.data.name=folder", f"--config.data.data_dir={folder}", "--config.model.num_classes=-1"]
    assert train(folder / "run", *flags) == 2
    assert "broken.png" in capsys.readouterr().err


def test_an_empty_folder_is_refused(train, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    flags = ["--config.data.name=folder", f"--config.data.data_dir={tmp_path / 'empty'}"]
    assert train(tmp_path / "run", *flags) == 2
    assert str(tmp_path / "empty") in capsys.readouterr().err


def test_a_run_of_another_architecture_is_refused_and_the_difference_named(finished, train, capsys, compiles):
    assert train(finished, "--config.model.width=16", "--config.diffusion.schedule=linear") == 2
    message = capsys.readouterr().err
    assert "model.width=16 (the run's is 8)" in message and "diffusion.schedule='linear'" in message
    assert not compiles


def test_another_architecture_is_told_from_the_checkpoint_too(finished, train, tmp_path, capsys):
    """Someone lost or edited config.json."""
    (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
    assert train(tmp_path, "--config.model.width=16") == 2
    message = capsys.readouterr().err
    assert "belongs to another architecture" in message and "kernel has shape" in message


def test_another_data_order_is_refused(finished, train, capsys):
    assert train(finished, "--config.train.batch_size=4", "--config.train.steps=6") == 2
    assert "train.batch_size=4" in capsys.readouterr().err


def test_sampling_an_empty_folder_says_so(tmp_path, capsys):
    assert main(["main.py", f"--workdir={tmp_path}", "--mode=sample"]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_diverging_run_stops_names_the_step_and_keeps_the_last_good_checkpoint(train, tmp_path, capsys):
    assert train(tmp_path) == 0
    flags = ["--config.train.steps=8", "--config.train.learning_rate=1e38", "--config.train.save_every=1"]
    assert train(tmp_path, *flags, "--config.train.warmup_steps=0") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step 5: " in message and "the last good checkpoint is step 4" in message
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]
