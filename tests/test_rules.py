"""Each rule of guidance against its formula in NumPy, its limits, and its refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import GaussianData

import guided_diffusion_jax as gd
from guided_diffusion_jax import guidance, schedules
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.guidance import chains
from guided_diffusion_jax.guidance.perturbed_attention import blurred_attention, identity_attention
from guided_diffusion_jax.models.attention import attention, replaced_attention, split_heads
from guided_diffusion_jax.typing import Level, Prediction

RNG = np.random.default_rng(0)
X, COND, NULL, WORSE, SECOND = (RNG.normal(size=(3, 4, 4, 2)).astype(np.float32) for _ in range(5))
LEVEL = Level(*(jnp.float32(value) for value in (0.6, 0.8, 500)))
FLOW = Level(*(jnp.float32(value) for value in (0.3, 0.7, 700)))
AXES = (1, 2, 3)


def from_x0(x0, level=LEVEL):
    return Prediction(jnp.asarray(x0), jnp.asarray((X - level.alpha * x0) / level.sigma))


def run(rules, branches=(COND, NULL), weights=(2.0,), level=LEVEL, interval=None, memory=None, extra=()):
    rule = chains.as_guidance(guidance.chain(rules), weights, interval)
    memory = rule.init(jnp.asarray(X)) if memory is None else memory
    return rule.combine(tuple(from_x0(b, level) for b in (*branches, *extra)), jnp.asarray(X), level, memory)


def close(prediction, x0, level=LEVEL, tolerance=1e-5):
    np.testing.assert_allclose(prediction.x0, x0, atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(level.alpha * prediction.x0 + level.sigma * prediction.eps, X, atol=1e-5)


def inner(a, b):
    return np.sum(np.float64(a) * b, AXES, keepdims=True)


CFG = COND + 2.0 * (COND - NULL)


# --- combiners


def test_apg_is_its_algorithm_with_threshold_projection_and_momentum():
    eta, r, beta = 0.3, 4.0, -0.6
    rule = guidance.apg(eta=eta, norm_threshold=r, momentum=beta)
    running, memory = 0.0, None
    for cond, null in ((COND, NULL), (SECOND, NULL), (COND, WORSE)):  # three evaluations, one memory
        made, memory = run(rule, (cond, null), memory=memory)
        running = cond - null + beta * running
        d = running * np.minimum(1, r / np.sqrt(inner(running, running)))
        parallel = inner(d, cond) / inner(cond, cond) * cond
        close(made, cond + 2.0 * (d - parallel + eta * parallel))


def test_apg_without_its_parts_and_cfg_zero_with_scale_one_are_cfg():
    close(run(guidance.apg(eta=1.0, momentum=0.0))[0], CFG)
    close(run("cfg")[0], CFG)
    # u_cond = u_null + something orthogonal to u_null: the best scale is 1.
    u_null = from_x0(NULL, FLOW).eps - NULL
    other = RNG.normal(size=X.shape)
    u_cond = u_null + other - inner(other, u_null) / inner(u_null, u_null) * u_null
    cond = (X - FLOW.sigma * u_cond) / (FLOW.alpha + FLOW.sigma)
    close(run(guidance.cfg_zero(zero_steps=0), (cond, NULL), level=FLOW)[0], cond + 2.0 * (cond - NULL), FLOW, 1e-4)


@pytest.mark.parametrize("level", [LEVEL, FLOW], ids=["variance preserving", "flow"])
def test_cfg_zero_scales_the_null_and_does_not_move_at_the_first_levels(level):
    rule, memory = guidance.cfg_zero(zero_steps=2), None
    scaling = level.alpha + level.sigma
    for time in (900, 900, 800):  # the second evaluation at the first level is of a solver with stages
        made, memory = run(rule, level=level._replace(time=jnp.float32(time)), memory=memory)
        np.testing.assert_allclose(made.x0, X / scaling, atol=1e-6)
        np.testing.assert_allclose(made.eps, X / scaling, atol=1e-6)
    made, _ = run(rule, level=level._replace(time=jnp.float32(700)), memory=memory)
    u_cond, u_null = (np.asarray(from_x0(b, level).eps - b) for b in (COND, NULL))
    scale = inner(u_cond, u_null) / inner(u_null, u_null)
    u = 3.0 * u_cond - 2.0 * scale * u_null
    close(made, (X - level.sigma * u) / scaling, level, 1e-4)


def test_cfgpp_renoises_the_guided_x0_with_the_unconditional_eps():
    """Its DDIM step is alpha_nxt x0 + sigma_nxt eps_null; outside the interval it is the plain conditional DDIM."""
    nxt = Level(*(jnp.float32(value) for value in (0.8, 0.6, 300)))
    keys = gd.random.sample_keys(jax.random.key(0), jnp.arange(3))
    evaluate = lambda x, level: (from_x0(COND), from_x0(NULL))  # noqa: E731
    x0 = NULL + 0.6 * (COND - NULL)
    inside = nxt.alpha * np.clip(x0, -0.5, 0.5) + nxt.sigma * from_x0(NULL).eps
    clipped = np.clip(COND, -0.5, 0.5)
    outside = nxt.alpha * clipped + nxt.sigma * (X - LEVEL.alpha * clipped) / LEVEL.sigma
    for interval, expected in (((0.0, 600.0), inside), ((600.0, 999.0), outside)):
        rule = chains.as_guidance(guidance.chain("cfgpp"), (-0.4,), interval)
        for sampler in (gd.samplers.ddim(), gd.samplers.dpmpp_2m()):  # of the first order in its first step
            clip = functools.partial(guidance.clip_x0, low=-0.5, high=0.5)
            guided = guidance.guided(sampler, rule, clip)
            memory = guided.init(jnp.asarray(X), jax.tree.map(lambda a, b: jnp.stack([a, b]), LEVEL, nxt))
            made, _ = guided.step(evaluate, keys, jnp.asarray(X), LEVEL, nxt, memory)
            np.testing.assert_allclose(made, expected, atol=1e-5)


def test_all_combiners_are_the_conditional_model_at_weight_zero_and_compose():
    for rule in ("cfg", "cfgpp", "apg", guidance.cfg_zero(zero_steps=0)):
        close(run(rule, weights=(0.0,))[0], COND)
        close(run(rule, (COND, SECOND, NULL), (0.0, 0.0))[0], COND + SECOND - NULL)
        close(run(rule, (NULL,), ())[0], NULL)
    close(run(guidance.apg(eta=1.0, momentum=0.0), (COND, SECOND, NULL), (2.0, 0.5))[0],
          NULL + 3.0 * (COND - NULL) + 1.5 * (SECOND - NULL))  # fmt: skip


# --- contrasts


@pytest.mark.parametrize("name", ["autoguidance", "pag", "seg"])
def test_a_contrast_adds_the_difference_to_the_worse_model(name):
    options = {"denoise": lambda *_: None} if name == "autoguidance" else {}
    rule = guidance.create(name, weight=1.5, **options)
    close(run(["cfg", rule], extra=(WORSE,))[0], CFG + 1.5 * (COND - WORSE))
    close(run([rule], weights=(0.0,), extra=(WORSE,))[0], COND + 1.5 * (COND - WORSE))
    close(run([rule], weights=(0.0,), extra=(COND,))[0], COND)  # the same network: the plain model
    close(run([rule], interval=(0.0, 400.0), extra=(WORSE,))[0], COND)


def test_perturbed_and_smoothed_attention_are_their_definitions():
    h, w, heads, c = 3, 4, 2, 5
    q, k, v = (jnp.asarray(RNG.normal(size=(2, h * w, heads, c)), jnp.float32) for _ in range(3))
    np.testing.assert_array_equal(identity_attention(q, k, v, (h, w)), v)

    def softmax_attention(q):
        logits = np.einsum("bnhc,bmhc->bhnm", q, k) / np.sqrt(c)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return np.einsum("bhnm,bmhc->bnhc", weights / weights.sum(-1, keepdims=True), v)

    places = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1).reshape(-1, 2)
    for blur in (0.7, 2.0):
        square = ((places[:, None] - places) ** 2).sum(-1)
        kernel = np.exp(-square / (2 * blur**2))
        kernel /= kernel.sum(1, keepdims=True)
        expected = softmax_attention(np.einsum("nm,bmhc->bnhc", kernel, q))
        np.testing.assert_allclose(blurred_attention(q, k, v, (h, w), blur=blur), expected, atol=1e-5)
    mean = np.broadcast_to(q.mean(1, keepdims=True), q.shape)
    np.testing.assert_allclose(blurred_attention(q, k, v, (h, w), blur=np.inf), softmax_attention(mean), atol=1e-5)
    np.testing.assert_allclose(blurred_attention(q, k, v, (h, w), blur=0.0), softmax_attention(q), atol=1e-5)


TINY = dict(width=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), head_width=8, out_channels=1)
MODEL = gd.models.UNet(**TINY, num_classes=3)


def params_of(seed, model=MODEL, shape=(8, 8, 1)):
    shapes = jax.eval_shape(lambda: gd.models.init_params(model, jax.random.key(0), shape))
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten([0.2 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


@pytest.fixture(scope="module")
def pipes():
    process = gd.Process(gd.schedules.cosine(50))
    return [gd.Pipeline(MODEL, params_of(seed), process, (8, 8, 1)) for seed in (1, 2)]


def test_attention_is_replaced_in_the_named_layers_alone():
    x = jnp.asarray(RNG.normal(size=(2, 8, 8, 1)), jnp.float32)
    params = params_of(1)

    def apply():
        return jax.jit(lambda: MODEL.apply({"params": params}, x, jnp.zeros(2), {}))()

    seen = []

    def usual(q, k, v, size):
        seen.append(size)
        qkv = jnp.stack([q, k, v], 2).reshape(*q.shape[:2], -1)
        return attention(qkv, q.shape[2]).reshape(q.shape)

    plain = apply()
    with replaced_attention(("pag", "middle", usual)):
        np.testing.assert_allclose(apply(), plain, atol=1e-5)
    assert set(seen) == {(8, 8)}
    with replaced_attention(("pag", "middle", identity_attention)):
        assert float(jnp.abs(apply() - plain).max()) > 1e-3
    np.testing.assert_array_equal(apply(), plain)
    no_layer = pytest.raises(InputError, match="layers='up' is in no name of the attention layers encoder/middle_0/att")
    with no_layer, replaced_attention(("pag", "up", usual)):
        apply()
    nothing = pytest.raises(InputError, match="pag changes self-attention, and this model has none; leave pag out")
    with nothing, replaced_attention(("pag", "", usual)):
        pass
    qkv = jnp.asarray(RNG.normal(size=(2, 6, 24)), jnp.float32)
    assert [part.shape for part in split_heads(qkv, 2)] == [(2, 6, 2, 4)] * 3


def test_contrasts_of_a_pipeline_guide_alone_unless_a_combiner_is_named(pipes):
    pipe, worse = pipes
    assert pipe.request(labels=[0], autoguidance=worse).weights == (0.0,)
    assert pipe.request(labels=[0], guidance=["cfg", "pag"]).weights == (1.0,)
    assert [rule.name for rule in pipe.request(labels=[0], guidance=["apg", "rescale"], autoguidance=worse).rule] == [
        "apg", "autoguidance", "rescale",
    ]  # fmt: skip
    plain = pipe(labels=[0, 2], weight=0.0, steps=4)
    np.testing.assert_array_equal(pipe(labels=[0, 2], autoguidance=pipe, steps=4), plain)
    made = pipe(labels=[0, 2], autoguidance=worse, steps=4)
    assert (made != plain).any()
    stronger = [guidance.autoguidance(worse.denoiser, weight=3.0)]
    assert (pipe(labels=[0, 2], guidance=stronger, steps=4) != made).any()


# --- adjusters


@pytest.mark.parametrize("of", ["x0", "eps", "v"])
def test_rescale_keeps_the_standard_deviation_of_the_conditional_prediction(of):
    phi = 0.7
    quantity = {
        "x0": lambda x0: x0,
        "eps": lambda x0: (X - LEVEL.alpha * x0) / LEVEL.sigma,
        "v": lambda x0: LEVEL.alpha * (X - LEVEL.alpha * x0) / LEVEL.sigma - LEVEL.sigma * x0,
    }[of]
    std = lambda a: a.reshape(3, -1).std(1, ddof=1).reshape(3, 1, 1, 1)  # noqa: E731
    p, reference = quantity(CFG), quantity(COND)
    expected = phi * p * std(reference) / std(p) + (1 - phi) * p
    made, _ = run(["cfg", guidance.rescale(phi, of)])
    np.testing.assert_allclose(quantity(np.asarray(made.x0)), expected, atol=1e-4)
    full, _ = run(["cfg", guidance.rescale(1.0, of)])
    np.testing.assert_allclose(std(quantity(np.asarray(full.x0))), std(reference), rtol=1e-4)
    close(run(["cfg", guidance.rescale(0.0, of)])[0], CFG, tolerance=1e-4)


def test_dynamic_threshold_divides_by_the_quantile_where_it_is_above_the_limit():
    large = np.float32([[[[0.1]]], [[[2.0]]], [[[9.0]]]]) * COND
    made, _ = run(["cfg", guidance.dynamic_threshold(0.9, 1.0)], (large, large))
    for x0, out in zip(large, made.x0, strict=True):
        s = max(1.0, np.quantile(np.abs(x0), 0.9))
        np.testing.assert_allclose(out, np.clip(x0, -s, s) / s, atol=1e-5)
    np.testing.assert_allclose(made.x0[0], large[0], atol=1e-6)
    close(made, made.x0)


def test_an_adjuster_of_ones_own_keeps_a_memory_and_the_learned_variance_stays():
    count = guidance.Adjuster(
        lambda branches, prediction, x, level, memory: (Prediction(memory * prediction.x0, prediction.eps), memory + 1),
        init=lambda x: jnp.float32(1),
    )
    rule = chains.as_guidance(guidance.chain(["cfg", count]), (2.0,), None)
    memory = rule.init(jnp.asarray(X))
    branches = tuple(from_x0(b)._replace(variance_fraction=jnp.asarray(b)) for b in (COND, NULL))
    for i in (1, 2, 3):
        made, memory = rule.combine(branches, jnp.asarray(X), LEVEL, memory)
        np.testing.assert_allclose(made.x0, i * CFG, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(made.variance_fraction, COND)
    for named in ("apg", "cfg_zero", "cfgpp"):
        rule = chains.as_guidance(guidance.chain([named, "rescale"]), (2.0,), None)
        made, _ = rule.combine(branches, jnp.asarray(X), LEVEL, rule.init(jnp.asarray(X)))
        np.testing.assert_array_equal(made.variance_fraction, COND)


# --- a loss of the predicted x0


def test_reconstruction_follows_the_gradient_through_the_guided_model():
    """Against central differences of the loss of the guided x0, in float64."""
    with jax.enable_x64(True):
        level = Level(*(jnp.float64(value) for value in (0.6, 0.8, 500)))
        target, x = np.float64(SECOND), jnp.asarray(np.float64(X))
        loss = lambda x0: jnp.sum((x0 - target) ** 2, AXES) ** 0.5  # noqa: E731

        def evaluate(x, level):
            return tuple(GaussianData(0.1 * i, 0.5 + 0.2 * i).denoise(jnp.sin(x), level) for i in (1, 0))

        rules = guidance.chain(["cfg", "rescale", guidance.reconstruction(loss, 0.7)])
        rule = chains.as_guidance(rules, (2.0,), None)
        predict = lambda x: rule.combine(evaluate(x, level), x, level, rule.init(x))  # noqa: E731
        made, _ = chains.through(rules, None)(predict, x, level)
        of_x = lambda x: float(jnp.sum(loss(predict(x)[0].x0)))  # noqa: E731
        for place in ((0, 0, 0, 0), (1, 2, 3, 1), (2, 1, 0, 0)):
            step = np.zeros(X.shape)
            step[place] = 1e-5
            slope = (of_x(x + step) - of_x(x - step)) / 2e-5
            shift = made.eps[place] - predict(x)[0].eps[place]
            assert float(shift) == pytest.approx(0.7 * 0.8 * slope, rel=1e-5, abs=1e-8)
        np.testing.assert_allclose(level.alpha * made.x0 + level.sigma * made.eps, x, atol=1e-9)
        outside, _ = chains.through(rules, (0.0, 100.0))(predict, x, level)
        np.testing.assert_allclose(outside.x0, predict(x)[0].x0, atol=1e-9)


def test_reconstruction_lowers_its_loss_in_a_trajectory():
    data, keys = GaussianData(0.0, 0.5), gd.random.sample_keys(jax.random.key(0), jnp.arange(3))
    levels = schedules.trajectory(schedules.cosine(100), 30)
    loss = lambda x0: jnp.sum((x0 - 0.4) ** 2, AXES)  # noqa: E731
    evaluate = lambda x, level: (data.denoise(x, level),)  # noqa: E731

    def drawn(weight):
        rules = guidance.chain([guidance.reconstruction(loss, weight)])
        sampler = guidance.guided(gd.samplers.ddim(), chains.as_guidance(rules, (), None),
                                  through=chains.through(rules, None))  # fmt: skip
        return float(loss(gd.samplers.sample(sampler, evaluate, keys, jnp.asarray(X), levels)).mean())

    losses = [drawn(weight) for weight in (0.0, 0.3, 1.0)]
    assert losses[0] > losses[1] > losses[2], losses


# --- interval, pruning, order


def test_an_interval_is_of_time_and_of_noise():
    """Sigma / alpha is 4/3 at this level; both bounds must hold, and noise alone without end is allowed."""
    for interval, acts in [
        ((0, 999, 0, np.inf), True), ((0, 999, 1.3, 1.4), True), ((0, 999, 1.4, 9), False),
        ((0, 999, 0, 1.3), False), ((600, 999, 0, np.inf), False), ((0, 600), True),
    ]:  # fmt: skip
        close(run("cfg", interval=interval)[0], CFG if acts else COND)
    noise = LEVEL._replace(alpha=jnp.float32(0))
    assert bool(guidance.inside(noise, (0, 999, 0, np.inf))) and not bool(guidance.inside(noise, (0, 999, 0, 1e9)))
    alpha, sigma = (jnp.float32(values).reshape(2, 1, 1, 1) for values in ([0.6, 1.0], [0.8, 0.5]))
    each = Level(alpha, sigma, jnp.float32([500, 300]))
    np.testing.assert_array_equal(guidance.inside(each, (0, 999, 0.4, 0.6)).ravel(), [False, True])


@pytest.mark.parametrize("name", ["cfg", "apg", "cfg_zero", "cfgpp"])
@pytest.mark.parametrize("others", [(), ("rescale",), ("dynamic_threshold",), ("pag",)], ids=str)
@pytest.mark.parametrize("weights", [(0.0,), (-1.0,), (-1.0, 0.5), (0.0, -1.0)], ids=str)
def test_pruned_branches_make_the_same_prediction(name, others, weights):
    """The worse branch of a contrast is here a function of the first branch's conditions."""
    rules = guidance.chain([name, *others])
    conditions = {0: COND, 1: SECOND, 9: NULL}
    branches = tuple({"label": np.int32([i])} for i in range(len(weights)))

    def made(branches, null, weights):
        rule, nxt = chains.as_guidance(rules, weights, None), (*branches, null)
        evaluated = [conditions[int(branch["label"][0])] for branch in nxt]
        evaluated += [evaluated[0] ** 2] * others.count("pag")
        memory = rule.init(jnp.asarray(X))
        for level in (LEVEL, LEVEL._replace(time=jnp.float32(400))):  # the first step of cfg_zero stands still
            prediction, memory = rule.combine(tuple(map(from_x0, evaluated)), jnp.asarray(X), level, memory)
        return prediction if rule.renoise is None else rule.renoise(prediction, memory)

    whole = made(branches, {"label": np.int32([9])}, weights)
    pruned = guidance.prune_branches(branches, {"label": np.int32([9])}, weights, chains.prunes(rules))
    for mine, expected in zip(made(*pruned)[:2], whole[:2], strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-4)
    if name == "cfg" and not others and weights == (-1.0, 0.5):
        assert len(pruned[0]) == 1


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["rescale", "cfg"], "rescale comes before cfg, but a combiner makes the prediction that the others change"),
        (["cfg", "apg"], "cfg and apg both combine the branches; keep one of them"),
        (["dynamic_threshold", "rescale"], "dynamic_threshold comes before rescale, but a limit of the values comes"),
        (["cfg", "rescale", "pag"], "rescale comes before pag, but a contrast adds to the prediction"),
        (["cfg", guidance.reconstruction(jnp.sum), "rescale"], "reconstruction comes before rescale, but"),
        ("rescle", "guidance='rescle' is not one of .*; did you mean 'rescale'"),
        ("reconstruction", r"reconstruction needs loss; give gd.guidance.reconstruction\(...\)"),
        (3, "guidance=3 is no rule"),
        ([guidance.composed((1.0,)), "cfg"], "a combiner of your own and cfg both combine"),
    ],
)
def test_an_order_without_a_meaning_is_refused_with_the_reason(rules, message):
    with pytest.raises(InputError, match=message):
        guidance.chain(rules)


def test_bad_options_and_other_networks_are_refused(pipes):
    for name, options, message in [
        ("apg", {"phi": 0.7}, "apg has no option 'phi'; it has eta, norm_threshold, momentum"),
        ("rescale", {"phy": 0.7}, "rescale has no option 'phy'; it has phi, of; did you mean 'phi'"),
        ("cfg", {"phi": 0.7}, "cfg has no option 'phi'; it has no options"),
        ("rescale", {"phi": 1.5}, r"rescale: phi=1.5 must lie in \[0, 1\]"),
        ("rescale", {"of": "x"}, "rescale: of='x' is not one of x0, eps, v"),
        ("dynamic_threshold", {"quantile": -1}, "dynamic_threshold: quantile=-1 must lie in"),
        ("seg", {"blur": float("nan")}, "seg: blur=nan must be a finite number"),
        ("pag", {"weight": float("inf")}, "pag: weight=inf must be a finite number"),
    ]:
        with pytest.raises(InputError, match=message):
            guidance.create(name, **options)
    pipe = pipes[0]
    other = gd.models.UNet(**TINY, num_classes=4)
    for wishes, message in [
        ({"guidance": "autoguidance"}, "autoguidance needs another network; give autoguidance=gd.load"),
        ({"autoguidance": "runs/x"}, "autoguidance='runs/x' must be a pipeline"),
        ({"sigma_interval": (3, 1)}, r"sigma_interval=\(3, 1\) is empty"),
        ({"autoguidance": gd.Pipeline(other, params_of(1, other), pipe.process, (8, 8, 1))}, "differ in the condition"),
        ({"autoguidance": gd.Pipeline(MODEL, pipe.params, pipe.process, (16, 16, 1))}, "its images are"),
        ({"autoguidance": gd.Pipeline(MODEL, pipe.params, gd.Process(gd.schedules.linear(50)), (8, 8, 1))}, "noise le"),
    ]:
        with pytest.raises(InputError, match=message):
            pipe.request(labels=[0], **wishes)
