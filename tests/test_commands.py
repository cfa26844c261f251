"""`main.py` as users type it: what it leaves behind, and what it says to wrong input."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from guided_diffusion_jax import __version__, exported
from guided_diffusion_jax.commands.cli import main, parse

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
        "classifier.model.width": 8,
        "classifier.model.channel_mult": "(1,)",
        "classifier.model.attention_resolutions": "()",
        "classifier.model.head_width": 8,
        "classifier.train.batch_size": 8,
        "classifier.train.steps": 2,
        "classifier.train.log_every": 1,
        "classifier.crop": 1,
        "evaluate.bound_steps": 2,
        "evaluate.count": 10,
        "sample.steps": 2,
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
    run = json.loads((finished / "run.json").read_text())
    assert run["data"]["image_shape"] == [8, 8, 1] and run["data"]["class_names"] == [str(i) for i in range(10)]
    assert run["model"]["width"] == 8 and run["process"]["schedule"] == "cosine" and run["batch_size"] == 8
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
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


def test_a_second_set_goes_into_a_folder_of_its_own(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    sample = ["main.py", f"--workdir={run}", "--mode=sample", "--config.sample.count=4", "--config.sample.frames=0"]
    for flags in ([], ["--config.sample.seed=1"], [], ["--config.sample.guidance.weight=3"]):
        assert main([*sample, *flags]) == 0
    said = [line.split(": ") for line in capsys.readouterr().out.splitlines() if " images from step " in line]
    assert [where for where, _ in said] == [f"{run}/samples{n}" for n in ("", "_2", "", "_3")]
    assert "in the place of those of the same settings" in said[2][1]
    seeds = [json.loads((run / f"samples{n}" / "samples.json").read_text())["sample"]["seed"] for n in ("", "_2", "_3")]
    assert seeds == [0, 1, 0] and (run / "samples" / "step_0000004.png").exists()


def test_a_sweep_is_one_picture_and_an_array_with_its_axes(finished, tmp_path, capsys):
    sample = ["main.py", f"--workdir={finished}", "--mode=sample", f"--out={tmp_path}", "--config.sample.labels=3,8"]
    sweep = ["--config.sample.sweep.weight=0,2", "--config.sample.sweep.steps=1,2,3", "--config.sample.sweep.count=3"]
    assert main([*sample, *sweep]) == 0
    assert "18 images from step 4" in capsys.readouterr().out
    with np.load(tmp_path / "sweep.npz") as arrays:
        assert arrays["arr_0"].shape == (2, 3, 3, 8, 8, 1) and arrays["axes"].tolist() == ["weight", "steps"]
        assert (arrays["weight"].tolist(), arrays["steps"].tolist()) == ([0, 2], [1, 2, 3])
        np.testing.assert_array_equal(arrays["arr_1"], [3, 8, 3])
    assert Image.open(tmp_path / "sweep.png").size[0] > 3 * 128
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.npz", "sweep.png", "samples.json"}
    assert main([*sample, *sweep, "--config.sample.sweep.eta=0,1"]) == 2
    assert "sample.sweep needs a list for one or two of" in capsys.readouterr().err


def test_the_sampler_of_a_run_is_exported_into_its_folder(finished, tmp_path, capsys):
    run = ["main.py", f"--workdir={shutil.copytree(finished, tmp_path / 'run')}"]
    assert main([*run, "--mode=export", "--config.sample.sampler=dpmpp_2m", "--config.sample.guidance.weight=3"]) == 0
    assert "sampler   dpmpp_2m, 2 steps" in capsys.readouterr().out
    made = exported.load(tmp_path / "run" / "sampler.zip")(["3", "8"], seed=5)
    how = ["--config.sample.sampler=dpmpp_2m", "--config.sample.guidance.weight=3", "--config.sample.seed=5"]
    few = ["--config.sample.labels=3,8", "--config.sample.count=2", "--config.sample.frames=0"]
    assert main([*run, "--mode=sample", f"--out={tmp_path}/out", *how, *few]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "samples.npz")["arr_0"], made)
    assert main([*run, "--mode=export", "--config.sample.regions=a.png"]) == 2 and capsys.readouterr().err


def test_images_are_written_one_by_one_where_that_is_asked_for(finished, tmp_path):
    asked = ["--config.sample.png=True", "--config.sample.count=5", "--config.sample.labels=7,0"]
    few = ["--config.sample.frames=0", "--config.sample.batch_size=2"]
    assert main(["main.py", f"--workdir={finished}", "--mode=sample", f"--out={tmp_path}/out", *asked, *few]) == 0
    files = sorted((tmp_path / "out" / "images").iterdir())
    assert [file.name for file in files] == [f"0000{i}_{label}.png" for i, label in enumerate((7, 0, 7, 0, 7))]
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        np.testing.assert_array_equal([np.asarray(Image.open(file)) for file in files], arrays["arr_0"][..., 0])


def test_a_file_that_is_no_set_of_ours_is_not_replaced(finished, tmp_path, capsys, compiles):
    (tmp_path / "samples.npz").write_text("somebody's")
    assert main(["main.py", f"--workdir={finished}", "--mode=sample", f"--out={tmp_path}"]) == 2
    assert "give another folder" in capsys.readouterr().err and not compiles
    assert (tmp_path / "samples.npz").read_text() == "somebody's"


def test_sampling_leaves_a_save_that_is_under_way_alone(finished, tmp_path):
    half_written = finished / "checkpoints" / "6.orbax-checkpoint-tmp"
    half_written.mkdir()
    flags = ["--mode=sample", "--config.sample.count=2", "--config.sample.frames=0", f"--out={tmp_path}"]
    assert main(["main.py", f"--workdir={finished}", *flags]) == 0
    assert half_written.exists()
    half_written.rmdir()


@pytest.mark.slow  # test_generation.py: an image depends on its own index only
def test_a_picture_does_not_depend_on_how_many_are_drawn(finished, tmp_path):
    drawn = []
    for batch_size in (5, 3):
        flags = [f"--config.sample.batch_size={batch_size}", "--config.sample.count=5", f"--out={tmp_path}"]
        ddpm = ["--config.sample.sampler=ddpm", "--config.sample.frames=0"]
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

    two = ["--config.sample.guidance.classifier_weight=50", "--config.sample.guidance.classifiers=('ink',1,50.0)"]
    plain, steered = drawn(), drawn(*two)
    assert np.abs(steered - plain).max() > 1


def test_a_classifier_that_was_not_trained_is_asked_for(finished, capsys):
    parity = "--config.sample.guidance.classifiers=(('parity',1,1.0),)"
    assert main(["main.py", f"--workdir={finished}", "--mode=sample", parity]) == 2
    assert "--config.classifier.attribute=parity" in capsys.readouterr().err


def test_evaluation_needs_only_the_workdir(finished):
    assert main(["main.py", f"--workdir={finished}", "--mode=evaluate"]) == 0
    found = json.loads((finished / "evaluate.json").read_text())
    assert found["count"] == 10 and found["metrics"]["bpd"]["total"] > 0


def test_an_upsampler_learns_from_its_own_pictures_made_small(train, tmp_path):
    steps = [f"--config.train.{key}=2" for key in ("steps", "sample_every")]
    upsampler = ("--config.model.name=super_resolution", "--config.data.low_res_size=4")
    assert train(tmp_path, *upsampler, *steps) == 0
    assert Image.open(tmp_path / "samples" / "step_0000002.png")


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull", "--helpshort"])
def test_help_lists_the_keys(flag, capsys):
    assert main(["main.py", flag]) == 0
    assert "--config.train.learning_rate=" in capsys.readouterr().out


def test_version(capsys):
    assert main(["main.py", "--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("config", [["--config", "configs/digits.py"], ["--config", "digits"], ["--config=digits"]])
def test_a_configuration_is_a_file_or_a_preset_and_values_may_be_words_of_their_own(config, tmp_path):
    words = ["--workdir", str(tmp_path), "--mode", "sample", "--config.train.steps=7"]
    words += ["--config.sample.guidance.weight", "-1"]
    given, found = parse(["main.py", *config, *words])
    assert (given.workdir, given.mode) == (str(tmp_path), "sample")
    assert (found.data.name, found.sample.guidance.weight, found.train.steps) == ("digits", -1, 7)


def test_the_last_of_two_values_wins(tmp_path):
    mults = ["--config.model.channel_mult=(1,)", "--config.model.channel_mult=(1,2)"]
    _, found = parse(["main.py", "--config=imagenet64", "--config=digits", f"--workdir={tmp_path}", *mults])
    assert found.data.name == "digits" and found.model.channel_mult == (1, 2)


def test_words_that_are_no_flags_are_refused(tmp_path, capsys):
    assert main(["main.py", "train", "--config=digits", f"--workdir={tmp_path}"]) == 2
    assert "train: flags are written --name=value" in capsys.readouterr().err


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
    "a solver": (["--config.sample.sampler=dimm"], "did you mean 'ddim'?"),
    "a preset": (["--config=digist"], "did you mean 'digits'?"),
    "a model": (["--config.model.name=unett"], "did you mean 'unet'?"),
    "a small image": (["--config.data.low_res_size=4"], "data.low_res_size=4 must lie in 1 .. 7 for model.name='super"),
    "a control image": (["--config.model.name=controlnet"], "model.name='controlnet' needs pretrained: the folder"),
    "an image size": (["--config.model.channel_mult=(1,2)", "--config.data.image_size=9"], "data.image_size=9 is not"),
    "heads": (["--config.model.head_width=3"], "model.head_width=3 does not divide"),
    "an EMA": (["--config.train.ema_decay=1.0"], "train.ema_decay=1.0 must lie in [0, 1); 0 turns EMA off."),
    "a dropout": (["--config.train.cfg_dropout=2.0"], "train.cfg_dropout=2.0 must lie in [0, 1]"),
    "a condition's dropout": (["--config.train.per_condition_dropout.label=2.0"], "dropout.label=2.0 must lie in [0"),
    "a loss": (["--config.train.loss=msee"], "did you mean 'mse'?"),
    "an optimizer": (["--config.train.optimizer=adam"], "train.optimizer='adam' is not one of adamw, radam"),
    "a strategy": (["--config.train.parallel=ddp"], "train.parallel='ddp' is not one of data_parallel, fsdp"),
    "steps to sample": (
        ["--config.sample.spacing=stride", "--config.sample.steps=37"],
        "sample.steps=37: no stride leaves exactly that many of 1000 training steps; use ",
    ),
    "too many steps": (["--config.sample.steps=2000"], "sample.steps=2000 of 1000 training steps is too many; use at"),
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
    flags = ["--config.data.name=folder", f"--config.data.data_dir={folder}"]
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


def files_of(run):
    return {name: (run / name).read_bytes() for name in ("config.json", "run.json", "metrics.jsonl")}


REFUSED = {
    "seed": 1, "data.flip": True, "data.image_size": 4, "data.low_res_size": 4, "data.name": "shapes/16",
    "model.name": "super_resolution", "model.width": 16, "model.channel_mult": (1, 2), "model.num_res_blocks": 2,
    "model.dropout": 0.1, "model.use_labels": False, "model.class_fusion": "concat", "model.dtype": "bfloat16",
    "diffusion.schedule": "linear", "diffusion.num_steps": 500, "diffusion.prediction": "v",
    "diffusion.variance": "learned_range", "train.loss": "kl", "train.timesteps": "loss_second_moment",
    "train.cfg_dropout": 0.2, "train.per_condition_dropout.label": 0.5, "train.batch_size": 4, "train.optimizer": "sgd",
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_a_finished_run_is_not_continued_as_another_one(key, finished, train, capsys, compiles):
    before, new = files_of(finished), REFUSED[key]
    assert train(finished, f"--config.{key}={new}", "--config.train.steps=6") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{key}={new!r} (the run's is " in message and "use the run's values or another --workdir" in message
    assert not compiles
    assert files_of(finished) == before


@pytest.mark.parametrize("key", ["model.width", "diffusion.schedule", "train.batch_size"])
def test_the_description_of_the_run_alone_refuses_too(key, finished, train, tmp_path, capsys):
    """Someone lost config.json."""
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("config.json", "samples"))
    assert train(run, f"--config.{key}={REFUSED[key]}", "--config.train.steps=6") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{key.split('.')[1]}={REFUSED[key]!r} (the run's is " in message
    assert not (run / "config.json").exists()


ALLOWED = {
    "learning_rate": 1e-3 / 2, "lr_schedule": "cosine", "decay_steps": 9, "warmup_steps": 1, "weight_decay": 0.1,
    "grad_clip": 0.0, "ema_decay": 0.0, "ema_warmup": False, "log_every": 1, "save_every": 1, "sample_every": 0,
    "keep": 1, "on_full_disk": "go_on", "accumulate": 2, "bad_step": "skip", "grad_spike": 10.0, "steps": 5,
}  # fmt: skip


def test_what_may_change_in_a_finished_run_is_named(finished, train, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    flags = [f"--config.train.{key}={value}" for key, value in ALLOWED.items()]
    assert train(run, *flags, "--config.sample.count=3", "--config.evaluate.split=train") == 0
    printed = capsys.readouterr().out
    config = json.loads((run / "config.json").read_text())
    for key, value in ALLOWED.items():
        assert f"{run}: train.{key} is now {value!r} (was " in printed
        assert config["train"][key] == value
    assert "sample.count is now 3 (was 100)" in printed and "evaluate.split is now 'train' (was 'test')" in printed
    assert "from step 4 to 5" in printed


def test_a_leaf_that_the_state_does_not_have_is_refused(finished, train, tmp_path, capsys):
    """Of another optimizer, where both descriptions of the run are lost."""
    (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
    assert train(tmp_path, "--config.train.optimizer=lion", "--config.train.sample_every=0") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "opt_state/" in message and "/nu/" in message and "there and is no part of the model here" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "is no JSON"),
        (b'{"model": {"width": 8', "is no JSON"),
        (b"\xff\x00", "is no JSON"),
        (b"[]", "holds no configuration"),
        (b'{"model": 8}', "model is no key of a configuration"),
        (b'{"train": null}', "train is no key of a configuration"),
        (b'{"model": {"widht": 8}}', "model.widht is no key of a configuration; did you mean 'model.width'?"),
        (b'{"model": {"width": "wide"}}', "'width'"),
    ],
)
@pytest.mark.parametrize("start", [True, False])
def test_a_damaged_configuration_gives_one_line(text, expected, start, train, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes(text)
    assert (train(tmp_path) if start else main(["main.py", "--mode=sample", f"--workdir={tmp_path}"])) == 2
    (message,) = capsys.readouterr().err.strip().splitlines()
    assert message.startswith(f"error: {tmp_path / 'config.json'}") and expected in message
    assert (tmp_path / "config.json").read_bytes() == text


def test_a_run_of_version_0_1_is_refused_with_the_way_to_convert_it(tmp_path, capsys):
    old = {"data": {"name": "digits", "map": ""}, "model": {"width": 8, "inject": ""}, "train": {"drop": {"map": 0.0}}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert main(["main.py", "--mode=sample", f"--workdir={tmp_path}"]) == 2
    message = capsys.readouterr().err
    assert "is of version 0.1" in message and "--mode=export" in message and "--mode=import" in message


def test_another_architecture_is_told_from_the_checkpoint_too(finished, train, tmp_path, capsys):
    """Someone lost or edited config.json."""
    (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
    assert train(tmp_path, "--config.model.width=16") == 2
    message = capsys.readouterr().err
    assert "belongs to another architecture" in message and "kernel has shape" in message


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["labels=3,10"], "sample.labels: 10 is no class; use 0 to 9"),
        (["labels=('tree',)"], "sample.labels: tree is no class; use 0 to 9"),
        (["count=0"], "sample.count=0 must be at least 1"),
        (["batch_size=0"], "sample.batch_size=0 must be at least 1"),
        (["eta=-0.1"], "sample.eta=-0.1 must not be negative"),
        (["frames=-1"], "sample.frames=-1 must not be negative"),
        (["seed=-1"], "sample.seed=-1 must be a whole number"),
        (["sampler=dimm"], "native; did you mean 'ddim'?"),
        (["eta=0.5", "sampler=heun"], "sampler='heun' has no option 'eta'; it has s_churn"),
        (["spacing=even"], "sample.spacing='even' is not one of linspace, stride, logsnr"),
        (["steps=0"], "sample.steps=0 must be at least 1"),
        (["prompt=a cat"], "sample.prompt='a cat' is given, but the model was not trained with it; it has label"),
        (["low_res=small.npz"], "sample.low_res=small.npz is for super-resolution models"),
        (["guidance.rules=cgf"], "sample.guidance.rules='cgf' is not one of"),
        (["guidance.interval=(9,3)"], "sample.guidance.interval=(9.0, 3.0) is empty"),
        (["guidance.weights=('label',)"], "sample.guidance.weights: ('label',) must have 2 values"),
        (["prompt=", "image=x.png", "guidance.classifier_weight=1"], "is given without inpaint_mask and strength"),
    ],
)
def test_what_cannot_be_sampled_names_the_key(flags, expected, finished, tmp_path, capsys, compiles):
    asked = [f"--config.sample.{flag}" for flag in flags]
    assert main(["main.py", f"--workdir={finished}", "--mode=sample", f"--out={tmp_path / 'out'}", *asked]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and expected in message
    assert not compiles and not (tmp_path / "out").exists()


def test_sampling_an_empty_folder_says_so(tmp_path, capsys):
    assert main(["main.py", f"--workdir={tmp_path}", "--mode=sample"]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_diverging_run_stops_names_the_step_and_keeps_the_last_good_checkpoint(finished, train, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    flags = ["--config.train.steps=8", "--config.train.learning_rate=1e38", "--config.train.save_every=1"]
    assert train(run, *flags, "--config.train.warmup_steps=0", "--config.train.sample_every=0") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step 5: " in message and "the last good checkpoint is step 4" in message
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "4"]
