"""Parameters from tensors and back, one tensor at a time, by a table of names."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.interop.layout import shape_faults
from guided_diffusion_jax.interop.stable_diffusion.names import Row, Shapes, table
from guided_diffusion_jax.typing import Params

LARGEST = float(np.finfo(np.float32).max)


def params_from_tensors(
    module: nn.Module, tensors: Mapping[str, Any], naming: str, *, dtype: DTypeLike | None = None, part: str = "it"
) -> Params:
    """A network's parameters; every tensor is used once, and read when its turn comes.

    Args:
        module: a `UNet`, an `AutoencoderKL` or a `ClipText`, with the settings of the weights.
        tensors: names to arrays, or to what has a `shape` and becomes one, in torch's layout.
        naming: of the tensors, see `names.table`.
        dtype: of the parameters; None is the tensors' own, so that memory holds no more than the file does.
        part: what the tensors are, for messages.

    Raises:
        InputError: tensors are missing, unknown or misshapen, the first few of which it names, or hold numbers that are
            not finite.
    """
    rows, shapes = table(module, naming)
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    faults = shape_faults(tensor_shapes(rows, shapes), given, "unknown", _plain)
    require(not faults, f"the tensors of {part} do not fit its settings: {faults}")
    parts: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        parts.setdefault(row.path, []).append(row)
    return unflatten_dict({path: _parameter(group, shapes, tensors, dtype, part) for path, group in parts.items()})


def tensors_from_params(
    module: nn.Module, params: Params, naming: str, *, linear: bool = True
) -> dict[str, np.ndarray]:
    """The inverse of `params_from_tensors`, for names that hold no more than one parameter. Arrays may be views."""
    rows, _ = table(module, naming, linear=linear)
    flat = flatten_dict(params)
    assert all(row.piece == (0, 1) for row in rows)
    return {
        row.name: row.layout.to_adm(np.split(np.asarray(flat[row.path]), row.part[1], axis=-1)[row.part[0]])
        for row in rows
    }


def tensor_shapes(rows: Iterable[Row], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a table; nothing is computed."""
    found = {}
    for row in rows:
        *before, last = shapes[row.path].shape
        first, *after = row.layout.to_adm(np.broadcast_to(np.float32(0), (*before, last // row.part[1]))).shape
        found[row.name] = (first * row.piece[1], *after)
    return found


def _parameter(
    rows: list[Row], shapes: Shapes, tensors: Mapping[str, Any], dtype: DTypeLike | None, part: str
) -> jax.Array:
    arrays = []
    for row in rows:
        array = np.asarray(tensors[row.name])
        finite = not array.size or (float(array.min()) >= -LARGEST and float(array.max()) <= LARGEST)
        require(finite, f"{part}: {row.name} holds numbers that are not finite")
        array = np.split(array, row.piece[1])[row.piece[0]]
        wanted = tensor_shapes([row._replace(piece=(0, 1))], shapes)[row.name]
        arrays.append(row.layout.from_adm(array.reshape(wanted)))
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
    # Waiting here frees the file's copy of one tensor before the next is read.
    return jax.block_until_ready(jnp.asarray(whole, dtype))


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A matrix's shape, also of one that is stored as a 1x1 convolution."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape
