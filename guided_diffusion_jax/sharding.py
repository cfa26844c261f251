"""Shardings of a run's arrays, and two strategies for its step with the same results: data parallel and FSDP."""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from guided_diffusion_jax.errors import choose, require

AXES = ("data", "fsdp")
"""Axes of every mesh. Batches are sharded along both; parameters, their EMA and optimiser state along the second."""

SMALL = 2**10
"""Arrays with fewer elements are replicated: gathering them costs more time than they cost memory."""

WHOLE = ("custom_vjp_call", "convert_element_type")
"""Primitives whose output is a gathered parameter, or a cast of one."""

# The first fuses matmuls and reductions with what surrounds them. The second makes the compiler of what is left try
# less, which costs no speed and no bit. docs/performance.md has what they gain. A jaxlib may not know them.
CPU_OPTIONS: dict[str, str | int] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    "xla_backend_optimization_level": 1,
}


@functools.cache
def compiler_options() -> dict[str, str | int]:
    """XLA's options for the backend at hand, for `jax.jit(..., compiler_options=...)`, but for those in `XLA_FLAGS`."""
    if jax.default_backend() != "cpu":
        return {}
    options = {name: value for name, value in CPU_OPTIONS.items() if name not in os.environ.get("XLA_FLAGS", "")}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except Exception:  # whatever error a jaxlib without them has
        return {}
    return options


def mesh(shards: int = 1) -> Mesh:
    """Mesh of all devices of all processes; `shards` devices share one copy of the state (1: a copy on each)."""
    # By process, so that a process's part of a batch is one piece; a TPU's own order may have them mixed.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices).reshape(-1, shards), AXES)


def shards_of(devices: int) -> int:
    """Default number of FSDP shards: the largest divisor of `devices` up to 64.

    More would not divide the widths of usual networks, and arrays that cannot be sharded are replicated.
    """
    return max(shards for shards in range(1, 65) if devices % shards == 0)


def shards(parallel: str, asked: int, devices: int, part: str = "train") -> int:
    """Number of devices that hold a state together.

    Args:
        parallel: a key of `STRATEGIES`.
        asked: as the user wants it; 0 is the largest that divides the devices, up to 64.
        devices: number of all devices.
        part: section of a configuration that errors name.

    Raises:
        InputError: a number that does not divide the devices.
    """
    choose(STRATEGIES, parallel, f"{part}.parallel")
    number = (asked or shards_of(devices)) if parallel == "fsdp" else 1
    require(
        number >= 1 and devices % number == 0,
        f"{part}.shards={asked} must divide the {devices} devices; 0 is as many as divide them, up to 64",
    )
    return number


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Sharding with a full copy on every device."""
    return NamedSharding(mesh, P())


def data_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Sharding of a batch: the first axis is split over all devices."""
    return NamedSharding(mesh, P(AXES))


def fsdp_sharding(shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Shards the longest axis that divides evenly; small arrays and those without such an axis are replicated."""
    shards = mesh.shape["fsdp"]
    fitting = [axis for axis, length in enumerate(shape) if length % shards == 0]
    if shards == 1 or not fitting or np.prod(shape) < SMALL:
        return replicated(mesh)
    longest = max(fitting, key=lambda axis: shape[axis])
    return NamedSharding(mesh, P(*[None] * longest, "fsdp"))


def abstract_with_sharding(shapes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Abstract arrays with the sharding of each, by `fsdp_sharding`: what to restore into or compile for."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=fsdp_sharding(a.shape, mesh)), shapes)


def shardings(shapes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Sharding of each array of a tree, by `fsdp_sharding`."""
    return jax.tree.map(lambda a: fsdp_sharding(a.shape, mesh), shapes)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Copies this process's part of the global batch to its devices, asynchronously."""
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(data_sharding(mesh), np.asarray(a)), batch)


def process_local(rows: np.ndarray) -> np.ndarray:
    """Rows of a global batch that belong to this process, for `put_batch`."""
    return np.split(rows, jax.process_count())[jax.process_index()]


def gathering(mesh: Mesh | AbstractMesh) -> Callable[[Callable], Callable]:
    """Decorator that lets `f(params, ...)` take sharded parameters: each is gathered where it is used.

    The backward pass gathers them again instead of storing them, and reduce-scatters the gradient.
    """
    if mesh.shape["fsdp"] == 1:
        return lambda f: f

    @jax.custom_vjp
    def gather(shard):
        return jax.lax.with_sharding_constraint(shard, replicated(mesh))

    def forward(shard):
        return gather(shard), None

    def backward(_, gradient):
        return (jax.lax.with_sharding_constraint(gradient, fsdp_sharding(gradient.shape, mesh)),)

    gather.defvjp(forward, backward)

    def wrap(f):
        def on_shards(params, *inputs):
            shapes = {shard.shape for shard in jax.tree.leaves(params)}

            # Gathered parameters and, in a network that computes in bfloat16, their casts are not stored.
            def keep(primitive, *operands, **settings):
                return primitive.name not in WHOLE or operands[0].shape not in shapes

            @functools.partial(jax.checkpoint, policy=keep)
            def on_gathered(params, *inputs):
                return f(jax.tree.map(gather, params), *inputs)

            return on_gathered(params, *inputs)

        return on_shards

    return wrap


class Collectives(NamedTuple):
    """Collective operations of one update. The defaults suit a program that sees the whole batch.

    Attributes:
        mean: averages a tree over the devices.
        gather: concatenates `[b ...]` arrays of all devices.
        sample_indices: indices in the global batch of this device's samples, given their number.
        gathering: decorator that lets a function of full parameters take sharded ones.
    """

    mean: Callable[[Any], Any] = lambda tree: tree
    gather: Callable[[Any], Any] = lambda tree: tree
    sample_indices: Callable[[int], Int[Array, " b"]] = jnp.arange
    gathering: Callable[[Callable], Callable] = lambda f: f


NO_COLLECTIVES = Collectives()

Step = Callable[..., tuple[Any, Any]]
"""`step(state, batch, collectives) -> (state, metrics)`."""


def data_parallel(step: Step, mesh: Mesh) -> jax.stages.Wrapped:
    """Data parallelism: the state is replicated, the batch is split over the devices, gradients are averaged.

    Runs `shard_map` under `jit` on global arrays.
    """

    def sample_indices(count):
        return jax.lax.axis_index(AXES) * count + jnp.arange(count)

    collectives = Collectives(
        mean=functools.partial(jax.lax.pmean, axis_name=AXES) if mesh.size > 1 else lambda tree: tree,
        gather=functools.partial(jax.lax.all_gather, axis_name=AXES, tiled=True),
        sample_indices=sample_indices,
    )
    on_device = functools.partial(step, collectives=collectives)
    # check_vma=False: gradients stay per device until `mean`.
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(P(), P(AXES)), out_specs=(P(), P()), check_vma=False)
    return jax.jit(mapped, donate_argnums=0, compiler_options=compiler_options())


def fsdp(step: Step, mesh: Mesh) -> jax.stages.Wrapped:
    """Fully sharded data parallel (Rajbhandari et al. 2020, stage 3): each device holds a shard of the state."""
    collectives = Collectives(gathering=gathering(mesh))

    def on_all(state, batch):
        moved, metrics = step(state, batch, collectives=collectives)
        return (
            jax.lax.with_sharding_constraint(moved, shardings(moved, mesh)),
            jax.lax.with_sharding_constraint(metrics, replicated(mesh)),
        )

    return jax.jit(on_all, donate_argnums=0, compiler_options=compiler_options())


STRATEGIES: dict[str, Callable[[Step, Mesh], jax.stages.Wrapped]] = {
    "data_parallel": data_parallel,
    "fsdp": fsdp,
}
"""Choices of `train.parallel`: each makes a jitted `(state, batch) -> (state, metrics)` that donates the state."""


def round_up(count: int, devices: int) -> int:
    """Rounds `count` up to a multiple of the number of devices; the extra samples are padding."""
    return -(-count // devices) * devices


def check_batch(batch_size: int, accumulate: int, part: str, devices: int) -> None:
    """Raises `InputError` unless the batch divides evenly over the devices and accumulation steps."""
    require(accumulate >= 1, f"{part}.accumulate={accumulate} must be at least 1, which is no accumulation")
    parts = devices * accumulate
    below = batch_size // parts * parts
    remedy = f"use {below} or {below + parts}" if below else f"use {parts}"
    by = f"{devices} device{'s'[: devices > 1]}" + f" times {part}.accumulate={accumulate}" * (accumulate > 1)
    require(
        batch_size >= 1 and batch_size % parts == 0,
        f"{part}.batch_size={batch_size} is not divisible by {by}; {remedy}.",
    )
