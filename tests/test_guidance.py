"""Guidance rules: the branches, the weights and the closed form of a Gaussian's posterior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import GaussianData, row

from guided_diffusion_jax import guidance, schedules
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.samplers import ddim, ddpm, dpmpp_2m, heun, prior, sample, sample_keys
from guided_diffusion_jax.typing import Prediction

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
LABELS = {"label": jnp.array([3, 0, 9])}
NULLS = {"label": jnp.full(3, CLASSES)}
LEVEL = schedules.at(schedules.cosine(1000), jnp.array([100, 500, 900]))  # one level per sample
TABLE = schedules.cosine(100)


def composed(denoise, conditions, null, weights, **options):
    """The denoiser of a rule without memory."""
    evaluate = guidance.evaluate_branches(denoise, (*conditions, null), **options)
    return lambda x, level: guidance.composed(weights).combine(evaluate(x, level), x, level, ())[0]


def classifier_free(denoise, condition, null, weight):
    return composed(denoise, (condition,), null, (weight,))


@pytest.fixture(scope="module")
def denoise():
    """A real U-Net, its last layer included, with random weights: at initialisation it puts out zeros."""
    shapes = jax.eval_shape(UNET.init, jax.random.key(0), X, LEVEL.time, LABELS)
    params = jax.tree.map(lambda a: jnp.asarray(0.1 * RNG.normal(size=a.shape), a.dtype), shapes)
    return conditional_denoiser(functools.partial(UNET.apply, params), Process(TABLE))


@pytest.fixture(scope="module")
def guided(denoise):
    """`guided(w)`: the guided prediction, and what the network said in its one call of the doubled batch."""

    @jax.jit
    def predict(weight):
        calls = []

        def spy(*arguments):
            calls.append(denoise(*arguments))
            return calls[-1]

        prediction = classifier_free(spy, LABELS, NULLS, weight)(X, LEVEL)
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
    rule = lambda w: classifier_free(denoise, LABELS, NULLS, w)(X, LEVEL)[:2]  # noqa: E731
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
        eps = jnp.sin(x + conditions["label"].reshape(-1, 1, 1, 1))
        return Prediction((x - level.sigma * eps) / level.alpha, eps, 0 * x + conditions["label"].reshape(-1, 1, 1, 1))

    cond, null = (toy(X, LEVEL, conditions) for conditions in (LABELS, NULLS))
    for weight in (-2.0, 0.3, 4.0):
        made = classifier_free(toy, LABELS, NULLS, weight)(X, LEVEL)
        np.testing.assert_allclose(made.eps, (1 + weight) * cond.eps - weight * null.eps, atol=1e-5)
        np.testing.assert_allclose(LEVEL.alpha * made.x0 + LEVEL.sigma * made.eps, X, atol=1e-5)
        np.testing.assert_array_equal(made.variance_fraction, cond.variance_fraction)


@pytest.mark.usefixtures("strict_ranks")
@pytest.mark.parametrize("steps", [5, 50])
def test_one_application_of_the_network_a_step(steps):
    """In the trace of a whole trajectory the network stands once, with both branches in its batch."""
    batches = []

    def toy(x, level, conditions):
        batches.append(x.shape[0])
        return Prediction(x, x + conditions["label"].reshape(-1, 1, 1, 1))

    keys, levels = sample_keys(jax.random.key(0), jnp.arange(3)), schedules.trajectory(TABLE, steps)
    rule = classifier_free(toy, LABELS, NULLS, 2.0)
    jax.make_jaxpr(lambda x: sample(ddim(), guidance.clip_x0(rule), keys, x, levels))(X)
    assert batches == [6]


# --- compositions

BRANCHES = tuple(dict(label=jnp.array(labels)) for labels in ([3, 0, 9], [1, 1, 2], [7, 8, 0]))
MASK = jnp.asarray(RNG.uniform(size=(3, 8, 8, 1)), jnp.float32)


def label_toy(x, level, conditions):
    """Pixel by pixel; its variance fraction is the label."""
    label = conditions["label"].reshape(-1, 1, 1, 1)
    eps = jnp.sin(x + label)
    return Prediction((x - level.sigma * eps) / level.alpha, eps, 0 * x + label)


@pytest.mark.parametrize(
    "weights",
    [(0.5, -1.0, 2.0), (jnp.array([0.0, 1.5, -0.5]), -3.0, jnp.array([2.0, -1.0, 1.0])), (0.5, 3 * MASK - 1, MASK)],
    ids=["scalars", "per sample", "maps"],
)
def test_a_composition_is_the_sum_of_separate_calls_in_one_call(weights):
    calls = []

    def spy(*arguments):
        calls.append(arguments[0].shape)
        return label_toy(*arguments)

    made = jax.jit(lambda w: composed(spy, BRANCHES, NULLS, w)(X, LEVEL))(weights)
    assert calls == [(12, 8, 8, 1)]
    *separate, null = (label_toy(X, LEVEL, conditions) for conditions in (*BRANCHES, NULLS))
    factor = lambda w: 1 + (w.reshape(3, 1, 1, 1) if jnp.ndim(w) == 1 else w)  # noqa: E731
    for name in ("x0", "eps"):
        of_null = getattr(null, name)
        terms = [factor(w) * (getattr(one, name) - of_null) for w, one in zip(weights, separate, strict=True)]
        expected = of_null + sum(terms)
        np.testing.assert_allclose(getattr(made, name), expected, atol=1e-5 * float(jnp.abs(expected).max()))
    np.testing.assert_allclose(LEVEL.alpha * made.x0 + LEVEL.sigma * made.eps, X, atol=1e-5)


@pytest.mark.usefixtures("strict_ranks")
def test_one_branch_at_a_time_is_the_same():
    weights = (0.5, jnp.array([0.0, 1.5, -0.5]), MASK)
    calls = []

    def spy(*arguments):
        calls.append(arguments[0].shape)
        return label_toy(*arguments)

    made = jax.jit(lambda w: composed(spy, BRANCHES, NULLS, w, sequential=True)(X, LEVEL))(weights)
    assert set(calls) == {(3, 8, 8, 1)}
    together = composed(label_toy, BRANCHES, NULLS, weights)(X, LEVEL)
    close(made, together, 1e-6)
    np.testing.assert_allclose(made.variance_fraction, together.variance_fraction, atol=1e-6)


@pytest.mark.usefixtures("strict_ranks")
def test_weights_follow_a_schedule_and_act_within_an_interval():
    """w(t) is linear between points; outside the interval it is 0, which is the plain conditional model, exactly."""
    schedule = guidance.WeightSchedule(jnp.array([0.0, 400.0, 800.0]), jnp.array([1.0, 3.0, -1.0]))
    at = {time: float(guidance.weight_at(schedule, schedules.at(schedules.cosine(1000), jnp.int32(time)))) for time in
          (0, 200, 400, 600, 800, 900)}  # fmt: skip
    assert at == pytest.approx({0: 1, 200: 2, 400: 3, 600: 1, 800: -1, 900: -1})
    evaluate = guidance.evaluate_branches(label_toy, (LABELS, NULLS))
    branches = evaluate(X, LEVEL)  # levels of time 100, 500, 900
    inside, _ = guidance.composed((2.0,)).combine(branches, X, LEVEL, ())
    made, _ = guidance.composed((2.0,), (200.0, 900.0)).combine(branches, X, LEVEL, ())
    for i, expected in enumerate((branches[0], inside, inside)):
        np.testing.assert_array_equal(made.eps[i], expected.eps[i])
    scheduled, _ = guidance.composed((schedule,)).combine(branches, X, LEVEL, ())
    for i, weight in enumerate((1.5, 2.0, -1.0)):
        alone, _ = guidance.composed((weight,)).combine(branches, X, LEVEL, ())
        np.testing.assert_allclose(scheduled.eps[i], alone.eps[i], atol=1e-5)


@pytest.mark.usefixtures("strict_ranks")
def test_a_rule_keeps_its_memory_through_every_evaluation_of_a_trajectory():
    """The rule counts its evaluations; Heun makes two a step. Beside it the sampler keeps a memory of its own."""

    def combine(branches, x, level, memory):
        return branches[0], memory + 1

    counter = guidance.Guidance(init=lambda x: jnp.int32(0), combine=combine)
    levels = schedules.trajectory(TABLE, 7)
    keys = sample_keys(jax.random.key(0), jnp.arange(3))
    evaluate = guidance.evaluate_branches(label_toy, (LABELS, NULLS))

    def run(sampler):
        guided = guidance.guided(sampler, counter)
        step = lambda i, carry: guided.step(evaluate, keys, carry[0], row(levels, i), row(levels, i + 1), carry[1])  # noqa: E731
        _, memory = jax.lax.fori_loop(0, 7, step, (X, guided.init(X, levels)))
        plain = sample(sampler, lambda x, level: label_toy(x, level, LABELS), keys, X, levels)
        return memory[1], plain, sample(guided, evaluate, keys, X, levels)

    for sampler in (ddim(), ddpm(), heun(), dpmpp_2m()):
        count, plain, guided = jax.jit(run)(sampler)
        assert int(count) == 7 * sampler.evaluations
        np.testing.assert_allclose(guided, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("strict_ranks")
def test_weight_minus_one_switches_a_condition_off():
    two = composed(label_toy, BRANCHES[:2], NULLS, (0.5, 2.0))(X, LEVEL)
    for other in (0, 1, 2):  # whatever it says
        made = composed(label_toy, (*BRANCHES[:2], BRANCHES[other]), NULLS, (0.5, 2.0, -1.0))(X, LEVEL)
        close(made, two, 1e-6)
    equal(composed(label_toy, BRANCHES, NULLS, (-1.0,) * 3)(X, LEVEL), label_toy(X, LEVEL, NULLS))
    equal(composed(label_toy, BRANCHES, NULLS, (-1.0, 0.0, -1.0))(X, LEVEL), label_toy(X, LEVEL, BRANCHES[1]))
    equal(composed(label_toy, (), NULLS, ())(X, LEVEL), label_toy(X, LEVEL, NULLS))


@pytest.mark.usefixtures("strict_ranks")
def test_a_learned_variance_is_the_mean_of_the_conditional_branches():
    made = composed(label_toy, BRANCHES, NULLS, (0.5, 2.0, -1.0))(X, LEVEL)
    np.testing.assert_allclose(made.variance_fraction[:, 0, 0, 0], [11 / 3, 9 / 3, 11 / 3], atol=1e-6)
    plain = composed(label_toy, (), LABELS, ())(X, LEVEL)
    np.testing.assert_array_equal(plain.variance_fraction[:, 0, 0, 0], LABELS["label"])


SPREAD = 0.5  # of x given each condition, and of x
CENTRES = jnp.array([0.4, -0.2, 0.7, *[0.0] * (CLASSES - 3), 0.1])


def gaussian_classes(x, level, conditions):
    return GaussianData(CENTRES[conditions["label"]].reshape(-1, 1, 1, 1), SPREAD).denoise(x, level)


@pytest.mark.usefixtures("strict_ranks")
def test_all_weights_zero_compose_the_score_of_the_product():
    """p(x) prod_k p(x given c_k) / p(x), at each level a product of Gaussians of one variance: the means add up."""
    labels = jnp.array([0, 1, 2])
    branches = [dict(label=jnp.full(3, label)) for label in labels]
    made = composed(gaussian_classes, branches, NULLS, (0.0,) * 3)(X, LEVEL)

    def log_density(x, label, level):  # of x at this level, given the label
        total = level.alpha**2 * SPREAD**2 + level.sigma**2
        return -((x - level.alpha * CENTRES[label]) ** 2) / (2 * total)

    def log_product(x):
        null = log_density(x, CLASSES, LEVEL)
        return jnp.sum(null + sum(log_density(x, label, LEVEL) - null for label in labels))

    np.testing.assert_allclose(made.eps, -LEVEL.sigma * jax.grad(log_product)(X), atol=1e-5)
    centre = CENTRES[CLASSES] + jnp.sum(CENTRES[labels] - CENTRES[CLASSES])
    close(made, GaussianData(centre, SPREAD).denoise(X, LEVEL))


@pytest.mark.usefixtures("strict_ranks")
def test_a_negated_weight_steers_away_as_strongly_as_the_weight_steers_towards():
    condition, weight = dict(label=jnp.zeros(3, jnp.int32)), 0.7
    null = gaussian_classes(X, LEVEL, NULLS)
    towards, away = (
        composed(gaussian_classes, (condition,), NULLS, (w,))(X, LEVEL) for w in (weight, guidance.negated(weight))
    )
    np.testing.assert_allclose(away.eps - null.eps, null.eps - towards.eps, atol=1e-6)
    # Towards the null's other side: 0.4 is above its 0.1, so pictures get darker.
    assert bool((away.x0 < null.x0).all() and (null.x0 < towards.x0).all())
    assert guidance.negated(guidance.negated(weight)) == pytest.approx(weight) and guidance.negated(-1) == -1
    # A negative prompt: the null is what is not wanted.
    negative = classifier_free(gaussian_classes, NULLS, condition, weight)(X, LEVEL)
    assert bool((negative.x0 < null.x0).all())


@pytest.mark.usefixtures("strict_ranks")
def test_each_region_is_steered_by_its_own_condition_alone():
    left = jnp.zeros((3, 8, 8, 1)).at[:, :, :4].set(1.0)
    weights = (guidance.regional(1.5, left), guidance.regional(jnp.array([0.0, 2.0, -0.5]), 1 - left))
    made = composed(label_toy, BRANCHES[:2], NULLS, weights)(X, LEVEL)
    of_left = classifier_free(label_toy, BRANCHES[0], NULLS, 1.5)(X, LEVEL)
    of_right = classifier_free(label_toy, BRANCHES[1], NULLS, jnp.array([0.0, 2.0, -0.5]))(X, LEVEL)
    for mine, a, b in zip(made[:2], of_left[:2], of_right[:2], strict=True):
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(mine[:, :, :4], a[:, :, :4], atol=1e-6 * scale)
        np.testing.assert_allclose(mine[:, :, 4:], b[:, :, 4:], atol=1e-6 * scale)


@pytest.mark.usefixtures("strict_ranks")
def test_what_no_weight_asks_for_can_be_spared():
    off = np.full((3, 8, 8, 1), -1.0, np.float32)
    for weights, count in [
        ((0.0, -1.0, off), 0),  # a conditional model
        ((-1.0, -1.0, np.full(3, -1)), 0),  # the unconditional one
        ((2.0, -1.0, -1.0), 1),
        ((0.0, -1.0, np.array([0, -1, -1])), 2),
        ((0.0, 1.0, 2.0), 3),
    ]:
        spared = guidance.prune_branches(BRANCHES, NULLS, weights)
        assert len(spared[0]) == len(spared[2]) == count
        whole = composed(label_toy, BRANCHES, NULLS, weights)(X, LEVEL)
        close(composed(label_toy, *spared)(X, LEVEL), whole, 1e-6)


def test_compositions_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="2 weights for 3 conditions"):
        composed(label_toy, BRANCHES, NULLS, (1.0, 1.0))(X, LEVEL)
    with pytest.raises(InputError, match="different conditions"):
        composed(label_toy, (dict(text=jnp.zeros((3, 4), jnp.uint8)),), NULLS, (1.0,))


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
        schedules.trajectory(schedules.linear(1000), 300, "logsnr"),
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


@pytest.mark.usefixtures("strict_ranks")
def test_a_gradient_can_act_in_a_part_of_the_picture_and_of_the_levels():
    ones = lambda x, level: jnp.ones_like(x)  # noqa: E731
    interval = (jnp.float32(200), jnp.float32(700))
    made = guidance.weighted(ones, 2 * MASK, interval)(X, LEVEL)  # levels of time 100, 500, 900
    np.testing.assert_array_equal(made, jnp.array([0.0, 2.0, 0.0]).reshape(3, 1, 1, 1) * MASK)


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


# --- completing pictures

TRAJECTORY = schedules.trajectory(schedules.cosine(1000), 100)
HALF = jnp.zeros((3, 8, 8, 1)).at[:, :4].set(1.0)
PICTURE = jnp.asarray(RNG.uniform(-1, 1, size=X.shape), jnp.float32)
SAMPLERS = {"ddim": ddim(), "ddim, eta=1": ddim(1.0), "ddpm": ddpm(), "ddpm, large": ddpm("fixed_large")}
KEYS = sample_keys(jax.random.key(0), jnp.arange(3))


@pytest.mark.usefixtures("strict_ranks")
@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_known_comes_out_and_the_rest_of_independent_pixels_is_as_ever(name):
    def draw(x, mask=None):
        denoise = DATA.denoise if mask is None else guidance.inpaint(DATA.denoise, PICTURE, mask)
        return sample(SAMPLERS[name], denoise, KEYS, x, TRAJECTORY)

    free, completed = jax.jit(draw)(X), jax.jit(draw)
    made = completed(X, HALF)
    np.testing.assert_array_equal(made[:, :4], PICTURE[:, :4])
    np.testing.assert_allclose(made[:, 4:], free[:, 4:], atol=2e-5)
    np.testing.assert_allclose(completed(X, 0 * HALF), free, atol=2e-5)


@pytest.mark.usefixtures("strict_ranks")
def test_a_known_picture_survives_the_clipping_and_a_soft_mask_mixes():
    fraction = jnp.full_like(X, 0.4)
    raw = lambda x, level: DATA.denoise(x, level)._replace(variance_fraction=fraction)  # noqa: E731
    made = guidance.inpaint(guidance.clip_x0(raw, -0.1, 0.1), PICTURE, MASK)(X, LEVEL)
    predicted = jnp.clip(DATA.denoise(X, LEVEL).x0, -0.1, 0.1)
    np.testing.assert_allclose(made.x0, predicted + MASK * (PICTURE - predicted), atol=1e-6)
    np.testing.assert_allclose(LEVEL.alpha * made.x0 + LEVEL.sigma * made.eps, X, atol=1e-5)
    np.testing.assert_array_equal(made.variance_fraction, fraction)


@pytest.mark.usefixtures("strict_ranks")
def test_ddim_keeps_what_is_known_on_the_forward_process_of_one_noise():
    """After any number of steps the known part is alpha known + sigma eps, with the eps that x_T had."""
    denoise = guidance.inpaint(DATA.denoise, PICTURE, HALF)
    first = row(TRAJECTORY, 0)
    eps = (X - first.alpha * PICTURE) / first.sigma
    walk = jax.jit(lambda x, levels: sample(ddim(), denoise, KEYS, x, levels))
    for steps in (1, 30, 99):
        levels = jax.tree.map(lambda column, n=steps: column[: n + 1], TRAJECTORY)
        x = walk(X, schedules.pad(levels, 101))
        last = row(levels, -1)
        np.testing.assert_allclose(x[:, :4], (last.alpha * PICTURE + last.sigma * eps)[:, :4], atol=2e-5)


def of_pair(correlation):
    """The exact denoiser of two pixels, each N(0, 1), and the factor of x in it as a function of alpha and sigma."""
    covariance = np.array([[1, correlation], [correlation, 1]])

    def gain(alpha, sigma, inverse, matrix=covariance):
        return alpha * matrix @ inverse(alpha**2 * matrix + sigma**2 * np.eye(2))

    def denoise(x, level):
        matrix = jnp.asarray(covariance, jnp.float32)
        k = gain(level.alpha, level.sigma, jnp.linalg.inv, matrix)
        x0 = jnp.einsum("ij,bhjc->bhic", k, x)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return denoise, lambda alpha, sigma: gain(alpha, sigma, np.linalg.inv)


def law_of_completion(gain, known, levels):
    """Mean and covariance of what DDPM makes of two pixels, the first one known: all its steps are affine."""
    sigmas = np.float64(levels.sigma)
    alphas = np.sqrt(1 - sigmas**2)
    mean, covariance = np.zeros(2), np.eye(2)
    for a, s, a2, s2 in zip(alphas, sigmas, alphas[1:], sigmas[1:], strict=False):
        beta = 1 - (a / a2) ** 2
        of_x0, of_x, added = a2 * beta / s**2, a / a2 * s2**2 / s**2, beta * s2**2 / s**2
        factor = of_x0 * np.diag([0, 1]) @ gain(a, s) + of_x * np.eye(2)
        mean = factor @ mean + of_x0 * np.array([known, 0])
        covariance = factor @ covariance @ factor.T + added * np.eye(2)
    return mean, covariance


def test_the_unknown_pixel_goes_part_of_the_way_to_its_conditional_law():
    """Given its neighbour k a pixel is N(rho k, 1 - rho^2). The replacement sees k through noise: short of it, wider.

    Its own law has a closed form, from which this is the distance: with DDPM 0.62 of the shift, with DDIM 0.42.
    """
    rho, known, n = 0.8, 1.5, 20_000
    denoise, gain = of_pair(rho)
    keys = sample_keys(jax.random.key(1), jnp.arange(n))
    x = prior(keys, (1, 2, 1))
    mask = jnp.broadcast_to(jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1), x.shape)
    rule = guidance.inpaint(denoise, jnp.full_like(x, known), mask)
    unknown = {}
    for name in ("ddim", "ddpm"):
        made = jax.jit(lambda x, s=SAMPLERS[name]: sample(s, rule, keys, x, TRAJECTORY))(x)
        np.testing.assert_array_equal(made[:, 0, 0], known)
        unknown[name] = np.asarray(made[:, 0, 1])
    mean, covariance = law_of_completion(gain, known, TRAJECTORY)
    assert mean[0] == pytest.approx(known, abs=1e-6) and covariance[0, 0] == pytest.approx(0, abs=1e-6)
    assert unknown["ddpm"].mean() == pytest.approx(mean[1], abs=0.03)
    assert unknown["ddpm"].std() == pytest.approx(covariance[1, 1] ** 0.5, abs=0.02)
    towards = {name: values.mean() / (rho * known) for name, values in unknown.items()}
    assert 0.38 < towards["ddim"] < 0.46 and 0.58 < towards["ddpm"] < 0.66, towards
    conditional, free = (1 - rho**2) ** 0.5, 1.0
    assert all(conditional < values.std() < free for values in unknown.values())
