"""Closed forms of the diffusion's Gaussians and of the parametrisations, against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import row

from guided_diffusion_jax import gaussian, schedules
from guided_diffusion_jax.prediction import PREDICTIONS
from guided_diffusion_jax.schedules import SCHEDULES, pad, trajectory
from guided_diffusion_jax.typing import Level

pytestmark = pytest.mark.usefixtures("strict_ranks")

RNG = np.random.default_rng(0)


def images(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


# --- parametrisations


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_true_target_gives_back_the_clean_image_and_the_noise(kind):
    """The targets and the predictions invert each other at every noise level, one per sample."""
    x0, eps = images(64, 3, 3, 2), images(64, 3, 3, 2)
    angle = jnp.asarray(RNG.uniform(0.05, 1.5, size=(64, 1, 1, 1)), jnp.float32)
    level = Level(jnp.cos(angle), jnp.sin(angle), jnp.arange(64.0))
    x = gaussian.q_sample(x0, eps, level)
    made = PREDICTIONS[kind].prediction(x, PREDICTIONS[kind].target(x0, eps, level), level)
    # Dividing by alpha or sigma enlarges the rounding by that.
    np.testing.assert_allclose(made.x0, x0, atol=5e-5)
    np.testing.assert_allclose(made.eps, eps, atol=5e-5)
    for other in PREDICTIONS:
        again = PREDICTIONS[other].prediction(x, PREDICTIONS[other].target(made.x0, made.eps, level), level)
        np.testing.assert_allclose(again.x0, x0, atol=2e-4)
        np.testing.assert_allclose(again.eps, eps, atol=2e-4)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.0, 1.0), (1.0, 80.0), (0.3, 0.7)])
def test_every_level_is_safe_and_consistent(kind, alpha, sigma):
    """No alpha**2 + sigma**2 = 1; what x determines comes back, the rest and all gradients are finite."""
    x0, eps = images(4, 3, 3, 1), images(4, 3, 3, 1)
    level = Level(jnp.float32(alpha), jnp.float32(sigma), jnp.float32(0))
    x, kinds = gaussian.q_sample(x0, eps, level), PREDICTIONS[kind]
    made = kinds.prediction(x, kinds.target(x0, eps, level), level)
    np.testing.assert_allclose(level.alpha * made.x0 + level.sigma * made.eps, x, atol=2e-5 * max(1, sigma))
    if not (kind == "eps" and alpha == 0):
        np.testing.assert_allclose(made.x0, x0, atol=1e-4 * max(1, sigma))
    if not (kind == "x0" and sigma == 0):
        np.testing.assert_allclose(made.eps, eps, atol=2e-5)
    slope = jax.grad(lambda x: sum(jnp.sum(part**2) for part in kinds.prediction(x, eps, level)[:2]))(x)
    assert jnp.isfinite(slope).all() and all(jnp.isfinite(part).all() for part in made[:2])


# --- posteriors


@pytest.mark.parametrize(("i", "j"), [(99, 98), (99, 0), (60, 40), (10, 9), (1, 0)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_posterior_is_what_bayes_rule_says(name, i, j):
    """Of q(x_nxt given x0) q(x_now given x_nxt) on a grid of x_nxt, in float64."""
    with jax.enable_x64(True):
        table = SCHEDULES[name](100, dtype=np.float64)
        now, nxt = row(table, i), row(table, j)
        ratio = float(now.alpha / nxt.alpha)
        added = float(now.sigma) ** 2 - ratio**2 * float(nxt.sigma) ** 2
        assert float(gaussian.beta(now, nxt)) == pytest.approx(added, rel=1e-9)
        assert float(gaussian.log_beta(now, nxt)) == pytest.approx(np.log(added), rel=1e-9)
        x0 = 0.7
        x = float(now.alpha) * x0 + 0.8 * float(now.sigma)
        mean = float(gaussian.posterior_mean(jnp.full((1, 1, 1, 1), x), jnp.full((1, 1, 1, 1), x0), now, nxt).item())
        variance = float(gaussian.posterior_variance(now, nxt))

        grid = mean + np.linspace(-12, 12, 20001) * variance**0.5
        log_density = -((grid - float(nxt.alpha) * x0) ** 2) / (2 * float(nxt.sigma) ** 2)
        log_density -= (x - ratio * grid) ** 2 / (2 * added)
        density = np.exp(log_density - log_density.max())
        density /= density.sum()
        assert (density * grid).sum() == pytest.approx(mean, rel=1e-8)
        assert (density * (grid - mean) ** 2).sum() == pytest.approx(variance, rel=1e-8)


def test_float32_keeps_the_digits_of_small_betas():
    """Rounding 1 - (alpha_now / alpha_nxt)^2 would cost the first of 4000 steps three of its digits."""
    exact, table = schedules.linear(4000, dtype=np.float64), schedules.linear(4000)
    now, nxt = (Level(*(jnp.asarray(c[rows]) for c in table)) for rows in (slice(1, None), slice(-1)))
    error = np.abs(gaussian.beta(now, nxt) / (1 - (exact.alpha[1:] / exact.alpha[:-1]) ** 2) - 1)
    assert error[:20].max() < 5e-6 and error.max() < 3e-4
    naive = np.abs((1 - (now.alpha / nxt.alpha) ** 2) / (1 - (exact.alpha[1:] / exact.alpha[:-1]) ** 2) - 1)
    assert naive[:20].max() > 100 * error[:20].max()


@pytest.mark.parametrize("steps", [(10,), ((5, 2, 9),), (20, "logsnr")])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_min_posterior_variance_is_the_last_noisy_steps_padded_or_not(name, steps):
    levels = trajectory(SCHEDULES[name](50), *steps)
    smallest = gaussian.min_posterior_variance(levels)
    assert float(smallest) > 0
    np.testing.assert_allclose(smallest, gaussian.posterior_variance(row(levels, -3), row(levels, -2)), rtol=1e-6)
    assert gaussian.min_posterior_variance(pad(levels, 52)) == smallest
    assert gaussian.min_posterior_variance(pad(trajectory(SCHEDULES[name](50), 1), 9)) == 0


def test_variances_are_ordered_and_the_learned_one_interpolates_their_logarithms():
    levels = trajectory(schedules.cosine(50), 10)
    floor = gaussian.min_posterior_variance(levels)
    now, nxt = (schedules.at(levels, jnp.arange(10) + shift) for shift in (0, 1))
    small, log_small = gaussian.variance("fixed_small", now, nxt, floor)
    large, log_large = gaussian.variance("fixed_large", now, nxt, floor)
    assert (small[:-1] <= large[:-1]).all() and small[-1] == 0 and large[-1] == floor
    np.testing.assert_allclose(log_small, jnp.log(small.at[-1].set(floor)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_large, jnp.log(large), rtol=1e-5, atol=1e-6)
    for fraction in (0.0, 0.3, 1.0):
        _, middle = gaussian.variance("learned_range", now, nxt, floor, jnp.full((10, 1, 1, 1), fraction))
        expected = fraction * gaussian.log_beta(now, nxt) + (1 - fraction) * log_small
        np.testing.assert_allclose(middle, expected, rtol=1e-5, atol=1e-6)


# --- likelihoods


@pytest.mark.parametrize("std", [0.002, 0.03, 0.3, 3.0])
@pytest.mark.parametrize("mean", [-1.2, -0.5, 0.001, 0.99])
def test_the_discretised_likelihood_is_a_distribution_over_256_values(mean, std):
    pixels = jnp.asarray(np.arange(256) / 127.5 - 1, jnp.float32)
    log_p = gaussian.discretised_log_likelihood(pixels, jnp.full(256, mean), jnp.full(256, np.log(std)))
    assert (log_p <= 1e-6).all()
    assert float(jnp.exp(log_p).sum()) == pytest.approx(1, abs=1e-5)


def test_kl_is_the_integral_it_stands_for():
    """Of n1 log(n1 / n2), numerically in float64; nowhere negative, 0 between equals."""
    mean1, mean2 = RNG.normal(size=(2, 20))
    log1, log2 = RNG.uniform(-3, 1, size=(2, 20))
    kl = gaussian.kl(*(jnp.asarray(a, jnp.float32) for a in (mean1, log1, mean2, log2)))
    for i in range(20):
        grid = mean1[i] + np.linspace(-12, 12, 4001) * np.exp(log1[i] / 2)
        log_n1, log_n2 = (
            -((grid - mean[i]) ** 2) / (2 * np.exp(log[i])) - 0.5 * (log[i] + np.log(2 * np.pi))
            for mean, log in ((mean1, log1), (mean2, log2))
        )
        integral = (np.exp(log_n1) * (log_n1 - log_n2)).sum() * (grid[1] - grid[0])
        assert float(kl[i]) == pytest.approx(integral, rel=1e-4, abs=1e-5)
    assert (kl >= 0).all()
    assert (gaussian.kl(jnp.zeros(20), jnp.asarray(log1), jnp.zeros(20), jnp.asarray(log1)) == 0).all()


def test_kl_of_nearly_equal_variances_keeps_its_digits():
    """0.5 (e^r - 1 - r) = r^2 / 4 for small r; exp(r) - 1 would leave the noise of float32."""
    r = jnp.array([1e-3, -1e-3, 3e-3, 1e-2])
    kl = gaussian.kl(jnp.zeros(4), r, jnp.zeros(4), jnp.zeros(4))
    np.testing.assert_allclose(kl, r**2 / 4 + r**3 / 12, rtol=1e-3)
