"""The denoising objective on Gaussian data, whose least loss is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import GaussianData

from guided_diffusion_jax import objectives, schedules
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.prediction import PREDICTIONS
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.typing import Level

pytestmark = pytest.mark.usefixtures("strict_ranks")

DATA = GaussianData(0.2, 0.5)
T = 100
TABLE = schedules.cosine(T)
N, PIXELS = 4096, (4, 4, 1)
KEYS = jax.random.split(jax.random.key(0), N)
X0 = DATA.mean + DATA.std * jax.random.normal(jax.random.key(1), (N, *PIXELS))
NONE = {}


def network(kind, error=0.0):
    """The exact denoiser of the data, or one that is wrong in x0 by `error`, as a network that predicts `kind`."""

    def apply(x, time, conditions):
        kinds = PREDICTIONS[kind]
        if kinds.input_time is not None:
            time = schedules.position(TABLE, jnp.exp(4 * time)).round()
        level = schedules.at(TABLE, time.astype(int))
        x = x if kinds.input_scale is None else x / kinds.input_scale(level)
        x0 = DATA.denoise(x, level).x0 + error
        return kinds.target(x0, (x - level.alpha * x0) / level.sigma, level)

    return apply


def denoising(network, keys, x0, conditions, kind="eps"):
    process = Process(TABLE, kind)
    return objectives.denoising_losses(conditional_denoiser(network, process), keys, x0, conditions, process)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(kind, keys, error):
    """Loss and t of the first pictures, one for each key."""
    found = denoising(network(kind, error), keys, X0[: len(keys)], NONE, kind)
    return found.loss, found.t


def levels(t):
    return Level(*(column.astype(np.float64)[np.asarray(t)] for column in TABLE))


def factor(kind, t):
    """How many times the loss in x0 each loss is.

    eps = (x - alpha x0) / sigma, v = (alpha x - x0) / sigma, and the velocity is (x - (alpha + sigma) x0) / sigma.
    EDM's F is x0 / c_out but for x, with sigma_data = 1/2.
    """
    level = levels(t)
    return {
        "x0": 1.0,
        "eps": (level.alpha / level.sigma) ** 2,
        "v": 1 / level.sigma**2,
        "velocity": (1 + level.alpha / level.sigma) ** 2,
        "edm": 4 * (level.alpha**2 / 4 + level.sigma**2) / level.sigma**2,
    }[kind]


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_exact_denoisers_loss_is_the_posterior_variance(kind):
    """The error of a pixel is N(0, x0_variance), so the ratio's standard error is sqrt(2 / (N * 16)) = 0.6 %."""
    loss, t = evaluate(kind, KEYS, 0.0)
    ratio = np.asarray(loss) / (factor(kind, t) * DATA.x0_variance(levels(t)))
    assert ratio.mean() == pytest.approx(1, abs=4 * (2 / X0.size) ** 0.5)
    assert ratio.std() == pytest.approx((2 / 16) ** 0.5, rel=0.1)
    for quarter in range(4):  # at every noise level, not in the mean only
        assert ratio[np.asarray(t) * 4 // T == quarter].mean() == pytest.approx(1, abs=8 * (2 / X0.size) ** 0.5)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_biased_denoisers_loss_is_larger_by_its_bias_squared(kind):
    least, t = evaluate(kind, KEYS, 0.0)
    biased, _ = evaluate(kind, KEYS, 0.5)
    excess = (np.asarray(biased) - np.asarray(least)) / factor(kind, t)
    # The cross term has mean 0 and standard deviation 2 * 0.5 * sqrt(x0_variance / 16) <= 0.125 a sample.
    assert excess.mean() == pytest.approx(0.25, abs=4 * 0.125 / N**0.5)


def test_the_three_losses_are_one_up_to_the_level_for_each_sample():
    of_x0, t = evaluate("x0", KEYS, 0.0)
    for kind in ("eps", "v", "velocity"):
        loss, same_t = evaluate(kind, KEYS, 0.0)
        np.testing.assert_array_equal(same_t, t)
        np.testing.assert_allclose(loss, factor(kind, t) * of_x0, rtol=2e-3)


def test_steps_are_uniform():
    """Pearson's chi-square has mean T - 1 and variance 2 (T - 1)."""
    n = 50_000
    t = np.asarray(objectives.uniform_steps(jax.random.split(jax.random.key(2), n), T))
    assert t.min() == 0 and t.max() == T - 1
    chi_square = ((np.bincount(t, minlength=T) - n / T) ** 2).sum() / (n / T)
    assert abs(chi_square - (T - 1)) < 4 * (2 * (T - 1)) ** 0.5


def test_a_samples_loss_depends_on_its_own_key_only():
    loss, t = evaluate("v", KEYS[:8], 0.0)
    alone, same_t = evaluate("v", KEYS[:1], 0.0)
    np.testing.assert_allclose(alone[0], loss[0], rtol=1e-5)
    assert same_t[0] == t[0]
    changed, _ = evaluate("v", jnp.concatenate([KEYS[:1], KEYS[100:107]]), 0.0)
    np.testing.assert_allclose(changed[0], loss[0], rtol=1e-5)
    assert (np.asarray(changed[1:]) != np.asarray(loss[1:])).all()


def test_the_network_is_told_the_time_and_the_conditions_of_each_sample():
    told = []
    conditions = {"label": jnp.arange(8)}
    network = lambda x, time, given: told.append((x, time, given)) or x  # noqa: E731
    t = denoising(network, KEYS[:8], X0[:8], conditions).t
    ((x, time, given),) = told
    assert x.shape == (8, *PIXELS) and given is conditions
    np.testing.assert_array_equal(time, t)


def test_an_unknown_prediction_is_named():
    with pytest.raises(InputError, match=r"diffusion\.prediction='noise' is not one of eps, x0, v"):
        denoising(network("x0"), KEYS[:1], X0[:1], NONE, "noise")
