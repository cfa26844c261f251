"""Levels and whole trajectories of diffusers' schedulers, from their configurations (golden/schedulers/README.md).

The mapping from a configuration to a sampler and its levels is `interop.schedulers`; nothing here depends on a case.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Golden, relative_error

from guided_diffusion_jax import random
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.interop import schedulers
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.samplers import visited
from guided_diffusion_jax.trajectories import num_steps, pad
from guided_diffusion_jax.typing import Level

STORED = Golden("schedulers")
TABLES, TRAJECTORIES = STORED.config["tables"], STORED.config["trajectories"]
LENGTH = 45


def name_of(case):
    options = {key: value for key, value in case["kwargs"].items() if not key.startswith("beta_")}
    return f"{case['cls'].removesuffix('Scheduler')}-{case['steps']}-{options}"


def config_of(case):
    return {"_class_name": case["cls"], **case["kwargs"]}


def schedule_of(case):
    name = config_of(case).get("beta_schedule", "linear")
    return f"schedule/{name}{'_zsnr' * bool(case['kwargs'].get('rescale_betas_zero_snr'))}"


SCHEDULES = {schedule_of(case): config_of(case) for case in (*TABLES, *TRAJECTORIES)}


def visited_levels(found):
    levels = visited(found.sampler, found.levels)
    return Level(*(np.asarray(column) for column in levels))


# --- tables


@pytest.mark.parametrize("i", range(len(TABLES)), ids=lambda i: name_of(TABLES[i]))
def test_a_table_of_timesteps_and_sigmas(i):
    case = TABLES[i]
    found = schedulers.sampling(config_of(case), case["steps"])
    levels = visited_levels(found)
    times = STORED[f"table/{i}/timesteps"]
    mine = twice(levels.time[: len(levels.time) - 1], len(times), first=1)
    fragile = np.isin(np.arange(len(times)), case.get("fragile_steps", []))
    whole = np.issubdtype(times.dtype, np.integer) or (times == np.round(times)).all()
    np.testing.assert_allclose(mine, times, rtol=0, atol=np.where(fragile, 1, 0 if whole else 0.05)[:, None].max())
    assert ((mine == times) | fragile | (not whole)).all()
    if f"table/{i}/sigmas" in STORED.arrays:
        ratio = levels.sigma / np.maximum(levels.alpha, 1e-30)
        theirs = STORED[f"table/{i}/sigmas"]
        if case["cls"] == "KDPM2DiscreteScheduler":  # theirs are without the inner levels
            ratio = np.append(ratio[::2], ratio[-1] if len(ratio) % 2 == 0 else [])
            theirs = np.unique(theirs)[::-1]
        if case["kwargs"].get("interpolation_type") == "log_linear":
            theirs = theirs[:-1]
        rtol = 2e-4 if config_of(case)["beta_schedule"] == "scaled_linear" else 5e-3
        np.testing.assert_allclose(twice(ratio, len(theirs), first=1), theirs, rtol=rtol, atol=1e-6)


def twice(values, length, first):
    """All but the first with their repetition, as the table of a solver with two evaluations a step has them."""
    if len(values) == length:
        return values
    return np.append(values[:first], np.repeat(values[first:], 2))[:length]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_table_of_betas(name):
    theirs = {key: STORED[f"{name}/{key}"] for key in ("betas", "alphas_cumprod")}
    alpha_bar = schedulers.table(SCHEDULES[name]).alpha ** 2
    np.testing.assert_allclose(alpha_bar, theirs["alphas_cumprod"], rtol=1e-4, atol=1e-7)
    betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    np.testing.assert_allclose(betas, theirs["betas"], rtol=1e-4, atol=1e-6)  # theirs are differences in float32


# --- trajectories


NOISES = 20
KEYS = random.sample_keys(jax.random.key(0), jnp.arange(2))


@functools.partial(jax.jit, static_argnums=0)
def walk(prediction, sampler, levels, x, log_alpha_bar, noise):
    """States after all steps, with the exact network of N(0.3, 0.5**2) and with `noise[i]` in step i."""
    process = Process(Level(*(np.ones(1, np.float32),) * 3), prediction)
    mean, std = STORED.config["data_mean"], STORED.config["data_std"]

    def network(x, time, conditions):
        x = x.astype(jnp.float64)
        a = jnp.exp(jnp.interp(time, jnp.arange(len(log_alpha_bar)), log_alpha_bar) / 2)[:, None, None, None]
        b = jnp.sqrt(-jnp.expm1(2 * jnp.log(a)))
        centred = (x - a * mean) / (a**2 * std**2 + b**2)
        eps, x0 = b * centred, mean + a * std**2 * centred
        return {"eps": eps, "x0": x0, "v": a * eps - b * x0}[prediction].astype(jnp.float32)

    conditional = conditional_denoiser(network, process)
    levels = visited(sampler, levels)
    of_steps = jax.vmap(lambda i: jax.random.key_data(random.fold(KEYS, i)[0]))(jnp.arange(1, NOISES + 1))
    stored = lambda keys, shape: noise[jnp.argmax((of_steps == jax.random.key_data(keys[0])).all(1))]  # noqa: E731

    def one(carry, i):
        x, memory = carry
        now, nxt = (Level(*(column[i + shift] for column in levels)) for shift in (0, 1))
        denoise, here = lambda x, level: conditional(x, level, {}), random.fold(KEYS, i + 1)
        x, memory = sampler.step(denoise, here, x, now, nxt, memory)
        x = x.astype(jnp.float32)  # noise is float64 here
        return (x, memory), x

    with mock.patch.object(random, "standard_normal", stored):
        return jax.lax.scan(one, (x, sampler.init(x, levels)), jnp.arange(len(levels.time) - 1))[1]


@pytest.mark.parametrize("i", range(len(TRAJECTORIES)), ids=lambda i: name_of(TRAJECTORIES[i]))
def test_a_trajectory(i):
    case = TRAJECTORIES[i]
    found = schedulers.sampling(config_of(case), case["steps"], case.get("eta", 0.0))
    theirs, times = STORED[f"traj/{i}/x"].transpose(0, 1, 3, 4, 2), STORED[f"traj/{i}/timesteps"]
    levels = jax.tree.map(np.array, found.levels)
    if case.get("fragile_steps"):  # they differ by one where float32 rounds
        levels.time[: len(times)] = times
    steps = int(num_steps(visited(found.sampler, levels)))
    x = STORED["x"].transpose(0, 2, 3, 1)
    noise = np.zeros((NOISES, *x.shape), np.float32)
    for k in range(case["n_noises"]):
        noise[k] = STORED[f"traj/{i}/noise/{k}"].transpose(0, 2, 3, 1)
    log_alpha_bar = np.log(np.maximum(STORED[f"{schedule_of(case)}/alphas_cumprod"].astype(np.float64), 1e-30))
    prediction = schedulers.process(config_of(case)).prediction
    padded = pad(levels, LENGTH)
    x = (x * found.noise_scale).astype(np.float32)
    with jax.enable_x64(True):  # of the network
        mine = np.asarray(walk(prediction, found.sampler, padded, x, log_alpha_bar, noise))[:steps]
    tolerance = 2e-4 + first_rounding(levels)
    inputs = STORED[f"traj/{i}/net_in"].transpose(0, 1, 3, 4, 2)
    assert relative_error(x[None], inputs[:1]) <= 1e-6
    assert found.sampler.evaluations == 2 or relative_error(mine[:1], inputs[1:]) <= tolerance
    if case["init_noise_sigma"] != 1:  # their state is x / alpha
        alpha = np.asarray(visited(found.sampler, levels).alpha)[1 : steps + 1]
        mine = mine / alpha[:, None, None, None, None]
    if found.sampler.evaluations == 2:
        theirs = np.append(theirs[1:-1:2], theirs[-1:], axis=0)
    theirs = theirs[:steps]  # the last step to the level where it began is none
    assert relative_error(mine, theirs) <= tolerance


def first_rounding(levels):
    """One unit in the last place of float32's eps, over the first alpha (5e-5 of squaredcos_cap_v2, else 0.07)."""
    return 2.0**-23 * levels.alpha[1] / levels.alpha[0] if levels.alpha[0] > 0 else 0
