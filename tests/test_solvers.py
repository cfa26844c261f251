"""Solvers on mixtures of Gaussians: measured order, law, evaluations, compiled programs, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import GaussianData, row
from mixture_data import mixture

from guided_diffusion_jax import Process, codecs, requests, samplers, sampling_inputs, schedules, trajectories
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.random import prior, sample_keys
from guided_diffusion_jax.samplers import SAMPLERS, sample, visited
from guided_diffusion_jax.trajectories import num_steps, pad, trajectory
from guided_diffusion_jax.typing import Level

KEYS = sample_keys(jax.random.key(0), jnp.arange(8))
PROCESSES = {
    "variance preserving": lambda ratio: (1 / np.sqrt(1 + ratio**2), ratio / np.sqrt(1 + ratio**2)),
    "rectified flow": lambda ratio: (1 / (1 + ratio), ratio / (1 + ratio)),
    "EDM": lambda ratio: (np.ones_like(ratio), ratio),
}

# --- order of convergence

NOISY_END = {"lower_order_final": False}
"""The last step, to the clean level, is exact or nearly so; orders are measured between two noisy levels."""

ORDERS = {
    "euler": (samplers.euler(), 1),
    "heun": (samplers.heun(), 2),
    "heun of eps": (samplers.heun(predict_x0=False), 2),
    "dpmpp_2s": (samplers.dpmpp_2s(**NOISY_END), 2),
    "dpmpp_3s heun": (samplers.dpmpp_3s("heun", **NOISY_END), 3),
    "dpmpp_2m": (samplers.dpmpp_2m(**NOISY_END), 2),
    "dpmpp_2m heun": (samplers.dpmpp_2m("heun", **NOISY_END), 2),
    "dpmpp_3m": (samplers.dpmpp_3m(**NOISY_END), 3),
    "dpm_solver": (samplers.dpm_solver(**NOISY_END), 2),
    "dpm_2": (samplers.dpm_2(), 2),
    "unipc 2 bh1": (samplers.unipc(2, "bh1", **NOISY_END), 2),
    "unipc 2 bh2": (samplers.unipc(2, **NOISY_END), 2),
    "unipc 3": (samplers.unipc(3, **NOISY_END), 3),
    "unipc 3 of eps": (samplers.unipc(3, predict_x0=False, **NOISY_END), 3),
    "deis 2": (samplers.deis(2, **NOISY_END), 2),
    "deis 3": (samplers.deis(3, **NOISY_END), 3),
    "pndm": (samplers.pndm(), 2),
    "ipndm": (samplers.ipndm(), 2),
    "lms 2": (samplers.lms(2), 2),
    "lms 3": (samplers.lms(3), 3),
    "lms 4": (samplers.lms(4), 4),
}
COUNTS = (72, 144, 288)
CASES = {
    "variance preserving": [(2, -1.0), (64, 1.0)],
    "rectified flow": [(2, 1.0), (64, -1.0)],
    "EDM": [(2, 1.0), (64, -1.0)],
}
"""Dimension and guidance weight; -1 is the plain mixture. sigma / alpha has the same flow in all processes."""
REST = {process: sorted({(2, -1.0), (2, 1.0), (64, -1.0), (64, 1.0)} - set(cases)) for process, cases in CASES.items()}


def levels_of(process, count, half_logsnr=(-5.0, 3.0)):
    alpha, sigma = PROCESSES[process](np.exp(-np.linspace(*half_logsnr, count + 1)))
    return Level(alpha, sigma, np.zeros(count + 1))


@jax.jit
def run(sampler, levels, x, data, weight):
    return sample(sampler, lambda x, level: data.guided(x, level, weight), KEYS, x, levels)


@functools.cache
def exact(dimension, weight):
    """X / alpha at both ends: the same flow of sigma / alpha in all processes."""
    noise = np.random.default_rng(1).normal(size=(8, 1, 1, dimension))
    levels = levels_of("EDM", 4096)
    first = noise * np.sqrt(1 + levels.sigma[0] ** 2)
    return first, np.asarray(run(ORDERS["unipc 3"][0], levels, first, mixture(dimension), weight))


@pytest.mark.parametrize(
    "all_cases", [pytest.param(CASES, id="quick"), pytest.param(REST, id="rest", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ORDERS)
def test_the_order_is_the_nominal_one(name, all_cases):
    """In float64, as float32 hides the third order."""
    sampler, nominal = ORDERS[name]
    with jax.enable_x64(True):
        for process, cases in all_cases.items():
            for dimension, weight in cases:
                (first, last), errors = exact(dimension, weight), []
                for count in COUNTS:
                    levels = levels_of(process, count)
                    x = run(sampler, pad(levels, COUNTS[-1] + 1), first * levels.alpha[0], mixture(dimension), weight)
                    errors.append(np.sqrt(np.mean((x / levels.alpha[-1] - last) ** 2)))
                slope = -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]
                assert slope >= 0.9 * nominal, (process, dimension, weight, slope, errors)
    assert sampler.order == nominal


# --- laws

STOCHASTIC = {
    "ddim eta=1": samplers.ddim(1.0),
    "euler_ancestral": samplers.euler_ancestral(),
    "ddpm": samplers.ddpm("fixed_small"),
    "dpmpp_2m_sde": samplers.dpmpp_2m_sde(),
    "dpmpp_2m_sde heun": samplers.dpmpp_2m_sde("heun"),
    "heun with churn": samplers.heun(s_churn=40.0, predict_x0=False),
}
MANY = 20_000


LAWS = [
    pytest.param(name, process, marks=() if i % len(PROCESSES) == j else pytest.mark.slow)
    for i, name in enumerate(STOCHASTIC)
    for j, process in enumerate(PROCESSES)
]
"""Every solver on one process is in the quick tier, every process with two solvers; the others are in the slow one."""


@pytest.mark.parametrize(("name", "process"), LAWS)
def test_a_stochastic_solver_draws_mean_and_covariance_of_the_data(name, process):
    """Each of the 5 numbers within 4 standard errors (99.97 % together), and 1 % for 400 steps of first order."""
    data = mixture(2)
    steps = levels_of(process, 400, (-5.0, 4.0))
    levels = Level(*(np.append(column, end).astype(np.float32) for column, end in zip(steps, (1, 0, 0), strict=True)))
    x = np.asarray(draw(STOCHASTIC[name], levels)).reshape(MANY, 2).astype(np.float64)
    centred = x - data.mean
    covariance = centred.T @ centred / MANY
    products = centred[:, :, None] * centred[:, None]
    scale = np.sqrt(np.diag(data.covariance))
    assert (np.abs(centred.mean(0)) < 4 * scale / MANY**0.5 + 0.01 * scale).all()
    error = 4 * products.std(0) / MANY**0.5 + 0.01 * np.outer(scale, scale)
    assert (np.abs(covariance - data.covariance) < error).all(), (covariance, data.covariance)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 2})  # many numbers, few operations
def draw(sampler, levels):
    keys = sample_keys(jax.random.key(3), jnp.arange(MANY))
    x = prior(keys, (1, 1, 2), row(levels, 0))
    return sample(sampler, mixture(2).denoise, keys, x, levels)


# --- programs

SETTINGS = {
    "ddim": [{"eta": 0.0}, {"eta": 0.7}],
    "euler_ancestral": [{"eta": 1.0}, {"eta": 0.5}],
    "heun": [{}, {"s_churn": 4, "s_tmin": 0.1, "s_tmax": 50.0, "s_noise": 1.003}],
    "dpmpp_2m": [{}, {"solver_type": "heun", "lower_order_final": False}],
    "dpmpp_2m_sde": [{}, {"solver_type": "heun", "lower_order_final": False}],
    "dpmpp_3m": [{}, {"solver_type": "heun", "lower_order_final": False, "curvature": 0.5}],
    "dpmpp_2s": [{}, {"solver_type": "heun", "lower_order_final": False}],
    "dpmpp_3s": [{}, {"solver_type": "heun", "lower_order_final": False}],
    "dpm_solver": [{"order": k, "solver_type": kind} for k in (1, 2, 3) for kind in ("midpoint", "heun")],
    "unipc": [{"order": k, "variant": kind, "lower_order_final": False} for k in (1, 2, 3) for kind in ("bh1", "bh2")],
    "deis": [{"order": k} for k in (1, 2, 3)],
    "lms": [{"order": k} for k in (1, 2, 3, 4)],
}
GAUSSIAN = GaussianData(0.3, 0.5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_all_numeric_settings_are_one_program_and_evaluations_are_as_declared(name):
    """The trajectories of two processes too; both end near the data's flow, from alpha > 0 and from alpha = 0."""
    traces, calls = [], []

    def denoise(x, level):
        traces.append(1)
        jax.debug.callback(lambda: calls.append(1))
        return GAUSSIAN.denoise(x, level)

    program = jax.jit(lambda sampler, levels, x: sample(sampler, denoise, KEYS, x, levels))
    x, process = prior(KEYS, (2, 2, 1)), Process(schedules.cosine(50))
    for schedule in (schedules.cosine(50), schedules.rectified_flow(50)):
        levels = pad(trajectory(schedule, 24, "logsnr"), 51)
        for options in SETTINGS.get(name, [{}, {}]):
            sampler = sampling_inputs.make_sampler(name, process, options=options)
            made = program(sampler, levels, x)
            jax.effects_barrier()
            steps = int(num_steps(visited(sampler, levels)))
            assert len(calls) == sampler.evaluations * steps and steps == 24 + (name == "pndm")
            calls.clear()
            assert jnp.isfinite(made).all()
            if sampler.order and not options.get("eta") and not options.get("s_churn"):
                flow = GAUSSIAN.flow(x, row(levels, 0), row(levels, -1))
                assert float(jnp.abs(made - flow).max()) < (0.3 if sampler.order == 1 else 0.12), options
    assert len(traces) == samplers.create(name).evaluations and program._cache_size() == 1


# --- inversion


def test_inversion_gives_the_noise_that_ddim_turns_into_the_images():
    images = jnp.asarray(np.random.default_rng(0).normal(0.3, 0.5, (8, 2, 2, 1)), jnp.float32)
    errors = []
    for steps in (25, 50, 100):
        levels = trajectory(schedules.cosine(1000), steps, "logsnr")
        noise = samplers.invert(GAUSSIAN.denoise, images, pad(levels, 110))
        np.testing.assert_allclose(noise, GAUSSIAN.flow(images, row(levels, -1), row(levels, 0)), atol=12 / steps)
        again = sample(samplers.ddim(), GAUSSIAN.denoise, KEYS, noise, levels)
        errors.append(float(jnp.abs(again - images).max()))
    assert errors[2] < 0.6 * errors[1] < 0.36 * errors[0], errors


# --- spacings


@pytest.mark.parametrize("schedule", ["cosine", "rectified_flow", "EDM"])
@pytest.mark.parametrize("spacing", trajectories.SPACINGS)
def test_every_spacing_falls_along_the_curve_of_its_process_and_is_closed(spacing, schedule):
    ratio = np.exp(np.linspace(np.log(0.002), np.log(80), 100))
    table = schedules.table(*PROCESSES["EDM"](ratio)) if schedule == "EDM" else schedules.SCHEDULES[schedule](100)
    options = {"times": {"times": [90, 40.5, 7]}, "sigmas": {"sigmas": [5.0, 1.0, 0.1]}}.get(spacing, {})
    if schedule == "rectified_flow" and spacing in ("karras", "exponential", "beta"):
        options = {"sigma_max": 80.0}
    for end in ("clean", "first_level"):
        levels = trajectory(table, 10, spacing, end=end, **options)
        steps = int(num_steps(levels))
        assert steps == {"times": 3, "sigmas": 3}.get(spacing, 10) - (levels.time[-2] == 0 and end == "first_level")
        last = (1, 0, 0) if end == "clean" else row(table, 0)
        assert [float(column[-1]) for column in levels] == pytest.approx([float(value) for value in last])
        alpha, sigma, time = (column[: steps + 1] for column in levels)
        assert (np.diff(sigma / alpha) < 0).all() if schedule != "rectified_flow" else (np.diff(sigma) < 0).all()
        assert (np.diff(alpha) >= 0).all() and (np.diff(time[:steps]) < 0).all()
        on_curve = {"cosine": alpha**2 + sigma**2, "rectified_flow": alpha + sigma, "EDM": alpha}[schedule]
        np.testing.assert_allclose(on_curve, 1, atol=3e-7)


def test_karras_and_exponential_and_beta_sigmas_are_the_papers():
    table = schedules.table(*PROCESSES["EDM"](np.geomspace(0.002, 80, 1000)))
    ratio = lambda *arguments, **options: trajectory(table, *arguments, **options).sigma[:-1]  # noqa: E731
    i = np.arange(18) / 17
    eq5 = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(ratio(18, "karras"), eq5, rtol=1e-5)
    np.testing.assert_allclose(ratio(18, "karras", rho=1), 80 + i * (0.002 - 80), rtol=1e-4)
    np.testing.assert_allclose(ratio(18, "exponential", sigma_max=14.0), 14 * (0.002 / 14) ** i, rtol=1e-5)
    np.testing.assert_allclose(ratio(3, "beta", a=1, b=1), [80, 40.001, 0.002], rtol=1e-5)  # a uniform distribution


# --- what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samplers.create("uni_pc"), "sampler='uni_pc' is not one of .*did you mean 'unipc'"),
        (lambda: samplers.create("heun", eta=0.5), "sampler='heun' has no option 'eta'; it has s_churn, s_tmin"),
        (lambda: samplers.create("unipc", ordr=3), "no option 'ordr'; it has order, .*did you mean 'order'"),
        (lambda: samplers.create("unipc", order=4), "order=4 must be at most 3"),
        (lambda: samplers.create("unipc", variant="bh3"), "variant='bh3' is not one of bh1, bh2"),
        (lambda: sampling_inputs.make_sampler("dpmpp_2m", PROCESS, 0.5), "sampler='dpmpp_2m' has no option 'eta'"),
        (lambda: sampling_inputs.make_sampler(samplers.ddim(), PROCESS, options={"eta": 1}), "has its options already"),
        (lambda: spaced("karras", rho=-1.0), "rho=-1.0 must be positive"),
        (lambda: spaced("karras", rh=7), "spacing='karras' has no option 'rh'; it has rho, .*did you mean 'rho'"),
        (lambda: spaced("karas"), "spacing='karas' is not one of .*did you mean 'karras'"),
        (lambda: spaced("karras", table=schedules.rectified_flow(50)), "no signal .* give sigma_max"),
        (lambda: spaced("karras", sigma_min=9.0, sigma_max=1.0), "sigma_min=9 must be less than sigma_max=1"),
        (lambda: spaced("times", times=[1, 30, 40]), r"times=\[1.0, 30.0, 40.0\] must fall"),
        (lambda: spaced("times", times=[70, 30]), "must be a list of times in 0 .. 49"),
        (lambda: spaced("sigmas", sigmas=[3.0, 3.0, 1.0]), "must fall: noisiest first"),
        (lambda: spaced("sigmas", sigmas=[3.0, -1.0]), "positive"),
        (lambda: spaced("leading", offset=30), "offset=30 leaves the 50 training steps"),
        (lambda: spaced("linspace", end="zero"), "end='zero' is not one of clean, first_level"),
    ],
)
def test_bad_options_are_refused_with_what_there_is(call, message):
    with pytest.raises(InputError, match=message):
        call()


PROCESS = Process(schedules.cosine(50))
CONTEXT = requests.RequestContext(
    specs={},
    info=DatasetInfo(name="none", length=0, image_shape=(8, 8, 1), class_names=()),
    process=PROCESS,
    codec=codecs.pixels((8, 8, 1)),
    prompts=None,
    make_guides=lambda *arguments: (),
)


def test_a_request_takes_options_by_name_and_wants_as_many_steps_as_the_order():
    asked = requests.build(
        CONTEXT, sampler="unipc", sampler_options={"order": 3}, steps=10, spacing="karras", spacing_options={"rho": 5}
    )
    assert asked.sampler.order == 3 and asked.num_steps == 10
    np.testing.assert_array_equal(asked.levels.alpha, PROCESS.trajectory(10, "karras", rho=5).alpha)
    assert requests.build(CONTEXT, sampler="pndm", steps=10).num_steps == 11
    assert requests.build(CONTEXT, sampler="heun", steps=1, spacing="logsnr").num_steps == 1
    for name, steps in (("dpmpp_2m", 1), ("dpmpp_3s", 2), ("lms", 3)):
        with pytest.raises(InputError, match=rf"steps={steps} is less than the order {steps + 1} of this sampler"):
            requests.build(CONTEXT, sampler=name, steps=steps)


def spaced(spacing, table=PROCESS.levels, **options):
    return trajectory(table, 10, spacing, **options)
