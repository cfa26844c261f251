"""Ctrl-C and SIGTERM end a training run between two steps, so that it can save; all its processes at the same one."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from guided_diffusion_jax.runtime import interrupts


class Stopped(Exception):
    """Training was asked to stop and has saved.

    Attributes:
        by_system: whether it was SIGTERM, a scheduler's request, and no person.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.by_system = number == signal.SIGTERM


@contextlib.contextmanager
def requests(answer: str) -> Iterator[Callable[[int], int | None]]:
    """Within it the first Ctrl-C or SIGTERM is only remembered; a second one acts as usual.

    Yields a function of the step, to be called after each, that tells the signal's number, or None. Outside the main
    thread, where Python allows no handlers, it always tells None. A request that comes after the last call acts as
    usual when the block ends.

    Of several processes it is enough that one is asked. JAX catches SIGTERM there and agrees with all processes, in the
    background, on a step that none of them is past: all tell of it after that step, and those that were not asked tell
    SIGTERM. A second SIGTERM has no effect.

    Args:
        answer: printed at once at the first Ctrl-C, also while the main thread waits for a device or a compiler.
    """
    asked: list[int] = []
    told: list[int] = []
    several = jax.process_count() > 1
    numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    before: dict[int, Any] = {}

    def remember(number, frame):
        asked.append(number)
        signal.signal(number, before[number])
        if several:
            signal.raise_signal(signal.SIGTERM)

    def stop(step: int) -> int | None:
        if several and not multihost_utils.reached_preemption_sync_point(step):
            return None
        told.extend(asked)
        return asked[0] if asked else signal.SIGTERM if several else None

    with contextlib.suppress(ValueError):
        before.update({number: signal.signal(number, remember) for number in numbers})
    try:
        with interrupts.promises_to_stop(answer):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked and not told and not several:
        signal.raise_signal(asked[0])
