"""Where a network's time goes: its forward pass and gradient without one kind of layer, as shares of the whole.

`python -m benchmarks.shares` prints a Markdown table for the 8.0M-parameter U-Net; `--size=digits` another. In turns
with the whole network run networks in which all layers of a kind cost nothing: a convolution passes channels on,
attention and normalisation pass their input on. What is then saved is that kind's share. Shares need not sum to 1:
without one kind, the compiler fuses the others differently.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import case, small_numbers
from benchmarks.compiling import NETWORKS
from benchmarks.report import markdown
from benchmarks.timing import compiled, take_turns
from guided_diffusion_jax import sharding
from guided_diffusion_jax.models.attention import SelfAttention
from guided_diffusion_jax.models.layers import CONVOLUTIONS, RESIZE, GroupNorm, same_size

BUDGET = 60.0
"""Seconds of rounds for a table."""


def passed_on(layer: nn.Conv, x: jax.Array) -> jax.Array:
    """The channels of `x`, resized, as often as the layer has outputs; fewer pixels where it strides."""
    x = next((RESIZE[key] for key, form in CONVOLUTIONS.items() if form is layer.conv_general_dilated), same_size)(x)
    stride = layer.strides if isinstance(layer.strides, int) else 1
    x = x[:, ::stride, ::stride]
    return jnp.concatenate([x] * -(-layer.features // x.shape[-1]), -1)[..., : layer.features]


FREE: dict[str, tuple[type[nn.Module], Callable[[Any, jax.Array], jax.Array]]] = {
    "convolutions": (nn.Conv, passed_on),
    "self-attention": (SelfAttention, lambda layer, x: x),
    "group normalisation": (GroupNorm, lambda layer, x: x),
}
"""Kinds of layers by name, and what stands in the place of one."""


def without(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with networks in which the layers of a kind cost nothing."""
    layer, instead = FREE[kind]

    def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, layer) and context.method_name == "__call__":
            return instead(context.module, args[0])
        return call(*args, **kwargs)

    def changed(*arguments: Any) -> Any:
        with nn.intercept_methods(intercept):
            return function(*arguments)

    return changed


def main(arguments: Sequence[str]) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shares", description="Where a network's time goes.")
    parser.add_argument("--size", choices=tuple(NETWORKS), default="8.0M")
    network = NETWORKS[parser.parse_args(arguments).size]
    made = case(network.size, {"model.dropout": 0.0} | network.changes)
    trainer = made.trainer()
    params = small_numbers(jax.eval_shape(trainer.init).params)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(made.batch, *made.data.image_shape)), jnp.float32)
    time, labels = jnp.full(made.batch, 0.5), jnp.zeros(made.batch, jnp.int32)

    def forward(params: Any, x: jax.Array) -> jax.Array:
        output: Any = trainer.model.apply({"params": params}, x, time, {"label": labels})
        return jnp.mean(output**2)

    jit = functools.partial(jax.jit, compiler_options=sharding.compiler_options())
    functions = {"forward": forward, "gradient": jax.grad(forward)}
    calls: dict[str, Callable[[], Any]] = {}
    for name, function in functions.items():
        for kind, changed in {"": function, **{kind: without(kind, function) for kind in FREE}}.items():
            calls[f"{name} {kind}"] = functools.partial(compiled(jit(changed), params, x).call, params, x)
    times = take_turns(calls, BUDGET)
    rows = []
    for kind in FREE:
        left = [times.ratio(f"{name} {kind}", f"{name} ") for name in functions]
        rows.append([kind, *(f"{1 - one.median:.0%} ({1 - one.max:.0%} to {1 - one.min:.0%})" for one in left)])
    rows.append(["all, ms", *(f"{1e3 * np.median(times.seconds[f'{name} ']):.0f}" for name in functions)])
    print(markdown(("layers", *functions), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
