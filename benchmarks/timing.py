"""Compiling and timing, so that what is compared ran under the same conditions.

A machine is never quiet, and the next one is another. What can be said of code is how two of its programs compare
while they take turns, A B A B: the median of the rounds' ratios, with the least and the greatest of them.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from guided_diffusion_jax import profiling

FEWEST_ROUNDS = 3
MOST_ROUNDS = 20


class Program(NamedTuple):
    """A function, compiled for the shapes of its arguments.

    Attributes:
        call: the compiled function.
        lower_seconds: tracing it and lowering it to StableHLO.
        compile_seconds: XLA's share.
        program_bytes: `profiling.program_bytes`.
    """

    call: Callable[..., Any]
    lower_seconds: float
    compile_seconds: float
    program_bytes: int


def compiled(jitted: jax.stages.Wrapped, *arguments: Any) -> Program:
    """Traces, lowers and compiles what `jax.jit` gave, timed apart; runs nothing."""
    start = time.perf_counter()
    lowered = jitted.lower(*arguments)
    middle = time.perf_counter()
    program = lowered.compile()
    end = time.perf_counter()
    size = profiling.program_bytes(program)
    assert size is not None, "the backend does not tell what it has planned"
    return Program(program, middle - start, end - middle, size)


class Spread(NamedTuple):
    """Of several values."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        return cls(float(np.median(values)), float(np.min(values)), float(np.max(values)))


class Times(NamedTuple):
    """What `take_turns` has measured.

    Attributes:
        seconds: of each name, one figure a round; round i of all names lies next to each other in time.
        device_peak_bytes: of each name, the most memory that the process had used on its first device when the name's
            first call was over; None where the device does not count, as a CPU.
    """

    seconds: dict[str, np.ndarray]
    device_peak_bytes: dict[str, int | None]

    def ratio(self, name: str, to: str) -> Spread:
        """Of the seconds of `name` to those of `to`, within each round."""
        return Spread.of(self.seconds[name] / self.seconds[to])


def take_turns(calls: dict[str, Callable[[], Any]], budget: float) -> Times:
    """One call of each to warm up, then rounds A B C A B C ... for `budget` seconds, at least 3 and at most 20.

    Args:
        calls: each gives back arrays to wait for.
        budget: seconds; no further round is begun after them.
    """
    peaks = {}
    for name, call in calls.items():
        _seconds(call)
        peaks[name] = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    rounds: list[list[float]] = []
    until = time.perf_counter() + budget
    while len(rounds) < FEWEST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() < until):
        rounds.append([_seconds(call) for call in calls.values()])
    return Times(dict(zip(calls, np.array(rounds).T, strict=True)), peaks)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def chain_length() -> int:
    """How many dependent short steps make one timed call: where a host feeds a device, enough to hide the host."""
    return 2 if jax.default_backend() == "cpu" else 20
