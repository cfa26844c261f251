"""What a program costs on one device, read off its jaxpr: nothing is compiled and nothing is allocated.

Memory is an account of liveness: a value takes room from the operation that makes it to the last one that reads it.
What XLA fuses is accounted for in three ways. Views (reshapes, broadcasts, casts) take no room, but keep what they
show. An elementwise value with one reader that can take it in is part of that reader; one that does not grow with the
batch is computed anew by each of its readers, and if it is a result, lies where the old value did, which is donated.
And an elementwise value takes the place of an operand that is read for the last time. Rematerialised blocks
(`jax.checkpoint`) are followed in the order in which they are computed again. docs/scaling.md compares the account with
XLA's own plans.

Work is that of convolutions and matrix products, two operations a multiplication with its addition.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from guided_diffusion_jax.typing import Params

MARK = 127
"""Programs are traced with a batch of so many: of all sizes those that it divides grow with the batch. It is prime, and
divides neither channels nor pixels nor classes of any network that is used."""

VIEWS = {
    "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type", "copy", "copy_p", "name", "rev",
    "stop_gradient", "reduce_precision", "optimization_barrier", "sharding_constraint", "slice", "transpose", "iota",
    "random_wrap", "random_unwrap",
}  # fmt: skip

ELEMENTWISE = {
    "add", "add_any", "sub", "mul", "div", "neg", "exp", "exp2", "log", "log1p", "tanh", "logistic", "rsqrt", "sqrt",
    "integer_pow", "pow", "square", "max", "min", "abs", "sign", "floor", "select_n", "clamp", "and", "or", "not",
    "xor", "eq", "ne", "lt", "le", "gt", "ge", "is_finite", "erf", "erf_inv", "sin", "cos", "pad", "shift_left",
    "shift_right_logical", "random_bits",
}  # fmt: skip

TAKES_IN = ELEMENTWISE | {"reduce_sum", "reduce_max", "reduce_and", "reduce_or", "argmax", "concatenate"}
"""What XLA fuses an elementwise operand into."""

INLINE = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Parameters of operations that only hold a program."""


class Bytes(NamedTuple):
    """A size: `fixed`, and `each` for every sample of the batch."""

    fixed: int
    each: int

    def at(self, batch: int) -> int:
        """For so many samples."""
        return self.fixed + batch * self.each


class Cost(NamedTuple):
    """Of a program.

    Attributes:
        flops: for a sample.
        live: the room that values take at each point of the program at which it may be the most, the inputs apart.
    """

    flops: int
    live: tuple[Bytes, ...]

    def peak(self, batch: int) -> int:
        """The most bytes at any time, for so many samples."""
        return max((point.at(batch) for point in self.live), default=0)


class Operation(NamedTuple):
    """A line of a program in which all calls are written out; values are numbers."""

    name: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    inside: tuple[Bytes, ...]


def of(function: Callable, *shapes: Any) -> Cost:
    """The cost of `function(*shapes)` for a batch of `MARK` samples.

    Args:
        function: pure.
        shapes: trees of `jax.ShapeDtypeStruct`.
    """
    return _cost(jax.make_jaxpr(function)(*shapes).jaxpr)


def nbytes(tree: Any) -> int:
    """Of all arrays of a tree of arrays or shapes; a typed key has those of its data."""
    return sum(_nbytes(leaf) for leaf in jax.tree.leaves(tree))


def on_device(placed: Any) -> int:
    """The bytes that a device holds of shapes with shardings, as `sharding.abstract_with_sharding` gives them."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _itemsize(leaf.dtype) for leaf in jax.tree.leaves(placed)
    )


def planned(program: jax.stages.Compiled) -> int | None:
    """Bytes of a program as XLA has planned it: arguments, results and what lies between, a donated buffer once.

    What a library allocates while it runs, e.g. a CPU's convolutions, is not in it. None where a backend does not tell.
    """
    memory: Any = program.memory_analysis()
    if memory is None:
        return None
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return sum(getattr(memory, part) for part in parts) - memory.alias_size_in_bytes


def count(params: Params) -> int:
    """How many numbers they are."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _itemsize(dtype: Any) -> int:
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return 8  # the two words of threefry
    return np.dtype(dtype).itemsize


def _nbytes(array: Any) -> int:
    return math.prod(array.shape) * _itemsize(array.dtype)


def _size(aval: Any) -> Bytes:
    size = _nbytes(aval) if hasattr(aval, "shape") else 0
    return Bytes(0, size // MARK) if math.prod(getattr(aval, "shape", ())) % MARK == 0 else Bytes(size, 0)


def _cost(jaxpr: core.Jaxpr) -> Cost:
    """Of a program whose inputs are somebody else's."""
    operations, sizes, flops, results = _written_out(jaxpr)
    return Cost(flops, tuple(_live(operations, sizes, results)))


def _written_out(jaxpr: core.Jaxpr) -> tuple[list[Operation], list[Bytes], int, set[int]]:
    """The operations with all calls written out, the size of each value, the work, and which values are results."""
    operations: list[Operation] = []
    sizes: list[Bytes] = []
    flops = 0

    def value(aval: Any) -> int:
        sizes.append(_size(aval))
        return len(sizes) - 1

    def walk(jaxpr: core.Jaxpr, inputs: Iterable[int | None]) -> list[int | None]:
        nonlocal flops
        known: dict[Any, int | None] = dict(zip(jaxpr.invars, inputs, strict=True))
        known.update({constant: None for constant in jaxpr.constvars})

        def look(atom: Any) -> int | None:
            return None if isinstance(atom, core.Literal) else known[atom]

        for line in jaxpr.eqns:
            name, read = line.primitive.name, [look(atom) for atom in line.invars]
            body = next((line.params[key] for key in INLINE if key in line.params), None)
            inside: tuple[Bytes, ...] = ()
            if body is not None and (name != "scan" or line.params["length"] == 1):
                inner = getattr(body, "jaxpr", body)
                shown = walk(inner, read)
                known.update(zip(line.outvars, shown, strict=True))
                continue
            if bodies := [part.jaxpr for part in _bodies(line)]:
                costs = [_cost(part) for part in bodies]
                # Of a cond one branch runs; of a while loop nobody knows how often: once.
                flops += max(cost.flops for cost in costs) * line.params.get("length", 1)
                inside = tuple(itertools.chain.from_iterable(cost.live for cost in costs))
            flops += _flops(line)
            made = [value(variable.aval) for variable in line.outvars]
            operations.append(Operation(name, tuple(i for i in read if i is not None), tuple(made), inside))
            known.update(zip(line.outvars, made, strict=True))
        return [look(atom) for atom in jaxpr.outvars]

    results = walk(jaxpr, [None] * len(jaxpr.invars))
    return operations, sizes, flops, {i for i in results if i is not None}


def _bodies(line: Any) -> Iterator[core.ClosedJaxpr]:
    for parameter in line.params.values():
        for part in parameter if isinstance(parameter, tuple) else (parameter,):
            if isinstance(part, core.ClosedJaxpr):
                yield part


def _live(operations: list[Operation], sizes: list[Bytes], results: set[int]) -> Iterator[Bytes]:
    """The room taken at each operation; points that are below another in both parts of their size are left out."""
    readers: dict[int, list[int]] = {}
    for i, operation in enumerate(operations):
        for read in operation.reads:
            readers.setdefault(read, []).append(i)

    def is_fused(operation: Operation) -> bool:
        value = operation.makes[0]
        by, is_fixed = readers.get(value, []), sizes[value].each == 0
        return (
            operation.name in ELEMENTWISE
            and (is_fixed or (len(by) == 1 and value not in results))
            and all(operations[i].name in TAKES_IN | VIEWS for i in by)
        )

    stored: dict[int, tuple[int, ...]] = {}  # what has to be in memory for a value to be had
    last: dict[int, int] = {}
    reads: list[set[int]] = []
    for i, operation in enumerate(operations):
        behind = {s for read in operation.reads for s in stored[read]}
        reads.append(behind)
        for value in operation.makes:
            shown = operation.name in VIEWS or is_fused(operation)
            stored[value] = tuple(behind) if shown else (value,)
        for value in behind:
            last[value] = i
    for value in results:
        for kept in stored[value]:
            last[kept] = len(operations)

    now, points = np.zeros(2, np.int64), []
    for i, operation in enumerate(operations):
        dying = [value for value in reads[i] if last[value] == i]
        freed = sum((np.array(sizes[value]) for value in dying), np.zeros(2, np.int64))
        born = [value for value in operation.makes if stored[value] == (value,)]
        taken = sum((np.array(sizes[value]) for value in born), np.zeros(2, np.int64))
        in_place = operation.name in ELEMENTWISE
        most = now + (np.maximum(taken - freed, 0) if in_place else taken)
        points += [most, *(most + np.array(inner) for inner in operation.inside)]
        now = now + taken - freed - sum((np.array(sizes[v]) for v in born if v not in last), np.zeros(2, np.int64))
    return _highest(points)


def _highest(points: list[np.ndarray]) -> Iterator[Bytes]:
    """Those that are the most for some size of the batch."""
    most = -1
    for fixed, each in sorted({(int(f), int(e)) for f, e in points}, reverse=True):
        if each > most:
            most = each
            yield Bytes(fixed, each)


def _flops(line: Any) -> int:
    """For a sample; what does not grow with the batch counts as nothing."""
    name = line.primitive.name
    if name == "dot_general":
        (contracted, _), _ = line.params["dimension_numbers"]
        length = math.prod(line.invars[0].aval.shape[axis] for axis in contracted)
    elif name == "conv_general_dilated":
        kernel = line.invars[1].aval
        numbers = line.params["dimension_numbers"]
        length = kernel.size // kernel.shape[numbers.rhs_spec[0]]
    else:
        return 0
    return 2 * line.outvars[0].aval.size * length // MARK
