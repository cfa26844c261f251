"""The pickle inside torch's files, read with an allow-list and written without torch.

A pickle is a program: reading one calls what it names. Here it may name what a plain state dict needs, which our own
stand-ins answer for, and nothing else.
"""

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.interop.tensors import Damaged, Stored

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Torch's types of storage and what NumPy calls their elements."""


class Storage(NamedTuple):
    """A run of numbers.

    Attributes:
        key: its name in the file.
        dtype: of an element.
        size: number of elements.
    """

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


def load(file: Any, where: str) -> Any:
    """What one pickle holds; the file stands after it then.

    Args:
        file: binary, open for reading.
        where: the pickle's name in messages.

    Raises:
        Damaged: the pickle names something else than tensors and their containers, or is damaged.
    """
    try:
        return _Unpickler(file).load()
    except _Forbidden as error:
        raise Damaged(
            f"{where} asks for {error}, which is not among what a plain state dict needs, and nothing else is run; "
            "in torch, save the model's state_dict() alone."
        ) from None
    except Exception as error:  # whatever a damaged pickle, which is a damaged program, runs into
        raise Damaged(f"{where} is damaged: {type(error).__name__}: {error}") from None


def load_views(file: Any, where: str) -> dict[str, View]:
    """A state dict's tensors by name; as `load`, and refuses whatever else is in the place of one."""
    value = load(file, where)
    if not isinstance(value, dict):
        raise Damaged(f"{where} holds a {type(value).__name__} instead of a state dict")
    views = dict(dict.items(value))  # not value.items(), which a pickle can overrule
    for name, view in views.items():
        if not (isinstance(name, str) and isinstance(view, View)):
            raise Damaged(
                f"{name!r} in {where} is a {type(view).__name__} instead of a tensor; in torch, save the "
                "model's state_dict() alone."
            )
    return views


def stored(name: str, view: View, entry: str, read: Callable[[int, int], bytes]) -> Stored:
    """A tensor whose numbers lie in `entry`, of which `read(start, size)` gives bytes."""
    storage, itemsize = view.storage, view.storage.dtype.itemsize
    if view.offset + view.span > storage.size:
        raise Damaged(f"{entry}: {name} reaches to element {view.offset + view.span}, but there are {storage.size}")

    def numbers() -> np.ndarray:
        content = read(view.offset * itemsize, view.span * itemsize)
        if len(content) != view.span * itemsize:  # the strides must not leave it
            raise Damaged(f"{entry} is truncated: {len(content)} of {view.span * itemsize} bytes")
        flat = np.frombuffer(content, storage.dtype)
        steps = [stride * itemsize for stride in view.strides]
        return np.lib.stride_tricks.as_strided(flat, view.shape, steps, writeable=False)

    return Stored(view.shape, storage.dtype, numbers)


def dump(tensors: Iterable[tuple[str, View]]) -> bytes:
    """The pickle that `torch.load` reads as an OrderedDict of tensors on the CPU."""
    storages = {np.dtype(jnp.bfloat16 if dtype == "bfloat16" else dtype): name for name, dtype in STORAGES.items()}
    parts = [pickle.PROTO, b"\x02", _ORDERED_DICT, pickle.MARK]
    for name, view in tensors:
        require(view.storage.dtype in storages, f"{name}: torch has no storage of {view.storage.dtype}")
        kind = _global("torch", storages[view.storage.dtype])
        storage = (_value("storage"), kind, _value(view.storage.key), _value("cpu"), _value(view.storage.size))
        parts += [_value(name), _global("torch._utils", "_rebuild_tensor_v2"), pickle.MARK]
        parts += [pickle.MARK, *storage, pickle.TUPLE, pickle.BINPERSID]
        parts += [_value(part) for part in (view.offset, view.shape, view.strides, False)]
        parts += [_ORDERED_DICT, pickle.TUPLE, pickle.REDUCE]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])


def _value(value: Any) -> bytes:
    """The opcodes of a plain value, without a pickle's frame."""
    return pickletools.optimize(pickle.dumps(value, protocol=2))[2:-1]


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


_ORDERED_DICT = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
