"""Runs with every kind of condition, and a control branch on a frozen run, through `main.py` on a tiny network."""

import json

import jax
import numpy as np
import pytest
import random_runs
from PIL import Image

import guided_diffusion_jax as gd
from guided_diffusion_jax.commands.cli import main, parse
from guided_diffusion_jax.evaluation import dataset_features

TINY = [
    "--config.data.name=shapes/small",
    "--config.model.width=8",
    "--config.model.channel_mult=(1,)",
    "--config.model.head_width=8",
    "--config.model.text_width=8",
    "--config.model.reference_width=8",
    "--config.model.text_depth=1",
    "--config.train.batch_size=8",
    "--config.train.steps=2",
    "--config.train.log_every=1",
    "--config.train.save_every=2",
    "--config.train.sample_every=0",
    "--config.sample.steps=2",
    "--config.sample.frames=0",
    "--config.sample.count=3",
]


RESOLUTIONS = "--config.model.condition_resolutions=(('control_image',(16,)),('label',(16,)))"
"""Of shapes_all; the tiny network has one level."""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    data = tmp_path_factory.mktemp("tfds")

    def of(name, workdir, *flags):
        common = [f"--config=configs/{name}.py", f"--config.data.data_dir={data}", f"--workdir={workdir}"]
        return ["main.py", *common, *TINY, *flags]

    return of


@pytest.fixture(scope="module")
def train(arguments):
    return lambda *words: main(arguments(*words))


@pytest.fixture(scope="module")
def everything(train, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("everything") / "run"
    assert train("shapes_all", workdir, RESOLUTIONS, "--config.model.inpainting=True") == 0
    return workdir


@pytest.fixture(scope="module")
def base(arguments, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("base") / "run"
    random_runs.write(parse(arguments("shapes_text", workdir))[1], workdir)
    return workdir


@pytest.fixture(scope="module")
def control(train, base, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("control") / "run"
    assert train("shapes_control", workdir, f"--config.pretrained={base}", "--config.train.weight_decay=0.1") == 0
    return workdir


def png(path, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def drawn(workdir, out, *flags):
    assert main(["main.py", f"--workdir={workdir}", "--mode=sample", f"--out={out}", *flags]) == 0
    return np.load(out / "samples.npz")["arr_0"].astype(int)


def params(workdir):
    """A run's averaged parameters."""
    return gd.load(workdir).params


def test_a_run_with_every_condition_draws_by_any_mix_of_users_files(everything, tmp_path):
    info = json.loads((everything / "run.json").read_text())["data"]
    assert info["control_channels"] == 1 and info["attributes"][1] == ["size", ["small", "medium", "large"]]
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (16, 16, 3))
    mask = np.zeros((16, 16))
    mask[:8] = 255
    files = {
        "reference_image": png(tmp_path / "style.png", rng.integers(0, 255, (20, 30, 3))),
        "control_image": png(tmp_path / "map.png", rng.integers(0, 2, (16, 16)) * 255),
        "image": png(tmp_path / "image.png", image),
        "inpaint_mask": png(tmp_path / "mask.png", mask),
    }
    asked = [f"--config.sample.{key}={path}" for key, path in files.items()]
    asked += ["--config.sample.prompt=two red circles AND NOT striped", "--config.sample.attributes=('size','large')"]
    images = drawn(everything, tmp_path / "out", *asked, "--config.sample.guidance.weights=('control_image',0.5)")
    assert images.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(images[:, 8:], np.broadcast_to(image[8:], (3, 8, 16, 3)))
    assert (images[:, :8] != image[:8]).any()
    written = json.loads((tmp_path / "out" / "samples.json").read_text())["sample"]
    assert written["reference_image"] == str(files["reference_image"])


def test_adherence_is_the_share_of_images_that_show_their_conditions(everything, monkeypatch):
    monkeypatch.setattr(dataset_features, "num_steps", lambda count: 5)  # of the classifier that judges
    flags = ["--mode=evaluate", "--config.evaluate.conditions=('label','reference_image')", "--config.evaluate.count=6"]
    assert main(["main.py", f"--workdir={everything}", *flags, "--config.sample.batch_size=3"]) == 0
    found = json.loads((everything / "evaluate.json").read_text())["metrics"]["adherence"]
    assert {"shape right", "reference image right"} <= found["shares"].keys() and "control image IoU" not in found[
        "shares"
    ]
    assert all(0 <= share <= 1 for share in found["shares"].values())


def test_training_a_branch_leaves_its_base_untouched(control, base):
    trained = params(control)
    jax.tree.map(np.testing.assert_array_equal, trained["unet"], params(base))
    projections = {name: value for name, value in trained["controlnet"].items() if name != "encoder"}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(projections["middle"]))
    learned = jax.tree.map(lambda a, b: np.abs(a - b).max(), trained["controlnet"]["encoder"], params(base)["encoder"])
    assert max(jax.tree.leaves(learned)) > 0


def test_a_branch_needs_its_base_no_more_once_it_has_begun(control, base, train, tmp_path):
    away = base.rename(base.with_name("away"))
    try:
        without = drawn(control, tmp_path)
        given = drawn(
            control, tmp_path, f"--config.sample.control_image={png(tmp_path / 'm.png', np.full((16, 16), 255))}"
        )
        assert without.shape == given.shape == (3, 16, 16, 3)
    finally:
        away.rename(base)


def test_a_branch_is_refused_without_a_map_or_on_a_base_that_sees_one(train, base, everything, tmp_path, capsys):
    for flags, message in (
        ([f"--config.pretrained={base}", "--config.data.control_image="], "needs data.control_image"),
        ([f"--config.pretrained={everything}"], "sees a control image already"),
        ([f"--config.pretrained={tmp_path}"], "holds no run.json"),
        ([f"--config.pretrained={base}", "--config.data.control_image=segmentaton"], "did you mean 'segmentation'?"),
    ):
        assert train("shapes_control", tmp_path / "run", *flags) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.attributes=('hue',)"], "data.attributes='hue' is no ClassLabel of shapes/small"),
        (["--config.data.text=captoin"], "did you mean 'caption'?"),
        (
            ["--config.model.condition_resolutions=(('mood',(16,)),)"],
            "model.condition_resolutions='mood' is not one of",
        ),
        (["--config.model.condition_resolutions=('text',)"], "model.condition_resolutions: ('text',) must have 2"),
        (["--config.model.condition_resolutions=('text',8)"], "model.condition_resolutions=8 must be several values"),
        (["--config.model.condition_resolutions=(('text',(7,)),)"], "condition_resolutions=7 for 'text'"),
        (["--config.model.reference_width=16"], "model.text_width=8 and model.reference_width=16 differ"),
        (["--config.train.per_condition_dropout.text=1.5"], "train.per_condition_dropout.text=1.5 must lie in [0, 1]"),
        (["--config.model.text_encoder=no_such/encoder"], "'no_such/encoder'"),
        (["--config.data.name=shapes/17"], "data.name=shapes/...='17' is not one of"),
    ],
)
def test_wrong_conditions_are_refused_with_a_remedy(flags, message, train, tmp_path, capsys):
    assert train("shapes_all", tmp_path / "run", RESOLUTIONS, *flags) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
