"""A run to give away: what describes it and its averaged parameters in float16, without anything to train on with.

The folder holds `run.json`, `config.json` where the run has one, the weights, and the checksums of these files. A
classifier of the run is such a folder inside it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.interop import files
from guided_diffusion_jax.runtime import checksums
from guided_diffusion_jax.training import leaves, run_files
from guided_diffusion_jax.typing import Params

FILE = "weights.safetensors"


def write(folder: epath.Path, description: Mapping[str, Any], params: Params, step: int) -> None:
    """Writes description, weights and checksums; the latter also of what lies in the folder already.

    Args:
        folder: created if missing.
        description: of the run, as `run_files.read` gives it.
        params: averaged parameters, written in float16: 11 bits of each number.
        step: of the training.

    Raises:
        InputError: a parameter is too large for float16.
    """
    half = {
        name: np.asarray(value).astype(np.float16) if np.asarray(value).dtype.kind == "f" else np.asarray(value)
        for name, value in flatten_dict(params, sep="/").items()
    }
    for name, value in half.items():
        require(bool(np.isfinite(value).all()), f"{name} holds numbers that are too large for float16")
    run_files.write(folder, {**description, "compact": {"dtype": "float16", "step": step}})
    files.write(folder / FILE, half)
    checksums.seal(folder)


def is_compact(folder: epath.Path) -> bool:
    """Whether a folder holds what `write` wrote."""
    return (folder / FILE).exists()


def read(folder: epath.Path, like: Params) -> tuple[Params, int]:
    """Parameters, in the types and places of `like`, and the training step.

    Raises:
        InputError: a file is missing or has changed, or the weights are another network's.
    """
    damage = checksums.damage(folder)
    require(damage is None, f"{folder} is damaged: {damage}; restore it")
    description = run_files.read(folder) or {}
    with files.opened(folder / FILE) as tensors:
        leaves.check({name: tensor.shape for name, tensor in tensors.items()}, like, str(folder / FILE))
        values = unflatten_dict({tuple(name.split("/")): tensor.read() for name, tensor in tensors.items()})

    def on_device(value: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(value.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(on_device, values, like), description["compact"]["step"]
