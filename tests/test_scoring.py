"""Scoring images: the data set's classifier, cached references, files of samples, and the sweep."""

import dataclasses
import json
import shutil
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_runs
from etils import epath
from jax.tree_util import Partial
from PIL import Image
from test_commands import TINY

from guided_diffusion_jax.commands.cli import main, parse
from guided_diffusion_jax.data import from_arrays
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.evaluation import cache, dataset_features, measurements, metrics, reference, statistics, sweep
from guided_diffusion_jax.evaluation.feature_pipeline import FeaturePipeline
from guided_diffusion_jax.evaluation.metrics import METRICS
from guided_diffusion_jax.evaluation.scorer import Scorer
from guided_diffusion_jax.experiment import build
from guided_diffusion_jax.experiment.config import preset
from guided_diffusion_jax.interop import files as interop_files

RNG = np.random.default_rng(0)
WARNING = "biased; read KID"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Digits; their classifier is trained for a few steps only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_features, "num_steps", lambda count: 25)
        yield tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def config(data_dir):
    config = preset("digits")
    config.data.data_dir = str(data_dir)
    return config


@pytest.fixture(scope="module")
def test_split(config):
    return build.dataset(config, "test")


@pytest.fixture(scope="module")
def train_split(config):
    return build.dataset(config)


@pytest.fixture(scope="module")
def scorer(train_split, test_split):
    return Scorer(test_split, train_split)


@pytest.fixture(scope="module")
def real(test_split):
    return test_split.read(np.arange(len(test_split)))


@pytest.fixture
def untrained(monkeypatch):
    """Training the data set's classifier is an error."""

    def train_classifier(*_):
        raise RuntimeError("it is trained")

    monkeypatch.setattr(dataset_features, "train_classifier", train_classifier)


# --- the scores


def test_real_images_score_well_and_noise_does_not(scorer, real):
    good = scorer.scores(real["image"], real["label"])
    noise = RNG.integers(0, 256, real["image"].shape, np.uint8)
    bad = scorer.scores(noise, real["label"])
    assert good["fd"] < bad["fd"] / 10 and good["sfid"] < bad["sfid"] / 10
    assert good["kid"] < bad["kid"]
    for name in ("precision", "recall", "density", "coverage"):
        assert good[name] > 0.5 > bad[name], name
    assert (good["count"], good["reference_count"]) == (297, 1500)
    assert not good["warnings"]


def test_accuracy_of_real_images_is_the_classifiers_which_its_name_states(scorer, real):
    found = scorer.scores(real["image"], real["label"])
    assert found["accuracy"] == scorer.classifier.accuracy > 0.3
    assert found["features"] == found["accuracy_by"] == scorer.name
    assert scorer.name == f"classifier of digits (train), {scorer.classifier.accuracy:.1%} right on digits (test)"
    each = found["accuracy_by_class"]
    assert [one["name"] for one in each] == [str(i) for i in range(10)]
    assert [one["num_images"] for one in each] == np.bincount(real["label"]).tolist()
    assert sum(one["accuracy"] * one["num_images"] for one in each) / 297 == pytest.approx(found["accuracy"])
    assert scorer.scores(real["image"], None)["accuracy"] is None


def test_the_training_split_is_the_reference(scorer):
    images = scorer.train.read(np.arange(1500))["image"]
    found = scorer.scores(images, None)
    assert found["fd"] == pytest.approx(0, abs=1e-6) and found["precision"] == found["recall"] == 1
    rows, distances = scorer.nearest(images[7:12], 2)
    np.testing.assert_array_equal(rows[:, 0], np.arange(7, 12))
    np.testing.assert_allclose(distances[:, 0], 0, atol=1e-5)
    assert (distances[:, 1] > 0).all() and scorer.num_searched == 1500


def test_a_reference_is_numpys_mean_and_covariance_of_features_in_any_batches(scorer, test_split, real):
    pipeline = FeaturePipeline([scorer.classifier.extractor], 50)
    found = statistics.of_dataset(test_split, pipeline, "any")
    direct = np.asarray(scorer.classifier.extractor.apply(real["image"]).pool)
    np.testing.assert_allclose(found.features, direct[found.rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.pool.mean, direct.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.pool.covariance, np.cov(direct, rowvar=False), rtol=1e-3, atol=1e-6)
    assert sorted(found.rows) == list(range(297))


def test_a_large_reference_is_searched_in_part(scorer, test_split, monkeypatch):
    monkeypatch.setattr(statistics, "KEPT_NUMBERS", 64 * 20)
    pipeline = FeaturePipeline([scorer.classifier.extractor], 50)
    found = statistics.of_dataset(test_split, pipeline, "any")
    assert found.features.shape == (20, 64) and len(set(found.rows)) == 20 and found.num_images == 297
    direct = np.asarray(scorer.classifier.extractor.apply(test_split.read(found.rows)["image"]).pool)
    np.testing.assert_allclose(found.features, direct, rtol=1e-4, atol=1e-5)


# --- the cache


def test_nothing_is_computed_twice(train_split, test_split, scorer, real, untrained, monkeypatch):
    assert scorer._reference.num_images == 1500  # computed and cached by now
    monkeypatch.setattr(FeaturePipeline, "dataset", lambda *_: 1 / 0)
    again = Scorer(test_split, train_split)
    assert again.name == scorer.name
    assert again.scores(real["image"], real["label"]) == scorer.scores(real["image"], real["label"])


def test_a_changed_data_set_is_learned_anew(scorer, test_split, untrained):
    images, labels = (scorer.train.read(np.arange(1500))[key] for key in ("image", "label"))
    images[700, 3, 3] ^= 1
    changed = dataclasses.replace(scorer.train, read=lambda rows: {"image": images[rows], "label": labels[rows]})
    where = cache.folders(scorer.train, None)
    found = dataset_features.dataset_features(scorer.train, test_split, where)
    assert found.extractor.name == scorer.name
    with pytest.raises(RuntimeError, match="it is trained"):
        dataset_features.dataset_features(changed, test_split, where)


def test_rows_of_a_sweep_are_cached_until_a_setting_changes(tmp_path):
    path, calls = tmp_path / "sweep" / "rows.json", []
    compute = lambda: calls.append(0) or [{"fd": 1.0}]  # noqa: E731
    for settings in ({"weight": (0, 1)}, {"weight": [0, 1]}, {"weight": (0, 2)}):
        assert cache.rows(path, settings, compute) == [{"fd": 1.0}]
    assert len(calls) == 2


def test_what_cannot_be_cached_with_the_data_is_cached_with_the_run(tmp_path, capsys):
    (tmp_path / "file").touch()
    where = [epath.Path(tmp_path / "file" / "evaluation"), epath.Path(tmp_path / "run")]
    made = []

    def make():
        made.append(0)
        return {"a": np.arange(3), "b/c": np.float64(0.5)}

    for _ in range(2):
        found = cache.arrays("x.npz", where, make)
        np.testing.assert_array_equal(found["a"], [0, 1, 2])
        assert found["b/c"] == 0.5
    assert len(made) == 1 and [path.name for path in (tmp_path / "run").iterdir()] == ["x.npz"]
    (tmp_path / "run" / "x.npz").write_bytes((tmp_path / "run" / "x.npz").read_bytes()[:100])
    cache.arrays("x.npz", where, make)
    assert len(made) == 2, "a damaged file is made again"
    assert not capsys.readouterr().out
    cache.arrays("x.npz", where[:1], make)
    assert "is not cached" in capsys.readouterr().out


# --- the data set's classifier


@pytest.mark.parametrize("shape", [(2, 2, 1), (8, 8, 1), (28, 28, 1), (32, 32, 3), (100, 100, 4), (256, 256, 3)])
def test_it_fits_any_images(shape):
    found, _ = jax.eval_shape(
        dataset_features.DatasetClassifier(7).init_with_output, jax.random.key(0), np.zeros((5, *shape), np.float32)
    )
    assert found.pool.shape == (5, dataset_features.WIDTH) and found.logits.shape == (5, 7)
    assert found.spatial.shape[1] <= dataset_features.SPATIAL_CHANNELS * dataset_features.COARSEST**2


def test_rotations_stand_in_for_classes():
    images = RNG.integers(0, 256, (5, 6, 6, 3), np.uint8)
    turned = dataset_features.rotated(from_arrays(images))
    batch = turned.read(np.arange(20))
    assert len(turned) == 20 and turned.num_classes == 4
    for number in range(20):
        assert batch["label"][number] == number % 4
        np.testing.assert_array_equal(np.rot90(batch["image"][number], -(number % 4)), images[number // 4])
    network = dataset_features.DatasetClassifier(4)
    params = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 6, 6, 3), np.float32))["params"]
    apply = dataset_features.classifier_extractor("", network, params, has_classes=False).apply
    assert jax.eval_shape(lambda params: apply.func(params, images), params).logits is None


# --- as users type it


def typed(workdir, data_dir, *flags):
    given = ["--config=configs/digits.py", f"--config.data.data_dir={data_dir}", *TINY, f"--workdir={workdir}"]
    return main(["main.py", *given, "--mode=evaluate", "--config.evaluate.count=0", *flags])


def test_anybodys_file_is_scored_without_a_run(data_dir, scorer, real, tmp_path, capsys):
    np.savez(tmp_path / "theirs.npz", real["image"][:40], real["label"][:40])
    assert typed(tmp_path / "none", data_dir, f"--config.evaluate.samples={tmp_path / 'theirs.npz'}") == 0
    said = capsys.readouterr().out
    assert scorer.name in said and WARNING in said and "KID" in said
    written = json.loads((tmp_path / "none" / "evaluate_theirs.json").read_text())["metrics"]["scores"]
    expected = scorer.scores(real["image"][:40], real["label"][:40])
    assert written["fd"] == pytest.approx(expected["fd"], rel=1e-4) and written["accuracy"] == expected["accuracy"]


def test_a_file_of_images_is_a_reference(data_dir, real, tmp_path):
    np.savez(tmp_path / "a.npz", real["image"])
    flags = [f"--config.evaluate.{key}={tmp_path / 'a.npz'}" for key in ("samples", "reference")]
    assert typed(tmp_path, data_dir, *flags) == 0
    written = json.loads((tmp_path / "evaluate_a.json").read_text())["metrics"]["scores"]
    assert written["fd"] == pytest.approx(0, abs=1e-6) and written["reference_count"] == 297
    assert written["accuracy"] is None


PICTURES = RNG.integers(0, 256, (8, 8, 8, 1), np.uint8)
FILES = {
    "size": ({"arr_0": np.zeros((8, 16, 16, 1), np.uint8)}, r"images are (16, 16, 1)"),
    "floats": ({"arr_0": PICTURES / 127.5 - 1}, "arr_0 is float64; it must be uint8"),
    "range": ({"arr_0": PICTURES // 255}, "hold only 0 and 1; they must be uint8 in 0 .. 255"),
    "few": ({"arr_0": PICTURES[:3]}, "3 images, too few"),
    "labels": ({"arr_0": PICTURES, "arr_1": np.arange(8) + 5}, "go from 5 to 12"),
    "none": ({"arr_0": PICTURES[:0]}, "no images"),
}


@pytest.mark.parametrize("name", FILES)
def test_wrong_samples_give_one_line_before_anything_is_trained(name, data_dir, tmp_path, untrained, capsys):
    arrays, message = FILES[name]
    np.savez(tmp_path / "a.npz", **arrays)
    assert typed(tmp_path, data_dir, f"--config.evaluate.samples={tmp_path / 'a.npz'}") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("samples=HERE/empty.npz", "empty.npz is empty (0 bytes)"),
        ("samples=HERE/missing.npz", "is no file"),
        ("samples=HERE/garbage.npz", "is no .npz of plain arrays"),
        ("samples=HERE/good.npz features=inceptoin", "did you mean 'inception'"),
        ("samples=HERE/good.npz features=inception", "needs feature_weights"),
        ("samples=HERE/good.npz features=inception feature_weights=HERE/missing.pth", "is no file"),
        (
            "samples=HERE/good.npz features=inception feature_weights=HERE/other.safetensors",
            "SHA-256 begins with 6726825d",
        ),
        ("samples=HERE/good.npz feature_weights=HERE/garbage.npz", "features=own has none"),
        ("samples=HERE/good.npz reference=HERE/statistics.npz", "statistics are for features=inception"),
        ("metrics=('scores',) count=3", "3 images are too few"),
        ("metrics=('scores',)", "train it first"),
    ],
)
def test_wrong_settings_give_one_line(flags, message, data_dir, tmp_path, scorer, capsys):
    (tmp_path / "empty.npz").touch()
    (tmp_path / "garbage.npz").write_text("no archive")
    np.savez(tmp_path / "good.npz", PICTURES)
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    interop_files.write(tmp_path / "other.safetensors", {"a": np.zeros(3, np.float32)})
    given = [f"--config.evaluate.{flag}".replace("HERE", str(tmp_path)) for flag in flags.split()]
    assert typed(tmp_path, data_dir, *given) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "message"),
    [("weight=x", "sweep.weight"), ("steps=(5000,)", "5000"), ("classifier_weight=(1.0,)", "--mode=classifier")],
)
def test_wrong_settings_of_a_sweep_give_one_line(run, flag, message, scorer, tmp_path, capsys):
    workdir = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("classifier"))
    assert main(["main.py", f"--workdir={workdir}", "--mode=evaluate", f"--config.evaluate.sweep.{flag}"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# --- of a run


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """A run with its classifier, of random parameters: nothing is trained."""
    workdir = epath.Path(tmp_path_factory.mktemp("runs"))
    given = ["--config=configs/digits.py", f"--config.data.data_dir={data_dir}", *TINY, f"--workdir={workdir}"]
    _, config = parse(["main.py", *given])
    random_runs.write(config, workdir)
    random_runs.write(config, workdir / "classifier", "classifier")
    return workdir


def evaluated(workdir, *flags):
    assert main(["main.py", f"--workdir={workdir}", "--mode=evaluate", *flags]) == 0


def test_a_run_is_drawn_from_and_scored(run, scorer, capsys):
    evaluated(run, "--config.evaluate.metrics=('scores',)", "--config.evaluate.count=20")
    assert scorer.name in capsys.readouterr().out
    found = json.loads((run / "evaluate.json").read_text())
    scores = found["metrics"]["scores"]
    assert scores["count"] == 20 and 0 <= scores["accuracy"] <= 1 and found["checkpoint_step"] == 4
    assert [one["num_images"] for one in scores["accuracy_by_class"]] == [2] * 10


def test_a_sweep_scores_every_weight_on_the_same_seeds_with_one_program(run, monkeypatch):
    counted, after = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: counted.append(event) if "backend_compile" in event else None
    )
    measure = sweep.measure
    monkeypatch.setattr(sweep, "measure", lambda *a: (measure(*a), after.append(len(counted)))[0])
    flags = ["--config.evaluate.count=20", "--config.evaluate.sweep.weight=(0.0,1000.0)"]
    flags.append("--config.evaluate.sweep.steps=(2,3)")
    evaluated(run, *flags, "--config.evaluate.sweep.classifier_weight=(0.0,1000.0)")
    rows = json.loads((run / "sweep.json").read_text())
    points = [(row["method"], row["steps"], row["weight"]) for row in rows]
    assert points == [
        (kind, n, w) for kind, ws in (("cfg", (0, 1000)), ("classifier", (0, 1000))) for n in (2, 3) for w in ws
    ]
    assert after[0] == after[3] and after[4] == after[7], "changing weights and steps compiles nothing"
    for row in rows:
        guided = row["method"] == "classifier"
        assert row["evaluations"] == int(row["steps"]) * (1 if guided else 2)
        assert row["classifier_evaluations"] == int(row["steps"]) * guided
        assert row["seconds"] > 0 and row["peak_bytes"] > 0
        assert {"fd", "precision", "recall", "coverage", "accuracy", "features"} <= row.keys()
    assert rows[4]["parameters"] > rows[0]["parameters"] > 0
    pictures = {}
    for kind, steps, weight in points:
        with np.load(run / "sweep" / f"{kind}_w{weight:g}_n{steps}.npz") as arrays:
            pictures[kind, steps, weight] = arrays["arr_0"].astype(int)
            np.testing.assert_array_equal(arrays["arr_1"], np.arange(20) % 10)
    for kind in ("cfg", "classifier"):
        assert (pictures[kind, 3, 0.0] != pictures[kind, 3, 1000.0]).any()
    main(["main.py", f"--workdir={run}", "--mode=sample", "--config.sample.count=20", "--config.sample.frames=0",
          "--config.sample.guidance.weight=1000", "--config.sample.steps=3", f"--out={run / 'out'}"])  # fmt: skip
    with np.load(run / "out" / "samples.npz") as arrays:
        assert abs(arrays["arr_0"].astype(int) - pictures["cfg", 3, 1000.0]).max() <= 1


# --- folders of images


def image_folder(folder, images, extension="png", mode=None):
    """Writes images into a folder, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        made = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        made.convert(mode or made.mode).save(folder / f"{number}.{extension}")
    return folder


def test_a_folder_of_images_is_scored_like_the_same_images_in_a_file(data_dir, real, scorer, tmp_path):
    for name in ("0", "1"):  # the classes' names, so that the folders are the labels
        chosen = real["image"][real["label"] == int(name)][:10]
        image_folder(tmp_path / "theirs" / name / "deeper", chosen)
    assert typed(tmp_path, data_dir, f"--config.evaluate.samples={tmp_path / 'theirs'}/") == 0
    found = json.loads((tmp_path / "evaluate_theirs.json").read_text())["metrics"]["scores"]
    images = np.concatenate([real["image"][real["label"] == number][:10] for number in (0, 1)])
    expected = scorer.scores(images, np.repeat([0, 1], 10))
    assert found["fd"] == pytest.approx(expected["fd"], rel=1e-4) and found["accuracy"] == expected["accuracy"]


def test_a_folder_is_a_reference(data_dir, real, tmp_path):
    image_folder(tmp_path / "pics", real["image"][:40])
    flags = [f"--config.evaluate.{key}={tmp_path / 'pics'}" for key in ("samples", "reference")]
    assert typed(tmp_path, data_dir, *flags) == 0
    found = json.loads((tmp_path / "evaluate_pics.json").read_text())["metrics"]["scores"]
    assert found["fd"] == pytest.approx(0, abs=1e-6) and found["reference_count"] == 40 and found["accuracy"] is None


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"": (8, "png"), "deep/er": (9, "png")}, "er/0.png is 9 x 9 pixels (width x height) instead of 8 x 8"),
        ({"": (12, "jpg")}, "0.jpg is 12 x 12 pixels (width x height) instead of 8 x 8; crop and scale"),
        ({}, "holds no images that Pillow reads (1 without ending, 2 .txt)"),
        ({"": (8, "damaged")}, "0.png cannot be read as an image"),
        ({"": (8, "npz")}, "samples.npz, which lies there"),
    ],
)
@pytest.mark.parametrize("key", ["samples", "reference"])
def test_a_folder_that_cannot_be_used_is_one_line(key, contents, message, data_dir, tmp_path, untrained, capsys):
    np.savez(tmp_path / "good.npz", PICTURES)
    folder = tmp_path / "pics"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "README"):
        (folder / name).write_text("words")
    for place, (size, extension) in contents.items():
        pictures = RNG.integers(0, 256, (6, size, size, 3), np.uint8)
        image_folder(folder / place, pictures, extension if extension in ("png", "jpg") else "png")
        if extension == "damaged":
            (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:60])
        if extension == "npz":
            np.savez(folder / "samples.npz", pictures)
            Image.new("L", (100, 80)).save(folder / "samples.png")
    given = {"samples": tmp_path / "good.npz", key: folder}
    assert typed(tmp_path, data_dir, *(f"--config.evaluate.{k}={v}" for k, v in given.items())) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_folders_are_read_whatever_is_in_them(tmp_path):
    pictures = RNG.integers(0, 256, (7, 8, 10, 3), np.uint8)
    folder = image_folder(tmp_path / "pics", pictures[:3])
    image_folder(folder / "a" / "b", pictures[3:5], "BMP")
    image_folder(folder / ".hidden", pictures)
    image_folder(folder / "c", pictures[5:], "tiff", "RGBA")
    (folder / "notes.txt").write_text("words")
    (folder / "a" / "again").symlink_to(folder, target_is_directory=True)
    (folder / "gone.png").symlink_to(tmp_path / "missing.png")
    found = reference.samples(folder)
    assert found.shape == (7, 8, 10, 3) and found.name == "pics"
    together = np.concatenate(list(reference.blocks(found, 4)))
    assert sorted(map(bytes, together)) == sorted(map(bytes, pictures))
    assert reference.samples(folder, (8, 10, 1)).shape[3] == 1, "converted to what is wanted"
    grey = image_folder(tmp_path / "grey", pictures, mode="L")
    assert reference.samples(grey).shape[3] == 1
    before = found.digest
    Image.fromarray(pictures[1]).save(folder / "0.png")
    assert reference.samples(folder).digest != before


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PICTURES / 255, "images is an array of float64; it must be uint8"),
        (PICTURES.tolist(), "images is an array of int64"),
        (PICTURES[0], r"shape \(8, 8, 1\); it must be \[n h w c\]"),
        ([np.zeros((4, 4, 1), np.uint8), np.zeros((5, 4, 1), np.uint8)], "the images differ in shape"),
        (np.zeros((3, 4, 4, 4), np.uint8), "1 or 3 channels"),
        ("nowhere", "nowhere is no file and no folder"),
    ],
)
def test_the_functions_of_metrics_refuse_what_is_no_set_of_images(images, message):
    for wrong in (lambda: metrics.extract(images, "pixels"), lambda: metrics.fid(images, PICTURES, "pixels")):
        with pytest.raises(InputError, match=message):
            wrong()


def test_the_functions_of_metrics_take_arrays_lists_files_and_folders(tmp_path):
    np.savez(tmp_path / "a.npz", PICTURES)
    same = (PICTURES, list(PICTURES), tmp_path / "a.npz", str(image_folder(tmp_path / "pics", PICTURES)))
    for images in same:
        assert metrics.fid(images, PICTURES, "pixels") == pytest.approx(0, abs=1e-6)
        assert metrics.extract(images, "pixels").shape == (8, 64)


# --- evaluate.json


def measured(metric, step=4, values=0.0, **settings):
    return measurements.Measurement(metric, step, settings, {"value": values})


def test_measurements_stay_unless_everything_that_they_depend_on_is_the_same(tmp_path):
    path = epath.Path(tmp_path / "evaluate.json")
    calls = [
        [measured("bpd", values=1.0, count=10)],
        [measured("scores", values=2.0, conditions=("a", "b")), measured("adherence", values=3.0)],
        [measured("bpd", values=4.0, count=20)],  # other settings
        [measured("bpd", 8, values=5.0, count=10)],  # another checkpoint
    ]
    for call in calls:
        content, said = measurements.add(path, call, run="x")
        assert not said
    assert [one["values"]["value"] for one in content["measurements"]] == [1, 2, 3, 4, 5]
    assert content["metrics"] == {"bpd": {"value": 5.0}} and content["run"] == "x"
    assert json.loads(path.read_text()) == json.loads(json.dumps(content))

    _, said = measurements.add(path, calls[1])
    assert not said, "the same again"
    content, said = measurements.add(path, [measured("bpd", values=9.0, count=10)])
    assert len(said) == 1 and "bpd was measured before with the same settings" in said[0]
    assert sorted(one["values"]["value"] for one in content["measurements"]) == [2, 3, 4, 5, 9]
    assert {name: found["value"] for name, found in content["metrics"].items()} == {
        "bpd": 9, "scores": 2, "adherence": 3
    }  # fmt: skip


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"measurements": [{"metric": 1}]}', '{"measurements": 3}', "\0\0"])
def test_a_damaged_file_is_kept_aside(damage, tmp_path):
    path = epath.Path(tmp_path / "evaluate.json")
    for number in (1, 2):
        path.write_text(damage)
        content, said = measurements.add(path, [measured("bpd")])
        assert len(content["measurements"]) == 1 and "could not be read, and is now" in said[0]
        assert len(list(tmp_path.glob("evaluate.damaged*.json"))) == number


def test_the_file_of_version_0_2_is_kept_as_a_measurement(tmp_path):
    path = epath.Path(tmp_path / "evaluate.json")
    old = {"checkpoint_step": 4, "count": 20, "evaluate": {"count": 20}, "run": "x", "metrics": {"bpd": {"total": 3.0}}}
    path.write_text(json.dumps(old))
    content, said = measurements.add(path, [measured("scores")])
    assert not said and content["metrics"] == {"bpd": {"total": 3.0}, "scores": {"value": 0.0}}


def test_points_of_other_sweeps_stay(tmp_path):
    path, row = epath.Path(tmp_path / "sweep.json"), {"method": "cfg", "weight": 1.0, "steps": 20, "fd": 3.0}
    for fd, weight, step in ((3.0, 1.0, 4), (4.0, 2.0, 4), (5.0, 1.0, 8), (6.0, 1.0, 4)):
        assert not measurements.add_points(path, [row | {"fd": fd, "weight": weight}], checkpoint_step=step)
    assert [one["fd"] for one in json.loads(path.read_text())] == [4.0, 5.0, 6.0]
    path.write_text("{")
    assert "could not be read" in measurements.add_points(path, [row])[0]


@pytest.mark.slow  # above: what is added to the file, and a run that is drawn from and scored
def test_evaluations_of_a_run_are_kept_beside_each_other(run, capsys):
    for seed in (0, 1):
        flags = ("--config.evaluate.count=20", f"--config.sample.seed={seed}")
        evaluated(run, "--config.evaluate.metrics=('scores',)", *flags)
    found = json.loads((run / "evaluate.json").read_text())
    seeds = {one["settings"]["sample.seed"]: one["values"] for one in found["measurements"]}
    assert seeds.keys() == {0, 1} and seeds[0]["fd"] != seeds[1]["fd"] == found["metrics"]["scores"]["fd"]
    assert "(beside 1 earlier)" in capsys.readouterr().out


# --- what is printed


VALUES = {"count": 20, "reference_count": 1500, "compared_count": 20, "features": "pixels", "warnings": []}


@pytest.mark.parametrize(
    ("scores", "lines"),
    [
        ({"fd": 0.012345, "kid": -0.00123, "kid_std": 0.00456}, ["FD 0.0123, KID -0.00123 ± 0.0046", "KID below 0"]),
        ({"fd": 12345.6, "kid": 0.5}, ["FD 12,346, KID 0.5"]),
        ({"precision": 0.25, "density": 1.0}, ["k = 3 (precision), k = 5 (density), among 20 of each"]),
        (
            {"accuracy": 0.956, "accuracy_by": "c", "accuracy_by_class": [{"name": "cat", "accuracy": 0.5}]},
            ["accuracy 0.956", "of each class: cat 50 %"],
        ),
    ],
)
def test_printed_scores_say_n_and_k_in_one_style_of_numbers(scores, lines):
    text = metrics.summary(VALUES | scores)
    assert text.startswith("n = 20 images against 1,500; features: pixels")
    assert all(line in text for line in lines), text
    assert ("KID below 0" in text) == (scores.get("kid", 0) < 0) and "e-" not in text


# --- splits


@pytest.mark.parametrize("metric", ["scores", "bpd", "adherence"])
def test_a_missing_split_names_the_training_split(metric, tmp_path, capsys):
    image_folder(tmp_path / "photos", PICTURES)
    given = ["--config=default", f"--config.data.data_dir={tmp_path / 'photos'}", "--config.data.image_size=8", *TINY]
    flags = [f"--workdir={tmp_path / 'run'}", "--mode=evaluate", f"--config.evaluate.metrics=('{metric}',)"]
    assert main(["main.py", *given, *flags]) == 2
    error = capsys.readouterr().err
    assert "evaluate.split=train" in error and "has no split 'test'" in error and error.count("\n") == 1


def test_a_folder_that_cannot_be_opened_at_all_is_not_about_its_split(tmp_path, capsys):
    given = ["--config=default", f"--config.data.data_dir={tmp_path / 'gone'}", *TINY, f"--workdir={tmp_path / 'run'}"]
    assert main(["main.py", *given, "--mode=evaluate"]) == 2
    assert "evaluate.split" not in capsys.readouterr().err


# --- the sweep of any pipeline


class StubRequest(NamedTuple):
    """The part of a request that a sweep reads: here the images are the labels' real ones, blended with noise."""

    labels: np.ndarray
    weight: float
    steps: int
    guides: tuple
    branches: tuple
    null: dict

    @property
    def num_steps(self):
        return self.steps

    @property
    def sampler(self):
        return SimpleNamespace(evaluations=2)

    def prune_branches(self):
        return self._replace(branches=()) if self.weight in (0, -1) else self


class StubPipeline:
    def __init__(self, real):
        self.real, self.params = real, {"a": jnp.zeros(3)}

    def request(self, *, labels, steps, weight=0.0, classifier_weight=None):
        guides = () if classifier_weight is None else (SimpleNamespace(log_prob=Partial(max, jnp.zeros(4))),)
        return StubRequest(labels, weight, steps, guides, ({"label": labels},), {"label": labels})

    def generate(self, request):
        order = np.argsort(self.real["label"], kind="stable")
        starts = np.searchsorted(self.real["label"][order], request.labels)
        images = self.real["image"][order[(starts + np.arange(len(request.labels)) // 10) % len(order)]]
        noise = np.random.default_rng(0).integers(-60, 61, images.shape) * (4 - request.weight) / 4
        return np.clip(images + noise, 0, 255).astype(np.uint8)


def test_a_sweep_needs_nothing_but_a_pipeline(scorer, real, tmp_path, capsys):
    rows = sweep.sweep(
        StubPipeline(real), scorer, weight=[0, 2, 4], classifier_weight=[1], steps=[3], image_dir=tmp_path
    )
    assert [(row["method"], row["weight"]) for row in rows] == [("cfg", 0), ("cfg", 2), ("cfg", 4), ("classifier", 1)]
    assert rows[0]["fd"] > rows[2]["fd"] and rows[0]["accuracy"] < rows[2]["accuracy"]
    assert [row["evaluations"] for row in rows] == [12, 12, 12, 6], "3 steps, 2 evaluations each, 2 branches"
    assert [row["classifier_evaluations"] for row in rows] == [0, 0, 0, 6]
    assert [row["parameters"] for row in rows] == [3, 3, 3, 7] and rows[0]["count"] == len(real["image"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all(METRICS[name].title in lines[1] for name in ("fd", "kid", "recall", "accuracy"))
    with np.load(tmp_path / "cfg_w2_n3.npz") as arrays:
        np.testing.assert_array_equal(np.bincount(arrays["arr_1"]), np.full(10, sweep.IMAGES_PER_CLASS))
