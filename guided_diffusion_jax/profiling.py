"""Cost of a training step before it runs: parameters, memory per device, floating-point operations.

Operations are counted by XLA (`Lowered.cost_analysis`), without compiling. The memory of the state is exact. The memory
of everything else is XLA's plan where the step was compiled for the device at hand (`Compiled.memory_analysis`);
elsewhere it is estimated from the shapes of what the backward pass reads, which XLA's fusions reduce: for networks
without rematerialisation the estimate lies up to 40 % above XLA's plan (docs/scaling.md).
"""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from guided_diffusion_jax.objectives.partition import merge
from guided_diffusion_jax.typing import Params

GIB = 2**30

ACCELERATORS = {
    "TPU v5e": 16, "TPU v4": 32, "TPU v6e": 32, "A100 40GB": 40, "A100 80GB": 80, "H100 SXM": 80, "TPU v5p": 95,
}  # fmt: skip
"""Memory of one device, as JAX counts devices, in GiB by the makers' data sheets."""

USABLE = 0.9
"""Share of a device's memory that a program can use (an assumption). JAX preallocates 0.75 on GPUs unless
XLA_PYTHON_CLIENT_MEM_FRACTION is set."""


class Profile(NamedTuple):
    """Cost of a training step on one of `devices` devices.

    Attributes:
        parameters: number of parameters, by submodule.
        devices: number of devices.
        batch: images per device and step.
        accumulate: number of parts in which the gradient is accumulated.
        state: bytes of the training state on one device, by its parts.
        gradients: bytes on one device of gradients, and of parameters gathered by FSDP.
        per_image: bytes of activations and input of one image.
        is_planned: whether `per_image` was derived from XLA's memory plan instead of estimated.
        flops: floating-point operations per image.
    """

    parameters: dict[str, int]
    devices: int
    batch: int
    accumulate: int
    state: dict[str, int]
    gradients: int
    per_image: int
    is_planned: bool
    flops: float

    def memory(self, batch: int) -> int:
        """Bytes needed on one device for `batch` images per device."""
        return sum(self.state.values()) + self.gradients + -(-batch // self.accumulate) * self.per_image

    def largest_batch(self, memory: int) -> int:
        """Largest number of images per device that fits into `memory` bytes; 0 if none does."""
        return max(0, (memory - self.memory(0)) // self.per_image) * self.accumulate

    def fits(self, memory: int) -> bool:
        """Whether the profiled batch fits into `memory` bytes."""
        return self.memory(self.batch) <= memory


def profile(
    step: Callable[[Any, Any], Any],
    loss: Callable[[Params, Any], jax.Array],
    state: Any,
    batch_of: Callable[[int], Any],
    *,
    sharded: Any,
    devices: int = 1,
    batch_size: int = 1,
    accumulate: int = 1,
    compile_step: bool = False,
) -> Profile:
    """Profile of one training step. Nothing is allocated, and nothing is compiled unless `compile_step` is set.

    Args:
        step: (state, batch) -> anything; one update without accumulation.
        loss: (params of the whole network, batch) -> scalar; what the step differentiates in what is trained, for the
            estimate of activations.
        state: shapes of the training state, with `params`, `ema`, `opt_state` and `frozen`.
        batch_of: number of images -> shapes of a batch.
        sharded: `state` with a sharding on each shape; the mesh may be abstract.
        devices: number of devices that share the batch.
        batch_size: images per step on all devices; divisible by `devices * accumulate`.
        accumulate: number of parts in which the gradient is accumulated.
        compile_step: compile `step` for one device of the current backend and use XLA's memory plan.
    """
    batch = batch_size // devices
    part = batch // accumulate
    held, gradients = state_bytes(sharded, accumulate)

    def of_trained(params: Params, given: Any) -> jax.Array:
        return loss(merge(params, given[1]), given[0])

    planned = None
    if compile_step:
        planned = temporary_bytes(jax.jit(step, donate_argnums=0).lower(state, batch_of(part)).compile())
    if planned is None:
        activations = activation_bytes(of_trained, state.params, lambda images: (batch_of(images), state.frozen))
    else:
        activations = max(0, planned - tree_bytes(state.params)) // part
    return Profile(
        parameters={name: count(tree) for name, tree in merge(state.params, state.frozen).items()},
        devices=devices,
        batch=batch,
        accumulate=accumulate,
        state=held,
        gradients=gradients,
        per_image=activations + accumulate * tree_bytes(batch_of(1)),
        is_planned=planned is not None,
        flops=flops(step, state, batch_of(part)) / part,
    )


def state_bytes(sharded: Any, accumulate: int) -> tuple[dict[str, int], int]:
    """Bytes on one device of a training state, by its parts; and of gradients, and parameters gathered by FSDP.

    Args:
        sharded: shapes of the training state with a sharding on each.
        accumulate: number of parts in which the gradient is accumulated.
    """
    whole, on_device = tree_bytes(sharded.params), device_bytes(sharded.params)
    # A gradient, and its sum over the parts; FSDP gathers one parameter while it uses another.
    largest = max((tree_bytes(leaf) for leaf in jax.tree.leaves(sharded.params)), default=0)
    gradients = on_device * (1 if accumulate == 1 else 2) + (2 * largest if on_device < whole else 0)
    held = {
        "parameters": on_device,
        "EMA": device_bytes((sharded.ema, sharded.power_ema)),
        "optimizer": device_bytes(sharded.opt_state),
        "frozen": device_bytes(sharded.frozen),
    }
    return {name: size for name, size in held.items() if size}, gradients


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of a function of arrays, or of their shapes, by XLA's count before optimisation.

    A loop of known length, `jax.lax.scan` or `map`, counts as often as it runs; the body of any other counts once. The
    function is lowered for the CPU, since other backends do not count. NaN where JAX_PLATFORMS excludes the CPU.
    """
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError:
        return math.nan
    with jax.default_device(cpu):
        traced = jax.jit(function).trace(*shapes)
        analysis: Any = traced.lower().cost_analysis()
    again, bodies = collections.Counter[Any](), {}
    for length, body in _loops(traced.jaxpr.jaxpr):
        key = _operations(body)
        bodies[key] = body
        again[key] += length - 1
    more = (times * flops(core.jaxpr_as_fun(bodies[key]), *bodies[key].in_avals) for key, times in again.items())
    return float(analysis["flops"]) + sum(more)


def _loops(program: core.Jaxpr) -> Iterator[tuple[int, core.ClosedJaxpr]]:
    """Length and body of each `scan` that is in no other."""
    for line in program.eqns:
        if line.primitive.name == "scan":
            yield line.params["length"], line.params["jaxpr"]
        else:
            for inner in _bodies(line):
                yield from _loops(inner)


def temporary_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Bytes that XLA plans for values between arguments and results; None if the backend does not report them."""
    memory: Any = compiled.memory_analysis()
    return None if memory is None else memory.temp_size_in_bytes


def program_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Bytes that XLA plans for arguments, results and temporaries, donated buffers counted once.

    None if the backend does not report them. Workspace that libraries allocate at run time is not included.
    """
    memory: Any = compiled.memory_analysis()
    if memory is None:
        return None
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return sum(getattr(memory, part) for part in parts) - memory.alias_size_in_bytes


def activation_bytes(loss: Callable[[Params, Any], jax.Array], params: Params, batch_of: Callable[[int], Any]) -> int:
    """Bytes per image of what the backward pass reads, plus the recomputation of the largest `jax.checkpoint` block.

    Args:
        loss: (params, batch) -> scalar.
        params: shapes.
        batch_of: number of images -> shapes of a batch.
    """

    def kept(images: int) -> int:
        batch = batch_of(images)
        # Blocks of the same operations on the same shapes keep as much.
        blocks = {_operations(block): block for block in _checkpointed(jax.make_jaxpr(loss)(params, batch).jaxpr)}
        recomputed = (_residual_bytes(functools.partial(_call, block), block.in_avals) for block in blocks.values())
        return _residual_bytes(loss, params, batch) + max(recomputed, default=0)

    return kept(2) - kept(1)  # what does not grow with the batch (parameters) cancels


def live_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    """Most bytes of values beside the arguments that are there at once, if each is made in turn and nothing is fused.

    XLA's plan is usually less. Inner programs, as of a loop, count by their own most.
    """
    return _most_alive(jax.make_jaxpr(function)(*arguments).jaxpr)


def _most_alive(program: core.Jaxpr) -> int:
    def size(values: Iterable[Any]) -> int:
        return tree_bytes([value.aval for value in values])

    last: dict[Any, int] = {}
    for i, line in enumerate(program.eqns):
        last |= {value: i for value in line.invars if isinstance(value, core.Var)}
    last |= {value: len(program.eqns) for value in program.outvars if isinstance(value, core.Var)}
    made, alive, most = set[Any](), 0, 0
    for i, line in enumerate(program.eqns):
        inner = max((_most_alive(body) for body in _bodies(line)), default=0)
        most = max(most, alive + max(inner, size(line.outvars)))
        kept = {value for value in line.outvars if value in last}
        gone = {value for value in line.invars if isinstance(value, core.Var) and last[value] == i} & made
        made |= kept
        alive += size(kept) - size(gone)
    return most


def _bodies(line: Any) -> Iterator[core.Jaxpr]:
    """Programs within a line of a program."""
    for value in line.params.values():
        for body in value if isinstance(value, tuple) else (value,):
            if isinstance(body, core.ClosedJaxpr | core.Jaxpr):
                yield body.jaxpr if isinstance(body, core.ClosedJaxpr) else body


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays or shapes of a tree."""
    return sum(math.prod(leaf.shape) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(tree))


def device_bytes(sharded: Any) -> int:
    """Bytes on one device of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(sharded)
    )


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def summary(found: Profile, assumed: str = "") -> Iterator[str]:
    """Lines that describe a profile: parameters, memory and work of one device, and the accelerators that suffice.

    Args:
        found: the profile.
        assumed: what the number of parameters depends on, and was not known.
    """
    gb = 1e9
    parts = ", ".join(f"{name} {size:,}" for name, size in found.parameters.items())
    yield f"{sum(found.parameters.values()):,} parameters{assumed and f' ({assumed})'}: {parts}"
    yield f"on each of {found.devices} device(s), {found.batch} of {found.batch * found.devices} images:"
    held = ", ".join(f"{name} {size / gb:.2f}" for name, size in found.state.items())
    state, needed = sum(found.state.values()), found.memory(found.batch)
    yield f"  {state / gb:8.2f} GB of state: {held}"
    how = "XLA's plan" if found.is_planned else "estimated"
    accumulated = f", {found.accumulate} parts" if found.accumulate > 1 else ""
    yield (
        f"  {(needed - state) / gb:8.2f} GB of gradients, activations and input ({how}): "
        f"{found.per_image / gb:.3f} per image{accumulated}"
    )
    yield f"  {needed / gb:8.2f} GB in total"
    yield f"  {found.flops * found.batch / 1e12:8.2f} TFLOP per step, {found.flops / 1e9:,.1f} GFLOP per image"
    yield f"{'accelerator':12} {'memory':>8} {'fits':>5} {'largest batch per device':>25}   ({USABLE:.0%} usable)"
    for name, size in ACCELERATORS.items():
        fits = "yes" if found.fits(room(size)) else "no"
        yield f"{name:12} {size:4} GiB {fits:>5} {found.largest_batch(room(size)):>25,}"
    yield f"fits in: {', '.join(fitting(found)) or 'none of these as it is'}"


def fitting(found: Profile) -> list[str]:
    """Names of the accelerators that suffice."""
    return [name for name, size in ACCELERATORS.items() if found.fits(room(size))]


def room(size: int) -> int:
    """Bytes that a program can use of a device with `size` GiB."""
    return int(USABLE * size * GIB)


def _residual_bytes(function: Callable, first: Any, *others: Any) -> int:
    """Bytes that the gradient of a function in its first argument keeps from the forward pass."""
    return tree_bytes(jax.eval_shape(lambda x, *y: jax.vjp(lambda x: function(x, *y), x)[1], first, *others))


def _call(block: core.ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
    return core.jaxpr_as_fun(block)(*values)


def _checkpointed(jaxpr: core.Jaxpr) -> Iterator[core.ClosedJaxpr]:
    """Blocks under `jax.checkpoint` in a program, at any depth."""
    for line in jaxpr.eqns:
        for inner in _bodies(line):
            if line.primitive.name in ("checkpoint", "remat2", "remat"):
                yield core.ClosedJaxpr(inner, ())
            else:
                yield from _checkpointed(inner)


def _operations(block: core.ClosedJaxpr) -> tuple[Any, ...]:
    return (*block.in_avals, *((line.primitive, *(out.aval for out in line.outvars)) for line in block.jaxpr.eqns))


def _itemsize(dtype: Any) -> int:
    # A typed key holds the two words of threefry.
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize
