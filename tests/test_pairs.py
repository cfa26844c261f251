"""Every solver with every rule of guidance, on every kind of process, with and without a classifier.

Both come from their tables: a new solver or rule is walked over as well.
"""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import GaussianData
from jax.tree_util import Partial

import guided_diffusion_jax as gd
from guided_diffusion_jax import guidance, samplers, schedules
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.generation import Guide, Request
from guided_diffusion_jax.models.attention import SelfAttention
from guided_diffusion_jax.typing import Level

SIGMA = np.linspace(0.002**0.2, 20**0.2, 100) ** 5
PROCESSES = {
    "variance preserving": schedules.cosine(100),
    "flow": schedules.rectified_flow(100),
    "variance exploding": Level(np.ones(100, np.float32), np.float32(SIGMA), np.arange(100, dtype=np.float32)),
}
PIXELS = (2, 2, 1)
ATTENTION = SelfAttention(1)
PARAMS = jax.eval_shape(lambda: ATTENTION.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1))))
PARAMS = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.3), PARAMS)


def worse(x, level, conditions):
    return GaussianData(0.1, 0.9).denoise(x, level)


def distance(target, x0):
    return jnp.mean((x0 - target) ** 2, (1, 2, 3))


def log_prob(label, x, level):
    return -distance(label[:, None, None, None], x)


def given(name):
    """Two sets of options of a rule: each number that it has, with two values."""
    if name == "autoguidance":
        return [{"denoise": Partial(worse), "weight": w} for w in (0.5, 1.0)]
    if name == "reconstruction":
        return [{"loss": Partial(distance, jnp.float32(target)), "weight": 0.5} for target in (0.3, -0.3)]
    options = inspect.signature(guidance.GUIDANCE[name]).parameters
    numbers = [key for key, of in options.items() if isinstance(of.default, float | int)]
    layers = {"layers": ""} if "layers" in options else {}
    return [layers | dict.fromkeys(numbers, value) for value in (0.4, 0.6)]


def request(table, sampler, rules, weight, steered, steps):
    label = np.array([0, 1], np.int32)
    guides = (Guide(Partial(log_prob), label, jnp.float32(weight)),) if steered else ()
    return Request(
        key=jax.random.key(0), indices=np.arange(2, dtype=np.int32), branches=({"label": label},),
        null={"label": np.full(2, 2, np.int32)}, weights=(jnp.float32(weight),),
        interval=np.float32([0, 80, 0.01, 50 + weight]), levels=schedules.pad(schedules.trajectory(table, steps), 9),
        sampler=sampler, rule=guidance.chain(rules), guides=guides,
    )  # fmt: skip


def network(params, x, time, conditions):
    """The exact x0 of Gaussian classes, beside a little self-attention; the levels are data, as the weights are."""
    weights, table = params
    level = schedules.at(table, time.astype(jnp.int32))
    mean = jnp.asarray([-0.5, 0.5, 0.0])[conditions["label"]].reshape(-1, 1, 1, 1)
    return GaussianData(mean, 0.5).denoise(x, level).x0 + 0.01 * ATTENTION.apply(weights, x)


QUICK = {"ddim": (False, True), "unipc": (False,)}
"""Solvers of the quick tier, without and with a classifier; all others are in the slow one."""

PAIRS = [
    pytest.param(
        solver, rule, steered, marks=() if steered in QUICK.get(solver, ()) else pytest.mark.slow,
        id=f"{solver}-{rule}-{'classifier' if steered else 'free'}",
    )
    for solver, rule, steered in itertools.product(samplers.SAMPLERS, guidance.GUIDANCE, (False, True))
]  # fmt: skip


@pytest.mark.parametrize(("solver", "rule", "steered"), PAIRS)
def test_every_pair_runs_in_one_compilation_or_is_refused_with_the_reason(solver, rule, steered):
    """The network is asked for `evaluations` times the branches a step; neither a number nor a process compiles."""
    sampler, rows = samplers.create(solver, defaults={"variance": "fixed_small"}), []

    def apply(params, x, time, conditions):
        rows.append(x.shape[0])
        return network(params, x, time, conditions)

    process = gd.Process(PROCESSES["flow"], prediction="x0")
    generator = gd.Generator(apply, process, gd.codecs.pixels(PIXELS), clip=False)
    run = jax.jit(generator.latents)
    for table in PROCESSES.values():
        made = []
        for options, weight, steps in zip(given(rule), (-0.3, 1.5), (8, 5), strict=True):
            asked = request(table, sampler, [guidance.create(rule, **options)], weight, steered, steps)
            try:
                made.append(run((PARAMS, jax.tree.map(jnp.asarray, table)), asked))
            except InputError as error:
                assert rule == "cfgpp" and sampler.evaluations > 1 and "use another solver" in str(error)
                return
        assert all(bool(jnp.isfinite(one).all()) for one in made)
        assert float(jnp.abs(made[0] - made[1]).max()) > 1e-4
    assert run._cache_size() == 1
    assert sum(rows) == 2 * sampler.evaluations * (2 + (rule in ("pag", "seg")))


def test_rules_in_a_chain_compile_once_and_ask_for_one_row_a_branch():
    """All that can stand together; the contrasts each add a branch of their own."""
    rows, table = [], PROCESSES["flow"]

    def apply(params, x, time, conditions):
        rows.append(x.shape[0])
        return 0.5 * ATTENTION.apply(params, x)

    generator = gd.Generator(apply, gd.Process(table, prediction="x0"), gd.codecs.pixels(PIXELS))
    run = jax.jit(functools.partial(generator.latents, PARAMS))
    names = ["apg", "autoguidance", "pag", "seg", "rescale", "dynamic_threshold", "reconstruction"]
    for i, (weight, steps) in enumerate(((0.5, 8), (2.0, 4))):
        rules = [guidance.create(name, **given(name)[i]) for name in names]
        assert bool(jnp.isfinite(run(request(table, gd.samplers.ddim(), rules, weight, True, steps))).all())
    assert sum(rows) == 2 * (2 + 2) and run._cache_size() == 1
