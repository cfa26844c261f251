"""From a request to pictures: what compiles anew (nothing), and whose picture depends on what (its own number)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guided_diffusion_jax import guidance, schedules
from guided_diffusion_jax.conditions import KINDS, null_like, only
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.generation import Generator, Known, Request, Steering
from guided_diffusion_jax.schedules import pad, trajectory
from guided_diffusion_jax.typing import Conditions

pytestmark = pytest.mark.usefixtures("strict_ranks")

CLASSES, MOST = 10, 25
SHAPE = (4, 4, 1)
TABLE = schedules.cosine(100)
PARAMS = jnp.float32(0.9)
B = 8


def network(params, x, time, conditions):
    """Mixes the pixels of a sample, and nothing between samples."""
    label, time = (a.reshape(-1, 1, 1, 1) for a in (conditions.label, time))
    return params * jnp.tanh(x + 0.3 * jnp.roll(x, 1, axis=1) + 0.2 * label - 0.01 * time)


def request(numbers=range(B), seed=0, labels=range(B), weight=1.5, eta=0.0, steps="ddim10", length=MOST + 1):
    conditions = Conditions(label=jnp.asarray(list(labels), jnp.int32))
    return Request(
        key=jax.random.key(seed),
        numbers=jnp.asarray(list(numbers), jnp.int32),
        conditions=(conditions,),
        null=null_like(conditions, CLASSES),
        weights=(jnp.asarray(weight, jnp.float32),),
        eta=jnp.asarray(eta, jnp.float32),
        levels=pad(trajectory(TABLE, steps), length),
    )


class Counted:
    """A jitted `Generator.images`; `traces` has the batch size of each time that its network was traced."""

    def __init__(self, apply=network, **settings):
        self.traces = []

        def counted(params, x, time, conditions):
            self.traces.append(len(x))
            return apply(params, x, time, conditions)

        self.generator = Generator(counted, SHAPE, **settings)
        self.images = jax.jit(self.generator.images)


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_another_request_compiles_nothing(solver):
    counted = Counted(solver=solver)
    first = counted.images(PARAMS, request())
    assert counted.traces == [2 * B]  # one application of the network, on both branches
    others = [
        dict(weight=-1.0),
        dict(labels=[CLASSES] * B),
        dict(seed=7),
        dict(numbers=range(100, 100 + B)),
        dict(eta=0.5),
        dict(steps="1"),
        dict(steps="logsnr25"),
        dict(weight=0.0, labels=[1] * B, seed=3, eta=1.0, steps="5,3"),
    ]
    for changes in others:
        x = counted.images(PARAMS, request(**changes))
        assert jnp.isfinite(x).all()
        if not (solver == "ddpm" and "eta" in changes):  # which knows no eta
            assert float(jnp.abs(x - first).max()) > 1e-3, changes
    assert counted.traces == [2 * B] and counted.images._cache_size() == 1
    # One weight and eta per sample is another shape; then these are data too.
    for weight in (0.0, 2.0):
        counted.images(PARAMS, request(weight=np.linspace(-1, weight, B), eta=np.full(B, weight / 4)))
    assert counted.traces == [2 * B] * 2 and counted.images._cache_size() == 2


def plain(**asked):
    """A request of the conditional model alone: steered towards nothing else."""
    one = request(**asked)
    return one._replace(conditions=(), null=one.conditions[0], weights=())


def test_without_free_guidance_the_network_sees_one_branch():
    counted = Counted()
    made = counted.images(PARAMS, plain())
    assert counted.traces == [B]
    np.testing.assert_allclose(made, Counted().images(PARAMS, request(weight=0.0)), atol=1e-5)


@pytest.mark.parametrize(("solver", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
def test_a_picture_depends_on_its_own_number_only(solver, eta):
    """Sample i of eight is sample i alone, and in another order; with its own label, weight and eta."""
    images = jax.jit(Generator(network, SHAPE, solver=solver).images)
    weights = np.linspace(-1, 3, B)
    together = images(PARAMS, request(weight=weights, eta=np.full(B, eta)))
    backwards = images(
        PARAMS, request(range(B)[::-1], labels=range(B)[::-1], weight=weights[::-1], eta=np.full(B, eta))
    )
    np.testing.assert_allclose(backwards[::-1], together, atol=1e-5)
    for i in (0, 3, 7):
        alone = images(PARAMS, request([i], labels=[i], weight=weights[[i]], eta=[eta]))
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
    assert len({picture.tobytes() for picture in np.asarray(together)}) == B


def test_the_films_last_frame_is_the_picture_and_padding_changes_nothing():
    generator = Generator(network, SHAPE)
    asked = request(eta=1.0)
    film = jax.jit(generator.film, static_argnums=2)(PARAMS, asked, 3)
    assert film.shape == (3, B, *SHAPE)
    images = jax.jit(generator.images)
    np.testing.assert_allclose(film[-1], images(PARAMS, asked), atol=1e-6)
    np.testing.assert_array_equal(images(PARAMS, asked), images(PARAMS, request(eta=1.0, length=11)))


def test_the_parametrisation_of_the_network_is_immaterial():
    """Networks that say the same in eps, x0 and v draw the same; a learned variance of share 0 is fixed_small."""

    def as_x0(params, x, time, conditions):
        alpha, sigma = (jnp.asarray(c)[time.astype(int)].reshape(-1, 1, 1, 1) for c in TABLE[:2])
        return (x - sigma * network(params, x, time, conditions)) / alpha

    def as_v(params, x, time, conditions):
        alpha, sigma = (jnp.asarray(c)[time.astype(int)].reshape(-1, 1, 1, 1) for c in TABLE[:2])
        return (network(params, x, time, conditions) - sigma * x) / alpha

    def with_variance(params, x, time, conditions):
        return jnp.concatenate([network(params, x, time, conditions), -jnp.ones_like(x)], axis=-1)

    def draw(apply, **settings):
        generator = Generator(apply, SHAPE, solver="ddpm", **settings)
        return jax.jit(generator.images)(PARAMS, request())

    of_eps = draw(network)
    np.testing.assert_allclose(draw(as_x0, prediction="x0"), of_eps, atol=1e-4)
    np.testing.assert_allclose(draw(as_v, prediction="v"), of_eps, atol=1e-4)
    np.testing.assert_allclose(draw(with_variance, variance="learned_range"), of_eps, atol=1e-5)


def test_unknown_choices_are_named():
    for settings, word in [
        (dict(solver="dimm"), "sample.solver='dimm'.*did you mean 'ddim'"),
        (dict(prediction="epsilon"), "diffusion.prediction='epsilon'"),
        (dict(solver="ddpm", variance="small"), "diffusion.variance='small'"),
    ]:
        with pytest.raises(InputError, match=word):
            Generator(network, SHAPE, **settings).images(PARAMS, request())


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_what_classifiers_are_asked_for_is_data(solver):
    """Labels, weights and intervals of two classifiers, together with classifier-free guidance, in one program."""
    traced = []

    def linear(classes):
        def apply(params, x, time):
            traced.append(classes)
            return jnp.tanh(x.reshape(len(x), -1) @ params)

        return apply

    counted = Counted(solver=solver, classifiers=(linear(3), linear(2)))
    params = [jax.random.normal(jax.random.key(n), (16, n)) for n in (3, 2)]

    def asked(values=(0, 0), weights=(2.0, 2.0), interval=(0.0, 100.0), **others):
        steering = tuple(
            Steering(p, jnp.full(B, v), jnp.asarray(w, jnp.float32), jnp.asarray(interval, jnp.float32))
            for p, v, w in zip(params, values, weights, strict=True)
        )
        return request(**others)._replace(steering=steering)

    unsteered = Counted(solver=solver).images(PARAMS, request())
    np.testing.assert_allclose(counted.images(PARAMS, asked(weights=(0.0, 0.0))), unsteered, atol=1e-5)
    np.testing.assert_allclose(counted.images(PARAMS, asked(interval=(200.0, 300.0))), unsteered, atol=1e-5)
    first = counted.images(PARAMS, asked())
    for changes in (dict(values=(2, 0)), dict(values=(0, 1)), dict(weights=(2.0, 0.0)), dict(interval=(0.0, 50.0))):
        assert float(jnp.abs(counted.images(PARAMS, asked(**changes)) - first).max()) > 1e-3, changes
    counted.images(PARAMS, asked(labels=[1] * B, seed=3, steps="5,3"))
    assert counted.images._cache_size() == 1 and counted.traces == [2 * B]
    assert len(traced) == 2 * (traced.count(3)) and traced.count(3) == 1


def test_a_classifier_steers_towards_what_it_is_asked_for():
    """Of a score that is linear in x the gradient is known: pictures move along it, the more the greater the weight."""

    def bright(params, x, time):
        return jnp.stack([jnp.mean(x, axis=(1, 2, 3)), jnp.zeros(len(x))], axis=1)

    images = Counted(classifiers=(bright,)).images
    interval = jnp.asarray([0.0, 100.0])
    means = []
    for value, weight in ((1, 30.0), (0, 0.0), (0, 30.0), (0, 60.0)):
        steering = (Steering((), jnp.full(B, value), jnp.float32(weight), interval),)
        means.append(float(images(PARAMS, plain()._replace(steering=steering)).mean()))
    assert means == sorted(means) and means[-1] - means[0] > 0.05, means


# --- any mix of conditions

OF_TEXT = jnp.linspace(-1, 1, 5)


def network_of_all(params, x, time, conditions):
    """Uses every kind, each sample its own only."""
    c, b = conditions, len(x)
    column = lambda value: value.reshape(b, 1, 1, 1)  # noqa: E731
    told = 0.2 * c.label + jnp.sum(c.attributes, 1) + jnp.sum(jnp.sin(c.text / 9.0) * OF_TEXT[None], 1)
    told += jnp.mean(c.style**2, axis=(1, 2, 3)) - 0.01 * time
    return params * jnp.tanh(x + 0.3 * jnp.roll(x, 1, axis=1) + column(told) + jnp.sum(c.map, -1, keepdims=True))


def mixture(rng):
    """All kinds for each of the samples, a random half of the entries at their null; and the null."""
    full = Conditions(
        label=jnp.asarray(rng.integers(0, CLASSES, B)),
        attributes=jnp.asarray(rng.integers(1, 4, (B, 2))),
        text=jnp.asarray(rng.integers(97, 122, (B, 5)), jnp.uint8),
        style=jnp.asarray(rng.uniform(-1, 1, (B, 3, 3, 1)), jnp.float32),
        map=jnp.asarray(rng.uniform(-1, 1, (B, 4, 4, 2)), jnp.float32),
    )
    null = null_like(full, CLASSES)

    def some(value, absent):
        return jnp.where(rng.integers(0, 2, (B, *[1] * (value.ndim - 1))).astype(bool), absent, value)

    return jax.tree.map(some, full, null), null


def asked_of_all(seed, **others):
    """Three branches: what the sample is, what it says, where things are; the last one for a part of the picture."""
    rng = np.random.default_rng(seed)
    given, null = mixture(rng)
    kinds = (("label", "attributes"), ("text", "style"), ("map",))
    where = guidance.regional(1.0, jnp.asarray(rng.uniform(size=(B, 4, 4, 1)), jnp.float32))
    return request(**others)._replace(
        conditions=tuple(only(given, some, CLASSES) for some in kinds),
        null=null,
        weights=(jnp.float32(0.5), jnp.asarray(rng.uniform(-2, 2, B), jnp.float32), where),
    )


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_one_compiled_sampler_serves_any_mix_of_conditions(solver):
    counted = Counted(network_of_all, solver=solver)
    drawn = [counted.images(PARAMS, asked_of_all(seed)) for seed in range(3)]
    nothing = asked_of_all(0)
    nothing = nothing._replace(conditions=(nothing.null,) * 3)
    drawn.append(counted.images(PARAMS, nothing))
    negative = asked_of_all(0)
    drawn.append(counted.images(PARAMS, negative._replace(null=asked_of_all(1).conditions[1])))
    assert counted.traces == [4 * B] and counted.images._cache_size() == 1
    assert all(float(jnp.abs(a - b).max()) > 1e-2 for i, a in enumerate(drawn) for b in drawn[:i])
    unconditional = Counted(network_of_all, solver=solver)
    alone = unconditional.images(PARAMS, nothing._replace(conditions=(), weights=()))
    np.testing.assert_allclose(alone, drawn[3], atol=1e-5)


def test_a_picture_is_the_same_alone_and_among_others_with_other_conditions():
    images = jax.jit(Generator(network_of_all, SHAPE, solver="ddpm").images)
    asked = asked_of_all(0)
    together = images(PARAMS, asked)
    for i in (0, 3, 7):
        one = jax.tree.map(lambda a, i=i: a[i : i + 1] if jnp.ndim(a) and len(a) == B else a, asked)
        np.testing.assert_allclose(images(PARAMS, one)[0], together[i], atol=1e-5)


def test_a_weight_of_minus_one_and_a_condition_at_its_null_are_absent():
    images = jax.jit(Generator(network_of_all, SHAPE).images)
    asked = asked_of_all(0)
    off = asked._replace(weights=(*asked.weights[:2], jnp.full((B, 4, 4, 1), -1.0)))
    absent = asked._replace(conditions=(*asked.conditions[:2], asked.null))
    two = asked._replace(conditions=asked.conditions[:2], weights=asked.weights[:2])
    np.testing.assert_allclose(images(PARAMS, off), images(PARAMS, two), atol=1e-5)
    np.testing.assert_allclose(images(PARAMS, absent), images(PARAMS, two), atol=1e-5)
    assert set(KINDS) - {"known", "low_res"} == {k for k in KINDS if getattr(asked.null, k) is not None}


# --- completing pictures


@pytest.mark.parametrize(("solver", "variance"), [("ddim", "fixed_small"), ("ddpm", "fixed_large")])
def test_what_is_known_is_data_and_comes_out_whatever_steers(solver, variance):
    """Guidance, clipping and a classifier in the same program; of all this nothing moves a known pixel."""

    def bright(params, x, time):
        return jnp.stack([jnp.mean(x, axis=(1, 2, 3)), jnp.zeros(len(x))], axis=1)

    rng = np.random.default_rng(0)
    counted = Counted(solver=solver, variance=variance, classifiers=(bright,))
    steering = (Steering((), jnp.zeros(B, jnp.int32), jnp.float32(30.0), jnp.asarray([0.0, 100.0])),)
    asked = request()._replace(steering=steering)
    drawn = []
    for _ in range(2):
        picture = jnp.asarray(rng.uniform(-1.2, 1.2, (B, *SHAPE)), jnp.float32)  # beyond what clipping leaves
        mask = jnp.asarray(rng.integers(0, 2, (B, 4, 4, 1)), jnp.float32)
        drawn.append(counted.images(PARAMS, asked._replace(known=Known(picture, mask))))
        known = np.asarray(mask) == 1
        np.testing.assert_array_equal(np.asarray(drawn[-1])[known], np.asarray(picture)[known])
        assert float(jnp.abs(drawn[-1] - picture)[~known].min(initial=1.0)) > 0
    nothing = counted.images(PARAMS, asked._replace(known=Known(picture, 0 * mask)))
    assert counted.traces == [2 * B] and counted.images._cache_size() == 1
    np.testing.assert_allclose(nothing, counted.images(PARAMS, asked), atol=1e-5)
