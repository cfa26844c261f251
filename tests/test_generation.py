"""From a request to pictures: what compiles anew (nothing), and whose picture depends on what (its own number)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guided_diffusion_jax import codecs, guidance, samplers, schedules
from guided_diffusion_jax.conditions import CONDITIONS, ConditionSpec, keep_only, nulls
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.generation import Generator, Guide, Inpaint, Request, as_data
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.schedules import pad, trajectory

pytestmark = pytest.mark.usefixtures("strict_ranks")

CLASSES, MOST = 10, 25
SHAPE = (4, 4, 1)
TABLE = schedules.cosine(100)
PARAMS = jnp.float32(0.9)
B = 8
SPECS = {"label": ConditionSpec((), np.int32, CLASSES)}
EVERYWHERE = (-np.inf, np.inf)


def network(params, x, time, conditions):
    """Mixes the pixels of a sample, and nothing between samples."""
    label, time = (a.reshape(-1, 1, 1, 1) for a in (conditions["label"], time))
    return params * jnp.tanh(x + 0.3 * jnp.roll(x, 1, axis=1) + 0.2 * label - 0.01 * time)


def generator_of(apply=network, prediction="eps", variance="fixed_small", **settings):
    return Generator(apply, Process(TABLE, prediction, variance), codecs.pixels(SHAPE), **settings)


def request(
    indices=range(B), seed=0, labels=range(B), weight=1.5, eta=0.0, steps=(10, "stride"), length=MOST + 1,
    solver="ddim", variance="fixed_small", interval=EVERYWHERE,
):  # fmt: skip
    conditions = {"label": jnp.asarray(list(labels), jnp.int32)}
    return as_data(
        Request(
            key=jax.random.key(seed),
            indices=jnp.asarray(list(indices), jnp.int32),
            branches=(conditions,),
            null=jax.tree.map(jnp.asarray, nulls(SPECS, len(conditions["label"]))),
            weights=(jnp.asarray(weight, jnp.float32),),
            interval=jnp.asarray(interval, jnp.float32),
            levels=pad(trajectory(TABLE, *steps), length),
            sampler=samplers.create(solver, defaults={"eta": jnp.asarray(eta, jnp.float32), "variance": variance}),
        )
    )


class Counted:
    """A jitted `Generator.images`; `traces` has the batch size of each time that its network was traced."""

    def __init__(self, apply=network, **settings):
        self.traces = []

        def counted(params, x, time, conditions):
            self.traces.append(len(x))
            return apply(params, x, time, conditions)

        self.generator = generator_of(counted, **settings)
        self.images = jax.jit(self.generator.images)


QUICK = ("ddim", "ddpm", "heun", "dpmpp_2m", "pndm")
"""Solvers of the quick tier, one of each kind: with a setting, a variance, two evaluations, a memory, a longer one."""

EACH = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in samplers.SAMPLERS]


@pytest.mark.parametrize("solver", EACH)
def test_another_request_compiles_nothing(solver):
    counted = Counted()
    evaluations = samplers.SAMPLERS[solver]().evaluations
    first = counted.images(PARAMS, request(solver=solver))
    assert counted.traces == [2 * B] * evaluations  # one application of the network an evaluation, on both branches
    others = [
        dict(weight=-1.0),
        dict(labels=[CLASSES] * B),
        dict(seed=7),
        dict(indices=range(100, 100 + B)),
        dict(eta=0.5),
        dict(steps=(1,)),
        dict(steps=(25, "logsnr")),
        dict(interval=(0.0, 50.0)),
        dict(weight=0.0, labels=[1] * B, seed=3, eta=1.0, steps=((5, 3),)),
    ]
    for changes in others:
        x = counted.images(PARAMS, request(solver=solver, **changes))
        assert jnp.isfinite(x).all()
        if solver == "ddim" or "eta" not in changes:
            assert float(jnp.abs(x - first).max()) > 1e-3, changes
    assert counted.traces == [2 * B] * evaluations and counted.images._cache_size() == 1
    # One weight per sample is another shape; then these are data too. So is a schedule.
    for weight in (0.0, 2.0):
        counted.images(PARAMS, request(weight=np.linspace(-1, weight, B), solver=solver))
        schedule = guidance.WeightSchedule(jnp.array([0.0, 99.0]), jnp.array([0.0, weight]))
        counted.images(PARAMS, request(solver=solver)._replace(weights=(schedule,)))
    assert counted.images._cache_size() == 3


def plain(**asked):
    """A request of the conditional model alone: steered towards nothing else."""
    one = request(**asked)
    return one._replace(branches=(), null=one.branches[0], weights=())


def test_without_free_guidance_the_network_sees_one_branch():
    counted = Counted()
    made = counted.images(PARAMS, plain())
    assert counted.traces == [B]
    np.testing.assert_allclose(made, Counted().images(PARAMS, request(weight=0.0)), atol=1e-5)


def test_one_branch_at_a_time_gives_the_same_images():
    counted = Counted(sequential=True)
    made = counted.images(PARAMS, request())
    assert set(counted.traces) == {B}
    np.testing.assert_allclose(made, Counted().images(PARAMS, request()), atol=1e-5)


@pytest.mark.parametrize(("solver", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0), ("dpmpp_2m", 0.0)])
def test_an_image_depends_on_its_own_index_only(solver, eta):
    """Sample i of eight is sample i alone, and in another order; with its own label, weight and eta."""
    images = jax.jit(generator_of().images)
    weights = np.linspace(-1, 3, B)
    together = images(PARAMS, request(weight=weights, eta=np.full(B, eta), solver=solver))
    backwards = images(
        PARAMS,
        request(range(B)[::-1], labels=range(B)[::-1], weight=weights[::-1], eta=np.full(B, eta), solver=solver),
    )
    np.testing.assert_allclose(backwards[::-1], together, atol=1e-5)
    for i in (0, 3, 7):
        alone = images(PARAMS, request([i], labels=[i], weight=weights[[i]], eta=[eta], solver=solver))
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
    assert len({image.tobytes() for image in np.asarray(together)}) == B


def test_the_last_state_of_a_trajectory_is_the_image_and_padding_changes_nothing():
    generator = generator_of()
    asked = request(eta=1.0)
    states = jax.jit(generator.trajectory, static_argnums=2)(PARAMS, asked, 3)
    assert states.shape == (3, B, *SHAPE)
    images = jax.jit(generator.images)
    np.testing.assert_allclose(states[-1], images(PARAMS, asked), atol=1e-6)
    np.testing.assert_array_equal(images(PARAMS, asked), images(PARAMS, request(eta=1.0, length=11)))


def test_images_are_decoded_inside_the_program():
    """With an orthogonal transform as codec the samples are those of its space, and come out transformed back."""
    matrix = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0].astype(np.float32)

    def transform(matrix, images):
        return (images.reshape(len(images), 16) @ matrix).reshape(len(images), *SHAPE)

    codec = codecs.Codec(
        jax.tree_util.Partial(transform, matrix), jax.tree_util.Partial(transform, matrix.T), SHAPE, limits=None
    )
    generator = Generator(network, Process(TABLE), codec)
    latents, images = jax.jit(generator.latents)(PARAMS, request()), jax.jit(generator.images)(PARAMS, request())
    np.testing.assert_allclose(codec.encode(images), latents, atol=1e-4)
    assert float(jnp.abs(images - latents).max()) > 0.1


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
        generator = generator_of(apply, **settings)
        asked = request(solver="ddpm", variance=settings.get("variance", "fixed_small"))
        return jax.jit(generator.images)(PARAMS, asked)

    of_eps = draw(network)
    np.testing.assert_allclose(draw(as_x0, prediction="x0"), of_eps, atol=1e-4)
    np.testing.assert_allclose(draw(as_v, prediction="v"), of_eps, atol=1e-4)
    np.testing.assert_allclose(draw(with_variance, variance="learned_range"), of_eps, atol=1e-5)


def test_unknown_choices_are_named():
    for make, word in [
        (lambda: samplers.create("dimm"), "^sampler='dimm'.*did you mean 'ddim'"),
        (lambda: Process(TABLE, "epsilon"), "diffusion.prediction='epsilon'"),
        (lambda: Process(TABLE, "eps", "small"), "diffusion.variance='small'"),
        (lambda: samplers.ddpm("small"), "diffusion.variance='small'"),
    ]:
        with pytest.raises(InputError, match=word):
            make()


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_what_classifiers_are_asked_for_is_data(solver):
    """Labels, weights and intervals of two classifiers, together with classifier-free guidance, in one program."""
    traced = []

    def linear(params, label, x, level):
        traced.append(1)
        logits = jax.nn.log_softmax(jnp.tanh(x.reshape(len(x), -1) @ params))
        return jnp.take_along_axis(logits, label[:, None], axis=1)[:, 0]

    counted = Counted()
    params = [jax.random.normal(jax.random.key(n), (16, n)) for n in (3, 2)]

    def asked(values=(0, 0), weights=(2.0, 2.0), interval=(0.0, 100.0), **others):
        guides = tuple(
            Guide(jax.tree_util.Partial(linear, p), jnp.full(B, v), jnp.asarray(w, jnp.float32))
            for p, v, w in zip(params, values, weights, strict=True)
        )
        return request(interval=interval, solver=solver, **others)._replace(guides=guides)

    unsteered = Counted().images(PARAMS, request(solver=solver))
    np.testing.assert_allclose(counted.images(PARAMS, asked(weights=(0.0, 0.0))), unsteered, atol=1e-5)
    conditional = Counted().images(PARAMS, request(solver=solver, weight=0.0))
    np.testing.assert_allclose(counted.images(PARAMS, asked(interval=(200.0, 300.0))), conditional, atol=1e-5)
    first = counted.images(PARAMS, asked())
    for changes in (dict(values=(2, 0)), dict(values=(0, 1)), dict(weights=(2.0, 0.0)), dict(interval=(0.0, 50.0))):
        assert float(jnp.abs(counted.images(PARAMS, asked(**changes)) - first).max()) > 1e-3, changes
    counted.images(PARAMS, asked(labels=[1] * B, seed=3, steps=((5, 3),)))
    assert counted.images._cache_size() == 1 and counted.traces == [2 * B] and len(traced) == 2


def brightness(label, x, level):
    """Log-probability of a classifier that tells bright images (1) from dark ones (0)."""
    logits = jnp.stack([jnp.zeros(len(x)), jnp.mean(x, axis=(1, 2, 3))], axis=1)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]


def test_a_classifier_steers_towards_what_it_is_asked_for():
    """Of a score that is linear in x the gradient is known: images move along it, the more the greater the weight."""
    images = Counted().images
    means = []
    for value, weight in ((0, 30.0), (1, 0.0), (1, 30.0), (1, 60.0)):
        guide = Guide(jax.tree_util.Partial(brightness), jnp.full(B, value), jnp.float32(weight))
        means.append(float(images(PARAMS, plain()._replace(guides=(guide,))).mean()))
    assert means == sorted(means) and means[-1] - means[0] > 0.05, means


# --- any mix of conditions

OF_TEXT = jnp.linspace(-1, 1, 5)


ALL_SPECS = {
    "label": ConditionSpec((), np.int32, CLASSES),
    "attributes": ConditionSpec((2,), np.int32),
    "text": ConditionSpec((5,), np.uint8),
    "reference_image": ConditionSpec((3, 3, 1), np.float32),
    "control_image": ConditionSpec((4, 4, 2), np.float32),
}


def network_of_all(params, x, time, conditions):
    """Uses every condition, each sample its own only."""
    c, b = conditions, len(x)
    column = lambda value: value.reshape(b, 1, 1, 1)  # noqa: E731
    shift = 0.2 * c["label"] + jnp.sum(c["attributes"], 1) + jnp.sum(jnp.sin(c["text"] / 9.0) * OF_TEXT[None], 1)
    shift += jnp.mean(c["reference_image"] ** 2, axis=(1, 2, 3)) - 0.01 * time
    control = jnp.sum(c["control_image"], -1, keepdims=True)
    return params * jnp.tanh(x + 0.3 * jnp.roll(x, 1, axis=1) + column(shift) + control)


def mixture(rng):
    """All conditions for each of the samples, a random half of the entries at their null; and the null."""
    full = dict(
        label=jnp.asarray(rng.integers(0, CLASSES, B), jnp.int32),
        attributes=jnp.asarray(rng.integers(1, 4, (B, 2)), jnp.int32),
        text=jnp.asarray(rng.integers(97, 122, (B, 5)), jnp.uint8),
        reference_image=jnp.asarray(rng.uniform(-1, 1, (B, 3, 3, 1)), jnp.float32),
        control_image=jnp.asarray(rng.uniform(-1, 1, (B, 4, 4, 2)), jnp.float32),
    )
    null = jax.tree.map(jnp.asarray, nulls(ALL_SPECS, B))

    def some(value, absent):
        return jnp.where(rng.integers(0, 2, (B, *[1] * (value.ndim - 1))).astype(bool), absent, value)

    return jax.tree.map(some, full, null), null


def asked_of_all(seed, **others):
    """Three branches: what the sample is, what it says, where things are; the last one for a part of the image."""
    rng = np.random.default_rng(seed)
    given, null = mixture(rng)
    names = (("label", "attributes"), ("text", "reference_image"), ("control_image",))
    where = guidance.regional(1.0, jnp.asarray(rng.uniform(size=(B, 4, 4, 1)), jnp.float32))
    return request(**others)._replace(
        branches=tuple(keep_only(given, some, ALL_SPECS) for some in names),
        null=null,
        weights=(jnp.float32(0.5), jnp.asarray(rng.uniform(-2, 2, B), jnp.float32), where),
    )


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_one_compiled_sampler_serves_any_mix_of_conditions(solver):
    counted = Counted(network_of_all)
    drawn = [counted.images(PARAMS, asked_of_all(seed, solver=solver)) for seed in range(3)]
    nothing = asked_of_all(0, solver=solver)
    nothing = nothing._replace(branches=(nothing.null,) * 3)
    drawn.append(counted.images(PARAMS, nothing))
    negative = asked_of_all(0, solver=solver)
    drawn.append(counted.images(PARAMS, negative._replace(null=asked_of_all(1).branches[1])))
    assert counted.traces == [4 * B] and counted.images._cache_size() == 1
    assert all(float(jnp.abs(a - b).max()) > 1e-2 for i, a in enumerate(drawn) for b in drawn[:i])
    unconditional = Counted(network_of_all)
    alone = unconditional.images(PARAMS, nothing._replace(branches=(), weights=()))
    np.testing.assert_allclose(alone, drawn[3], atol=1e-5)


def test_a_picture_is_the_same_alone_and_among_others_with_other_conditions():
    images = jax.jit(generator_of(network_of_all).images)
    asked = asked_of_all(0, solver="ddpm")
    together = images(PARAMS, asked)
    for i in (0, 3, 7):
        one = jax.tree.map(lambda a, i=i: a[i : i + 1] if jnp.ndim(a) and len(a) == B else a, asked)
        np.testing.assert_allclose(images(PARAMS, one)[0], together[i], atol=1e-5)


def test_a_weight_of_minus_one_and_a_condition_at_its_null_are_absent():
    images = jax.jit(generator_of(network_of_all).images)
    asked = asked_of_all(0)
    off = asked._replace(weights=(*asked.weights[:2], jnp.full((B, 4, 4, 1), -1.0)))
    absent = asked._replace(branches=(*asked.branches[:2], asked.null))
    two = asked._replace(branches=asked.branches[:2], weights=asked.weights[:2])
    np.testing.assert_allclose(images(PARAMS, off), images(PARAMS, two), atol=1e-5)
    np.testing.assert_allclose(images(PARAMS, absent), images(PARAMS, two), atol=1e-5)
    latent = {"text_time", "control_hints", "control_scales", "control_times"}  # of Stable Diffusion
    assert set(CONDITIONS) - {"masked_image", "low_res"} - latent == set(asked.null)


# --- completing pictures


@pytest.mark.parametrize(("solver", "variance"), [("ddim", "fixed_small"), ("ddpm", "fixed_large")])
def test_what_is_known_is_data_and_comes_out_whatever_steers(solver, variance):
    """Guidance, clipping and a classifier in the same program; of all this nothing moves a known pixel."""
    rng = np.random.default_rng(0)
    counted = Counted(variance=variance)
    guides = (Guide(jax.tree_util.Partial(brightness), jnp.ones(B, jnp.int32), jnp.float32(30.0)),)
    asked = request(solver=solver, variance=variance)._replace(guides=guides)
    drawn = []
    for _ in range(2):
        picture = jnp.asarray(rng.uniform(-1.2, 1.2, (B, *SHAPE)), jnp.float32)  # beyond what clipping leaves
        mask = jnp.asarray(rng.integers(0, 2, (B, 4, 4, 1)), jnp.float32)
        drawn.append(counted.images(PARAMS, asked._replace(inpaint=Inpaint(picture, mask))))
        known = np.asarray(mask) == 1
        np.testing.assert_array_equal(np.asarray(drawn[-1])[known], np.asarray(picture)[known])
        assert float(jnp.abs(drawn[-1] - picture)[~known].min(initial=1.0)) > 0
    nothing = counted.images(PARAMS, asked._replace(inpaint=Inpaint(picture, 0 * mask)))
    assert counted.traces == [2 * B] and counted.images._cache_size() == 1
    np.testing.assert_allclose(nothing, counted.images(PARAMS, asked), atol=1e-5)
