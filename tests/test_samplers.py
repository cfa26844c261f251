"""Samplers against the closed forms of Gaussian data: order of convergence, laws, identities."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import CLEAN, GaussianData, row

from guided_diffusion_jax import gaussian, guidance, schedules
from guided_diffusion_jax.random import fold, standard_normal
from guided_diffusion_jax.samplers import (
    Sampler,
    ddim,
    ddpm,
    dpmpp_2m,
    heun,
    prior,
    sample,
    sample_keys,
    sample_trajectory,
)
from guided_diffusion_jax.schedules import pad, trajectory
from guided_diffusion_jax.typing import Level

pytestmark = pytest.mark.usefixtures("strict_ranks")

RNG = np.random.default_rng(0)
PIXELS = (4, 4, 1)
DATA = GaussianData(
    mean=jnp.asarray(RNG.uniform(-0.5, 0.5, (1, *PIXELS)), jnp.float32),
    std=jnp.asarray(RNG.uniform(0.1, 0.8, (1, *PIXELS)), jnp.float32),
)
STOCHASTIC = ["ddim eta=0.5", "ddpm fixed_small"]
KEYS = sample_keys(jax.random.key(0), jnp.arange(8))
X = prior(KEYS, PIXELS)
SAMPLERS = {
    "ddim eta=0": ddim(),
    "ddim eta=0.5": ddim(0.5),
    "ddim eta=1": ddim(1.0),
    "ddim eta per sample": ddim(jnp.linspace(0, 1, 8)),
    "ddpm fixed_small": ddpm("fixed_small"),
    "ddpm fixed_large": ddpm("fixed_large"),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(sampler, denoise, x, levels):
    return sample(sampler, denoise, KEYS, x, levels)


def rms(a):
    return float(jnp.sqrt(jnp.mean(a**2)))


def slope(counts, errors):
    return np.polyfit(np.log(counts), np.log(errors), 1)[0]


# --- order of convergence


@pytest.mark.parametrize(
    ("name", "selection"),
    [("linear", "logsnr"), ("cosine", "logsnr"), ("cosine", "linspace"), ("rectified_flow", "linspace")],
)
def test_ddim_converges_to_the_flow_with_order_one(name, selection):
    counts = [20, 40, 80, 160]
    table, sampler, errors = schedules.SCHEDULES[name](1000), ddim(), []
    for count in counts:
        levels = pad(trajectory(table, count, selection), 161)
        exact = DATA.flow(X, row(levels, 0), row(levels, -1))
        errors.append(rms(run(sampler, DATA.denoise, X, levels) - exact))
    assert slope(counts, errors) == pytest.approx(-1, abs=0.1), errors


SECOND_ORDER = {"heun": heun(), "dpmpp_2m": dpmpp_2m()}


@pytest.mark.parametrize("schedule", ["linear", "cosine", "rectified_flow"])
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_order_solvers_converge_with_order_two(name, schedule):
    """In float64 and between two noisy levels, evenly in logsnr: the last step, to the clean level, is exact."""
    counts, errors = [20, 40, 80, 160], []
    with jax.enable_x64(True):
        logsnr = np.linspace(-4, 4, 321)
        ratio = np.exp(logsnr / 2)
        if schedule == "rectified_flow":
            alpha, sigma = ratio / (1 + ratio), 1 / (1 + ratio)
        else:
            alpha, sigma = ratio / np.sqrt(1 + ratio**2), 1 / np.sqrt(1 + ratio**2)
        for count in counts:
            rows = slice(None, None, 320 // count)
            levels = Level(alpha[rows], sigma[rows], np.zeros(count + 1))
            data = GaussianData(np.asarray(DATA.mean, np.float64), np.asarray(DATA.std, np.float64))
            x = jnp.asarray(X, jnp.float64)
            keys = sample_keys(jax.random.key(0), jnp.arange(8))
            made = jax.jit(functools.partial(sample, SECOND_ORDER[name], data.denoise, keys))(x, levels)
            errors.append(rms(made - data.flow(x, row(levels, 0), row(levels, -1))))
    assert slope(counts, errors) == pytest.approx(-2, abs=0.1), errors
    assert SECOND_ORDER[name].order == 2


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_order_solvers_end_at_the_clean_level_from_any_first_level(name):
    for schedule in ("cosine", "rectified_flow"):  # the second begins with alpha = 0
        levels = trajectory(schedules.SCHEDULES[schedule](1000), 20, "logsnr")
        x = run(SECOND_ORDER[name], DATA.denoise, X, pad(levels, 161))
        exact = DATA.flow(X, row(levels, 0), row(levels, -1))
        first_order = rms(run(ddim(), DATA.denoise, X, pad(levels, 161)) - exact)
        assert jnp.isfinite(x).all() and rms(x - exact) < 0.5 * first_order
        np.testing.assert_array_equal(x, run(SECOND_ORDER[name], DATA.denoise, X, pad(levels, 21)))


def test_another_eta_is_data():
    traces = []

    @jax.jit
    def draw(sampler, x):
        traces.append(1)
        return sample(sampler, DATA.denoise, KEYS, x, trajectory(schedules.cosine(100), 5))

    made = [draw(ddim(eta), X) for eta in (0.0, 0.5, 1.0)]
    assert len(traces) == 1 and rms(made[0] - made[1]) > 1e-3
    draw(dpmpp_2m(), X), draw(dpmpp_2m(), X)
    draw(ddpm(), X), draw(ddpm(), X)
    assert len(traces) == 3


def test_one_ddim_step_has_a_local_error_of_order_two():
    table = schedules.linear(1000)
    levels = trajectory(table, 321, "logsnr")
    now, steps, errors = row(levels, 160), [32, 16, 8, 4], []
    for step in steps:
        nxt = row(levels, 160 + step)
        errors.append(rms(ddim().step(DATA.denoise, KEYS, X, now, nxt, ())[0] - DATA.flow(X, now, nxt)))
    assert slope(steps, errors) == pytest.approx(2, abs=0.1), errors


def test_ddim_up_then_down_returns_to_the_start():
    """Encoding a picture as its x_T and decoding that; each way is of order one, and so is what is left."""
    counts = [20, 40, 80, 160]
    table, sampler, errors = schedules.cosine(1000), ddim(), []
    start = DATA.mean + DATA.std * X
    for count in counts:
        down = Level(*(column[:-1] for column in trajectory(table, count, "logsnr")))
        up = Level(*(column[::-1] for column in down))
        x_T = run(sampler, DATA.denoise, start, pad(up, 160))
        assert rms(x_T - DATA.flow(start, row(up, 0), row(down, 0))) < 10 / count
        errors.append(rms(run(sampler, DATA.denoise, x_T, pad(down, 160)) - start))
    assert all(later < 0.6 * earlier for earlier, later in itertools.pairwise(errors)), errors


# --- laws


def law(data, levels, variance):
    """Mean and variance of what DDPM makes of N(0, 1), exactly: x_nxt is linear in x and noise. Float64."""
    alpha, sigma = (column.astype(np.float64) for column in levels[:2])
    mean, var = 0.0, 1.0
    for a, s, b, r in zip(alpha, sigma, alpha[1:], sigma[1:], strict=False):
        beta = s**2 - (a / b * r) ** 2
        of_x0, of_x = b * beta / s**2, (a / b) * (r / s) ** 2
        gain = data.std**2 * a / (a**2 * data.std**2 + s**2)
        mean = of_x0 * (data.mean + gain * (mean - a * data.mean)) + of_x * mean
        added = {"fixed_small": beta * (r / s) ** 2, "fixed_large": beta if r > 0 else 0.0}[variance]
        var = (of_x0 * gain + of_x) ** 2 * var + added
    return mean, var


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_draws_from_the_data(variance):
    """20,480 pixels: the standard error is std / sqrt(n) of the mean, and sqrt(2 / n) = 1 % of the variance.

    Both fixed variances are wrong at finite step size: the true one of q(x_nxt given x_now) lies between them, so
    fixed_small draws too narrow and fixed_large too wide, by a share of order 1 / steps. `law` is that error exactly.
    """
    data = GaussianData(0.3, 0.5)
    keys = sample_keys(jax.random.key(1), jnp.arange(80))
    draw = jax.jit(lambda levels: sample(ddpm(variance), data.denoise, keys, prior(keys, (16, 16, 1)), levels))
    excess = {}
    for steps in (1000, 250):
        levels = trajectory(schedules.linear(1000), steps)
        x = draw(pad(levels, 1001))
        mean, var = law(data, levels, variance)
        assert float(x.mean()) == pytest.approx(mean, abs=4 * data.std / x.size**0.5)
        assert float(x.var()) == pytest.approx(var, rel=4 * (2 / x.size) ** 0.5)
        assert mean == pytest.approx(data.mean, abs=1e-4)
        excess[steps] = var / data.std**2 - 1
    # Measured: -1.5 % and -5.6 % of fixed_small, +0.3 % and +1.3 % of fixed_large.
    sign, limit = {"fixed_small": (-1, 0.02), "fixed_large": (1, 0.005)}[variance]
    assert 0 < sign * excess[1000] < limit
    assert excess[250] / excess[1000] == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize(
    "name",
    [
        "ddpm fixed_small", "ddpm fixed_large", "ddim eta=1", "ddim eta=0",
        pytest.param("ddim eta=0.5", marks=pytest.mark.slow),  # between the two; test_solvers.py: mean and covariance
    ],
)  # fmt: skip
def test_rectified_flow_levels_draw_gaussian_data_as_variance_preserving_ones_do(name):
    """From pure noise. DDPM's law is exact; the others' is the data's within their error of order 1."""
    data = GaussianData(0.3, 0.5)
    keys = sample_keys(jax.random.key(1), jnp.arange(80))
    levels = trajectory(schedules.rectified_flow(1000), 1000)
    first = row(levels, 0)
    assert float(first.alpha) == 0
    x = jax.jit(lambda: sample(SAMPLERS[name], data.denoise, keys, prior(keys, (16, 16, 1), first), levels))()
    mean, var = law(data, levels, name.split()[1]) if "ddpm" in name else (data.mean, data.std**2)
    assert float(x.mean()) == pytest.approx(mean, abs=4 * data.std / x.size**0.5)
    assert float(x.var()) == pytest.approx(var, rel=4 * (2 / x.size) ** 0.5 + 0.01)
    assert mean == pytest.approx(data.mean, abs=2e-3)


# --- identities


def pairs():
    """Every step of a trajectory at once, one a sample: `[8]` levels each."""
    levels = trajectory(schedules.cosine(1000), 8)
    return tuple(schedules.at(levels, jnp.arange(8) + shift) for shift in (0, 1)), gaussian.min_posterior_variance(
        levels
    )


@pytest.mark.parametrize("clip", [False, True])
def test_ddim_with_eta_one_is_ddpm_with_the_posterior_variance(clip):
    """Song et al. 2021, section 4.1: the same keys, the same noise, the same step, at every pair of levels."""
    (now, nxt), floor = pairs()
    denoise = guidance.clip_x0(DATA.denoise) if clip else DATA.denoise
    one, _ = ddim(1.0).step(denoise, KEYS, X, now, nxt, floor)
    other, _ = ddpm("fixed_small").step(denoise, KEYS, X, now, nxt, floor)
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_ddim_with_eta_one_walks_ddpms_way():
    denoise, levels = DATA.denoise, pad(trajectory(schedules.cosine(1000), 100), 161)
    np.testing.assert_allclose(
        run(ddim(1.0), denoise, X, levels), run(ddpm("fixed_small"), denoise, X, levels), atol=1e-5
    )


def test_a_step_to_the_same_level_is_the_identity():
    (now, _), floor = pairs()
    stay = jax.jit(lambda x: {name: s.step(DATA.denoise, KEYS, x, now, now, floor)[0] for name, s in SAMPLERS.items()})
    for name, x in stay(X).items():
        # x is put together again from x0 and eps, in float32.
        np.testing.assert_allclose(x, X, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_adds_no_noise(name):
    levels = trajectory(schedules.cosine(1000), 8)
    now, nxt = row(levels, -2), row(levels, -1)
    x, _ = SAMPLERS[name].step(DATA.denoise, KEYS, X, now, nxt, gaussian.min_posterior_variance(levels))
    np.testing.assert_allclose(x, DATA.denoise(X, now).x0, atol=2e-6)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_padding_changes_nothing(name):
    levels = trajectory(schedules.cosine(1000), 10)
    results = [run(SAMPLERS[name], DATA.denoise, X, pad(levels, length)) for length in (11, 161)]
    assert jnp.isfinite(results[0]).all()
    np.testing.assert_array_equal(results[1], results[0])


def test_ddim_at_the_clean_level_is_the_identity_and_goes_up_to_any_other():
    stay, _ = ddim(1.0).step(DATA.denoise, KEYS, X, CLEAN, CLEAN, ())
    np.testing.assert_allclose(stay, X, atol=1e-6)
    noisy = schedules.at(schedules.cosine(1000), jnp.int32(300))
    up, _ = ddim().step(DATA.denoise, KEYS, X, CLEAN, noisy, ())
    np.testing.assert_allclose(up, noisy.alpha * X, atol=1e-6)  # the exact denoiser sees no noise in a clean image


def test_eta_per_sample_is_each_samples_own():
    etas = jnp.linspace(0, 1, 8)
    levels = pad(trajectory(schedules.cosine(1000), 10), 161)
    together = run(ddim(etas), DATA.denoise, X, levels)
    draw = jax.jit(lambda eta: sample(ddim(eta), DATA.denoise, KEYS, X, levels))
    for i in (0, 3, 7):
        np.testing.assert_allclose(together[i], draw(etas[i])[i], atol=1e-5)


def test_classifier_shifts_of_the_mean_and_of_eps_agree_where_the_variance_is_beta():
    """Shifting eps by -sigma g moves the posterior's mean by (alpha_nxt / alpha_now) beta g."""
    (now, nxt), floor = pairs()
    gradient = lambda x, level: jnp.sin(3 * x)  # noqa: E731
    plain, _ = ddpm("fixed_large").step(DATA.denoise, KEYS, X, now, nxt, floor)
    of_mean, _ = ddpm("fixed_large", gradient).step(DATA.denoise, KEYS, X, now, nxt, floor)
    of_eps, _ = ddpm("fixed_large").step(guidance.classifier(DATA.denoise, gradient, 1.0), KEYS, X, now, nxt, floor)
    noisy = slice(1, -1)  # at the first level alpha = 5e-5, at the last the mean's variance is the floor
    shift = ((of_mean - plain) * nxt.alpha / now.alpha)[noisy]
    np.testing.assert_allclose((of_eps - plain)[noisy], shift, atol=1e-4)


# --- random numbers


def test_noise_is_each_samples_own_bit_for_bit():
    for number in (0, 1, 57):
        together = standard_normal(fold(KEYS, number), PIXELS)
        for i in (0, 5):
            alone = sample_keys(jax.random.key(0), jnp.array([i]))
            np.testing.assert_array_equal(standard_normal(fold(alone, number), PIXELS)[0], together[i])
    assert (
        len(np.unique(jax.random.key_data(jnp.stack([fold(KEYS, i) for i in range(20)])).reshape(-1, 2), axis=0)) == 160
    )


# --- films

COUNTER = Sampler(init=lambda x, levels: (), step=lambda denoise, keys, x, now, nxt, memory: (x + 1, memory))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7, 10, 11, 25])
def test_frame_k_is_the_state_after_the_steps_that_the_docstring_says(frames):
    """Fewer frames than steps, as many, and more; and padding is no step."""
    shoot = jax.jit(lambda levels: sample_trajectory(COUNTER, DATA.denoise, KEYS, jnp.zeros_like(X), levels, frames))
    for count in (1, 3, 10):
        pictures = shoot(pad(trajectory(schedules.cosine(1000), count, "logsnr"), 20))
        assert pictures.shape == (frames, *X.shape)
        np.testing.assert_array_equal(pictures[:, 0, 0, 0, 0], np.ceil((np.arange(frames) + 1) * count / frames))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_films_last_frame_is_what_sample_returns(name):
    levels = pad(trajectory(schedules.cosine(1000), 10), 161)
    pictures = jax.jit(sample_trajectory, static_argnums=(0, 1, 5))(SAMPLERS[name], DATA.denoise, KEYS, X, levels, 4)
    np.testing.assert_allclose(pictures[-1], run(SAMPLERS[name], DATA.denoise, X, levels), atol=1e-6)
