"""From a request to pictures: what compiles anew (nothing), and whose picture depends on what (its own number)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guided_diffusion_jax import schedules
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.generation import Generator, Request, Steering
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
    return Request(
        key=jax.random.key(seed),
        numbers=jnp.asarray(list(numbers), jnp.int32),
        conditions=Conditions(label=jnp.asarray(list(labels), jnp.int32)),
        weight=jnp.asarray(weight, jnp.float32),
        eta=jnp.asarray(eta, jnp.float32),
        levels=pad(trajectory(TABLE, steps), length),
    )


class Counted:
    """A jitted `Generator.images`; `traces` has the batch size of each time that its network was traced."""

    def __init__(self, **settings):
        self.traces = []

        def apply(params, x, time, conditions):
            self.traces.append(len(x))
            return network(params, x, time, conditions)

        self.generator = Generator(apply, SHAPE, CLASSES, **settings)
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


def test_without_free_guidance_the_network_sees_one_branch():
    counted = Counted(rule="conditional")
    plain = counted.images(PARAMS, request())
    assert counted.traces == [B]
    np.testing.assert_allclose(plain, Counted().images(PARAMS, request(weight=0.0)), atol=1e-5)


@pytest.mark.parametrize(("solver", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
def test_a_picture_depends_on_its_own_number_only(solver, eta):
    """Sample i of eight is sample i alone, and in another order; with its own label, weight and eta."""
    images = jax.jit(Generator(network, SHAPE, CLASSES, solver=solver).images)
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
    generator = Generator(network, SHAPE, CLASSES)
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
        generator = Generator(apply, SHAPE, CLASSES, solver="ddpm", **settings)
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
            Generator(network, SHAPE, CLASSES, **settings).images(PARAMS, request())


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

    images = Counted(rule="conditional", classifiers=(bright,)).images
    interval = jnp.asarray([0.0, 100.0])
    means = []
    for value, weight in ((1, 30.0), (0, 0.0), (0, 30.0), (0, 60.0)):
        steering = (Steering((), jnp.full(B, value), jnp.float32(weight), interval),)
        means.append(float(images(PARAMS, request()._replace(steering=steering)).mean()))
    assert means == sorted(means) and means[-1] - means[0] > 0.05, means
