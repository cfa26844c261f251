"""Rates of attention and of its gradient on a CPU, beside `jax.nn.dot_product_attention`.

`python -m benchmarks.attention` prints GFLOP/s as a Markdown table: all functions of a row take turns.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.report import markdown
from benchmarks.timing import compiled, take_turns
from guided_diffusion_jax import sharding
from guided_diffusion_jax.dot_product import dot_product_attention

SHAPES = ((16, 256, 2, 64), (16, 64, 2, 64), (64, 64, 2, 32), (64, 65, 4, 16), (2, 1024, 4, 64))
"""Images, positions, heads and channels of a head: the 8.0M network at 16x16 and 8x8, digits, captions, 32x32."""
BUDGET = 5.0
"""Seconds of rounds for a row."""


def row(shape: tuple[int, int, int, int]) -> list[str]:
    """GFLOP/s of the matrix products of both, forward and with the gradient."""
    images, positions, heads, channels = shape
    made = np.random.default_rng(0)
    qkv, grad = (
        jnp.asarray(made.normal(size=(images, positions, *rest, heads, channels)), jnp.float32) for rest in ((3,), ())
    )
    jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options())
    programs: dict[str, Callable[[], Any]] = {}
    for name, attend in (("ours", dot_product_attention), ("jax.nn", jax.nn.dot_product_attention)):

        def forward(qkv: jax.Array, attend: Callable[..., jax.Array] = attend) -> jax.Array:
            return attend(*jnp.moveaxis(qkv, 2, 0))

        def gradient(qkv: jax.Array, grad: jax.Array, forward: Callable[..., jax.Array] = forward) -> jax.Array:
            return jax.vjp(forward, qkv)[1](grad)[0]

        programs[f"{name}, forward"] = functools.partial(compiled(jit(forward), qkv).call, qkv)
        programs[f"{name}, gradient"] = functools.partial(compiled(jit(gradient), qkv, grad).call, qkv, grad)
    times = take_turns(programs, BUDGET)
    product = 2 * images * heads * positions**2 * channels
    cells = [f"{images}x{positions}, {heads} heads of {channels}"]
    # Two products forward, and with the gradient the first two and four more.
    for program, products in {"forward": 2, "gradient": 6}.items():
        seconds = (np.median(times.seconds[f"{name}, {program}"]) for name in ("ours", "jax.nn"))
        gain = times.ratio(f"jax.nn, {program}", f"ours, {program}")
        cells += [*(f"{products * product / each / 1e9:.0f}" for each in seconds), f"{gain.median:.2f}"]
    return cells


def main() -> int:
    """Prints the table."""
    head = [f"{name}, {program}" for program in ("forward", "gradient") for name in ("ours", "jax.nn", "ratio")]
    print(markdown(("images x positions", *head), [row(shape) for shape in SHAPES]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
