"""Schedules, steps and loops against OpenAI's guided-diffusion, at the tolerances of golden/README.md."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Golden, relative_error
from golden_processes import VARIANCES, Synthetic, down, nchw, nhwc, process, select, selection

from guided_diffusion_jax import gaussian, guidance, schedules
from guided_diffusion_jax import random as noise
from guided_diffusion_jax.samplers import ddim, ddpm, sample, sample_trajectory
from guided_diffusion_jax.samplers.ddim import ddim_step
from guided_diffusion_jax.samplers.ddpm import model_gaussian
from guided_diffusion_jax.typing import Level

STEPS, LOOPS = Golden("diffusion_steps"), Golden("diffusion_loops")
SCHEDULES = Golden("diffusion_schedules")
PRIMITIVES = Golden("primitives")

# --- schedules


@pytest.mark.parametrize("entry", SCHEDULES.config["schedules"], ids=lambda entry: entry["key"])
def test_schedules_agree_in_float64(entry):
    def close(name, mine):
        np.testing.assert_allclose(mine, SCHEDULES[f"{entry['key']}/{name}"], rtol=1e-9, atol=1e-12, err_msg=name)

    with jax.enable_x64(True):
        table = schedules.SCHEDULES[entry["schedule"]](entry["T"], dtype=np.float64)
        alpha_bar = table.alpha**2
        now = jax.tree.map(jnp.asarray, table)
        nxt = Level(*(jnp.append(jnp.array([first]), a[:-1]) for a, first in zip(now, (1.0, 0.0, 0.0), strict=True)))
        betas = gaussian.beta(now, nxt)
        posterior, log_posterior = gaussian.variance(
            "fixed_small", now, nxt, gaussian.min_posterior_variance(Level(*(column[::-1] for column in now)))
        )
        of_x0, of_x = gaussian.posterior_coefficients(now, nxt)

        close("betas", betas)
        close("alphas_cumprod", alpha_bar)
        close("alphas_cumprod_prev", nxt.alpha**2)
        close("alphas_cumprod_next", np.append(alpha_bar[1:], 0.0))
        close("sqrt_alphas_cumprod", table.alpha)
        close("sqrt_one_minus_alphas_cumprod", table.sigma)
        close("log_one_minus_alphas_cumprod", 2 * np.log(table.sigma))
        close("sqrt_recip_alphas_cumprod", 1 / table.alpha)
        close("sqrt_recipm1_alphas_cumprod", table.sigma / table.alpha)
        close("posterior_variance", posterior)
        close("posterior_log_variance_clipped", log_posterior)
        close("posterior_mean_coef1", of_x0)
        close("posterior_mean_coef2", of_x)

        for steps in entry["respacings"]:
            rows = select(steps, entry["T"])
            np.testing.assert_array_equal(rows, SCHEDULES[f"{entry['key']}/respaced/{steps}/use_timesteps"])
            levels = schedules.trajectory(table, *selection(steps))
            now = Level(*(jnp.asarray(column[:-1][::-1]) for column in levels))
            nxt = Level(*(jnp.asarray(column[1:][::-1]) for column in levels))
            floor = gaussian.min_posterior_variance(levels)
            close(f"respaced/{steps}/betas", gaussian.beta(now, nxt))
            close(f"respaced/{steps}/alphas_cumprod", now.alpha**2)
            _, log_variance = gaussian.variance("fixed_small", now, nxt, floor)
            close(f"respaced/{steps}/posterior_log_variance_clipped", log_variance)


def test_kl_and_likelihood_primitives():
    z = PRIMITIVES
    kl = gaussian.kl(*(jnp.asarray(z[f"kl/{name}"]) for name in ("mean1", "logvar1", "mean2", "logvar2")))
    np.testing.assert_allclose(kl, z["kl/out"], rtol=1e-5, atol=2e-5)
    likelihood = gaussian.discretised_log_likelihood(
        *(jnp.asarray(z[f"dgll/{name}"]) for name in ("x", "means", "log_scales"))
    )
    np.testing.assert_allclose(likelihood, z["dgll/out"], rtol=1e-5, atol=2e-5)


# --- single steps


def compare(key, mine, tolerance=1e-4, z=STEPS):
    reference = z[key]
    mine = np.broadcast_to(nchw(mine), reference.shape)
    error = relative_error(mine, reference)
    assert error <= tolerance, f"{key}: {error:.2e}"


def single_step(name, monkeypatch):
    """The step of every sample, from its own t, with the stored noise instead of a drawn one."""
    levels = process(STEPS.config["processes"][name])
    x0, x, eps = (nhwc(STEPS[f"{name}/{key}"]) for key in ("x_start", "x", "noise"))
    t = jnp.asarray(STEPS[f"{name}/t"])
    closed = Level(*(np.append(np.float32(first), c) for c, first in zip(levels, (1, 0, 0), strict=True)))
    monkeypatch.setattr(noise, "standard_normal", lambda keys, shape: eps)
    return SimpleNamespace(
        x0=x0, x=x, eps=eps, keys=jax.random.split(jax.random.key(0), len(t)), y=STEPS[f"{name}/y"], levels=levels, t=t,
        now=schedules.at(levels, t), nxt=schedules.at(closed, t),
        floor=gaussian.min_posterior_variance(down(levels)), model=Synthetic(STEPS.config["constants"]),
    )  # fmt: skip


@pytest.mark.parametrize("name", STEPS.config["processes"])
def test_process_steps(name, monkeypatch):
    s = single_step(name, monkeypatch)
    np.testing.assert_allclose(s.now.time, STEPS[f"{name}/model_t"], rtol=1e-6)
    compare(f"{name}/cond_grad", s.model.gradient(s.y, s.x, s.now))
    compare(f"{name}/q_sample", gaussian.q_sample(s.x0, s.eps, s.now))
    for field, mine in gaussian.q_gaussian(s.x0, s.now)._asdict().items():
        compare(f"{name}/q_mean_variance/{field}", mine)
    compare(f"{name}/q_posterior/mean", gaussian.posterior_mean(s.x, s.x0, s.now, s.nxt))
    variance, log_variance = gaussian.variance("fixed_small", s.now, s.nxt, s.floor)
    compare(f"{name}/q_posterior/variance", variance)
    compare(f"{name}/q_posterior/log_variance_clipped", log_variance)


@pytest.mark.parametrize("clip", ["clip", "noclip"])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("kind", ["EPSILON", "START_X", "PREVIOUS_X"])
@pytest.mark.parametrize("name", STEPS.config["processes"])
def test_sampler_steps(name, kind, variance, clip, monkeypatch):
    s = single_step(name, monkeypatch)
    tail = f"{kind}/{variance}/{clip}"
    gradient = functools.partial(s.model.gradient, s.y)
    raw = s.model.denoiser(kind, variance, gaussian.posterior_coefficients(s.now, s.nxt))
    denoise = guidance.clip_x0(raw) if clip == "clip" else raw
    # A network that predicts the mean itself has that mean, clipped or not: the reference clips only its x0.
    ancestral = raw if kind == "PREVIOUS_X" else denoise
    v = VARIANCES[variance]

    p = model_gaussian(ancestral, s.x, s.now, s.nxt, s.floor, v)
    compare(f"{name}/p_mean_variance/{tail}/mean", p.mean)
    compare(f"{name}/p_mean_variance/{tail}/variance", p.variance)
    compare(f"{name}/p_mean_variance/{tail}/log_variance", p.log_variance)
    compare(f"{name}/p_mean_variance/{tail}/pred_xstart", denoise(s.x, s.now).x0)
    compare(f"{name}/condition_mean/{tail}", p.mean + p.variance * gradient(s.x, s.now))

    step = lambda sampler: sampler.step(ancestral, s.keys, s.x, s.now, s.nxt, s.floor)[0]  # noqa: E731
    compare(f"{name}/p_sample/{tail}", step(ddpm(v)))
    compare(f"{name}/p_sample_cond/{tail}", step(ddpm(v, gradient)))

    guided = guidance.classifier(denoise, gradient, 1.0)
    shifted = guided(s.x, s.now)
    compare(f"{name}/condition_score/{tail}/pred_xstart", shifted.x0, 1e-3)
    compare(f"{name}/condition_score/{tail}/mean", gaussian.posterior_mean(s.x, shifted.x0, s.now, s.nxt), 1e-3)

    take = functools.partial(ddim_step, keys=s.keys, x=s.x, now=s.now, nxt=s.nxt)
    compare(f"{name}/ddim_sample/{tail}/eta0.0", take(denoise, eta=0.0), 1e-3)
    compare(f"{name}/ddim_sample/{tail}/eta0.5", take(denoise, eta=0.5), 1e-3)
    compare(f"{name}/ddim_sample_cond/{tail}/eta0.5", take(guided, eta=0.5), 1e-3)

    beyond = Level(*(np.append(column, np.float32(last)) for column, last in zip(s.levels, (0, 1, 0), strict=True)))
    up = ddim_step(denoise, s.keys, s.x, s.now, schedules.at(beyond, s.t + 1))
    compare(f"{name}/ddim_reverse/{tail}", up, 1e-3)


# --- loops


def loop_cases():
    for key in LOOPS.arrays:
        if key.endswith("/trajectory"):
            yield key.removesuffix("/trajectory")


@pytest.mark.parametrize("case", list(loop_cases()))
def test_loops(case, monkeypatch):
    """The package's own loop; a stored noise is found by the key that the loop hands to the step."""
    name, kind, variance, clip, way = case.split("/")
    levels = down(process(LOOPS.config["processes"][name]))
    x_T, eps = nhwc(LOOPS[f"{name}/x_T"]), nhwc(LOOPS[f"{name}/noise"])
    keys = jax.random.split(jax.random.key(0), len(x_T))
    known = jnp.stack([jax.random.key_data(noise.fold(keys, i + 1)[0]) for i in range(len(eps))])

    def stored(keys, shape):
        return eps[jnp.argmax(jnp.all(known == jax.random.key_data(keys[0]), axis=-1))]

    monkeypatch.setattr(noise, "standard_normal", stored)

    model = Synthetic(LOOPS.config["constants"])
    gradient = functools.partial(model.gradient, LOOPS[f"{name}/y"])
    denoise = model.denoiser(kind, variance)
    if clip == "clip":
        denoise = guidance.clip_x0(denoise)
    if way == "ddim_cond":
        denoise = guidance.classifier(denoise, gradient, 1.0)
    sampler = {
        "p": ddpm(VARIANCES[variance]),
        "p_cond": ddpm(VARIANCES[variance], gradient),
        "ddim": ddim(),
        "ddim_cond": ddim(),
        "ddim_eta0.5": ddim(0.5),
    }[way]
    pictures = jax.jit(sample_trajectory, static_argnums=(0, 1, 5))(sampler, denoise, keys, x_T, levels, 10)
    for frame, reference in zip(pictures, LOOPS[f"{case}/trajectory"], strict=True):
        assert relative_error(nchw(frame), reference) <= 5e-4
    final = jax.jit(sample, static_argnums=(0, 1))(sampler, denoise, keys, x_T, levels)
    assert relative_error(nchw(final), LOOPS[f"{case}/final"]) <= 5e-4
