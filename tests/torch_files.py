"""Writes `.pt` files as torch does, for tests of the reader: zip archives of a pickle and the tensors' numbers."""

import pickle
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from guided_diffusion_jax.interop.pickled import STORAGES


def value(v):
    """The opcodes of a plain value."""
    return pickle.dumps(v, protocol=2)[2:-1]


def one(name="a", key="0", size=2, offset=0, shape=(2,), strides=(1,), storage="FloatStorage"):
    """The opcodes of a name and a tensor."""
    kind = f"ctorch\n{storage}\n".encode()
    of_storage = b"(" + value("storage") + kind + value(key) + value("cpu") + value(size) + b"tQ"
    rest = value(offset) + value(shape) + value(strides) + value(False) + b"ccollections\nOrderedDict\n)R"
    return value(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + of_storage + rest + b"tR"


def write(path, state_dict):
    """A file with each tensor contiguous, in a storage of its own."""
    storages = {np.dtype(jnp.bfloat16 if dtype == "bfloat16" else dtype): name for name, dtype in STORAGES.items()}
    top, tensors = Path(path).stem, b""
    with zipfile.ZipFile(path, "w") as file:
        for key, (name, array) in enumerate(state_dict.items()):
            array = np.asarray(array)
            strides = tuple(int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim))
            kind = storages[array.dtype]
            tensors += one(name, str(key), array.size, shape=array.shape, strides=strides, storage=kind) + b"s"
            file.writestr(f"{top}/data/{key}", array.tobytes())
        file.writestr(f"{top}/data.pkl", b"\x80\x02}" + tensors + b".")
        file.writestr(f"{top}/byteorder", b"little")
