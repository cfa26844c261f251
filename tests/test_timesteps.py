"""Importance-sampled noise levels: unbiased, as improved diffusion's resampler has it, and part of the train state."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.objectives import Losses, Objective, loss_second_moment, timesteps, uniform
from guided_diffusion_jax.objectives.timesteps import History, probabilities
from guided_diffusion_jax.schedules import at, cosine, edm, rectified_flow
from guided_diffusion_jax.sharding import NO_COLLECTIVES
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
    chosen, reference = loss_second_moment(T, history=H, uniform_share=0.05), Reference(0.05)
    update, now, warm = jax.jit(chosen.update), chosen.init(), []
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
    chosen, now, n = loss_second_moment(1000), full_history(scale), 200_000
    t, weight = jax.jit(chosen.sample)(now, jax.random.split(jax.random.key(0), n))
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
    for chosen in (uniform(T), loss_second_moment(T)):
        t, weight = jax.jit(chosen.sample)(chosen.init(), keys)
        np.testing.assert_allclose(weight, 1, rtol=1e-6)
        assert set(np.asarray(t)) == set(range(T))
    _, weight = jax.jit(loss_second_moment(T).sample)(full_history(np.zeros(T)), keys)
    np.testing.assert_allclose(weight, 1, rtol=1e-6)


def test_a_train_step_draws_weighs_and_remembers():
    chosen, optimizer = loss_second_moment(T), optimizers.create(learning_rate=0.1)
    batch = {"image": jnp.zeros((B, 1, 1, 1))}
    seen = []

    def losses(params, ema, frozen, keys, batch, t=None):
        assert t is not None
        return Losses(params["w"] * (1.0 + t), t)

    scale = np.arange(1.0, T + 1)
    start = state.create({"w": jnp.float32(2)}, optimizer, jax.random.key(1), chosen)
    start = start.replace(timesteps=full_history(scale))
    step = jax.jit(
        functools.partial(
            train_step, objective=Objective(lambda key: {}, losses), optimizer=optimizer, settings=StepSettings(T, 0.0),
            timesteps=chosen,
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


# --- laws of real times


def draw(name, levels, n, **options):
    chosen = timesteps.create(name, levels, **options)
    t, weight = jax.jit(chosen.sample)(chosen.init(), jax.random.split(jax.random.key(5), n))
    assert (np.asarray(weight) == 1).all() and t.min() >= 0 and t.max() <= len(levels.time) - 1
    return np.asarray(t, np.float64)


def assert_normal(values, mean, std):
    """Kolmogorov's distance to N(mean, std**2): above 1.95 / sqrt(n) once in 1000 times."""
    values = np.sort(values)
    cdf = np.array([statistics.NormalDist(mean, std).cdf(value) for value in values])
    assert np.abs(cdf - np.arange(len(values)) / len(values)).max() < 1.95 / len(values) ** 0.5


def test_stratified_times_are_one_in_each_part_and_estimate_without_bias():
    for n in (4, 64):
        u = (draw("stratified", cosine(1000), n) + 1) / 1000
        np.testing.assert_array_equal(np.floor(np.sort(u) * n), np.arange(n))
    chosen = timesteps.create("stratified", cosine(1000))
    batches = jax.jit(jax.vmap(lambda key: chosen.sample((), jax.random.split(key, 16))[0]))(
        jax.random.split(jax.random.key(0), 500)
    )
    means = np.mean((np.asarray(batches) / 1000) ** 2, axis=1)  # of 16; independent times scatter by 0.298 / 4
    mean, std = float(means.mean()), float(means.std())
    assert mean == pytest.approx(1 / 3, abs=4 * std / 500**0.5 + 5e-4) and std < 0.02


def test_logit_normal_times_are_a_flows_sigma():
    t = draw("logit_normal", rectified_flow(1000), 4000, mean=-0.5, std=0.8)
    sigma = np.asarray(at(rectified_flow(1000), jnp.asarray(t, jnp.float32)).sigma, np.float64).ravel()
    assert_normal(np.log(sigma / (1 - sigma)), -0.5, 0.8)


@pytest.mark.parametrize("levels", [edm(1000), cosine(1000)], ids=["edm", "cosine"])
def test_log_normal_sigmas_are_edms(levels):
    t = draw("log_normal_sigma", levels, 4000)
    level = at(levels, jnp.asarray(t, jnp.float32))
    assert_normal(np.asarray(jnp.log(level.sigma / level.alpha), np.float64).ravel(), -1.2, 1.2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("logit_norm", {}, "did you mean 'logit_normal'"),
        ("stratified", {"mean": 1.0}, "'stratified' has no option 'mean'; it has none"),
        ("log_normal_sigma", {"stdd": 1.0}, "it has mean, std; did you mean 'std'"),
        ("logit_normal", {"std": 0.0}, "std=0.0 must be positive"),
        ("loss_second_moment", {"uniform_share": 0.0}, "must lie in"),
    ],
)
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        timesteps.create(name, cosine(10), **options)


def test_each_part_of_a_batch_gets_its_own_times_of_the_whole_batchs():
    """A device that sees samples 4 .. 7 of 8 trains them at the times that one device would train them at."""
    chosen, optimizer = timesteps.create("stratified", cosine(T)), optimizers.create(learning_rate=0.1)
    seen = {}

    def losses(params, ema, frozen, keys, batch, t=None):
        jax.debug.callback(lambda t: seen.__setitem__(len(t), np.asarray(t)), t)
        return Losses(params["w"] * (1.0 + t), t)

    start = state.create({"w": jnp.float32(2)}, optimizer, jax.random.key(1), chosen)
    run = functools.partial(
        train_step, objective=Objective(lambda key: {}, losses), optimizer=optimizer, settings=StepSettings(T, 0.0),
        timesteps=chosen,
    )  # fmt: skip
    jax.jit(run)(start, {"image": jnp.zeros((8, 1, 1, 1))})
    half = NO_COLLECTIVES._replace(
        sample_indices=lambda n: 4 + jnp.arange(n), gather=lambda tree: jax.tree.map(lambda a: _both(a), tree)
    )
    jax.jit(functools.partial(run, collectives=half))(start, {"image": jnp.zeros((4, 1, 1, 1))})
    jax.effects_barrier()
    np.testing.assert_array_equal(seen[4], seen[8][4:])


def _both(values):
    """What two devices would gather of indices; of losses only the shape matters here."""
    return jnp.concatenate([values - 4, values])
