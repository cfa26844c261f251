"""Scoring pictures: the embedded extractor, references that are computed once, files of anybody, and the sweep."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from test_commands import TINY

from configs.digits import get_config
from guided_diffusion_jax.commands import build, networks
from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.commands.evaluate import extractors, kept, references, scoring, sweep
from guided_diffusion_jax.commands.evaluate.scoring import Scorer
from guided_diffusion_jax.data.pipeline import batches
from guided_diffusion_jax.data.source import from_arrays
from guided_diffusion_jax.evaluation import own
from guided_diffusion_jax.interop import files
from guided_diffusion_jax.training import state
from guided_diffusion_jax.training.checkpoint import Checkpoints
from main import main, parse

RNG = np.random.default_rng(0)
WARNING = "biased; read KID"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Digits; their own network is trained for a few steps only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "steps", lambda pictures: 25)
        yield tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def config(data_dir):
    config = get_config()
    config.data.data_dir = str(data_dir)
    return build.resolve(config, build.source(config))


@pytest.fixture(scope="module")
def test_split(config):
    return build.source(config, "test")


@pytest.fixture(scope="module")
def scorer(config, test_split):
    return Scorer(config, test_split)


@pytest.fixture(scope="module")
def real(test_split):
    return test_split.read(np.arange(len(test_split)))


@pytest.fixture
def untrained(monkeypatch):
    """Whoever would train the data set's own network fails."""

    def trained(*_):
        raise RuntimeError("it is trained")

    monkeypatch.setattr(extractors, "trained", trained)


# --- the scores


def test_real_pictures_score_well_and_noise_does_not(scorer, real):
    good = scorer.scores(real["image"], real["label"])
    noise = RNG.integers(0, 256, real["image"].shape, np.uint8)
    bad = scorer.scores(noise, real["label"])
    assert good["fd"] < bad["fd"] / 10 and good["sfid"] < bad["sfid"] / 10
    assert good["kid"] < bad["kid"]
    for name in ("precision", "recall", "density", "coverage"):
        assert good[name] > 0.5 > bad[name], name
    assert (good["count"], good["reference_count"]) == (297, 1500)
    assert not good["warnings"]


def test_accuracy_of_the_real_pictures_is_the_classifiers_own_which_its_name_tells(scorer, real):
    found = scorer.scores(real["image"], real["label"])
    assert found["accuracy"] == scorer.own.accuracy > 0.3
    assert found["features"] == found["accuracy_by"] == scorer.name
    assert scorer.name == f"own classifier of digits, {scorer.own.accuracy:.1%} right on its test split"
    each = found["accuracy_by_class"]
    assert [one["name"] for one in each] == [str(i) for i in range(10)]
    assert [one["pictures"] for one in each] == np.bincount(real["label"]).tolist()
    assert sum(one["accuracy"] * one["pictures"] for one in each) / 297 == pytest.approx(found["accuracy"])
    assert scorer.scores(real["image"], None)["accuracy"] is None


def test_the_training_split_is_the_reference(scorer):
    images = scorer.train.read(np.arange(1500))["image"]
    found = scorer.scores(images, None)
    assert found["fd"] == pytest.approx(0, abs=1e-6) and found["precision"] == found["recall"] == 1
    rows, distances = scorer.nearest(images[7:12], 2)
    np.testing.assert_array_equal(rows[:, 0], np.arange(7, 12))
    np.testing.assert_allclose(distances[:, 0], 0, atol=1e-5)
    assert (distances[:, 1] > 0).all() and scorer.searched == 1500


def test_a_reference_is_numpys_mean_and_covariance_of_features_in_any_batches(scorer, config, test_split, real):
    viewer = extractors.Viewer([scorer.own.extractor], build.mesh(config, "train"), 50)
    kept_of = references.of_source(test_split, viewer, "any", [])
    direct = np.asarray(scorer.own.extractor.apply(real["image"]).pool)
    np.testing.assert_allclose(kept_of.features, direct[kept_of.rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kept_of.pool.mean, direct.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kept_of.pool.covariance, np.cov(direct, rowvar=False), rtol=1e-3, atol=1e-6)
    assert sorted(kept_of.rows) == list(range(297))


def test_a_large_reference_is_searched_in_part(scorer, config, test_split, monkeypatch):
    monkeypatch.setattr(references, "KEPT_NUMBERS", 64 * 20)
    viewer = extractors.Viewer([scorer.own.extractor], build.mesh(config, "train"), 50)
    found = references.of_source(test_split, viewer, "any", [])
    assert found.features.shape == (20, 64) and len(set(found.rows)) == 20 and found.pictures == 297
    direct = np.asarray(scorer.own.extractor.apply(test_split.read(found.rows)["image"]).pool)
    np.testing.assert_allclose(found.features, direct, rtol=1e-4, atol=1e-5)


# --- what is kept


def test_nothing_is_computed_twice(config, test_split, scorer, real, untrained, monkeypatch):
    monkeypatch.setattr(references, "_statistics", lambda *_: 1 / 0)
    again = Scorer(config, test_split)
    assert again.name == scorer.name
    assert again.scores(real["image"], real["label"]) == scorer.scores(real["image"], real["label"])


def test_a_changed_data_set_is_learned_anew(config, scorer, test_split, untrained):
    images, labels = (scorer.train.read(np.arange(1500))[key] for key in ("image", "label"))
    images[700, 3, 3] ^= 1
    changed = dataclasses.replace(scorer.train, read=lambda rows: {"image": images[rows], "label": labels[rows]})
    where = kept.folders(scorer.train, None)
    assert extractors.embedded(config, scorer.train, test_split, where).extractor.name == scorer.name
    with pytest.raises(RuntimeError, match="it is trained"):
        extractors.embedded(config, changed, test_split, where)


def test_what_cannot_be_kept_with_the_data_is_kept_with_the_run(tmp_path, capsys):
    (tmp_path / "file").touch()
    where = [epath.Path(tmp_path / "file" / "evaluation"), epath.Path(tmp_path / "run")]
    made = []

    def make():
        made.append(0)
        return {"a": np.arange(3), "b/c": np.float64(0.5)}

    for _ in range(2):
        found = kept.arrays("x.npz", where, make)
        np.testing.assert_array_equal(found["a"], [0, 1, 2])
        assert found["b/c"] == 0.5
    assert len(made) == 1 and [path.name for path in (tmp_path / "run").iterdir()] == ["x.npz"]
    (tmp_path / "run" / "x.npz").write_bytes((tmp_path / "run" / "x.npz").read_bytes()[:100])
    kept.arrays("x.npz", where, make)
    assert len(made) == 2, "a damaged file is made again"
    assert not capsys.readouterr().out
    kept.arrays("x.npz", where[:1], make)
    assert "is not kept" in capsys.readouterr().out


# --- the embedded extractor


@pytest.mark.parametrize("shape", [(2, 2, 1), (8, 8, 1), (28, 28, 1), (32, 32, 3), (100, 100, 4), (256, 256, 3)])
def test_it_fits_any_pictures(shape):
    found, _ = jax.eval_shape(own.Small(7).init_with_output, jax.random.key(0), np.zeros((5, *shape), np.float32))
    assert found.pool.shape == (5, own.WIDTH) and found.logits.shape == (5, 7)
    assert found.spatial.shape[1] <= own.SPATIAL * own.COARSEST**2


def test_pictures_without_classes_are_told_by_how_they_were_turned():
    images = RNG.integers(0, 256, (5, 6, 6, 3), np.uint8)
    turned = own.turned(from_arrays(images))
    batch = turned.read(np.arange(20))
    assert len(turned) == 20 and turned.num_classes == 4
    for number in range(20):
        assert batch["label"][number] == number % 4
        np.testing.assert_array_equal(np.rot90(batch["image"][number], -(number % 4)), images[number // 4])
    network = own.Small(4)
    params = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 6, 6, 3), np.float32))["params"]
    see = own.extractor("", network, params, told=False).apply
    assert jax.eval_shape(lambda params: see.func(params, images), params).logits is None


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


def test_a_file_of_pictures_is_a_reference(data_dir, real, tmp_path):
    np.savez(tmp_path / "a.npz", real["image"])
    flags = [f"--config.evaluate.{key}={tmp_path / 'a.npz'}" for key in ("samples", "reference")]
    assert typed(tmp_path, data_dir, *flags) == 0
    written = json.loads((tmp_path / "evaluate_a.json").read_text())["metrics"]["scores"]
    assert written["fd"] == pytest.approx(0, abs=1e-6) and written["reference_count"] == 297
    assert written["accuracy"] is None


PICTURES = RNG.integers(0, 256, (8, 8, 8, 1), np.uint8)
FILES = {
    "size": ({"arr_0": np.zeros((8, 16, 16, 1), np.uint8)}, r"pictures are (16, 16, 1)"),
    "floats": ({"arr_0": PICTURES / 127.5 - 1}, "arr_0 is float64; it must be uint8"),
    "range": ({"arr_0": PICTURES // 255}, "hold only 0 and 1; they must be uint8 in 0 .. 255"),
    "few": ({"arr_0": PICTURES[:3]}, "3 pictures, too few"),
    "labels": ({"arr_0": PICTURES, "arr_1": np.arange(8) + 5}, "go from 5 to 12"),
    "none": ({"arr_0": PICTURES[:0]}, "no pictures"),
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
        ("samples=HERE/good.npz features=inception", "needs evaluate.weights"),
        ("samples=HERE/good.npz features=inception weights=HERE/missing.pth", "is no file"),
        ("samples=HERE/good.npz features=inception weights=HERE/other.safetensors", "SHA-256 begins with 6726825d"),
        ("samples=HERE/good.npz weights=HERE/garbage.npz", "evaluate.features=own has none"),
        ("samples=HERE/good.npz reference=HERE/statistics.npz", "statistics are for evaluate.features=inception"),
        ("metrics=('scores',) count=3", "3 pictures are too few"),
        ("metrics=('scores',)", "train first"),
        ("sweep.weight=0,x", "must be numbers with commas"),
        ("sweep.steps=5000", "5000"),
        ("sweep.classifier_weight=1", "--mode=classifier"),
    ],
)
def test_wrong_settings_give_one_line(flags, message, data_dir, tmp_path, scorer, capsys):
    (tmp_path / "empty.npz").touch()
    (tmp_path / "garbage.npz").write_text("no archive")
    np.savez(tmp_path / "good.npz", PICTURES)
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    files.write(tmp_path / "other.safetensors", {"a": np.zeros(3, np.float32)})
    given = [f"--config.evaluate.{flag}".replace("HERE", str(tmp_path)) for flag in flags.split()]
    known = ["--config.data.channels=1", "--config.model.num_classes=10"]
    assert typed(tmp_path, data_dir, *known, *given) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# --- of a run


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """A run with its classifier, of random parameters: nothing is trained."""
    workdir = epath.Path(tmp_path_factory.mktemp("runs"))
    given = ["--config=configs/digits.py", f"--config.data.data_dir={data_dir}", *TINY, f"--workdir={workdir}"]
    _, config = parse(["main.py", *given])
    data = build.source(config)
    config = build.resolve(config, data)
    model = jax.eval_shape(lambda: networks.init(networks.network(config), config))
    told = jax.eval_shape(lambda: networks.init_classifier(networks.classifier(config, 10), config))
    for folder, shapes, part in ((workdir, model, "train"), (workdir / "classifier", told, "classifier")):
        params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * RNG.normal(size=leaf.shape), jnp.float32), shapes)
        made = state.create(params, build.optimizer(config, part), jax.random.key(0))
        with Checkpoints(folder / "checkpoints") as checkpoints:
            checkpoints.save(4, made, iter(batches(data, batch_size=4, seed=0)), {})
        configs.save(config, folder)
    return workdir


def evaluated(workdir, *flags):
    assert main(["main.py", f"--workdir={workdir}", "--mode=evaluate", *flags]) == 0


def test_a_run_is_drawn_from_and_scored(run, scorer, capsys):
    evaluated(run, "--config.evaluate.metrics=('scores',)", "--config.evaluate.count=20")
    assert scorer.name in capsys.readouterr().out
    found = json.loads((run / "evaluate.json").read_text())
    scores = found["metrics"]["scores"]
    assert scores["count"] == 20 and 0 <= scores["accuracy"] <= 1 and found["checkpoint_step"] == 4
    assert [one["pictures"] for one in scores["accuracy_by_class"]] == [2] * 10


def test_a_sweep_scores_every_weight_on_the_same_seeds_with_one_program(run, monkeypatch):
    counted, after = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: counted.append(event) if "backend_compile" in event else None
    )
    monkeypatch.setattr(sweep, "_show", lambda rows: after.append(len(counted)))
    flags = ["--config.evaluate.count=20", "--config.evaluate.sweep.weight=0,1000", "--config.evaluate.sweep.steps=2,3"]
    evaluated(run, *flags, "--config.evaluate.sweep.classifier_weight=0,1000")
    rows = json.loads((run / "sweep.json").read_text())
    points = [(row["kind"], row["steps"], row["weight"]) for row in rows]
    assert points == [
        (kind, n, w) for kind, ws in (("cfg", (0, 1000)), ("classifier", (0, 1000))) for n in "23" for w in ws
    ]
    assert after[0] == after[3] and after[4] == after[7], "changing weights and steps compiles nothing"
    for row in rows:
        guided = row["kind"] == "classifier"
        assert row["evaluations"] == int(row["steps"]) * (1 if guided else 2)
        assert row["classifier_evaluations"] == int(row["steps"]) * guided
        assert row["seconds"] > 0 and row["peak_bytes"] > 0 and row["seed"] == 0
        assert {"fd", "precision", "recall", "coverage", "accuracy", "features"} <= row.keys()
    assert rows[4]["parameters"] > rows[0]["parameters"] > 0
    pictures = {}
    for kind, steps, weight in points:
        with np.load(run / "sweep" / f"{kind}_w{weight:g}_n{steps}.npz") as arrays:
            pictures[kind, steps, weight] = arrays["arr_0"].astype(int)
            np.testing.assert_array_equal(arrays["arr_1"], np.arange(20) % 10)
    for kind in ("cfg", "classifier"):
        assert (pictures[kind, "3", 0.0] != pictures[kind, "3", 1000.0]).any()
    main(["main.py", f"--workdir={run}", "--mode=sample", "--config.sample.count=20", "--config.sample.frames=0",
          "--config.sample.guidance.weight=1000", "--config.sample.steps=3", f"--out={run / 'out'}"])  # fmt: skip
    with np.load(run / "out" / "samples.npz") as arrays:
        assert abs(arrays["arr_0"].astype(int) - pictures["cfg", "3", 1000.0]).max() <= 1


def test_scores_are_asked_for_in_all_classes_in_turn(config, test_split):
    np.testing.assert_array_equal(scoring.wanted(config, test_split, 12).labels, np.arange(12) % 10)
