"""DDIM with 50 steps, plain and with classifier-free guidance (CFG): what guidance costs, what one program saves."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case, Results, measurement, ratio
from benchmarks.timing import chain_length, compiled, take_turns
from guided_diffusion_jax import guidance, sharding
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.generation import Generator, Request, as_data
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.random import fold, sample_keys
from guided_diffusion_jax.typing import Images, Level, Params

STEPS = 50
PLAIN = f"DDIM-{STEPS}, plain"
CFG = f"DDIM-{STEPS}, CFG"
LOOP = f"DDIM-{STEPS}, CFG, Python loop"
CFG_STEP = "DDIM step, CFG"
FORWARD = "forward at twice the batch"


def run(case: Case, budget: float) -> Results:
    """Times whole trajectories and single steps, as `--mode=sample` compiles them."""
    trainer = case.trainer()
    mesh = trainer.mesh
    params = jax.device_put(case.params(), sharding.replicated(mesh))
    pipe = Pipeline(trainer.model, params, trainer.process, info=case.data.info, mesh=mesh)
    generator = Generator(pipe.apply, pipe.process, pipe.codec)
    unguided, guided = (guided_request(pipe, case.labels, weight) for weight in (0.0, 1.0))
    x, twice = (
        sharding.put_batch(np.random.default_rng(2).standard_normal((n, *pipe.codec.shape)).astype(np.float32), mesh)
        for n in (case.batch, 2 * case.batch)
    )
    labels = sharding.put_batch(np.concatenate([case.labels] * 2), mesh)
    jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options())

    def forward(params, x, i):
        time = jnp.broadcast_to(_row(guided.levels, i).time, len(x))
        return pipe.apply(params, x, time, {"label": labels})

    plain = compiled(jit(generator.images), params, unguided)
    cfg = compiled(jit(generator.images), params, guided)
    cfg_step = compiled(jit(functools.partial(_cfg_step, generator)), params, guided, x, 0)
    forward_program = compiled(jit(forward), params, twice, 0)

    step = functools.partial(cfg_step.call, params, guided)
    once = functools.partial(forward_program.call, params)
    length = chain_length()
    steps = take_turns({CFG_STEP: _chain(step, x, length), FORWARD: _chain(once, twice, length)}, budget)
    trajectories = take_turns(
        {
            PLAIN: lambda: plain.call(params, unguided),
            CFG: lambda: cfg.call(params, guided),
            LOOP: _chain(step, x, STEPS),
        },
        budget,
    )
    return Results(
        [
            measurement(case, PLAIN, plain, trajectories),
            measurement(case, CFG, cfg, trajectories),
            measurement(case, LOOP, cfg_step, trajectories),
            measurement(case, CFG_STEP, cfg_step, steps, length),
            measurement(case, FORWARD, forward_program, steps, length)._replace(batch=2 * case.batch),
        ],
        [
            ratio(case, "CFG's DDIM step / plain forward at twice the batch", steps, CFG_STEP, FORWARD),
            ratio(case, f"DDIM-{STEPS}: CFG / plain", trajectories, CFG, PLAIN),
            ratio(
                case, f"DDIM-{STEPS} with CFG: Python loop of the jitted step / one program", trajectories, LOOP, CFG
            ),
        ],
    )


def guided_request(pipe: Pipeline, labels: np.ndarray, weight: float, **wishes: Any) -> Request:
    """Request on the devices; at weight 0 of one branch, the plain model. `wishes` go to `pipe.request`."""
    made = pipe.request(**{"labels": labels, "weight": weight, "steps": STEPS, **wishes}).prune_branches()
    rows = {name: sharding.put_batch(getattr(made, name), pipe.mesh) for name in ("indices", "branches", "null")}
    return as_data(made._replace(**rows, weights=tuple(map(jnp.float32, made.weights)), labels=None))


def _cfg_step(generator: Generator, params: Params, request: Request, x: Images, i) -> Images:
    """Step i of the trajectory, as `generator.images` repeats it."""
    denoise = conditional_denoiser(functools.partial(generator.apply, params), generator.process)
    evaluate: Any = guidance.evaluate_branches(denoise, (*request.branches, request.null))
    rule = guidance.composed(request.weights, tuple(request.interval))
    sampler = guidance.guided(request.sampler, rule, guidance.clip_x0)
    keys = fold(sample_keys(request.key, request.indices), i + 1)
    now, nxt = _row(request.levels, i), _row(request.levels, i + 1)
    return sampler.step(evaluate, keys, x, now, nxt, sampler.init(x, request.levels))[0]


def _row(levels: Level, i) -> Level:
    return jax.tree.map(lambda column: jnp.asarray(column)[i], levels)


def _chain(step: Callable, x: Images, length: int) -> Callable[[], Images]:
    """Call that makes `length` steps, each from the last one's result, without waiting in between."""
    return lambda: functools.reduce(step, range(length), x)
