"""Compiling and timing of programs that run alternately, under the same conditions.

Absolute times belong to one machine at one time. A property of the code is the ratio of two of its programs that run
alternately, A B A B: the median over the rounds, with the minimum and the maximum.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guided_diffusion_jax import profiling

FEWEST_ROUNDS = 3
MOST_ROUNDS = 20


class Program(NamedTuple):
    """A function, compiled for the shapes of its arguments.

    Attributes:
        call: the compiled function.
        lower_seconds: of tracing and lowering to StableHLO.
        compile_seconds: of XLA's compilation.
        program_bytes: `profiling.program_bytes`.
    """

    call: Callable[..., Any]
    lower_seconds: float
    compile_seconds: float
    program_bytes: int

    def about(self) -> dict[str, Any]:
        """Seconds and bytes by name."""
        return {name: value for name, value in self._asdict().items() if name != "call"}


def compiled(jitted: jax.stages.Wrapped, *arguments: Any) -> Program:
    """Traces and lowers, then compiles, what `jax.jit` returned; both are timed. Nothing is run."""
    start = time.perf_counter()
    lowered = jitted.lower(*arguments)
    middle = time.perf_counter()
    program = lowered.compile()
    end = time.perf_counter()
    size = profiling.program_bytes(program)
    assert size is not None, "the backend does not tell what it has planned"
    return Program(program, middle - start, end - middle, size)


class Spread(NamedTuple):
    """Median and range of several values."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        return cls(float(np.median(values)), float(np.min(values)), float(np.max(values)))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.min:.2f} to {self.max:.2f})"


class Times(NamedTuple):
    """Figures of `take_turns`.

    Attributes:
        seconds: by name, one value a round; the calls of one round follow each other.
        device_peak_bytes: by name, the peak memory of the process on its first device after the name's first call;
            None where the device does not count, as on a CPU.
    """

    seconds: dict[str, np.ndarray]
    device_peak_bytes: dict[str, int | None]

    def ratio(self, name: str, to: str) -> Spread:
        """Ratio of the seconds of `name` to those of `to`, within each round."""
        return Spread.of(self.seconds[name] / self.seconds[to])


def take_turns(calls: dict[str, Callable[[], Any]], budget: float) -> Times:
    """Calls each once to warm up, then in rounds A B C A B C ... for `budget` seconds, at least 3 and at most 20.

    Args:
        calls: by name; each returns arrays to wait for.
        budget: seconds, after which no further round begins.
    """
    peaks = {}
    for name, call in calls.items():
        _seconds(call)
        peaks[name] = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return Times(rounds({name: functools.partial(_seconds, call) for name, call in calls.items()}, budget), peaks)


def rounds(timed: Mapping[str, Callable[[], float]], budget: float) -> dict[str, np.ndarray]:
    """Seconds in rounds A B C A B C ..., at least 3 and at most 20.

    Args:
        timed: by name; each returns the seconds that it took.
        budget: seconds, after which no further round begins.
    """
    found: list[list[float]] = []
    until = time.perf_counter() + budget
    while len(found) < FEWEST_ROUNDS or (len(found) < MOST_ROUNDS and time.perf_counter() < until):
        found.append([call() for call in timed.values()])
    return dict(zip(timed, np.array(found).T, strict=True))


def matmul_chain(dtype: str, size: int, length: int) -> Callable[[], jax.Array]:
    """Product of `length` square matrices of random numbers, one after the other, at JAX's default precision."""
    a, b = (jnp.asarray(np.random.default_rng(i).standard_normal((size, size)) / size**0.5, dtype) for i in (0, 1))
    chain = jax.jit(lambda a, b: jax.lax.fori_loop(0, length, lambda i, x: x @ b, a))
    return functools.partial(chain, a, b)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def chain_length() -> int:
    """Number of dependent short steps in one timed call: enough to hide the host where it feeds a device."""
    return 2 if jax.default_backend() == "cpu" else 20
