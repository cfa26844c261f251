"""How soon the page shows new images: `python -m benchmarks.page`, on the digits of the package.

Ten images by classifier-free guidance, as a moved slider asks for them: from the values of the widgets to the PNG
files, beside the plain forwards of twice the batch that the steps need. The speed of the machine is that of a matrix
product.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guided_diffusion_jax as gd
from benchmarks.timing import Spread, matmul_chain, take_turns
from guided_diffusion_jax.serve import pictures
from guided_diffusion_jax.serve.controls import controls
from guided_diffusion_jax.serve.texts import Called

SIZE = 2048
"""Rows and columns of the matrices."""


def main(steps: int = 10, budget: float = 20.0) -> int:
    """Prints seconds of an answer, of its forwards and of the matrices, and their ratio."""
    pipe = gd.load("digits")
    offered, called = controls(pipe, "digits"), Called("digits")
    rows = 2 * pictures.BATCH
    x = jnp.zeros((rows, *pipe.codec.shape))
    conditions = {"label": jnp.arange(rows, dtype=jnp.int32) % 10}
    forward = jax.jit(pipe.apply)
    weights = iter(np.linspace(0.5, 4, 1000))

    def answer() -> Any:
        return pictures.answer(pipe, offered, "generate", {"weight": float(next(weights)), "steps": steps}, called)

    def forwards() -> Any:
        return [forward(pipe.params, x, jnp.zeros(rows), conditions) for _ in range(steps)]

    times = take_turns({"answer": answer, "forwards": forwards, "product": matmul_chain("float32", SIZE, 1)}, budget)
    for name, seconds in times.seconds.items():
        print(f"{name}: {1000 * Spread.of(seconds).median:.0f} ms")
    ratio = times.ratio("answer", "forwards")
    print(f"answer / {steps} forwards of {rows} images: {ratio}")
    print(f"matrices of {SIZE}: {2 * SIZE**3 / float(np.median(times.seconds['product'])) / 1e9:.0f} GFLOP/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
