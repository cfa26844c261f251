"""Sizes of compiled programs, and what compiling them takes: the training step by its parts, and sampling.

`python -m benchmarks.compiling` prints a Markdown table; `--sizes=digits` and `--programs="loss"` a part of it. Nothing
is run, and networks are shapes alone. The large network is compiled with `--all` only, which takes minutes. The update
(optimizer, averages, the guard against bad steps) is what the training step has beyond the loss and its gradient. Lines
of the lowered program do not depend on the machine; the seconds are CPU time of all the process's threads, which
depends less on what else runs than the time that passes.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case, case
from benchmarks.report import markdown
from benchmarks.sampling import guided_request
from guided_diffusion_jax import sharding
from guided_diffusion_jax.data.dataset import as_inputs
from guided_diffusion_jax.generation import Generator
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.random import sample_keys


class Network(NamedTuple):
    """A size of `cases.SIZES`, changes of it, and whether it is compiled: a large one is only lowered."""

    size: str
    changes: dict[str, Any]
    compiled: bool = True


NETWORKS = {
    "digits": Network("digits", {}),
    "8.0M": Network(
        "cifar10",
        {
            "model.width": 64,
            "model.channel_mult": (1, 2, 2),
            "model.num_res_blocks": 2,
            "model.dtype": "float32",
            "train.batch_size": 16,
        },
    ),
    "imagenet64": Network("imagenet64", {"train.batch_size": 8, "model.dtype": "float32"}, compiled=False),
    "imagenet64-remat": Network(
        "imagenet64", {"train.batch_size": 8, "model.dtype": "float32", "model.remat": True}, compiled=False
    ),
}
HEAD = ("network", "leaves", "program", "lines", "trace, s", "lower, s", "compile, s", "temporary, MB")


def main(arguments: list[str]) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiling", description="What compiling takes.")
    parser.add_argument("--sizes", default=",".join(NETWORKS))
    parser.add_argument("--programs", default="", help='names with commas, e.g. "training step"; all by default')
    parser.add_argument("--lower", action="store_true", help="compile nothing")
    parser.add_argument("--all", action="store_true", help="compile the large network as well")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_compilation_cache", False)
    rows = []
    for name in options.sizes.split(","):
        network = NETWORKS[name]
        made = case(network.size, network.changes)
        leaves = len(jax.tree.leaves(jax.eval_shape(made.trainer().init).params))
        for program, (function, shapes) in programs(made).items():
            if program not in (options.programs or program).split(","):
                continue
            compile_it = (network.compiled or options.all) and not options.lower
            rows.append([name, str(leaves), program, *row(function, shapes, compile_it)])
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    print(markdown(HEAD, rows))
    return 0


def programs(made: Case) -> dict[str, tuple[jax.stages.Wrapped, tuple[Any, ...]]]:
    """Jitted functions by name, each with the shapes of its arguments."""
    trainer = made.trainer()
    state = jax.eval_shape(trainer.init)
    batch = jax.tree.map(_shape, as_inputs(made.data.read(np.arange(made.batch))))
    pipe = Pipeline(trainer.model, state.params, trainer.process, info=made.data.info, mesh=trainer.mesh, place=False)
    generator = Generator(pipe.apply, pipe.process, pipe.codec)

    def loss(params: Any, state: Any, batch: Any) -> jax.Array:
        keys = sample_keys(state.key, jnp.arange(made.batch))
        return trainer.objective.loss(params, state.ema, state.frozen, keys, batch).loss.mean()

    jit: Callable = lambda f: jax.jit(f, compiler_options=sharding.compiler_options())  # noqa: E731
    return {
        "loss": (jit(loss), (state.params, state, batch)),
        "loss and gradient": (jit(jax.value_and_grad(loss)), (state.params, state, batch)),
        "training step": (trainer.compiled_step, (state, batch)),
        "sampling with CFG": (jit(generator.images), (state.params, guided_request(pipe, made.labels, 1.0))),
    }


def row(function: jax.stages.Wrapped, shapes: tuple[Any, ...], compile_it: bool) -> list[str]:
    """Lines, seconds and megabytes of one program."""
    traced, tracing = _timed(lambda: function.trace(*shapes))
    lowered, lowering = _timed(traced.lower)
    found = [f"{lowered.as_text().count(chr(10)):,}", f"{tracing:.1f}", f"{lowering:.1f}"]
    if not compile_it:
        return [*found, "", ""]
    compiled, compiling = _timed(lowered.compile)
    return [*found, f"{compiling:.1f}", f"{compiled.memory_analysis().temp_size_in_bytes / 1e6:.1f}"]


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return call(), time.process_time() - start


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
