"""Rates of 3x3 convolutions and dense layers and of their gradients on a CPU, and of other forms of these.

`python -m benchmarks.convolutions` prints GFLOP/s as Markdown tables: all forms of a row take turns.
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
from guided_diffusion_jax.models.layers import dot_by_rows

SHAPES = (
    (64, 8, 32, 32),
    (64, 16, 32, 32),
    (16, 32, 64, 64),
    (16, 16, 128, 128),
    (16, 16, 256, 128),
    (16, 8, 128, 128),
)
"""Images, their pixels, channels in and out."""
DENSE = (((64, 65, 64), 256), ((64, 16, 16, 64), 32), ((16, 16, 16, 256), 768), ((16, 8, 8, 512), 256))
"""Shapes of the input of a dense layer, and its outputs."""
BUDGET = 2.0
"""Seconds of rounds for a row."""


def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution of `[b h w c]` with zeros around."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def by_input(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> jax.Array:
    """Gradient by the input, as JAX has it."""
    return jax.vjp(lambda x: convolution(x, kernel), x)[1](grad)[0]


def by_kernel(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> jax.Array:
    """Gradient by the kernel, as JAX has it."""
    return jax.vjp(lambda kernel: convolution(x, kernel), kernel)[1](grad)[0]


def shifted(x: jax.Array) -> list[jax.Array]:
    """The nine shifts of the images that meet an element of the kernel."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + x.shape[1], j : j + x.shape[2]] for i in range(3) for j in range(3)]


def nine_products(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> jax.Array:
    """The same as nine matrix products."""
    rows = grad.reshape(-1, grad.shape[-1])
    return jnp.stack([one.reshape(-1, x.shape[-1]).T @ rows for one in shifted(x)]).reshape(kernel.shape)


def one_product(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> jax.Array:
    """The same as one matrix product of all shifts side by side."""
    columns = jnp.concatenate(shifted(x), -1).reshape(-1, 9 * x.shape[-1])
    return (columns.T @ grad.reshape(-1, grad.shape[-1])).reshape(kernel.shape)


FORMS: dict[str, Callable[..., jax.Array]] = {
    "forward": lambda x, kernel, grad: convolution(x, kernel),
    "by the input": by_input,
    "by the kernel": by_kernel,
    "nine products": nine_products,
    "one product": one_product,
}


def row(shape: tuple[int, int, int, int]) -> list[str]:
    """GFLOP/s of all forms."""
    images, size, channels, outputs = shape
    made = np.random.default_rng(0)
    sizes = ((images, size, size, channels), (3, 3, channels, outputs), (images, size, size, outputs))
    arrays = [jnp.asarray(made.normal(size=size), jnp.float32) for size in sizes]
    jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options())
    programs: dict[str, Callable[[], Any]] = {
        name: functools.partial(compiled(jit(form), *arrays).call, *arrays) for name, form in FORMS.items()
    }
    operations = 2 * 9 * images * size**2 * channels * outputs
    return [f"{images}x{size}x{size}, {channels} to {outputs}"] + [
        f"{operations / np.median(values) / 1e9:.0f}" for values in take_turns(programs, BUDGET).seconds.values()
    ]


def dense_row(shape: tuple[int, ...], outputs: int) -> list[str]:
    """GFLOP/s of the gradient of a dense layer by its kernel: of all axes as they are, and of rows."""
    made = np.random.default_rng(0)
    x, kernel, grad = (
        jnp.asarray(made.normal(size=size), jnp.float32)
        for size in (shape, (shape[-1], outputs), (*shape[:-1], outputs))
    )
    jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options())

    def gradient(product: Callable[..., jax.Array]) -> Callable[[], Any]:
        def by_kernel(x: jax.Array, grad: jax.Array) -> jax.Array:
            return jax.vjp(lambda kernel: product(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))), kernel)[1](grad)[0]

        return functools.partial(compiled(jit(by_kernel), x, grad).call, x, grad)

    seconds = take_turns({"axes": gradient(jax.lax.dot_general), "rows": gradient(dot_by_rows)}, BUDGET).seconds
    operations = 2 * np.prod(shape) * outputs
    rates = (f"{operations / np.median(values) / 1e9:.0f}" for values in seconds.values())
    return [f"{'x'.join(map(str, shape))} to {outputs}", *rates]


def main() -> int:
    """Prints the tables."""
    print(markdown(("images, channels", *FORMS), [row(shape) for shape in SHAPES]))
    head = ("dense layer", "by the kernel, all axes", "by the kernel, rows")
    print(markdown(head, [dense_row(*layer) for layer in DENSE]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
