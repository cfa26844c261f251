"""Guidance rules: the branches, the weights and the closed form of a Gaussian's posterior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import GaussianData, row

from guided_diffusion_jax import guidance, schedules
from guided_diffusion_jax.conditions import drop, null_like
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.samplers import ddim, sample, sample_keys
from guided_diffusion_jax.typing import Conditions, Prediction

CLASSES = 10
UNET = UNet(
    width=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    head_width=16,
    num_classes=CLASSES,
    out_channels=1,
)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(3, 8, 8, 1)), jnp.float32)
LABELS = Conditions(label=jnp.array([3, 0, 9]))
NULLS = null_like(LABELS, CLASSES)
LEVEL = schedules.at(schedules.cosine(1000), jnp.array([100, 500, 900]))  # one level per sample
TABLE = schedules.cosine(100)


@pytest.fixture(scope="module")
def denoise():
    """A real U-Net, its last layer included, with random weights: at initialisation it puts out zeros."""
    shapes = jax.eval_shape(UNET.init, jax.random.key(0), X, LEVEL.time, LABELS)
    params = jax.tree.map(lambda a: jnp.asarray(0.1 * RNG.normal(size=a.shape), a.dtype), shapes)
    return conditional_denoiser(functools.partial(UNET.apply, params), "eps")


@pytest.fixture(scope="module")
def guided(denoise):
    """`guided(w)`: the guided prediction, and what the network said in its one call of the doubled batch."""

    @jax.jit
    def predict(weight):
        calls = []

        def spy(*arguments):
            calls.append(denoise(*arguments))
            return calls[-1]

        prediction = guidance.classifier_free(spy, LABELS, NULLS, weight)(X, LEVEL)
        (both,) = calls
        return prediction, both

    return predict


def equal(mine, reference):
    np.testing.assert_array_equal(mine.x0, reference.x0)
    np.testing.assert_array_equal(mine.eps, reference.eps)


def close(mine, reference, tolerance=1e-5):
    """To the largest of the reference: at alpha = 0.15 an x0 of such a network is far from [-1, 1]."""
    for a, b in zip(mine[:2], reference[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max()))


# --- classifier-free


def test_weights_zero_and_minus_one_are_the_two_branches_bit_for_bit(guided):
    prediction, both = guided(jnp.zeros(3))
    assert both.eps.shape == (6, 8, 8, 1)
    assert float(jnp.abs(both.eps[:3] - both.eps[3:]).max()) > 1e-2  # the label does matter
    equal(prediction, jax.tree.map(lambda a: a[:3], both))
    prediction, both = guided(-jnp.ones(3))
    equal(prediction, jax.tree.map(lambda a: a[3:], both))


def test_the_doubled_batch_is_two_separate_calls(guided, denoise):
    _, both = guided(jnp.zeros(3))
    separate = jax.jit(lambda conditions: denoise(X, LEVEL, conditions))
    close(jax.tree.map(lambda a: a[:3], both), separate(LABELS))
    close(jax.tree.map(lambda a: a[3:], both), separate(NULLS))


def test_weights_of_samples_are_a_loop_over_scalar_weights_and_vmap_works(denoise, guided):
    weights = jnp.array([0.0, 1.5, -0.5])
    rule = lambda w: guidance.classifier_free(denoise, LABELS, NULLS, w)(X, LEVEL)[:2]  # noqa: E731
    together, (over_weights) = guided(weights)[0], jax.jit(jax.vmap(rule))(weights)
    scalar = jax.jit(rule)
    for i, weight in enumerate(weights):
        alone = scalar(weight)
        close(jax.tree.map(lambda a, i=i: a[i], over_weights), alone)
        close([a[i] for a in together[:2]], [a[i] for a in alone])


@pytest.mark.usefixtures("strict_ranks")
def test_guidance_is_linear_in_the_weight_and_keeps_x_together():
    """The formula eps = (1 + w) eps_cond - w eps_null, and x = alpha x0 + sigma eps still."""

    def toy(x, level, conditions):
        eps = jnp.sin(x + conditions.label.reshape(-1, 1, 1, 1))
        return Prediction((x - level.sigma * eps) / level.alpha, eps, 0 * x + conditions.label.reshape(-1, 1, 1, 1))

    cond, null = (toy(X, LEVEL, conditions) for conditions in (LABELS, NULLS))
    for weight in (-2.0, 0.3, 4.0):
        made = guidance.classifier_free(toy, LABELS, NULLS, weight)(X, LEVEL)
        np.testing.assert_allclose(made.eps, (1 + weight) * cond.eps - weight * null.eps, atol=1e-5)
        np.testing.assert_allclose(LEVEL.alpha * made.x0 + LEVEL.sigma * made.eps, X, atol=1e-5)
        np.testing.assert_array_equal(made.variance_fraction, cond.variance_fraction)


@pytest.mark.usefixtures("strict_ranks")
@pytest.mark.parametrize("steps", ["5", "50"])
def test_one_application_of_the_network_a_step(steps):
    """In the trace of a whole trajectory the network stands once, with both branches in its batch."""
    batches = []

    def toy(x, level, conditions):
        batches.append(x.shape[0])
        return Prediction(x, x + conditions.label.reshape(-1, 1, 1, 1))

    keys, levels = sample_keys(jax.random.key(0), jnp.arange(3)), schedules.trajectory(TABLE, steps)
    rule = guidance.classifier_free(toy, LABELS, NULLS, 2.0)
    jax.make_jaxpr(lambda x: sample(ddim(), guidance.clip_x0(rule), keys, x, levels))(X)
    assert batches == [6]


# --- classifier

DATA, NOISE = GaussianData(0.2, 0.5), 0.3


def posterior(y):
    """The data given y = x0 + NOISE * n, again Gaussian."""
    precision = 1 / DATA.std**2 + 1 / NOISE**2
    return GaussianData((DATA.mean / DATA.std**2 + y / NOISE**2) / precision, precision**-0.5)


def gradient(y):
    """Of log p(y given x), by autodiff: y given x is N(x0_hat, variance of x0 given x + NOISE^2)."""

    def log_likelihood(x, level):
        variance = DATA.x0_variance(level) + NOISE**2
        return -jnp.sum((y - DATA.denoise(x, level).x0) ** 2 / (2 * variance))

    return jax.grad(log_likelihood)


@pytest.mark.usefixtures("strict_ranks")
def test_a_classifier_of_weight_one_makes_the_prior_denoiser_the_posteriors():
    """Bayes: the score of p(x given y) is that of p(x) plus grad log p(y given x)."""
    y = jnp.array([-0.8, 0.1, 0.9]).reshape(3, 1, 1, 1)
    made = guidance.classifier(DATA.denoise, gradient(y), 1.0)(X, LEVEL)
    exact = posterior(y).denoise(X, LEVEL)
    np.testing.assert_allclose(made.x0, exact.x0, atol=1e-5)
    np.testing.assert_allclose(made.eps, exact.eps, atol=1e-5)
    np.testing.assert_allclose(LEVEL.alpha * made.x0 + LEVEL.sigma * made.eps, X, atol=1e-5)


@pytest.mark.usefixtures("strict_ranks")
def test_classifier_guided_sampling_ends_on_the_posteriors_flow():
    y = jnp.array([-0.8, 0.1, 0.9]).reshape(3, 1, 1, 1)
    keys, levels = (
        sample_keys(jax.random.key(0), jnp.arange(3)),
        schedules.trajectory(schedules.linear(1000), "logsnr300"),
    )
    x = jax.jit(lambda: sample(ddim(), guidance.classifier(DATA.denoise, gradient(y), 1.0), keys, X, levels))()
    np.testing.assert_allclose(x, posterior(y).flow(X, row(levels, 0), row(levels, -1)), atol=0.02)


@pytest.mark.usefixtures("strict_ranks")
def test_classifier_weights_are_per_sample_and_zero_is_the_plain_model():
    weights, y = jnp.array([0.0, 1.0, 2.5]), jnp.zeros((3, 1, 1, 1))
    made = guidance.classifier(DATA.denoise, gradient(y), weights)(X, LEVEL)
    for i, weight in enumerate(weights):
        alone = guidance.classifier(DATA.denoise, gradient(y), weight)(X, LEVEL)
        close([a[i] for a in made[:2]], [a[i] for a in alone[:2]], 1e-6)
    np.testing.assert_array_equal(made.eps[0], DATA.denoise(X, LEVEL).eps[0])


# --- clipping


@pytest.mark.usefixtures("strict_ranks")
def test_clipping_keeps_x0_in_range_eps_consistent_and_the_rest_as_it_was():
    fraction = jnp.full_like(X, 0.4)
    raw = lambda x, level: DATA.denoise(4 * x, level)._replace(variance_fraction=fraction)  # noqa: E731
    made = guidance.clip_x0(raw, -0.5, 0.8)(X, LEVEL)
    assert (
        float(raw(X, LEVEL).x0.max()) > 0.8
        and float(made.x0.min()) == -0.5
        and float(made.x0.max()) == jnp.float32(0.8)
    )
    np.testing.assert_allclose(LEVEL.alpha * made.x0 + LEVEL.sigma * made.eps, X, atol=1e-5)
    np.testing.assert_array_equal(made.variance_fraction, fraction)


# --- conditions


def test_conditions_are_dropped_at_the_rate_and_never_at_0_and_always_at_1():
    n = 20_000
    keys = jax.random.split(jax.random.key(0), n)
    given = Conditions(label=jnp.arange(n) % CLASSES, low_res=jnp.ones((n, 1, 1, 1)))
    null = null_like(given, CLASSES)
    assert (null.label == CLASSES).all() and null.low_res is given.low_res
    labels = lambda rate: np.asarray(drop(keys, given, null, rate).label)  # noqa: E731
    np.testing.assert_array_equal(labels(0.0), given.label)
    np.testing.assert_array_equal(labels(1.0), null.label)
    for rate in (0.1, 0.5):
        lost = labels(rate) == CLASSES
        assert lost.mean() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / n) ** 0.5)
        np.testing.assert_array_equal(labels(rate)[~lost], given.label[~lost])
    # Each sample's own key decides: another batch around it changes nothing.
    few = drop(keys[5:9], jax.tree.map(lambda a: a[5:9], given), jax.tree.map(lambda a: a[5:9], null), 0.5)
    np.testing.assert_array_equal(few.label, labels(0.5)[5:9])


def test_null_of_absent_kinds_is_absent():
    assert null_like(Conditions(), CLASSES) == Conditions()
