"""Processes of every kind on Gaussian data, whose samples and likelihood have closed forms; and how they are made."""

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from gaussian_data import GaussianData, row

from guided_diffusion_jax import random, samplers, schedules
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.evaluation import likelihood
from guided_diffusion_jax.objectives import add_noise
from guided_diffusion_jax.prediction import PREDICTIONS
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.schedules import SCHEDULES
from guided_diffusion_jax.typing import Level

pytestmark = pytest.mark.usefixtures("strict_ranks")

DATA = GaussianData(0.1, 0.2)
T = 100
PROCESSES = {
    "edm": {"schedule": "edm", "prediction": "edm", "sigma_data": 0.2},
    "shifted cosine": {"schedule": "cosine", "shift": 4.0, "prediction": "v"},
    "shifted flow": {"schedule": "rectified_flow", "shift": 3.0, "prediction": "velocity"},
    "shifted edm": {"schedule": "edm", "shift": 2.0, "prediction": "x0"},
    "zero terminal snr": {"schedule": "scaled_linear", "zero_terminal_snr": True, "prediction": "v"},
    "edm's network, cosine": {"schedule": "cosine", "prediction": "edm"},
}
SAMPLED = ("edm", "shifted cosine", "shifted flow", "zero terminal snr")
MADE = {name: Process.create(num_steps=T, **how) for name, how in PROCESSES.items()}


def network(process):
    """The exact denoiser as a network that predicts what the process says, from its input and its time."""
    kind = process.parametrization
    alpha, sigma = (jnp.asarray(column) for column in process.levels[:2])

    def apply(x, time, conditions):
        if kind.input_time is None:
            level = schedules.at(process.levels, time)
        else:  # of the levels with this ratio the one that the process has
            level = schedules.at(process.levels, schedules.position(process.levels, jnp.exp(4 * time)))
        x = x if kind.input_scale is None else x / kind.input_scale(level)
        exact = DATA.denoise(x, level)
        return kind.target(exact.x0, exact.eps, level)

    assert (alpha[:-1] > 0).all() and (sigma > 0).all()
    return apply


def denoiser(name):
    denoise = conditional_denoiser(network(MADE[name]), MADE[name])
    return lambda x, level: denoise(x, level, {})


def recursion(levels):
    """Mean and variance after DDPM's steps with beta_tilde, in float64, from the prior's."""
    levels = [Level(*entries) for entries in zip(*(np.asarray(column, np.float64) for column in levels), strict=True)]
    mean, variance = 0.0, levels[0].alpha ** 2 + levels[0].sigma ** 2
    for now, nxt in itertools.pairwise(levels):
        beta = now.sigma**2 - (now.alpha / nxt.alpha) ** 2 * nxt.sigma**2
        of_x0, of_x = nxt.alpha * beta / now.sigma**2, now.alpha / nxt.alpha * (nxt.sigma / now.sigma) ** 2
        gain = DATA.std**2 * now.alpha / DATA.total(now)
        slope = of_x0 * gain + of_x
        mean = slope * mean + of_x0 * (DATA.mean - gain * now.alpha * DATA.mean)
        variance = slope**2 * variance + beta * (nxt.sigma / now.sigma) ** 2
    return mean, variance


def ddim(x, levels):
    """alpha_nxt x0 + sigma_nxt eps, step by step."""
    x = np.asarray(x, np.float64)
    levels = [Level(*entries) for entries in zip(*(np.asarray(column, np.float64) for column in levels), strict=True)]
    for now, nxt in itertools.pairwise(levels):
        centred = (x - now.alpha * DATA.mean) / DATA.total(now)
        x = nxt.alpha * (DATA.mean + DATA.std**2 * now.alpha * centred) + nxt.sigma * now.sigma * centred
    return x


def width_of_bins(std):
    """E[-ln p] of a grey level under a narrow N(mean, std**2) less that of the density times its width, in nats."""
    z = np.linspace(-8, 8, 4001)
    h = 1 / 255 / std
    cdf = np.vectorize(lambda a: 0.5 * math.erfc(-a / 2**0.5))
    density = np.exp(-(z**2) / 2) / (2 * np.pi) ** 0.5
    probability = np.maximum(cdf(z + h) - cdf(z - h), 1e-300)
    return np.sum(density * np.log(2 * h * density / probability)) * (z[1] - z[0])


# --- samples and likelihoods


@pytest.mark.parametrize("name", SAMPLED)
def test_ddpm_draws_the_data(name):
    """32,768 pixels follow the recursion of their mean and variance, which ends near the data's.

    The standard error of the mean is std / 181, of the standard deviation 0.4 %.
    """
    levels = schedules.trajectory(MADE[name].levels, T)
    mean, variance = recursion(levels)
    keys = samplers.sample_keys(jax.random.key(0), jnp.arange(8))
    x = samplers.prior(keys, (64, 64, 1), row(levels, 0))
    drawn = jax.jit(functools.partial(samplers.sample, samplers.ddpm(), denoiser(name)))(keys, x, levels)
    assert float(drawn.mean()) == pytest.approx(mean, abs=4 * DATA.std / 181)
    assert float(drawn.std()) == pytest.approx(variance**0.5, rel=4 * 0.004)
    _, of_more = recursion(schedules.trajectory(Process.create(num_steps=8 * T, **PROCESSES[name]).levels, 8 * T))
    assert mean == pytest.approx(DATA.mean, abs=1e-3)
    assert abs(of_more**0.5 - DATA.std) < abs(variance**0.5 - DATA.std) / 3


@pytest.mark.parametrize("name", SAMPLED)
def test_ddim_follows_the_flow(name):
    """All T steps are the recursion of its formula in float64, which goes to the flow as the steps grow in number."""
    process, keys = MADE[name], jax.random.split(jax.random.key(0), 8)
    first = row(process.levels, -1)
    x = jnp.sqrt(first.alpha**2 + first.sigma**2) * jnp.linspace(-2, 2, 8).reshape(8, 1, 1, 1)
    levels = schedules.trajectory(process.levels, T)
    found = jax.jit(functools.partial(samplers.sample, samplers.ddim(), denoiser(name)))(keys, x, levels)
    np.testing.assert_allclose(found, ddim(x, levels), atol=2e-4)
    finer = schedules.trajectory(Process.create(num_steps=8 * T, **PROCESSES[name]).levels, 8 * T)
    exact = DATA.flow(x, first, Level(1, 0, 0))
    assert np.abs(ddim(x, finer) - exact).max() < np.abs(ddim(x, levels) - exact).max() / 3


@pytest.mark.parametrize("name", PROCESSES)
def test_the_bound_with_the_exact_reverse_is_the_entropy_and_what_the_end_costs(name):
    """E[-log2 p] a grey level, of pixels and noise at quantiles, with the reverse variance that the posterior has."""
    table = MADE[name].levels
    now = Level(*(np.asarray(column, np.float64) for column in table))
    nxt = Level(*(np.append(clean, column[:-1]) for clean, column in zip((1, 0, 0), now, strict=True)))
    beta = now.sigma**2 - (now.alpha / nxt.alpha) ** 2 * nxt.sigma**2
    small = beta * (nxt.sigma / now.sigma) ** 2
    exact = small + (nxt.alpha * beta / now.sigma**2) ** 2 * DATA.x0_variance(now)
    low = np.log(np.append(small[1], small[1:]))
    fraction = jnp.asarray((np.log(exact) - low) / (np.log(beta) - low), jnp.float32)
    denoise = denoiser(name)

    def learned(x, level):
        return denoise(x, level)._replace(variance_fraction=fraction[level.time.astype(int)] * jnp.ones_like(x))

    keys = jax.random.split(jax.random.key(3), 8)
    x0 = DATA.mean + DATA.std * random.standard_normal(random.fold(keys, 10**6), (64, 64, 1))
    found = jax.jit(lambda: likelihood.bits_per_dimension(learned, keys, x0, table, "learned_range"))()
    last = Level(*(float(column[-1]) for column in now))
    prior = last.alpha**2 + last.sigma**2
    variance = DATA.total(last) / prior
    bound = 0.5 * np.log(2 * np.pi * np.e * DATA.std**2) - np.log(2 / 255)
    bound += 0.5 * (variance + (last.alpha * DATA.mean) ** 2 / prior - 1 - np.log(variance))
    bound += width_of_bins(exact[0] ** 0.5)
    scatter = float(found.total.std()) / 8**0.5
    assert float(found.total.mean()) == pytest.approx(bound / np.log(2), abs=4 * scatter + 1e-3)
    np.testing.assert_allclose(found.x0_mse.mean(0), DATA.x0_variance(now), rtol=0.05)


# --- how they are made


@pytest.mark.parametrize("name", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_zero_terminal_snr_is_diffusers(name):
    """Tables of diffusers 0.42.1, at the tolerance of golden/README.md; the last alpha is 0 exactly."""
    with np.load(GOLDEN / "schedulers.npz") as arrays:
        theirs = arrays[f"schedule/{name}_zsnr/alphas_cumprod"]
    ours = {"squaredcos_cap_v2": "cosine"}.get(name, name)
    for levels in (
        schedules.create(ours, 1000, zero_terminal_snr=True),
        schedules.rescaled_to_zero_snr(SCHEDULES[ours](1000)),
    ):
        np.testing.assert_allclose(levels.alpha.astype(np.float64) ** 2, theirs, rtol=1e-4, atol=1e-8)
        assert levels.alpha[-1] == 0 and levels.sigma[-1] == 1 and levels.alpha.dtype == np.float32


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_shift_moves_logsnr_and_nothing_else(name):
    """Hoogeboom et al. 2023: logsnr + 2 ln(64 / d); alpha and sigma stay on their curve."""
    plain = schedules.create(name, 100, dtype=np.float64)
    moved = schedules.create(name, 100, shift=256 / 64, dtype=np.float64)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(moved.alpha / moved.sigma, plain.alpha / plain.sigma / 4, rtol=1e-12)
    sizes = {"rectified_flow": moved.alpha + moved.sigma, "edm": moved.alpha}
    size = sizes.get(name, np.hypot(moved.alpha, moved.sigma))
    np.testing.assert_allclose(size, 1, rtol=1e-12)
    np.testing.assert_array_equal(moved.time, plain.time)


def test_a_shifted_flow_is_stable_diffusion_3s():
    sigma = SCHEDULES["rectified_flow"](1000, dtype=np.float64).sigma
    moved = schedules.create("rectified_flow", 1000, shift=3.0, dtype=np.float64)
    np.testing.assert_allclose(moved.sigma, 3 * sigma / (1 + 2 * sigma), rtol=1e-12)


def test_edms_levels_are_the_papers_for_any_number_of_steps():
    """Eq. 5: i from 0 to N - 1 falls from 80 to 0.002; every 111th of 1000 rows is the schedule of 10."""
    wanted = (80 ** (1 / 7) + np.arange(10) / 9 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(schedules.edm(10).sigma[::-1], wanted, rtol=1e-6)
    np.testing.assert_allclose(schedules.trajectory(schedules.edm(1000), 10).sigma[:-1], wanted, rtol=1e-6)


def test_edms_preconditioning_is_the_papers_table():
    sigma, sigma_data = np.array([0.002, 0.3, 5.0, 80.0]), 0.6
    level = Level(jnp.ones((4, 1, 1, 1)), jnp.asarray(sigma, jnp.float32).reshape(-1, 1, 1, 1), jnp.arange(4.0))
    told = []

    def net(x, time, conditions):
        told.append((x, time))
        return jnp.full_like(x, 2.0)

    process = Process(schedules.edm(), "edm", sigma_data=sigma_data)
    x = jnp.full((4, 1, 1, 1), 3.0)
    made = conditional_denoiser(net, process)(x, level, {})
    total = sigma**2 + sigma_data**2
    expected = sigma_data**2 / total * 3 + sigma * sigma_data / np.sqrt(total) * 2
    np.testing.assert_allclose(made.x0.ravel(), expected, rtol=1e-5)
    np.testing.assert_allclose(told[0][0].ravel(), 3 / np.sqrt(total), rtol=1e-5)
    np.testing.assert_allclose(told[0][1], np.log(sigma) / 4, rtol=1e-5)
    np.testing.assert_allclose(made.eps.ravel(), (3 - expected) / sigma, rtol=1e-4, atol=1e-4)


def test_what_edms_network_sees_and_predicts_has_the_variance_one():
    """That is what c_in and c_out are derived from (Karras et al. 2022, appendix B.6)."""
    x0 = 0.7 * jax.random.normal(jax.random.key(0), (256, 16, 16, 1))
    eps = jax.random.normal(jax.random.key(1), x0.shape)
    kind = Process(schedules.edm(), "edm", sigma_data=0.7).parametrization
    for alpha, sigma in ((1.0, 0.01), (1.0, 40.0), (0.6, 0.8), (0.0, 1.0), (1.0, 0.0)):
        level = Level(jnp.float32(alpha), jnp.float32(sigma), jnp.float32(0))
        assert float((kind.input_scale(level) * (alpha * x0 + sigma * eps)).std()) == pytest.approx(1, abs=0.01)
        assert float(kind.target(x0, eps, level).std()) == pytest.approx(1, abs=0.01)


# --- real times


def test_levels_between_rows_are_exact_where_the_path_is_known():
    """A rectified flow has sigma = (t + 1) / T, and alpha = cos(c t) is an arc."""
    times = np.random.default_rng(0).uniform(0, 99, 200)
    flow = jax.jit(Process(schedules.rectified_flow(100)).at)(times)
    np.testing.assert_allclose(flow.sigma.ravel(), (times + 1) / 100, rtol=1e-5)
    np.testing.assert_allclose((flow.alpha + flow.sigma).ravel(), 1, rtol=1e-6)
    angle = (np.arange(100) + 1) / 100 * np.pi / 2 * 0.999
    arc = jax.jit(Process(schedules.table(np.cos(angle), np.sin(angle))).at)(times)
    np.testing.assert_allclose(arc.alpha.ravel(), np.cos((times + 1) / 100 * np.pi / 2 * 0.999), rtol=1e-4)
    np.testing.assert_allclose(arc.sigma.ravel(), np.sin((times + 1) / 100 * np.pi / 2 * 0.999), rtol=1e-5)


@pytest.mark.parametrize(("name", "alpha_bar"), [
    ("cosine", lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2),
    ("linear", lambda u: np.exp(-0.1 * u - 19.9 / 2 * u**2)),
    ("sigmoid", lambda u: (1 / (1 + np.exp(6 * u - 3)) - 1 / (1 + np.exp(3))) / (2 / (1 + np.exp(-3)) - 1)),
])  # fmt: skip
def test_levels_at_real_times_are_those_of_the_continuous_schedule(name, alpha_bar):
    """Time u = (t + 1) / T; linear betas are beta(u) du of Song et al. 2021's SDE but for 0.067 * 1000 / T."""
    times = np.random.default_rng(1).uniform(50, 9800, 500)
    found = jax.jit(Process(SCHEDULES[name](10_000)).at)(times)
    exact = alpha_bar((times + 1) / 10_000)
    np.testing.assert_allclose(schedules.logsnr(found).ravel(), np.log(exact / (1 - exact)), atol=0.02)


@pytest.mark.parametrize("name", PROCESSES)
def test_whole_times_are_rows_and_the_ratio_tells_the_time(name):
    process = MADE[name]
    rows = np.arange(T)
    found = jax.jit(process.at)(rows)
    for mine, column in zip(found, process.levels, strict=True):
        np.testing.assert_allclose(mine.ravel(), column, rtol=1e-6, atol=1e-7)
    times = np.random.default_rng(2).uniform(0, T - 2, 300)
    level = jax.jit(process.at)(times)
    position = jax.jit(functools.partial(schedules.position, process.levels))
    again = position((level.sigma / level.alpha).ravel())
    np.testing.assert_allclose(again, times, atol=0.02)
    ends = position(jnp.array([0.0, jnp.inf]))
    np.testing.assert_allclose(ends, [0, T - 1], atol=1e-3)


def test_noise_at_real_steps_leads_one_row_down_and_at_last_to_the_clean_level():
    table = MADE["shifted cosine"].levels
    x0 = jnp.ones((3, 1, 1, 1))
    noisy = jax.jit(add_noise)(x0, -x0, jnp.array([0.4, 1.0, 7.5]), table)
    np.testing.assert_allclose(noisy.now.time, [0.4, 1.0, 7.5], rtol=1e-6)
    np.testing.assert_allclose(noisy.nxt.time, [0.0, 0.0, 6.5], atol=1e-6)
    assert noisy.nxt.sigma[0] == 0 and noisy.nxt.sigma[1] == table.sigma[0]
    np.testing.assert_allclose(noisy.x, noisy.now.alpha - noisy.now.sigma, rtol=1e-6)


# --- descriptions


@pytest.mark.parametrize("name", PROCESSES)
def test_a_description_makes_the_same_process(name):
    process = MADE[name]
    described = json.loads(json.dumps(process.describe()))
    again = Process.from_description(described)
    assert again.describe() == described and described["schedule"] == PROCESSES[name]["schedule"]
    assert "alpha" not in described and described.get("shift", 1.0) == PROCESSES[name].get("shift", 1.0)
    for mine, theirs in zip(again.levels, process.levels, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for choice in ("prediction", "variance", "sigma_data"):
        assert getattr(again, choice) == getattr(process, choice)


def test_a_description_of_levels_that_no_schedule_makes_keeps_their_numbers():
    process = Process(schedules.shifted(schedules.cosine(10), 1.7), "edm", sigma_data=0.3)
    again = Process.from_description(json.loads(json.dumps(process.describe())))
    np.testing.assert_array_equal(again.levels.alpha, process.levels.alpha)
    assert again.sigma_data == 0.3
    assert Process(schedules.cosine(10)).describe() == {
        "schedule": "cosine", "num_steps": 10, "prediction": "eps", "variance": "fixed_small"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"shift": 0.0}, "diffusion.shift=0.0 must be positive"),
        ({"shift": float("nan")}, "diffusion.shift=nan must be positive"),
        ({"schedule": "edm", "zero_terminal_snr": True, "prediction": "v"}, "zero_terminal_snr needs at least 2 v"),
        ({"zero_terminal_snr": True}, "use diffusion.prediction='v'"),
        ({"prediction": "edm", "sigma_data": 0.0}, "diffusion.sigma_data=0.0 must be positive"),
    ],
)
def test_what_cannot_be_is_refused(how, message):
    with pytest.raises(InputError, match=message):
        Process.create(**how)
    with pytest.raises(InputError, match="alpha = 1; these are none"):
        schedules.shifted(schedules.table(np.array([0.9, 0.5]), np.array([0.3, 0.7])), 2.0)


def test_every_prediction_has_a_place_in_a_process():
    for kind in PREDICTIONS:
        assert Process(schedules.cosine(10), kind).parametrization.prediction is not None
