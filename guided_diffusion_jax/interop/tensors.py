"""A tensor that still lies in its file."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from guided_diffusion_jax.errors import InputError


class Damaged(InputError):
    """What is wrong with the file that is being read, without its name."""


class Stored(NamedTuple):
    """Shape and type are known; `numpy.asarray(stored)` reads the numbers, anew each time.

    Attributes:
        shape: of the array.
        dtype: of the array.
        read: gives it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.read()
        return array if dtype is None else array.astype(dtype, copy=bool(copy))
