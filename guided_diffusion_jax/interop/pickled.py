"""The pickle inside torch's files, read without torch.

A pickle is a program. This one may name only what a plain state dict needs, and each of those names stands for a
function of this file.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from guided_diffusion_jax.errors import InputError, shown
from guided_diffusion_jax.interop import foreign, limits
from guided_diffusion_jax.interop.operations import Allowed, Forbidden, Machine, Tuple, kind, run


class Damaged(InputError):
    """A fault of the file being read; the message does not name the file yet."""


class LazyTensor(NamedTuple):
    """A tensor that is still in its file; `numpy.asarray(tensor)` or `tensor.read()` reads it, each time anew."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    dtype: np.dtype = np.dtype(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.read()
        return array if dtype is None else array.astype(dtype, copy=bool(copy))

    @property
    def nbytes(self) -> int:
        """Bytes of the array that `read` gives."""
        return math.prod(self.shape) * self.dtype.itemsize


STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
"""Torch's types of storage and the NumPy types of their elements."""


class Storage(NamedTuple):
    """`size` numbers of one type under the name `key` in the file."""

    key: str
    dtype: np.dtype
    size: int


class View(NamedTuple):
    """A tensor: a strided view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements from the view's first to its last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))


# --- what a pickle may call


def _empty_dict(arguments: Tuple) -> dict[Any, Any]:
    if arguments.items:
        raise ValueError("an OrderedDict with arguments")
    return {}


def _tensor(arguments: Tuple) -> View:
    storage, offset, shape, strides, *_ = arguments.items
    shape, strides = shape.items, strides.items
    numbers = (offset, *shape, *strides)
    # What is no number is not shown either: it may be of any size.
    if not isinstance(storage, Storage) or not all(type(n) is int for n in numbers):
        raise ValueError("a tensor without storage, or whose shape is no tuple of whole numbers")
    if len(shape) != len(strides) or min(numbers) < 0 or len(shape) > limits.DIMENSIONS:
        raise ValueError(f"a tensor of shape {shape}, strides {strides} and offset {offset}")
    return View(storage, offset, shape, strides)


def _parameter(arguments: Tuple) -> View:
    view = arguments.items[0]
    if not isinstance(view, View):
        raise ValueError("a parameter that is no tensor")
    return view


CALLS: dict[str, Callable[[Tuple], Any]] = {
    "collections.OrderedDict": _empty_dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
"""What stands for the functions that a pickle may call; besides, it may name `STORAGES`."""

STORAGE_NAMES = {f"torch.{storage}": dtype for storage, dtype in STORAGES.items()}


def _storage(identifier: Tuple) -> Storage:
    what, numbers, key, _, size, *parent = identifier.items
    sound = type(key) is str and type(size) is int and size >= 0
    if what != "storage" or not sound or parent not in ([], [None]):
        raise ValueError("a storage that is none of torch's")
    dtype = STORAGE_NAMES[numbers.full]
    return Storage(key, np.dtype(jnp.bfloat16) if dtype == "bfloat16" else np.dtype(dtype), size)


def load(content: bytes, where: str) -> dict[str, View]:
    """The tensors of a pickled state dict by name.

    Args:
        content: the pickle.
        where: its name in messages.

    Raises:
        Damaged: the pickle names anything but tensors and their containers, is damaged, or holds something else.
    """
    machine = Machine(Allowed(CALLS, STORAGE_NAMES, _storage))
    try:
        value = run(machine, content)
    except Forbidden as error:
        guess, advice = foreign.checkpoint([item for item in machine.stack if type(item) is str])
        raise Damaged(
            f"{guess}{where} asks for {error}, which is not among what a plain state dict needs, and nothing else is "
            f"run; in torch, {advice}"
        ) from None
    except Exception as error:  # a damaged pickle is a damaged program, which may raise anything
        raise Damaged(f"{where} is damaged: {type(error).__name__}: {error}") from None
    if not isinstance(value, dict):
        raise Damaged(f"{where} holds a {kind(value)} instead of a state dict")
    for name, view in value.items():
        if not (isinstance(name, str) and isinstance(view, View)):
            guess, advice = foreign.checkpoint(value)
            raise Damaged(
                f"{guess}{shown(repr(name))} in {where} is a {kind(view)} instead of a tensor; in torch, {advice}"
            )
    return value


def lazy(name: str, view: View, entry: str, read: Callable[[int, int], bytes]) -> LazyTensor:
    """A tensor whose numbers are in `entry`; `read(start, size)` gives exactly `size` of its bytes, or raises."""
    storage, itemsize = view.storage, view.storage.dtype.itemsize
    if view.offset + view.span > storage.size:
        raise Damaged(
            f"{entry}: {shown(name)} reaches to element {view.offset + view.span}, but there are {storage.size}"
        )

    def numbers() -> np.ndarray:
        flat = np.frombuffer(read(view.offset * itemsize, view.span * itemsize), storage.dtype)
        # The stride of a dimension of one element may be any number.
        steps = [stride * itemsize * (n > 1) for n, stride in zip(view.shape, view.strides, strict=True)]
        return np.lib.stride_tricks.as_strided(flat, view.shape, steps, writeable=False)

    return LazyTensor(view.shape, numbers, storage.dtype)
