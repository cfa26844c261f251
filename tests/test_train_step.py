"""The moving average and one update, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guided_diffusion_jax.data.augmentation import random_crop
from guided_diffusion_jax.objectives import Losses, Objective, uniform_steps
from guided_diffusion_jax.training import optimizers, state
from guided_diffusion_jax.training.step import StepSettings, train_step

pytestmark = pytest.mark.usefixtures("strict_ranks")

RNG = np.random.default_rng(0)
B, T = 8, 100
BATCH = {
    "image": jnp.asarray(RNG.normal(size=(B, 1, 1, 3)), jnp.float32),
    "y": jnp.asarray(RNG.normal(size=B), jnp.float32),
}
START = RNG.normal(size=3)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_is_the_loop_that_its_docstring_writes(decay):
    values = RNG.normal(size=(100, 4))
    mine, plain = {"a": jnp.asarray(values[0], jnp.float32)}, values[0]
    update = jax.jit(state.update_ema, static_argnums=2)
    for step, value in enumerate(values):
        mine = update(mine, {"a": jnp.asarray(value, jnp.float32)}, decay, jnp.int32(step))
        d = min(decay, (1 + step) / (10 + step))
        plain = d * plain + (1 - d) * value
    np.testing.assert_allclose(mine["a"], plain, rtol=1e-5, atol=1e-6)
    if decay == 0:
        np.testing.assert_array_equal(mine["a"], np.float32(values[-1]))


def test_the_averages_decay_is_a_tenth_at_first_and_the_given_one_in_the_end():
    share = lambda step: float(state.update_ema(jnp.ones(1), jnp.zeros(1), 0.9999, jnp.int32(step))[0])  # noqa: E731
    assert share(0) == pytest.approx(0.1)
    assert share(10**6) == pytest.approx(0.9999, abs=1e-7)
    np.testing.assert_array_equal(state.update_ema(jnp.ones(3), jnp.ones(3), 0.9999, jnp.int32(50)), np.ones(3))


def losses_of(params, ema, frozen, keys, batch):
    """A linear network's squared error; t from the keys."""
    residual = (batch["image"][:, 0, 0] * params["w"][None]).sum(-1) - batch["y"]
    return Losses(residual**2, uniform_steps(keys, T))


OBJECTIVE = Objective(init=lambda key: {"w": jnp.asarray(START, jnp.float32)}, loss=losses_of)


def adam(rate, warmup, decay, clip):
    return optimizers.create(learning_rate=rate, warmup_steps=warmup, weight_decay=decay, grad_clip=clip)


def steps(optimizer, count):
    """The states and metrics of `count` updates."""
    now = state.create({"w": jnp.asarray(START, jnp.float32)}, optimizer, jax.random.key(3))
    step = jax.jit(
        functools.partial(train_step, objective=OBJECTIVE, optimizer=optimizer, settings=StepSettings(T, 0.999))
    )
    for _ in range(count):
        now, metrics = step(now, BATCH)
        yield now, metrics


@pytest.mark.parametrize(
    ("warmup", "decay", "clip"), [(0, 0.0, 0.0), (0, 0.1, 0.0), (4, 0.0, 0.0), (0, 0.0, 0.5)],
    ids=["adam", "weight decay", "warm-up", "clip"],
)  # fmt: skip
def test_updates_are_adams_by_hand(warmup, decay, clip):
    """Kingma & Ba 2015, algorithm 1; the decay decoupled (Loshchilov & Hutter 2019); five updates in float64."""
    rate, b1, b2, small = 0.01, 0.9, 0.999, 1e-8
    a, y = np.float64(BATCH["image"][:, 0, 0]), np.float64(BATCH["y"])
    w, m, v, average = START.copy(), 0.0, 0.0, START.copy()
    for k, (now, metrics) in enumerate(steps(adam(rate, warmup, decay, clip), 5)):
        residual = a @ w - y
        g = 2 * a.T @ residual / B
        norm = np.sqrt((g**2).sum())
        assert float(metrics.loss) == pytest.approx((residual**2).mean(), rel=1e-5)
        assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-5)
        g = g * min(1, clip / norm) if clip else g
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        direction = m / (1 - b1 ** (k + 1)) / (np.sqrt(v / (1 - b2 ** (k + 1))) + small)
        w = w - rate * min(1, (k + 1) / max(1, warmup)) * (direction + decay * w)
        d = min(0.999, (1 + k) / (10 + k))
        average = d * average + (1 - d) * w
        np.testing.assert_allclose(now.params["w"], w, atol=2e-6)
        np.testing.assert_allclose(now.ema["w"], average, atol=2e-6)
        assert now.step == k + 1


def test_the_quarters_add_up_to_the_loss_and_random_numbers_go_with_the_step():
    seen = []
    for now, metrics in steps(adam(0.0, 0, 0.0, 0.0), 3):
        assert float(metrics.quarter_sums["loss"].sum() / B) == pytest.approx(float(metrics.loss), rel=1e-6)
        assert metrics.quarter_count.sum() == B
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(now.key, now.step - 1), jnp.arange(B))
        t = np.asarray(uniform_steps(keys, T))
        np.testing.assert_array_equal(metrics.quarter_count, np.bincount(t * 4 // T, minlength=4))
        loss = np.asarray(losses_of(now.params, None, {}, keys, BATCH).loss)
        np.testing.assert_allclose(
            metrics.quarter_sums["loss"], np.bincount(t * 4 // T, loss, minlength=4), rtol=1e-5, atol=1e-6
        )
        seen.append(tuple(t))
    assert len(set(seen)) == 3


def test_random_crop_shifts_each_image_by_its_own_key():
    images = jnp.arange(2 * 4 * 4, dtype=jnp.float32).reshape(2, 4, 4, 1)
    keys = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(random_crop(keys, images, 0), images)
    cropped = random_crop(keys, images, 2)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    for crop, whole in zip(cropped, padded, strict=True):
        assert any(np.array_equal(crop, whole[i : i + 4, j : j + 4]) for i in range(5) for j in range(5))
    many = random_crop(jax.random.split(jax.random.key(1), 200), jnp.repeat(images[:1], 200, 0), 1)
    assert len(np.unique(many, axis=0)) == 9  # all places occur


def one_step(optimizer, now, batch=BATCH, **options):
    """One update, not compiled in advance."""
    settings = StepSettings(T, 0.9, **options)
    step = functools.partial(train_step, objective=OBJECTIVE, optimizer=optimizer, settings=settings)
    return jax.jit(step)(now, batch)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_a_gradient_in_parts_is_the_whole_gradient(accumulate):
    optimizer = adam(0.01, 0, 0.0, 0.5)
    now = state.create({"w": jnp.asarray(START, jnp.float32)}, optimizer, jax.random.key(3))
    (whole, metrics), (parts, in_parts) = (one_step(optimizer, now, accumulate=count) for count in (1, accumulate))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), metrics, in_parts)
    np.testing.assert_allclose(parts.params["w"], whole.params["w"], rtol=1e-5)


def test_of_a_bad_step_only_its_number_stays():
    optimizer = adam(0.01, 0, 0.0, 0.0)
    now = state.create({"w": jnp.asarray(START, jnp.float32)}, optimizer, jax.random.key(3), grad_spike=3.0)
    now, metrics = one_step(optimizer, now, grad_spike=3.0)
    assert not metrics.bad and float(now.grad_norm_ema) == float(metrics.grad_norm)
    before = float(metrics.grad_norm)
    good, metrics = one_step(optimizer, now, grad_spike=3.0)
    assert float(good.grad_norm_ema) == pytest.approx(0.99 * before + 0.01 * float(metrics.grad_norm), rel=1e-5)
    for factor in (np.nan, 1e30, 100):  # a loss that is no number, a gradient that overflows, a spike
        skipped, metrics = one_step(optimizer, now, BATCH | {"y": factor * BATCH["y"]}, grad_spike=3.0)
        assert metrics.bad
        assert int(skipped.step) == int(now.step) + 1
        for name in ("params", "ema", "opt_state", "grad_norm_ema"):
            jax.tree.map(np.testing.assert_array_equal, getattr(skipped, name), getattr(now, name))
    assert np.isfinite(metrics.grad_norm)
    _, metrics = one_step(optimizer, now, BATCH | {"y": 100 * BATCH["y"]}, grad_spike=1e6)
    assert not metrics.bad


def test_learning_rate_schedules_and_every_optimizer():
    """Warm-up is linear; the cosine ends at 0, the inverse square root halves at four times its start."""
    for name in optimizers.OPTIMIZERS:
        optimizer = optimizers.create(name, learning_rate=0.01)
        now = state.create({"w": jnp.asarray(START, jnp.float32)}, optimizer, jax.random.key(3))
        losses = [float(one_step(optimizer, now)[1].loss)]
        for _ in range(3):
            now, metrics = one_step(optimizer, now)
            losses.append(float(metrics.loss))
        assert losses[-1] < losses[0]

    def moved(schedule, step, decay_steps):  # of sgd without momentum's past: the step's size is the rate
        optimizer = optimizers.create("sgd", learning_rate=1.0, lr_schedule=schedule, decay_steps=decay_steps)
        params = {"w": jnp.zeros(())}
        opt_state = jax.tree.map(
            lambda leaf: jnp.int32(step) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf, optimizer.init(params)
        )
        return -float(optimizer.update({"w": jnp.float32(1)}, opt_state, params)[0]["w"])

    assert moved("constant", 500, 100) == 1
    assert moved("cosine", 50, 100) == pytest.approx(0.5) and moved("cosine", 100, 100) == pytest.approx(0)
    assert moved("inverse_sqrt", 50, 100) == 1 and moved("inverse_sqrt", 400, 100) == pytest.approx(0.5)


def test_frozen_parameters_stay_and_reach_the_loss():
    """The objective sees trained and frozen parameters apart; only the former move."""
    from guided_diffusion_jax.objectives.partition import merge, split

    params = {"a": {"w": jnp.ones(3), "b": jnp.zeros(3)}, "c": {"w": jnp.ones(2)}}
    trained, frozen = split(params, lambda path: path[-1] == "b")
    assert jax.tree.map(jnp.shape, trained) == {"a": {"b": (3,)}}
    assert jax.tree.structure(merge(trained, frozen)) == jax.tree.structure(params)

    def losses(params, ema, frozen, keys, batch):
        whole = merge(params, frozen)
        residual = batch["y"] - (whole["a"]["w"] + whole["a"]["b"]).sum()
        return Losses(residual**2, uniform_steps(keys, T))

    optimizer = adam(0.01, 0, 0.0, 0.0)
    now = state.create(trained, optimizer, jax.random.key(0), frozen=frozen)
    step = functools.partial(
        train_step, objective=Objective(lambda key: params, losses), optimizer=optimizer, settings=StepSettings(T)
    )
    after, _ = jax.jit(step)(now, BATCH)
    assert float(jnp.abs(after.params["a"]["b"]).min()) > 0
    jax.tree.map(np.testing.assert_array_equal, after.frozen, frozen)
    jax.tree.map(np.testing.assert_array_equal, after.network()["c"], params["c"])
