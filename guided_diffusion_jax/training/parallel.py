"""How a step is spread over devices: one pure function of a global batch, which `jit` cuts along a mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from guided_diffusion_jax.errors import require

# Fuses matmuls and reductions with what surrounds them; docs/performance.md has what it gains. Experimental: a jaxlib
# that does not know it refuses it.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


@functools.cache
def compiler_options() -> dict[str, str]:
    """XLA's options for the backend at hand, for `jax.jit(..., compiler_options=...)`."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=CPU_OPTIONS).lower(0.0).compile()
    except Exception:  # whatever error a jaxlib without the option has
        return {}
    return CPU_OPTIONS


def data_mesh() -> Mesh:
    """All devices of all processes along one axis, "data"."""
    return Mesh(np.array(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole value on every device."""
    return NamedSharding(mesh, P())


def batched(mesh: Mesh) -> NamedSharding:
    """The first axis cut into one part a device."""
    return NamedSharding(mesh, P("data"))


def check_batch(batch_size: int, key: str) -> None:
    """Raises `InputError` unless the batch can be cut into equal parts for all devices."""
    devices = jax.device_count()
    below = batch_size // devices * devices
    remedy = f"use {below} or {below + devices}" if below else f"use {devices}"
    require(
        batch_size >= 1 and batch_size % devices == 0,
        f"{key}={batch_size} is not divisible by {devices} device{'s'[: devices > 1]}; {remedy}.",
    )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """A process's part of the global batch, from host memory to its devices; does not wait for the copy."""
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(batched(mesh), np.asarray(a)), batch)


def spread(step: Callable, mesh: Mesh) -> Callable:
    """`jit` of `step(state, batch) -> (state, metrics)`: the batch is cut along the mesh, the state is on every device.

    The state's buffers are given up for the new one's.
    """
    whole, cut = replicated(mesh), batched(mesh)
    return jax.jit(
        step,
        in_shardings=(whole, cut),
        out_shardings=(whole, whole),
        donate_argnums=0,
        compiler_options=compiler_options(),
    )
