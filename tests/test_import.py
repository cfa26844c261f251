"""`--mode=import` and `--mode=export`: runs of guided-diffusion's weights, and upsamplers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files
from conftest import Golden, relative_error
from etils import epath
from PIL import Image

from guided_diffusion_jax import loading, sharding
from guided_diffusion_jax.commands.cli import main
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment import runs, sampling
from guided_diffusion_jax.interop import adm, files
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.training.checkpoint import Checkpoints

NET2 = """
from guided_diffusion_jax.experiment.default import get_config as default

def get_config():
    c = default()
    c.data.update(image_size=16)
    c.model.update(
        width=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,), head_width=16, dropout=0.0,
        resample="block",
    )
    c.diffusion.variance = "learned_range"
    c.classifier.model.update(
        width=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,), head_width=16, pool="attention",
    )
    c.sample.update(sampler="ddpm", steps=2, count=3, frames=0)
    c.sample.guidance.weight = 0.0
    return c
"""
NET5 = NET2.replace(
    "return c",
    """c.data.low_res_size = 8
    c.model.update(name="super_resolution", head_width=0, num_heads=2, use_labels=False, resample="conv")
    c.diffusion.variance = "fixed_small"
    return c""",
)
CONDITIONAL_NET5 = NET5.replace("use_labels=False", "use_labels=True")
TINY = """
from guided_diffusion_jax.experiment.default import get_config as default

def get_config():
    c = default()
    c.data.update(image_size=8, flip=False)
    c.model.update(
        width=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), head_width=32, use_labels=False
    )
    c.train.update(batch_size=4, steps=2, learning_rate=0.0, log_every=1, save_every=2, sample_every=0)
    return c
"""


def nhwc(images):
    return jnp.asarray(np.moveaxis(images, 1, -1))


def state_dict(data):
    return {key.removeprefix("params/"): data[key] for key in data.arrays.files if key.startswith("params/")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(name, config, weights)`: paths of a config file and of a `.pt`."""
    folder = tmp_path_factory.mktemp("files")

    def make(name, config, weights):
        (folder / f"{name}.py").write_text(config)
        torch_files.write(folder / f"{name}.pt", weights)
        return folder / f"{name}.py", folder / f"{name}.pt"

    return make


def run(workdir, *flags):
    return main(["main.py", f"--workdir={workdir}", *map(str, flags)])


def import_(workdir, files, *flags):
    config, weights = files
    return run(workdir, "--mode=import", f"--config={config}", f"--import_path={weights}", *flags)


@pytest.fixture(scope="module")
def net2():
    return Golden("net2_unet_cond_legacy")


@pytest.fixture(scope="module")
def net2_files(net2, made):
    return made("net2", NET2, state_dict(net2))


@pytest.fixture(scope="module")
def imported(net2_files, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("runs") / "net2")
    assert import_(workdir, net2_files) == 0
    return workdir


@pytest.fixture(scope="module")
def upsampler(made, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("runs") / "net5")
    assert import_(workdir, made("net5", NET5, state_dict(Golden("net5_superres")))) == 0
    return workdir


def restored(workdir):
    """The network and the averaged parameters of a run."""
    pipe = loading.load(workdir)
    assert pipe.step == 0
    return pipe.model, pipe.params


# --- the model


def test_the_run_says_what_the_file_and_the_config_decided(imported, net2_files):
    described = json.loads((imported / "run.json").read_text())
    assert described["data"]["image_shape"] == [16, 16, 3]
    assert described["data"]["class_names"] == [str(i) for i in range(10)]
    assert described["model"]["num_classes"] == 10 and described["source"] == str(net2_files[1])
    assert [path.name for path in (imported / "checkpoints").iterdir()] == ["0"]
    with Checkpoints(imported / "checkpoints") as checkpoints:
        assert checkpoints.source == str(net2_files[1])


def test_what_the_run_holds_gives_openais_outputs(imported, net2):
    network, params = restored(imported)
    conditions = {"label": jnp.asarray(net2["y"], jnp.int32)}
    out = jax.jit(network.apply)(
        {"params": params}, nhwc(net2["x"]), jnp.asarray(net2["timesteps"], jnp.int32), conditions
    )
    assert relative_error(out, nhwc(net2["out"])) <= 5e-4


def test_an_imported_run_is_sampled_by_its_workdir(imported, tmp_path):
    assert run(imported, "--mode=sample", f"--out={tmp_path}", "--config.sample.labels=3,8") == 0
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (3, 16, 16, 3) and arrays["arr_0"].std() > 0
        np.testing.assert_array_equal(arrays["arr_1"], [3, 8, 3])
    assert {path.name for path in tmp_path.iterdir()} == {"samples.npz", "samples.png", "samples.json"}
    assert json.loads((tmp_path / "samples.json").read_text())["checkpoint_step"] == 0


def test_export_gives_the_imported_tensors_back_bit_for_bit(imported, net2, tmp_path):
    path = tmp_path / "back.safetensors"
    assert run(imported, "--mode=export", f"--export_path={path}") == 0
    weights = state_dict(net2)
    with files.opened(path) as tensors:
        assert set(tensors) == set(weights)
        for name, array in weights.items():
            np.testing.assert_array_equal(np.asarray(tensors[name]), array, strict=True)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("guidance.weight=2", "sample.guidance.weight=2.0 needs a null class"),
        ("guidance.weight=-1", "sample.guidance.weight=-1.0 needs a null class"),
        ("guidance.guidance_scale=3", "needs a null class"),
        ("guidance.weight_schedule=((0,0.0),(999,1.0))", "needs a null class"),
    ],
)
def test_sampling_refuses_guidance_as_import_does(imported, tmp_path, capsys, flag, message):
    capsys.readouterr()
    assert run(imported, "--mode=sample", f"--out={tmp_path / 'out'}", f"--config.sample.{flag}") == 2
    assert message in one_line(capsys) and not (tmp_path / "out").exists()


def test_the_null_row_is_kept_with_the_run_and_exported(net2, net2_files, tmp_path):
    workdir, back = epath.Path(tmp_path / "run"), tmp_path / "back.safetensors"
    flags = ["--config.data.null_label=4", "--config.sample.guidance.weight=2"]
    assert import_(workdir, net2_files, *flags) == 0
    described = json.loads((workdir / "run.json").read_text())
    assert described["null_label"] == 4 and len(described["data"]["class_names"]) == 9
    config = configs.stored(workdir)
    assert runs.request(config, runs.pipeline(config, workdir)).weights == (2.0,)
    assert run(workdir, "--mode=export", f"--export_path={back}") == 0
    with files.opened(back) as tensors:
        for name, array in state_dict(net2).items():
            np.testing.assert_array_equal(np.asarray(tensors[name]), array, strict=True)


def test_a_prefix_of_all_names_is_stripped_and_said(net2, made, tmp_path, capsys):
    made_files = made("prefixed", NET2, {f"module.{name}": array for name, array in state_dict(net2).items()})
    assert import_(epath.Path(tmp_path / "run"), made_files) == 0
    said = capsys.readouterr()
    assert "note: " in said.out and "begin with 'module.', which is ignored" in said.out and not said.err


# --- the classifier


def test_a_classifier_goes_where_sampling_looks_for_it_and_gives_openais_logits(imported, golden, made):
    data = golden("net4_classifier_attention")
    made_files = made("net4", NET2, state_dict(data))
    assert import_(imported, made_files) == 0
    folder = loading.classifier_folder(imported, "label")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["0"]
    network, params = restored(folder)
    logits = jax.jit(network.apply)({"params": params}, nhwc(data["x"]), jnp.asarray(data["timesteps"], jnp.int32))
    assert relative_error(logits, data["out"]) <= 5e-4
    assert len(loading.load(imported).classifier("label").class_names) == data["out"].shape[1]
    assert import_(imported, made_files) == 2


# --- the upsampler


def test_an_imported_upsampler_gives_openais_outputs(upsampler, golden):
    data = golden("net5_superres")
    network, params = restored(upsampler)
    assert network.low_res_size == 8
    conditions = {"low_res": nhwc(data["low_res"])}
    out = jax.jit(network.apply)(
        {"params": params}, nhwc(data["x"]), jnp.asarray(data["timesteps"], jnp.int32), conditions
    )
    assert relative_error(out, nhwc(data["out"])) <= 5e-4


@pytest.fixture
def small(tmp_path):
    """`small(images, labels)`: a file of small pictures."""

    def write(images=None, labels=None, name="small.npz"):
        images = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3) if images is None else images
        np.savez(tmp_path / name, *([images] if labels is None else [images, labels]))
        return tmp_path / name

    return write


def test_an_upsampler_draws_as_many_pictures_as_asked_of_the_small_ones(upsampler, small, tmp_path):
    flags = [f"--config.sample.low_res={small()}", f"--out={tmp_path}"]
    assert run(upsampler, "--mode=sample", *flags) == 0
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (3, 16, 16, 3)


@pytest.fixture(scope="module")
def conditional_upsampler(made, tmp_path_factory):
    weights = state_dict(Golden("net5_superres"))
    weights["label_emb.weight"] = np.random.default_rng(0).normal(size=(11, 128)).astype(np.float32)
    workdir = epath.Path(tmp_path_factory.mktemp("runs") / "conditional")
    made_files = made("conditional", CONDITIONAL_NET5, weights)
    assert import_(workdir, made_files, "--config.data.null_label=10") == 0
    return workdir


def test_picture_i_is_drawn_from_small_picture_i_and_its_label_guided_or_not(conditional_upsampler, small):
    config = configs.stored(conditional_upsampler)
    config.sample.update(low_res=str(small(labels=np.array([7, 0, 9, 1]))), batch_size=2)
    config.sample.guidance.weight = 2.0
    pipe, program = runs.pipeline(config, conditional_upsampler), sampling.program_settings(config)
    request = runs.request(config, pipe)
    np.testing.assert_array_equal(request.labels, [7, 0, 9])
    drawn = pipe.generate(request, **program).astype(int)
    plain = pipe.generate(request.with_weight(0.0), **program)
    negative = request.null["low_res"] * np.array([1, -1, 1], np.float32).reshape(3, 1, 1, 1)
    *branches, null = ({**c, "low_res": negative} for c in (*request.branches, request.null))
    changed = pipe.generate(request._replace(branches=tuple(branches), null=null), **program)
    assert [np.abs(a - b).max() > 1 for a, b in zip(drawn, changed, strict=True)] == [False, True, False]
    assert np.abs(plain - drawn).max() > 1


def test_labels_of_small_pictures_that_do_not_fit_are_refused(conditional_upsampler, small, capsys):
    labels = np.array([7, 0, 9, 1])
    for path, message in {
        small(): "holds no arr_1",
        small(labels=labels[:2], name="few.npz"): "arr_1 is int64 (2,); it must be whole numbers, one for each of 4",
        small(labels=labels + 1, name="high.npz"): "the labels in arr_1 go from 0 to 10; the model's go from 0 to 9",
    }.items():
        capsys.readouterr()
        assert run(conditional_upsampler, "--mode=sample", f"--config.sample.low_res={path}") == 2
        assert message in one_line(capsys)
    flags = [f"--config.sample.low_res={small(labels=labels)}", "--config.sample.labels=3"]
    assert run(conditional_upsampler, "--mode=sample", *flags) == 2
    assert "sample.labels=('3',) must stay all" in one_line(capsys)


# --- what is refused


def one_line(capsys):
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and "\n" not in line
    return line


def test_small_pictures_that_do_not_fit_are_refused(upsampler, imported, small, tmp_path, capsys):
    capsys.readouterr()
    (tmp_path / "text.npz").write_text("no arrays")
    for path, message in {
        "": "sample.low_res is missing",
        tmp_path / "absent.npz": "absent.npz is no file",
        tmp_path / "text.npz": "text.npz is no .npz of plain arrays",
        small(np.zeros((4, 9, 9, 3), np.uint8), name="a.npz"): "has shape (4, 9, 9, 3); the model enlarges (n, 8, 8",
        small(np.zeros((4, 8, 8, 3), np.float32), name="b.npz"): "arr_0 is float32; it must be uint8 in 0 .. 255",
        small(np.zeros((2, 8, 8, 3), np.uint8), name="c.npz"): "sample.count=3, but",
    }.items():
        assert run(upsampler, "--mode=sample", f"--config.sample.low_res={path}") == 2
        assert message in one_line(capsys)
    assert run(imported, "--mode=sample", "--config.sample.low_res=a.npz") == 2
    assert "is for super-resolution models, which this run is none" in one_line(capsys)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--config.model.width=64",
            "label_emb.weight (10, 128) instead of (10, 256), time_embed.0.weight (128, 32) instead of (256, 64)",
        ),
        ("--config.model.use_labels=False", "1 extra (label_emb.weight)"),
        ("--config.diffusion.variance=fixed_small", "2 misshapen (out.2.weight"),
        ("--config.model.name=super_resolution", "is a unet of guided-diffusion"),
        ("--config.sample.guidance.weight=1", "sample.guidance.weight=1 needs a null class"),
        ("--import_path=absent.pt", "absent.pt is no file"),
        ("--import_path=", "--import_path is missing"),
    ],
)
def test_weights_that_do_not_fit_leave_nothing_behind(net2_files, tmp_path, capsys, flag, message):
    capsys.readouterr()
    assert import_(tmp_path / "run", net2_files, flag) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_is_not_overwritten(imported, net2_files, capsys):
    before = (imported / "config.json").read_text()
    capsys.readouterr()
    assert import_(imported, net2_files) == 2
    assert "already has a checkpoint, of step 0" in one_line(capsys)
    assert import_(imported, net2_files, "--config.diffusion.schedule=linear") == 2
    assert "diffusion.schedule='linear' (the run's is 'cosine')" in one_line(capsys)
    assert (imported / "config.json").read_text() == before


def test_export_wants_a_known_ending_and_a_run(imported, tmp_path, capsys):
    capsys.readouterr()
    for name in ("a.ckpt", "a.pt"):
        assert run(imported, "--mode=export", f"--export_path={name}") == 2
        assert f"{name}: weights are written as .safetensors only; use a.safetensors" in one_line(capsys)
    (tmp_path / "config.json").write_text((imported / "config.json").read_text())
    assert run(tmp_path, "--mode=export", "--export_path=a.safetensors") == 2
    assert "has not been trained yet" in one_line(capsys)


def test_training_goes_on_from_what_was_imported(made, tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 99)).save(tmp_path / "data" / f"{i}.png")
    unet = UNet(width=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), head_width=32)
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    like = jax.eval_shape(unet.init, jax.random.key(0), x, jnp.zeros(1), {})["params"]
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01), like)
    weights = adm.state_dict_from_params(unet, params, image_size=8, attention_order="legacy")
    made_files = made("tiny", TINY, weights)
    workdir = epath.Path(tmp_path / "run")
    assert import_(workdir, made_files, f"--config.data.data_dir={tmp_path / 'data'}") == 0
    assert run(workdir) == 0
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        assert checkpoints.latest == 2 and checkpoints.source is None
        after, _, _ = checkpoints.restore_ema(sharding.abstract_with_sharding(like, sharding.mesh()))
    jax.tree.map(np.testing.assert_array_equal, params, after)
