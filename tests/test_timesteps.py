"""Importance-sampled noise levels: unbiased, as improved diffusion's resampler has it, and part of the train state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guided_diffusion_jax.objectives import Losses, Objective, loss_second_moment, uniform
from guided_diffusion_jax.objectives.timesteps import History, probabilities
from guided_diffusion_jax.training import optimizers, state
from guided_diffusion_jax.training.step import StepSettings, train_step

pytestmark = pytest.mark.usefixtures("strict_ranks")

T, H, B = 7, 3, 16
RNG = np.random.default_rng(0)


class Reference:
    """Improved diffusion's LossSecondMomentResampler, as its paper's code describes it: lists that shift."""

    def __init__(self, uniform_share):
        self.history, self.uniform_share = [[] for _ in range(T)], uniform_share

    def update(self, t, loss):
        for i, value in zip(t, loss, strict=True):
            self.history[i] = [*self.history[i], value][-H:]

    def probabilities(self):
        if any(len(losses) < H for losses in self.history):
            return np.full(T, 1 / T)
        weights = np.sqrt(np.mean(np.square(self.history), axis=1))
        return weights / weights.sum() * (1 - self.uniform_share) + self.uniform_share / T


def test_the_state_evolves_as_the_reference_does():
    timesteps, reference = loss_second_moment(T, history=H, uniform_share=0.05), Reference(0.05)
    update, now, warm = jax.jit(timesteps.update), timesteps.init(), []
    for step in range(30):
        # Some batches hold more losses of one t than are remembered; t = 6 is seen late, so that warming up takes long.
        t = RNG.integers(0, 3 if step % 3 == 0 else T - (step < 12), B)
        loss = RNG.exponential(1 + t).astype(np.float32)
        now = update(now, jnp.asarray(t), jnp.asarray(loss))
        reference.update(t, loss)
        for row, expected in zip(np.asarray(now.losses), reference.history, strict=True):
            np.testing.assert_array_equal(np.sort(row), np.sort([*expected, *[0] * (H - len(expected))]))
        np.testing.assert_allclose(probabilities(now, 0.05), reference.probabilities(), rtol=1e-5)
        warm.append(np.ptp(reference.probabilities()) > 0)
    assert not warm[11] and warm[-1]


def full_history(scale):
    return History(jnp.asarray(scale, jnp.float32)[:, None] * jnp.ones((1, 10)), jnp.full(len(scale), 10, jnp.int32))


def test_weighted_losses_are_unbiased_and_frequencies_are_the_probabilities():
    """At T = 1000, the rarest steps 1e-6 likely; the loss is that of the history, with steps of 0 loss added to it."""
    scale = np.where(np.arange(1000) < 500, 0.0, np.exp(-np.arange(1000) / 100))
    timesteps, now, n = loss_second_moment(1000), full_history(scale), 200_000
    t, weight = jax.jit(timesteps.sample)(now, jax.random.split(jax.random.key(0), n))
    t, weight, p = np.asarray(t), np.asarray(weight), np.asarray(probabilities(now, 0.001), np.float64)
    assert p.sum() == pytest.approx(1, abs=1e-5) and p.min() == pytest.approx(1e-6, rel=1e-3)
    np.testing.assert_allclose(weight * 1000 * p[t], 1, rtol=1e-3)
    loss = scale + 1e-4
    estimate = weight * loss[t]
    assert estimate.mean() == pytest.approx(loss.mean(), abs=4 * estimate.std() / n**0.5)
    likely = p * n > 50
    frequency = np.bincount(t, minlength=1000)[likely]
    chi_square = ((frequency - p[likely] * n) ** 2 / (p[likely] * n)).sum()
    assert abs(chi_square - likely.sum()) < 4 * (2 * likely.sum()) ** 0.5


def test_a_uniform_choice_has_the_weight_one_before_and_without_warming_up():
    keys = jax.random.split(jax.random.key(0), 64)
    for timesteps in (uniform(T), loss_second_moment(T)):
        t, weight = timesteps.sample(timesteps.init(), keys)
        np.testing.assert_allclose(weight, 1, rtol=1e-6)
        assert set(np.asarray(t)) == set(range(T))
    _, weight = loss_second_moment(T).sample(full_history(np.zeros(T)), keys)
    np.testing.assert_allclose(weight, 1, rtol=1e-6)


def test_a_train_step_draws_weighs_and_remembers():
    timesteps, optimizer = loss_second_moment(T), optimizers.create(learning_rate=0.1)
    batch = {"image": jnp.zeros((B, 1, 1, 1))}
    seen = []

    def losses(params, ema, frozen, keys, batch, t=None):
        assert t is not None
        return Losses(params["w"] * (1.0 + t), t)

    scale = np.arange(1.0, T + 1)
    start = state.create({"w": jnp.float32(2)}, optimizer, jax.random.key(1), timesteps)
    start = start.replace(timesteps=full_history(scale))
    step = jax.jit(
        functools.partial(
            train_step, objective=Objective(lambda key: {}, losses), optimizer=optimizer, settings=StepSettings(T, 0.0),
            timesteps=timesteps,
        )
    )  # fmt: skip
    for _ in range(2):
        before = start
        start, metrics = step(start, batch)
        new = np.asarray(start.timesteps.seen - before.timesteps.seen)
        assert new.sum() == B
        # The mean of weight * loss, all of it from how often each t was drawn.
        loss = np.asarray(before.params["w"]) * (1 + np.arange(T))
        p = np.asarray(probabilities(before.timesteps, 0.001))
        assert float(metrics.loss) == pytest.approx((new * loss / (T * p)).sum() / B, rel=1e-5)
        assert float(metrics.quarter_sums["loss"].sum()) / B == pytest.approx(float(metrics.loss), rel=1e-5)
        # Everything was as large as t + 1 in the history; what came in is loss[t], in as many places as t was drawn.
        changed = (np.asarray(start.timesteps.losses) != np.asarray(before.timesteps.losses)).sum(1)
        if not seen:
            np.testing.assert_array_equal(changed, np.minimum(new, 10))
        seen.append(tuple(new))
    assert seen[0] != seen[1]


def test_a_state_without_timesteps_is_as_before():
    plain = state.create({"w": jnp.float32(2)}, optimizers.create(learning_rate=0.1), jax.random.key(1))
    assert plain.timesteps is None
