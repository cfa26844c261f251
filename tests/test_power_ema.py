"""Averages with power functions as profiles, and any length of them made afterwards (Karras et al. 2024)."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import guided_diffusion_jax as gd
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.experiment.default import get_config
from guided_diffusion_jax.objectives import Losses, Objective
from guided_diffusion_jax.training import power_ema, state
from guided_diffusion_jax.training.checkpoint import Checkpoints
from guided_diffusion_jax.training.step import StepSettings, train_step

T = 80
LENGTHS = (0.05, 0.1)
DATA = gd.data.from_arrays(np.random.default_rng(0).integers(0, 256, (16, 4, 4, 1)).astype(np.uint8))


def trainer(workdir, lengths, **settings):
    """A run whose random numbers do not depend on what it averages."""
    return gd.Trainer(
        tiny.Network(), gd.Process(gd.schedules.cosine(20)), DATA, optimizer=optax.adam(0.01), workdir=workdir,
        settings=gd.TrainSettings(ema_decay=0.9, power_ema=lengths, keep=1, **settings),
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def model():
    """Descriptions of runs know the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gd.models.MODELS, "tiny", tiny.Network)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with snapshots every 10 steps, and its last state."""
    workdir = tmp_path_factory.mktemp("tracked") / "run"
    return workdir, trainer(workdir, LENGTHS).fit(T, 4, save_every=10)


def distance(a, b):
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# --- the mathematics


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.28])
def test_the_profile_has_the_standard_deviation_that_names_it(sigma_rel):
    gamma = power_ema.exponent(sigma_rel)
    tau = (np.arange(200_000) + 0.5) / 200_000
    p = (gamma + 1) * tau**gamma
    mean = (p * tau).mean()
    assert (p * (tau - mean) ** 2).mean() ** 0.5 == pytest.approx(sigma_rel, rel=1e-5)


def test_the_average_weights_each_step_by_the_profiles_integral_over_it():
    """On (t - 1, t] of [0, T]: (t / T)**(gamma + 1) - ((t - 1) / T)**(gamma + 1)."""
    values = np.random.default_rng(0).normal(size=(50, 3))
    averages = power_ema.init({"w": jnp.zeros(3)}, LENGTHS)
    update = jax.jit(functools.partial(power_ema.update, lengths=LENGTHS))
    for step, value in enumerate(values, 1):
        averages = update(averages, {"w": jnp.asarray(value, jnp.float32)}, step=jnp.int32(step))
    for length, average in zip(LENGTHS, averages.values(), strict=True):
        weights = np.diff((np.arange(51) / 50) ** (power_ema.exponent(length) + 1))
        np.testing.assert_allclose(average["w"], weights @ values, atol=1e-6)


@pytest.mark.parametrize("wanted", [(400, 0.05), (400, 0.07), (400, 0.15), (240, 0.1), (400, 0.25)])
def test_factors_make_the_profile_that_is_nearest(wanted):
    """No change of the factors that keeps their sum brings the sum of the profiles nearer, on a grid of times."""
    stored = [(step, length) for step in range(40, 401, 40) for length in LENGTHS]
    factors = power_ema.coefficients(stored, wanted)
    tau = (np.arange(40_000) + 0.5) / 40_000 * 400

    def profile(step, length):
        gamma = power_ema.exponent(length)
        return np.where(tau <= step, (gamma + 1) * (np.minimum(tau, step) / step) ** gamma / step, 0)

    rest = factors @ [profile(*one) for one in stored] - profile(*wanted)
    assert factors.sum() == pytest.approx(1, abs=1e-9)
    slopes = np.array([(rest * profile(*one)).mean() for one in stored])
    np.testing.assert_allclose(slopes, slopes.mean(), atol=1e-6 * (profile(*wanted) ** 2).mean())
    if wanted in stored:
        np.testing.assert_allclose(factors, [one == wanted for one in stored], atol=1e-9)


def test_a_bad_step_counts_with_the_parameters_that_it_left():
    losses = lambda params, ema, frozen, keys, batch: Losses(  # noqa: E731
        params["w"] * batch["image"].mean((1, 2, 3)), jnp.zeros(len(keys), int)
    )
    optimizer = optax.sgd(1.0)
    now = state.create(
        {"w": jnp.float32(1)}, optimizer, jax.random.key(0), power_ema=power_ema.init({"w": jnp.float32(1)}, (0.2,))
    )
    step = jax.jit(
        functools.partial(
            train_step, objective=Objective(lambda key: {}, losses), optimizer=optimizer,
            settings=StepSettings(1, 0.0, power_ema=(0.2,)),
        )
    )  # fmt: skip
    values = []
    for value in (1.0, float("nan"), 2.0):
        now, metrics = step(now, {"image": jnp.full((2, 1, 1, 1), value)})
        values.append(float(now.params["w"]))
        assert bool(metrics.bad) == np.isnan(value)
    weights = np.diff((np.arange(4) / 3) ** (power_ema.exponent(0.2) + 1))
    assert values[1] == values[0]
    assert float(now.power_ema["profile_0"]["w"]) == pytest.approx(weights @ values, rel=1e-5)


# --- runs


def test_a_length_that_was_stored_is_made_of_the_snapshots(run):
    workdir, last = run
    for i, length in enumerate(LENGTHS):
        pipe = gd.load(workdir, ema=length)
        assert pipe.step == T
        assert distance(pipe.params, last.power_ema[f"profile_{i}"]) < 1e-6
    assert distance(gd.load(workdir).params, last.ema) == 0


@pytest.mark.parametrize("lengths", [(0.07, 0.15)])
def test_a_length_that_was_not_stored_is_nearer_than_the_nearest_stored(run, lengths):
    """The truth is of a run that tracked it: the same steps, with other averages."""
    workdir, last = run
    truth = trainer(None, lengths).fit(T, 4)
    assert distance(truth.params, last.params) == 0
    with Checkpoints(workdir / power_ema.FOLDER, read_only=True) as snapshots:
        assert snapshots.steps == list(range(10, T + 1, 10))
        saved = [snapshots.restore_tree(step, last.power_ema) for step in snapshots.steps]
    for i, length in enumerate(lengths):
        true = truth.power_ema[f"profile_{i}"]
        nearest = min(distance(average, true) for snapshot in saved for average in snapshot.values())
        error = distance(gd.load(workdir, ema=length).params, true)
        print(length, error, nearest)
        assert error < nearest / 5


def test_a_run_that_goes_on_has_the_averages_and_snapshots_of_one_that_did_not_stop(run, tmp_path):
    workdir, last = run
    trainer(tmp_path / "run", LENGTHS, power_ema_keep=3).fit(30, 4, save_every=10)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    again = trainer(tmp_path / "run", LENGTHS, power_ema_keep=3).fit(T, 4, save_every=10)
    for mine, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(last), strict=True):
        if jnp.issubdtype(mine.dtype, jax.dtypes.prng_key):
            continue
        np.testing.assert_array_equal(mine, theirs)
    with Checkpoints(tmp_path / "run" / power_ema.FOLDER, read_only=True) as kept:
        assert kept.steps == [60, 70, 80]  # while one checkpoint is kept
        with Checkpoints(workdir / power_ema.FOLDER, read_only=True) as straight:
            for step in kept.steps:
                one, other = (files.restore_tree(step, last.power_ema) for files in (kept, straight))
                assert distance(one, other) == 0


def test_it_is_off_unless_asked_for(run, tmp_path):
    plain = trainer(tmp_path / "run", ())
    shapes = jax.eval_shape(plain.init)
    assert shapes.power_ema is None and get_config().train.power_ema == () and get_config().sample.ema is None
    copy = shutil.copytree(run[0], tmp_path / "run")
    description = json.loads((copy / "run.json").read_text())
    assert description.pop("power_ema") == list(LENGTHS)
    (copy / "run.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"ema=0.1: .* tracked no power-function averages; train with"):
        gd.load(copy, ema=0.1)
    with pytest.raises(InputError, match=r"the run in .* is another one: power_ema="):
        trainer(copy, LENGTHS).fit(T, 4)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [((0.3,), r"sigma_rel=0.3 must lie in \(0, 0.28\]"), ((0.0,), "must lie"), ((0.1, 0.1), "twice")],
)
def test_what_cannot_be_is_refused(lengths, message):
    with pytest.raises(InputError, match=message):
        gd.TrainSettings(power_ema=lengths)


def test_lengths_out_of_range_are_refused_when_loading(run):
    with pytest.raises(InputError, match=r"ema: sigma_rel=0.4 must lie"):
        gd.load(run[0], ema=0.4)
