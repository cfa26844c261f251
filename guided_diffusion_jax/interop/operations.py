"""The operations of a pickle, carried out within limits and without Python's `pickle`.

A pickle is a program. Here nothing is imported or called but what the caller of `run` allows, whatever the program
names; and what it may build is limited (see `limits`): no operation takes longer or more memory than what it takes
from the stack or stands in the file.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from guided_diffusion_jax.errors import shown
from guided_diffusion_jax.interop import limits


class Tuple(NamedTuple):
    """A tuple of a pickle, which knows how many there are in each other."""

    items: tuple[Any, ...]
    depth: int


class Name(NamedTuple):
    """What stands for a class or a function that a pickle names, such as "torch.FloatStorage"."""

    full: str


class Forbidden(Exception):
    """The pickle names what is not allowed."""


class Allowed(NamedTuple):
    """What a pickle may ask for.

    Attributes:
        calls: names to functions of the tuple of arguments.
        names: what else may be named; it is a `Name`, and nothing more.
        persistent: function of the identifier of something that is stored outside of the pickle.
    """

    calls: Mapping[str, Callable[[Tuple], Any]]
    names: Mapping[str, Any]
    persistent: Callable[[Tuple], Any]


class Machine:
    """A stack, the positions of its marks, and what has been put aside. Each method is an operation."""

    def __init__(self, allowed: Allowed):
        self.allowed = allowed
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def nothing(self, _: Any) -> None:
        """An operation that says how the pickle was written."""

    def push(self, value: Any) -> None:
        if type(value) is int and value.bit_length() > limits.BITS:
            raise ValueError(f"a number of {value.bit_length()} bits")
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        if len(self.marks) == limits.DEPTH:
            raise ValueError(f"more than {limits.DEPTH} open parts")
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def last(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def make_tuple(self, items: list[Any]) -> None:
        depth = 1 + max((item.depth for item in items if isinstance(item, Tuple)), default=0)
        if depth > limits.DEPTH:
            raise ValueError(f"more than {limits.DEPTH} tuples in each other")
        self.stack.append(Tuple(tuple(items), depth))

    def append(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("an addition to what is no list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        items = self.stack[-1]
        if type(items) is not dict or len(values) % 2:
            raise ValueError("an addition to what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int, float, bool):  # others are slow to compare, or cannot be
                raise ValueError(f"a key that is a {kind(key)}")
            if key in items:
                raise ValueError(f"{shown(key)} comes twice")
            items[key] = value

    def store(self, index: Any) -> None:
        self.memo[index] = self.stack[-1]

    def fetch(self, index: Any) -> None:
        self.stack.append(self.memo[index])

    def name(self, full: str) -> None:
        if full not in self.allowed.calls and full not in self.allowed.names:
            raise Forbidden(shown(full))
        self.stack.append(Name(full))

    def call(self, _: Any) -> None:
        function, arguments = self.last(2)
        self.stack.append(self.allowed.calls[function.full](arguments))

    def set_state(self, _: Any) -> None:
        """Attributes of a dict, which nobody reads: torch keeps its `_metadata` there."""
        state = self.stack.pop()
        if type(state) is not dict or type(self.stack[-1]) is not dict:
            raise ValueError("attributes of what has none")


PUSHED = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
)  # fmt: skip


def _operations(m: Machine) -> dict[str, Callable[[Any], None]]:
    """What each operation does, a function of its argument, by the name that `pickletools` gives it."""
    return {
        **dict.fromkeys(("PROTO", "FRAME"), m.nothing),
        **dict.fromkeys(PUSHED, m.push),
        **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), m.store),
        **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), m.fetch),
        "MEMOIZE": lambda _: m.store(len(m.memo)),
        "NONE": lambda _: m.push(None),
        "NEWTRUE": lambda _: m.push(True),
        "NEWFALSE": lambda _: m.push(False),
        "MARK": m.mark,
        "EMPTY_DICT": lambda _: m.push({}),
        "EMPTY_LIST": lambda _: m.push([]),
        "EMPTY_TUPLE": lambda _: m.make_tuple([]),
        "TUPLE1": lambda _: m.make_tuple(m.last(1)),
        "TUPLE2": lambda _: m.make_tuple(m.last(2)),
        "TUPLE3": lambda _: m.make_tuple(m.last(3)),
        "TUPLE": lambda _: m.make_tuple(m.since_mark()),
        "APPEND": lambda _: m.append(m.last(1)),
        "APPENDS": lambda _: m.append(m.since_mark()),
        "SETITEM": lambda _: m.set_items(m.last(2)),
        "SETITEMS": lambda _: m.set_items(m.since_mark()),
        "GLOBAL": lambda both: m.name(both.replace(" ", ".", 1)),
        "STACK_GLOBAL": lambda _: m.name(".".join(m.last(2))),
        "REDUCE": m.call,
        "BUILD": m.set_state,
        "BINPERSID": lambda _: m.push(m.allowed.persistent(m.stack.pop())),
    }


def run(machine: Machine, content: bytes) -> Any:
    """What a pickle makes. A damaged one may raise any exception, as a damaged program does.

    Raises:
        Forbidden: it names what is not allowed.
    """
    if not content.endswith(b"."):
        raise EOFError("it does not end with its last operation")
    operations = _operations(machine)
    position = 0
    for count, (operation, argument, at) in enumerate(pickletools.genops(content)):
        position = at or 0
        if operation.name == "STOP":
            break
        if operation.name not in operations:
            raise ValueError(f"operation {operation.name}, which no state dict needs")
        if count == limits.OPERATIONS:
            raise ValueError(f"more than {limits.OPERATIONS:,} operations")
        operations[operation.name](argument)
    if position != len(content) - 1:
        raise ValueError("something follows its end")
    (value,) = machine.stack
    return value


def kind(value: Any) -> str:
    """The type of a value as messages call it."""
    return type(value).__name__.lower()
