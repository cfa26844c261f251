"""Published weights of feature extractors, from files that the user has: never downloaded, never unpickled.

What a figure means depends on the weights, so each file's SHA-256 comes along with its parameters.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict

from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.interop.files import opened
from guided_diffusion_jax.interop.pickled import LazyTensor
from guided_diffusion_jax.typing import Params

__all__ = ["Loaded", "Shapes", "check", "opened", "parameters", "sha256"]

Shapes = Mapping[str, tuple[int, ...]]
"""The names and shapes of a file's tensors."""


class Loaded(NamedTuple):
    """A network's parameters and where they are from.

    Attributes:
        params: float32.
        digest: SHA-256 of the file, hexadecimal.
        standard: whether they are the weights that published figures are in; None where no digest is known for them.
    """

    params: Params
    digest: str
    standard: bool | None = None


def sha256(path: epath.PathLike) -> str:
    """The file's SHA-256, hexadecimal. Raises `InputError` where there is no file."""
    path = epath.Path(path)
    require(path.is_file(), f"{path} is no file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: epath.PathLike, given: Mapping[str, LazyTensor], expected: Shapes, *, unused: str, advice: str) -> None:
    """Compares names and shapes before any number is read.

    Args:
        path: of the file, for the message.
        given: its tensors.
        expected: what they have to be.
        unused: a regular expression of names that may be there, and are not read.
        advice: the end of the message, after a semicolon.

    Raises:
        InputError: for the first tensor that is missing, misshapen or unknown.
    """
    for name, shape in expected.items():
        require(name in given, f"{path}: tensor {name} is missing; {advice}")
        found = tuple(given[name].shape)
        require(found == shape, f"{path}: tensor {name} has the shape {found} instead of {shape}; {advice}")
    for name in given:
        if name not in expected and not re.fullmatch(unused, name):
            raise InputError(f"{path}: tensor {name} is not known; {advice}")


def parameters(flat: Mapping[tuple[str, ...], np.ndarray]) -> Params:
    """Arrays by their paths as a tree of float32 parameters, which share no memory with them."""
    arrays = {path: jnp.array(np.ascontiguousarray(array, np.float32), copy=True) for path, array in flat.items()}
    return jax.block_until_ready(unflatten_dict(arrays))
