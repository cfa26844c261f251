"""Every extension is one piece of code and one line in its table: each of these registers one from outside.

CONTRIBUTING.md has a row for each test; `test_contributing_has_a_row_for_each_extension` holds the two together.
"""

import functools
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny
from gaussian_data import GaussianData, row

import guided_diffusion_jax as gd
from guided_diffusion_jax.evaluation.metrics import METRICS, Metric, summary
from guided_diffusion_jax.evaluation.scorer import Scorer
from guided_diffusion_jax.models.embeddings import Encoding
from guided_diffusion_jax.objectives.partition import merge
from guided_diffusion_jax.random import prior, sample_keys
from guided_diffusion_jax.samplers import sample

DATA = GaussianData(0.2, 0.5)
KEYS = sample_keys(jax.random.key(0), jnp.arange(8))
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (64, 8, 8, 1)).astype(np.uint8)
TINY = dict(width=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), head_width=8, out_channels=1)


def params_of(model, shape=(8, 8, 1)):
    """Random parameters, the last layers included, which begin at zero."""
    shapes = jax.eval_shape(lambda: gd.models.init_params(model, jax.random.key(0), shape))
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten([0.2 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


def error(sampler, steps, levels=None):
    levels = gd.schedules.trajectory(gd.schedules.linear(1000), steps, "logsnr") if levels is None else levels
    x = prior(KEYS, (4, 4, 1))
    made = jax.jit(lambda x: sample(sampler, DATA.denoise, KEYS, x, levels))(x)
    return float(jnp.sqrt(jnp.mean((made - DATA.flow(x, row(levels, 0), row(levels, -1))) ** 2)))


def test_a_sampler_of_second_order_with_a_memory(monkeypatch):
    """Adams-Bashforth on the flow, in terms of u = x / alpha over s = sigma / alpha."""

    def step(denoise, keys, x, now, nxt, memory):
        before, last_step = memory
        eps, h = denoise(x, now).eps, nxt.sigma / nxt.alpha - now.sigma / now.alpha
        slope = jnp.where(last_step != 0, eps + h / (2 * jnp.where(last_step == 0, 1, last_step)) * (eps - before), eps)
        return nxt.alpha * (x / now.alpha + h * slope), (eps, h)

    two_step = gd.Sampler(init=lambda x, levels: (jnp.zeros_like(x), jnp.float32(0)), step=step, order=2)
    monkeypatch.setitem(gd.samplers.SAMPLERS, "ab2", lambda: two_step)
    errors = [error(gd.samplers.create("ab2"), steps) for steps in (40, 80, 160)]
    assert np.polyfit(np.log([40, 80, 160]), np.log(errors), 1)[0] < -1.7, errors


def test_heuns_method_with_two_evaluations(monkeypatch):
    def step(denoise, keys, x, now, nxt, memory):
        h = nxt.sigma / nxt.alpha - now.sigma / now.alpha
        first = denoise(x, now).eps
        second = denoise(nxt.alpha * (x / now.alpha + h * first), nxt).eps
        return nxt.alpha * (x / now.alpha + h * jnp.where(nxt.sigma > 0, (first + second) / 2, first)), memory

    edm = gd.Sampler(init=lambda x, levels: (), step=step, evaluations=2, order=2)
    monkeypatch.setitem(gd.samplers.SAMPLERS, "edm_heun", lambda: edm)
    errors = [error(gd.samplers.create("edm_heun"), steps) for steps in (40, 80, 160)]
    assert np.polyfit(np.log([40, 80, 160]), np.log(errors), 1)[0] < -1.7, errors


def test_a_guidance_rule_with_memory(monkeypatch):
    """Momentum on the guidance direction, as in adaptive projected guidance (Sadat et al. 2024)."""

    def rule(weights, interval, momentum):
        def combine(branches, x, level, memory):
            memory = branches[0].x0 - branches[1].x0 + momentum * memory
            return gd.prediction.from_x0(x, branches[0].x0 + weights[0] * memory, level), memory

        return gd.Guidance(init=jnp.zeros_like, combine=combine)

    def heavy_ball(momentum=-0.5):
        return gd.guidance.Combiner(functools.partial(rule, momentum=momentum))

    monkeypatch.setitem(gd.guidance.GUIDANCE, "momentum", heavy_ball)
    pipe = tiny.pipeline()
    images = {w: pipe(labels=[0, 1, 2], weight=w, steps=5, guidance="momentum") for w in (0.0, 3.0)}
    np.testing.assert_array_equal(images[0.0], pipe(labels=[0, 1, 2], weight=0.0, steps=5))
    assert (images[3.0] != pipe(labels=[0, 1, 2], weight=3.0, steps=5)).any()


def test_guidance_by_a_second_network():
    """Autoguidance (Karras et al. 2024): away from a worse model, here the data's with another mean."""
    worse = GaussianData(-0.3, 0.9)

    def combine(branches, x, level, memory):
        good, bad = branches
        return gd.prediction.from_x0(x, 2 * good.x0 - bad.x0, level), memory

    rule = gd.Guidance(init=lambda x: (), combine=combine)
    evaluate = lambda x, level: (DATA.denoise(x, level), worse.denoise(x, level))  # noqa: E731
    levels, x = gd.schedules.trajectory(gd.schedules.linear(100), 50), prior(KEYS, (4, 4, 1))
    made = sample(gd.guidance.guided(gd.samplers.ddim(), rule), evaluate, KEYS, x, levels)
    plain = sample(gd.samplers.ddim(), DATA.denoise, KEYS, x, levels)
    assert float(made.mean()) > float(plain.mean()) + 0.1


def test_flow_matching():
    """The velocity eps - x0 on alpha = 1 - sigma: the exact velocity of Gaussian data draws that data."""
    sigma = np.linspace(0.001, 1, 1000)
    process = gd.Process(gd.schedules.table(1 - sigma, sigma), prediction="velocity")

    def network(x, time, conditions):
        level = gd.schedules.at(process.levels, jnp.round(time).astype(int))
        prediction = DATA.denoise(x, level)
        return prediction.eps - prediction.x0

    denoise = gd.denoisers.conditional_denoiser(network, process)
    levels = gd.schedules.trajectory(process.levels, 300)
    x = prior(KEYS, (16, 16, 1))
    made = sample(gd.samplers.ddim(), lambda x, level: denoise(x, level, {}), KEYS, x, levels)
    np.testing.assert_allclose(made, DATA.flow(x, row(levels, 0), row(levels, -1)), atol=0.02)


def test_a_codec():
    """A fixed orthogonal transform of 2x2 patches: four channels at half the size."""
    matrix = np.linalg.qr(RNG.normal(size=(4, 4)))[0].astype(np.float32)

    def encode(matrix, images):
        b, h, w, _ = images.shape
        patches = images.reshape(b, h // 2, 2, w // 2, 2).transpose(0, 1, 3, 2, 4).reshape(b, h // 2, w // 2, 4)
        return patches @ matrix

    def decode(matrix, latents):
        b, h, w, _ = latents.shape
        patches = (latents @ matrix.T).reshape(b, h, w, 2, 2).transpose(0, 1, 3, 2, 4)
        return patches.reshape(b, 2 * h, 2 * w, 1)

    as_data = lambda function: jax.tree_util.Partial(function, matrix)  # noqa: E731
    codec = gd.Codec(as_data(encode), as_data(decode), (4, 4, 4), limits=(-2.0, 2.0), image_shape=(8, 8, 1))
    x = jnp.asarray(IMAGES / 127.5 - 1, jnp.float32)
    np.testing.assert_allclose(codec.decode(codec.encode(x)), x, atol=1e-5)
    model = gd.models.UNet(**{**TINY, "out_channels": 4})
    pipe = gd.Pipeline(model, params_of(model, (4, 4, 4)), gd.Process(gd.schedules.cosine(50)), (8, 8, 1), codec=codec)
    assert pipe(count=2, steps=3).shape == (2, 8, 8, 1)


class Hue(nn.Module):
    """An angle as a vector."""

    features: int

    @nn.compact
    def __call__(self, hue):
        return Encoding(vector=nn.Dense(self.features)(jnp.stack([jnp.cos(hue), jnp.sin(hue)], axis=-1)))


def test_a_condition_type(monkeypatch):
    """A number in [0, 2 pi), which enters with the time embedding."""
    kind = gd.conditions.ConditionType(
        spec=lambda network, shape: (
            gd.conditions.ConditionSpec((), np.float32) if "hue" in dict(network.extra) else None
        ),
        encoder=lambda network: Hue(4 * network.width),
        stream=(1 << 16) + 100,
        place="vector",
        request="conditions",
    )
    monkeypatch.setitem(gd.conditions.CONDITIONS, "hue", kind)
    model = gd.models.UNet(**TINY, extra=(("hue", True),))
    data = gd.data.from_arrays(IMAGES, hue=RNG.uniform(0, 6, len(IMAGES)).astype(np.float32))
    process = gd.Process(gd.schedules.cosine(50))
    gd.Trainer(model, process, data, optimizer=optax.adam(1e-3)).fit(steps=2, batch_size=8)
    pipe = gd.Pipeline(model, params_of(model), process, (8, 8, 1))
    red, blue = (pipe(conditions={"hue": np.float32(h)}, count=2, steps=3, weight=2.0) for h in (0.0, 4.0))
    assert (red != blue).any()


def test_a_metric(monkeypatch):
    """2 E|x - y| - E|x - x'| - E|y - y'| of features (Szekely & Rizzo 2013); scores and the printed summary have it."""

    def energy_distance(comparison):
        x, y = comparison.features
        mean = lambda a, b: np.linalg.norm(a[:, None] - b, axis=-1).mean()  # noqa: E731
        return float(2 * mean(x, y) - mean(x, x) - mean(y, y))

    monkeypatch.setitem(METRICS, "energy", Metric("energy", "energy distance", "lower", ("features",), energy_distance))
    scorer = Scorer(gd.data.from_arrays(IMAGES[:10]), gd.data.from_arrays(IMAGES), features="pixels")
    good, bad = scorer.scores(IMAGES), scorer.scores(IMAGES // 4)
    assert abs(good["energy"]) < 1e-6 < 0.1 < bad["energy"]
    assert "energy distance" in summary(bad)


def test_a_data_source(monkeypatch):
    def stripes(name, *, split, image_size, data_dir, columns):
        images = np.zeros((20, image_size, image_size, 1), np.uint8)
        images[::2, ::2], images[1::2, :, ::2] = 255, 255
        return gd.data.from_arrays(images, np.arange(20) % 2, ("across", "down"), name=name)

    monkeypatch.setitem(gd.data.SOURCES, "stripes", stripes)
    data = gd.data.load("stripes", image_size=8)
    assert len(data) == 20 and data.class_names == ("across", "down")
    assert data.fingerprint() == gd.data.load("stripes", image_size=8).fingerprint()


def test_lora_on_the_attention_projections():
    """Low-rank changes of the projections' kernels, trained on a frozen model: an objective and a predicate."""
    process, data = gd.Process(gd.schedules.cosine(50)), gd.data.from_arrays(IMAGES, np.arange(64) % 4)
    model = gd.models.UNet(**TINY | {"attention_resolutions": (8,)}, num_classes=4)
    base, flat = params_of(model), gd.objectives.flatten_params(params_of(model))
    targets = {path: value.shape for path, value in flat.items() if path[-2:] == ("qkv", "kernel")}
    plain = gd.objectives.denoising(model, process, data.image_shape)

    def init(key):
        low = {
            ("lora", *p): {"a": 0.1 * jax.random.normal(key, (s[0], 2)), "b": jnp.zeros((2, s[1]))}
            for p, s in targets.items()
        }
        return merge(base, gd.objectives.unflatten_params(low))

    def loss(params, ema, frozen, keys, batch, t=None):
        low = gd.objectives.flatten_params(params["lora"])
        changed = {path: flat[path] + low[(*path, "a")] @ low[(*path, "b")] for path in targets}
        return plain.loss(merge(base, gd.objectives.unflatten_params(changed)), ema, {}, keys, batch, t)

    trainer = gd.Trainer(
        model, process, data, optimizer=optax.adam(1e-2), objective=gd.Objective(init, loss),
        trainable=lambda path: path[0] == "lora",
    )  # fmt: skip
    state = trainer.fit(steps=3, batch_size=8)
    assert sum(a.size for a in jax.tree.leaves(state.params)) < 0.2 * sum(a.size for a in jax.tree.leaves(base))
    jax.tree.map(np.testing.assert_array_equal, state.frozen, base)
    assert all(np.abs(b).max() > 0 for path, b in gd.objectives.flatten_params(state.params).items() if path[-1] == "b")


def test_contributing_has_a_row_for_each_extension():
    """Each row of CONTRIBUTING's table names the test here that shows it, and every test has a row."""
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    here = {name for name in globals() if name.startswith("test_") and "contributing" not in name}
    assert named >= here, here - named
    assert not {name for name in named - here if "extending" not in name}
