"""The variational bound and its closed form on Gaussian data, what trains a learned variance, and --mode=evaluate."""

import json
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_runs
from gaussian_data import GaussianData
from PIL import Image
from test_commands import TINY

from guided_diffusion_jax import objectives, prediction, schedules
from guided_diffusion_jax import random as noise
from guided_diffusion_jax.commands import evaluate
from guided_diffusion_jax.commands.cli import main, parse
from guided_diffusion_jax.data import from_arrays
from guided_diffusion_jax.data.pipeline import numbered
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.evaluation import likelihood
from guided_diffusion_jax.experiment import trainers
from guided_diffusion_jax.experiment.config import preset
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.typing import Level

DATA = GaussianData(0.1, 0.3)
ALL = schedules.cosine(50)
TABLES = {"all": ALL, "truncated": Level(*(column[:30] for column in ALL)), "respaced": schedules.cosine(50)}
TABLES["respaced"] = Level(*(column[schedules.section_rows((20,), 50)] for column in ALL))
LN2 = np.log(2)


class Chain:
    """The exact reverse process of the data in float64: p(x_nxt given x_now) = q(x_nxt given x_now), row t a step."""

    def __init__(self, table):
        now = Level(*(column.astype(np.float64) for column in table))
        clean = zip(now, (1, 0, 0), strict=True)
        nxt = Level(*(np.append(first, column[:-1]) for column, first in clean))
        self.beta = 1 - (now.alpha / nxt.alpha) ** 2
        self.beta_tilde = self.beta * (nxt.sigma / now.sigma) ** 2
        self.of_x0 = nxt.alpha * self.beta / now.sigma**2
        self.x0_variance = DATA.x0_variance(now)
        low = np.log(np.append(self.beta_tilde[1], self.beta_tilde[1:]))
        exact = np.log(self.beta_tilde + self.of_x0**2 * self.x0_variance)
        self.fraction = ((exact - low) / (np.log(self.beta) - low)).astype(np.float32)
        self.times, self.last = table.time, Level(*(column[-1] for column in now))

    def denoise(self, x, level):
        fraction = jnp.asarray(self.fraction)[jnp.searchsorted(self.times, level.time)]
        return DATA.denoise(x, level)._replace(variance_fraction=jnp.full_like(x, fraction))

    def bound(self):
        """-log2 of the data's density a grey level, in the mean, and what the truncated end of the process costs."""
        entropy = 0.5 * np.log(2 * np.pi * np.e * DATA.std**2) - np.log(2 / 255)
        variance, mean = DATA.total(self.last), self.last.alpha * DATA.mean
        return (entropy + 0.5 * (variance + mean**2 - 1 - np.log(variance))) / LN2


measure = jax.jit(likelihood.bits_per_dimension, static_argnums=(0, 4))


@pytest.fixture
def quadrature(monkeypatch):
    """An image whose rows are x0 and whose columns are eps: its mean is the expectation of all that is quadratic."""
    nodes = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / 128) for i in range(128)])
    nodes = jnp.asarray(nodes / nodes.std(), jnp.float32)
    monkeypatch.setattr(noise, "standard_normal", lambda keys, shape: jnp.broadcast_to(nodes[:, None], (1, *shape)))
    return jnp.broadcast_to(DATA.mean + DATA.std * nodes[:, None, None], (1, 128, 128, 1))


@pytest.mark.parametrize("name", TABLES)
def test_the_bound_of_gaussian_data_is_its_entropy(name, quadrature, strict_ranks):
    """With the exact denoiser and reverse variance the bound is tight, whatever steps there are."""
    chain = Chain(TABLES[name])
    bound = measure(chain.denoise, jax.random.split(jax.random.key(0), 1), quadrature, TABLES[name], "learned_range")
    print(float(bound.total[0]), chain.bound(), float(bound.prior[0]))
    assert float(bound.total[0]) == pytest.approx(chain.bound(), abs=1e-3)
    np.testing.assert_allclose(bound.x0_mse[0], chain.x0_variance, rtol=1e-4)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_each_term_of_a_fixed_variance_has_its_closed_form(variance, quadrature, strict_ranks):
    chain = Chain(ALL)
    found = measure(DATA.denoise, jax.random.split(jax.random.key(0), 1), quadrature, ALL, variance)
    model = {"fixed_small": chain.beta_tilde, "fixed_large": chain.beta}[variance][1:]
    ratio = chain.beta_tilde[1:] / model
    divergence = 0.5 * (ratio - 1 - np.log(ratio) + (chain.of_x0**2 * chain.x0_variance)[1:] / model) / LN2
    np.testing.assert_allclose(found.vb[0, 1:], divergence, atol=1e-3)
    assert float(found.total[0]) > chain.bound()


def test_drawn_noise_and_data_give_the_same_within_their_scatter(strict_ranks):
    """At a random pixel -log p has a standard deviation of at least sqrt(1/2) nats."""
    chain, shape = Chain(ALL), (64, 32, 32, 1)
    x0 = DATA.mean + DATA.std * jax.random.normal(jax.random.key(1), shape)
    bound = measure(chain.denoise, jax.random.split(jax.random.key(2), 64), x0, ALL, "learned_range")
    scatter = float(jnp.std(bound.total)) / 8
    print(scatter)
    assert 0.5**0.5 / LN2 / 256 * 0.7 < scatter < 0.01
    assert float(bound.total.mean()) == pytest.approx(chain.bound(), abs=4 * scatter)
    np.testing.assert_allclose(bound.total, bound.prior + bound.vb.sum(1), rtol=1e-5)


# --- what trains a learned variance


def toy(params, x, level, conditions):
    made = prediction.from_eps(x, params["mean"] * x, level)
    return made._replace(variance_fraction=params["variance"] * jnp.ones_like(x))


def test_the_hybrid_loss_sends_no_gradient_from_the_bound_into_the_mean():
    keys = jax.random.split(jax.random.key(0), 16)
    x0 = jax.random.uniform(jax.random.key(1), (16, 4, 4, 1), minval=-1)

    def all_losses(params):
        def of(loss, variance="learned_range"):
            def denoise(x, level, conditions):
                made = toy(params, x, level, conditions)
                return made if variance == "learned_range" else made._replace(variance_fraction=None)

            process = Process(ALL, variance=variance)
            return objectives.denoising_losses(denoise, keys, x0, {}, process, loss=loss).loss.mean()

        return jnp.stack([of("mse", "fixed_small"), of("mse"), of("rescaled_mse"), of("kl"), of("rescaled_kl")])

    params = {"mean": jnp.float32(0.7), "variance": jnp.float32(0.4)}
    gradients = jax.jit(jax.jacrev(all_losses))(params)
    of_mean, of_variance = np.asarray(gradients["mean"]), np.asarray(gradients["variance"])
    np.testing.assert_allclose(of_mean[1:3], of_mean[0], rtol=1e-6)
    assert of_variance[0] == 0 and abs(of_variance[3]) > 1e-4
    steps = len(ALL.time)
    np.testing.assert_allclose(of_variance[1:], of_variance[3] * np.array([1, steps / 1000, 1, steps]), rtol=1e-5)
    assert abs(of_mean[3]) > 1e-4 and of_mean[4] == pytest.approx(steps * of_mean[3], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.loss": "rescaled_mse"}, r"train\.loss='rescaled_mse' rescales .*='fixed_small' is fixed; use"),
        ({"train.loss": "vlb"}, r"train\.loss='vlb' is not one of mse, rescaled_mse, kl, rescaled_kl"),
        ({"train.timesteps": "loss"}, r"train\.timesteps='loss' is not one of uniform, stratified, "),
        ({"train.loss": "kl", "diffusion.num_steps": 1, "diffusion.schedule": "cosine"}, "needs at least 2"),
        ({"diffusion.variance": "learned_range", "diffusion.num_steps": 1}, "needs at least 2"),
    ],
)  # fmt: skip
def test_losses_that_make_no_sense_are_refused(changes, message):
    config = preset("digits")
    config.update_from_flattened_dict(changes)
    data = from_arrays(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2)
    with pytest.raises(InputError, match=message):
        trainers.trainer(config, None, data)


@pytest.mark.parametrize(
    "changes",
    [
        {"train.loss": "kl", "diffusion.variance": "fixed_large"},
        {"train.loss": "rescaled_kl", "diffusion.prediction": "v"},
        *({"diffusion.variance": "learned_range", "train.loss": loss} for loss in objectives.LOSSES),
    ],
    ids=lambda changes: " ".join(changes.values()),
)
def test_every_loss_trains_the_u_net(changes):
    """Its shapes alone: nothing is compiled."""
    _, config = parse(["main.py", *FLAGS])
    config.update_from_flattened_dict(changes)
    trainer = trainers.trainer(config, None, from_arrays(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2))
    batch = {"image": jnp.zeros((4, 8, 8, 1)), "label": jnp.zeros(4, jnp.int32)}
    keys, params = jax.random.split(jax.random.key(0), 4), jax.eval_shape(trainer.init).params
    for t in (None, jnp.arange(4)):
        found = jax.eval_shape(lambda p, t=t: trainer.objective.loss(p, p, {}, keys, batch, t), params)
        assert found.loss.shape == found.t.shape == (4,) and found.loss.dtype == jnp.float32


# --- over a data set


def test_every_image_counts_once_whatever_the_batches_and_processes():
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    data = from_arrays(images, np.arange(10) % 3)
    for batch_size, processes in ((4, 1), (4, 2), (10, 1), (16, 2)):
        rounds = [list(numbered(data, 10, batch_size, p, processes)) for p in range(processes)]
        joined = zip(*rounds, strict=True)
        whole = [{key: np.concatenate([part[key] for part in parts]) for key in parts[0]} for parts in joined]
        assert {len(batch["number"]) for batch in whole} == {batch_size}
        number, weight = (np.concatenate([batch[key] for batch in whole]) for key in ("number", "weight"))
        np.testing.assert_array_equal(number[weight > 0], np.arange(10))
        for batch in whole:
            shown = np.minimum(batch["number"], 9)
            np.testing.assert_allclose(batch["image"].ravel(), shown / 127.5 - 1, rtol=1e-6)
            np.testing.assert_array_equal(batch["label"], shown % 3)


def test_quarters_add_up_to_all_steps():
    assert likelihood.by_quarter(np.arange(8.0)) == [1, 5, 9, 13]
    assert sum(likelihood.by_quarter(np.ones(50))) == 50
    assert likelihood.by_quarter(np.ones(2)) == [1, 0, 1, 0]


FLAGS = ["--config=configs/digits.py", *TINY, "--config.data.name=folder"]
HYBRID = ["--config.diffusion.num_steps=20", "--config.diffusion.variance=learned_range"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a learned variance that stopped at step 2, on noise in two classes; its parameters are random."""
    workdir, folder, rng = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for path in (
        folder / split / label / f"{i}.png" for split in ("train", "test") for label in "ab" for i in range(6)
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
    _, config = parse(["main.py", *FLAGS, *HYBRID, f"--config.data.data_dir={folder}", f"--workdir={workdir}"])
    random_runs.write(config, workdir, step=2, scale=0.1)
    return workdir


ALL_STEPS = ["--config.evaluate.count=10", "--config.evaluate.bound_steps=0"]


def evaluated(workdir, *flags):
    assert main(["main.py", f"--workdir={workdir}", "--mode=evaluate", *ALL_STEPS, *flags]) == 0
    return json.loads((workdir / "evaluate.json").read_text())


def test_evaluate_writes_the_bound_which_does_not_depend_on_the_batches(run, capsys):
    first = evaluated(run, "--config.evaluate.batch_size=10")
    assert "bits/dim" in capsys.readouterr().out
    assert first["count"] == 10 and first["checkpoint_step"] == 2
    bpd = first["metrics"]["bpd"]
    assert bpd["total"] == pytest.approx(bpd["prior"] + sum(bpd["vb_by_quarter"]), rel=1e-5)
    assert bpd["total"] == pytest.approx(bpd["prior"] + sum(bpd["by_step"]["vb"]), rel=1e-5)
    assert bpd["by_step"]["time"] == list(range(20))
    again = evaluated(run, "--config.evaluate.batch_size=4")["metrics"]["bpd"]
    np.testing.assert_allclose(again["by_step"]["vb"], bpd["by_step"]["vb"], rtol=1e-4)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("metrics=('bdp',)", "evaluate.metrics='bdp' is not one of bpd"),
        ("count=-1", "evaluate.count=-1 must not be negative"),
        ("count=100000", "evaluate.count=100000, but"),
        ("batch_size=0", "evaluate.batch_size=0 must be at least 1"),
        ("split=tset", "tset"),
        ("bound_steps=100", "100 of 20"),
        ("bound_steps=1", "at least 2 steps"),
    ],
)
def test_wrong_settings_of_evaluate_give_one_line(flag, message, run, capsys):
    capsys.readouterr()
    assert main(["main.py", f"--workdir={run}", "--mode=evaluate", f"--config.evaluate.{flag}"]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_knows_the_default_metrics():
    assert set(evaluate.EVALUATIONS) >= set(preset("digits").evaluate.metrics)
