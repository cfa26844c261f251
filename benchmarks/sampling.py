"""DDIM with 50 steps, plain and with classifier-free guidance (CFG): what guidance costs, what one program saves."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from guided_diffusion_jax.samplers.noise import fold

from benchmarks.cases import Case, Results, measurement, ratio
from benchmarks.timing import chain_length, compiled, take_turns
from guided_diffusion_jax import guidance, sharding
from guided_diffusion_jax.commands import build, networks
from guided_diffusion_jax.conditions import null_like
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.generation import Generator, Request
from guided_diffusion_jax.samplers import ddim, sample_keys
from guided_diffusion_jax.typing import Conditions, Images, Level, Params

STEPS = 50
PLAIN = f"DDIM-{STEPS}, plain"
CFG = f"DDIM-{STEPS}, CFG"
LOOP = f"DDIM-{STEPS}, CFG, Python loop"
CFG_STEP = "DDIM step, CFG"
FORWARD = "forward at twice the batch"


def run(case: Case, budget: float) -> Results:
    """Times whole trajectories and single steps, as `--mode=sample` compiles them."""
    mesh = sharding.mesh()
    generator = build.generator(networks.unet(case.config), case.config)._replace(solver="ddim")
    params = jax.device_put(case.params(), sharding.replicated(mesh))
    request = _request(case, mesh)
    x, twice = (
        sharding.put_batch(np.random.default_rng(2).standard_normal((n, *generator.shape)).astype(np.float32), mesh)
        for n in (case.batch, 2 * case.batch)
    )
    labels = sharding.put_batch(np.concatenate([case.labels()] * 2), mesh)
    jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options())

    def forward(params, x, i):
        time = jnp.broadcast_to(_row(request.levels, i).time, len(x))
        return generator.apply(params, x, time, Conditions(label=labels))

    unguided = request._replace(conditions=(), null=request.conditions[0], weights=())
    plain = compiled(jit(generator.images), params, unguided)
    cfg = compiled(jit(generator.images), params, request)
    cfg_step = compiled(jit(functools.partial(_cfg_step, generator)), params, request, x, 0)
    forward_program = compiled(jit(forward), params, twice, 0)

    step = functools.partial(cfg_step.call, params, request)
    once = functools.partial(forward_program.call, params)
    length = chain_length()
    steps = take_turns({CFG_STEP: _chain(step, x, length), FORWARD: _chain(once, twice, length)}, budget)
    walks = take_turns(
        {
            PLAIN: lambda: plain.call(params, unguided),
            CFG: lambda: cfg.call(params, request),
            LOOP: _chain(step, x, STEPS),
        },
        budget,
    )
    return Results(
        [
            measurement(case, PLAIN, plain, walks),
            measurement(case, CFG, cfg, walks),
            measurement(case, LOOP, cfg_step, walks),
            measurement(case, CFG_STEP, cfg_step, steps, length),
            measurement(case, FORWARD, forward_program, steps, length)._replace(batch=2 * case.batch),
        ],
        [
            ratio(case, "CFG's DDIM step / plain forward at twice the batch", steps, CFG_STEP, FORWARD),
            ratio(case, f"DDIM-{STEPS}: CFG / plain", walks, CFG, PLAIN),
            ratio(case, f"DDIM-{STEPS} with CFG: Python loop of the jitted step / one program", walks, LOOP, CFG),
        ],
    )


def _request(case: Case, mesh) -> Request:
    config = case.config.copy_and_resolve_references()
    config.sample.steps = str(STEPS)
    conditions = Conditions(label=sharding.put_batch(case.labels(), mesh))
    return Request(
        key=jax.random.key(0),
        numbers=sharding.put_batch(np.arange(case.batch, dtype=np.int32), mesh),
        conditions=(conditions,),
        null=null_like(conditions, config.model.num_classes),
        weights=(jnp.float32(1),),
        eta=jnp.float32(0),
        levels=build.trajectory(config),
    )


def _cfg_step(generator: Generator, params: Params, request: Request, x: Images, i) -> Images:
    """What `generator.images` repeats: step i of the trajectory."""
    network = functools.partial(generator.apply, params)
    given = conditional_denoiser(network, generator.prediction, generator.variance == "learned_range")
    denoise = guidance.composed(given, request.conditions, request.null, request.weights)
    denoise = guidance.clip_x0(denoise) if generator.clip else denoise
    keys = fold(sample_keys(request.key, request.numbers), i + 1)
    return ddim(request.eta).step(denoise, keys, x, _row(request.levels, i), _row(request.levels, i + 1), ())[0]


def _row(levels: Level, i) -> Level:
    return jax.tree.map(lambda column: jnp.asarray(column)[i], levels)


def _chain(step: Callable, x: Images, length: int) -> Callable[[], Images]:
    """A call that takes so many steps, each from the last one's result, without waiting in between."""
    return lambda: functools.reduce(step, range(length), x)
