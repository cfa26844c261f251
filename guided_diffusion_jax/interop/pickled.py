"""The pickle inside torch's files, read with an allow-list and without torch.

A pickle is a program: reading one calls what it names. This one may name only what a plain state dict needs, and each
of those names stands for a function or class of this file.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from guided_diffusion_jax.errors import InputError


class Damaged(InputError):
    """A fault of the file being read; the message does not name the file yet."""


class LazyTensor(NamedTuple):
    """A tensor that is still in its file; `numpy.asarray(tensor)` or `tensor.read()` reads it, each time anew."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.read()
        return array if dtype is None else array.astype(dtype, copy=bool(copy))


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


class _Rebuild:
    """Stands in for `torch._utils._rebuild_tensor_v2`. Without a dict, a pickle cannot change it."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> View:
        numbers = (offset, *shape, *strides)
        sound = isinstance(storage, Storage) and len(shape) == len(strides) and all(type(n) is int for n in numbers)
        if not sound or min(numbers) < 0:
            raise ValueError(f"a tensor of shape {shape}, strides {strides} and offset {offset}")
        return View(storage, offset, tuple(shape), tuple(strides))


class _Parameter:
    """Stands in for `torch._utils._rebuild_parameter`."""

    __slots__ = ()

    def __call__(self, view: Any, *rest: Any) -> Any:
        return view


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(),
    ("torch._utils", "_rebuild_parameter"): _Parameter(),
    **{("torch", storage): dtype for storage, dtype in STORAGES.items()},
}
"""All that a pickle may name. The types of storage are strings to us."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise _Forbidden(f"{module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, size, *parent = pid
        sound = dtype in STORAGES.values() and type(key) is str and type(size) is int and size >= 0
        if kind != "storage" or not sound or parent not in ([], [None]):
            raise ValueError(f"a storage {pid!r}")
        return Storage(key, np.dtype(jnp.bfloat16) if dtype == "bfloat16" else np.dtype(dtype), size)


class _Forbidden(Exception):
    pass


def load(file: Any, where: str) -> dict[str, View]:
    """The tensors of a pickled state dict by name.

    Args:
        file: binary, open for reading.
        where: the pickle's name in messages.

    Raises:
        Damaged: the pickle names anything but tensors and their containers, is damaged, or holds something else.
    """
    try:
        value = _Unpickler(file).load()
    except _Forbidden as error:
        raise Damaged(
            f"{where} asks for {error}, which is not among what a plain state dict needs, and nothing else is run; "
            "in torch, save the model's state_dict() alone."
        ) from None
    except Exception as error:  # a damaged pickle is a damaged program, which may raise anything
        raise Damaged(f"{where} is damaged: {type(error).__name__}: {error}") from None
    if not isinstance(value, dict):
        raise Damaged(f"{where} holds a {type(value).__name__} instead of a state dict")
    views = dict(dict.items(value))  # not value.items(), which a pickle can override
    for name, view in views.items():
        if not (isinstance(name, str) and isinstance(view, View)):
            raise Damaged(
                f"{name!r} in {where} is a {type(view).__name__} instead of a tensor; in torch, save the "
                "model's state_dict() alone."
            )
    return views


def lazy(name: str, view: View, entry: str, read: Callable[[int, int], bytes]) -> LazyTensor:
    """A tensor whose numbers are in `entry`; `read(start, size)` gives exactly `size` of its bytes, or raises."""
    storage, itemsize = view.storage, view.storage.dtype.itemsize
    if view.offset + view.span > storage.size:
        raise Damaged(f"{entry}: {name} reaches to element {view.offset + view.span}, but there are {storage.size}")

    def numbers() -> np.ndarray:
        flat = np.frombuffer(read(view.offset * itemsize, view.span * itemsize), storage.dtype)
        steps = [stride * itemsize for stride in view.strides]
        return np.lib.stride_tricks.as_strided(flat, view.shape, steps, writeable=False)

    return LazyTensor(view.shape, numbers)
