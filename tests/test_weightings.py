"""Weights of the loss by noise level, for everything that a network predicts; and an uncertainty that is learned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from gaussian_data import GaussianData

from guided_diffusion_jax import models, objectives, schedules
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.objectives import WEIGHTINGS, weightings
from guided_diffusion_jax.objectives.partition import AUXILIARY, network, split
from guided_diffusion_jax.prediction import PREDICTIONS, from_x0
from guided_diffusion_jax.process import Process

TABLE = schedules.cosine(100)
DATA = GaussianData(0.1, 0.4)
PATHS = {"cosine": TABLE, "flow": schedules.rectified_flow(100), "edm": schedules.edm(100)}


def by_hand(name, level):
    """Weight of the squared error of x0 as the papers have it, in float64."""
    snr = (np.asarray(level.alpha, np.float64) / np.asarray(level.sigma, np.float64)) ** 2
    with np.errstate(divide="ignore"):
        return {
            "min_snr": np.minimum(snr, 3.0),
            "p2": snr / (0.5 + snr) ** 2,
            "edm": (1 / np.sqrt(snr) ** 2 + 0.09) / (0.09 / snr),
            "sigmoid": snr / (1 + np.exp(np.log(snr) - 0.7)),
        }[name]


OPTIONS = {
    "min_snr": {"gamma": 3.0},
    "p2": {"gamma": 2.0, "k": 0.5},
    "edm": {"sigma_data": 0.3},
    "sigmoid": {"bias": 0.7},
}


@pytest.mark.parametrize("path", PATHS)
def test_the_weighted_error_of_every_prediction_is_that_of_x0(path):
    """With x and its true x0 and eps given, and a network that is wrong: the weighted errors are all the same."""
    rows = np.arange(3, 96, 9)
    x0 = jax.random.normal(jax.random.key(0), (len(rows), 2, 2, 1))
    eps = jax.random.normal(jax.random.key(1), x0.shape)

    @jax.jit
    def errors():
        level = schedules.at(PATHS[path], rows)
        wrong = from_x0(level.alpha * x0 + level.sigma * eps, x0 + 0.3 * jnp.sin(5 * x0), level)
        found = {}
        for name, options in OPTIONS.items():
            for kind in PREDICTIONS:
                target = PREDICTIONS[kind].target
                scaled = weightings.weighted(target, weightings.create(name, target, **options))
                found[name, kind] = (scaled(wrong.x0, wrong.eps, level) - scaled(x0, eps, level)) ** 2
            weight = weightings.create(name, PREDICTIONS["eps"].target, **options)
            found[name, "eps by hand"] = weight(level) * (wrong.eps - eps) ** 2
        return jax.tree.map(lambda error: error.mean((1, 2, 3)), list(found.values())), wrong.x0

    found, wrong = errors()
    error = (np.asarray(wrong, np.float64) - np.asarray(x0, np.float64)) ** 2
    names = [name for name in OPTIONS for _ in (*PREDICTIONS, "eps by hand")]
    for name, mine in zip(names, found, strict=True):
        expected = by_hand(name, schedules.at(PATHS[path], rows)) * error
        np.testing.assert_allclose(mine, expected.mean((1, 2, 3)), rtol=0.02, err_msg=name)


def test_known_cases_are_known_weights():
    v, edm, eps = (PREDICTIONS[name].target for name in ("v", "edm", "eps"))

    @jax.jit
    def weights():
        level = schedules.at(TABLE, np.arange(0, 99, 7))
        snr = (level.alpha / level.sigma) ** 2
        return [
            # Karras et al. 2022: lambda c_out**2 = 1.
            (weightings.create("edm", edm)(schedules.at(schedules.edm(50), np.arange(50))), 1),
            # Salimans & Ho 2022: the error of v is snr + 1 times that of x0.
            (weightings.create("min_snr", v, gamma=1e9)(level), snr / (snr + 1)),
            (weightings.create("edm", v, sigma_data=1.0)(level), 1),
            (weightings.create("p2", eps, gamma=1.0)(level), 1 / (1 + snr)),
        ]

    for found, known in weights():
        np.testing.assert_allclose(found, known, rtol=1e-4)
    assert weightings.create("none", eps) is None and weightings.weighted(eps, None) is eps


def test_weights_are_finite_at_pure_noise():
    level = schedules.at(schedules.rectified_flow(10), jnp.int32(9))
    assert level.alpha == 0
    names = [name for name in WEIGHTINGS if name != "none"]
    made = [weightings.create(name, kind.target) for name in names for kind in PREDICTIONS.values()]
    weights = np.array(jax.jit(lambda: [weight(level) for weight in made])())
    assert np.isfinite(weights).all() and (weights >= 0).all()


def test_a_weighting_weights_the_loss_and_not_what_trains_a_variance():
    process = Process(TABLE, "v", "learned_range")
    keys = jax.random.split(jax.random.key(0), 32)
    x0 = DATA.mean + DATA.std * jax.random.normal(jax.random.key(1), (32, 4, 4, 1))

    def net(x, time, conditions):
        return jnp.concatenate([0.3 * x, 0.1 * x], axis=-1)

    def run(weighting, loss="mse"):
        denoise = conditional_denoiser(net, process)
        return objectives.denoising_losses(denoise, keys, x0, {}, process, loss=loss, weighting=weighting)

    weight = weightings.create("min_snr", process.parametrization.target)
    plain, weighted, bound = jax.jit(lambda: (run(None), run(weight), run(None, "kl")))()
    factor = weight(schedules.at(TABLE, plain.t)).ravel()
    np.testing.assert_allclose(weighted.loss - bound.loss, factor * (plain.loss - bound.loss), rtol=1e-3, atol=1e-4)


# --- learned uncertainty


def test_the_uncertainty_learns_the_logarithm_of_the_loss():
    """Its least value is at u = ln E[loss] (Karras et al. 2024), here of losses with a known expectation."""
    table = schedules.edm(200)
    expected = lambda level: 0.5 + 2.0 * jnp.exp(-((jnp.log(level.sigma) + 1) ** 2))  # noqa: E731
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 2000))

    def step(carry, key):
        params, state = carry
        of_t, of_loss = jax.random.split(key)
        level = schedules.at(table, jax.random.randint(of_t, (512,), 0, 200))
        loss = expected(level) * jax.random.exponential(of_loss, (512, 1, 1, 1))

        def objective(params):
            u = weightings.uncertainty(params, level)
            return jnp.mean(jnp.exp(-u) * loss + u)

        updates, state = optimizer.update(jax.grad(objective)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = weightings.init_uncertainty()
    level = schedules.at(table, np.arange(0, 200, 10))
    assert (weightings.uncertainty(start, level) == 0).all()
    keys = jax.random.split(jax.random.key(0), 2000)
    (params, _), _ = jax.jit(functools.partial(jax.lax.scan, step))((start, optimizer.init(start)), keys)
    np.testing.assert_allclose(weightings.uncertainty(params, level), jnp.log(expected(level)), atol=0.15)


def test_an_uncertainty_is_trained_along_and_is_no_part_of_the_network():
    model, process = tiny.Network(), Process.create("edm", 20, prediction="edm")
    objective = objectives.denoising(model, process, (4, 4, 1), weighting="learned")
    plain = objectives.denoising(model, process, (4, 4, 1), weighting="edm")
    params = objective.init(jax.random.key(0))
    assert set(network(params)) == set(plain.init(jax.random.key(0))) and AUXILIARY in params
    trained, frozen = split(params, lambda path: path[0] == "out")
    assert AUXILIARY in trained and AUXILIARY not in frozen
    params[AUXILIARY]["cos"] = params[AUXILIARY]["cos"].at[0].set(0.7)  # u = 0.7 at every level
    keys, batch = jax.random.split(jax.random.key(1), 4), {"image": jnp.ones((4, 4, 4, 1)) * 0.5}
    both = jax.jit(lambda p: (objective.loss(p, {}, {}, keys, batch), plain.loss(network(p), {}, {}, keys, batch)))
    found, known = both(params)
    np.testing.assert_allclose(found.figures["weighted_mse"], known.loss, rtol=1e-5)
    np.testing.assert_allclose(found.loss, np.exp(-0.7) * known.loss + 0.7, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("min_snrs", {}, "did you mean 'min_snr'"),
        ("min_snr", {"gama": 1.0}, "has no option 'gama'; it has gamma; did you mean 'gamma'"),
        ("none", {"gamma": 1.0}, "'none' has no option 'gamma'; it has none"),
        ("min_snr", {"gamma": float("nan")}, "must be a finite number"),
        ("edm", {"sigma_data": 0.0}, "sigma_data must be positive"),
    ],
)
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        weightings.create(name, PREDICTIONS["v"].target, **options)


def test_a_bound_is_not_weighted():
    with pytest.raises(InputError, match=r"train\.loss='kl' is none; use 'mse'"):
        objectives.denoising(models.UNet(out_channels=1), Process(TABLE), (4, 4, 1), loss="kl", weighting="p2")
