"""Ctrl-C and SIGTERM end a training run between two steps, so that it can save; all its processes at the same one."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """Training was asked to stop and has saved.

    Attributes:
        by_system: whether it was SIGTERM, a scheduler's request, and no person.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.by_system = number == signal.SIGTERM


@contextlib.contextmanager
def requests() -> Iterator[Callable[[int], int | None]]:
    """Within it the first Ctrl-C or SIGTERM is only remembered; a second one acts as usual.

    Yields a function of the step, to be called after each, that tells the signal's number, or None. Outside the main
    thread, where Python allows no handlers, it always tells None.

    Of several processes it is enough that one is asked. JAX catches SIGTERM there and agrees with all processes, in the
    background, on a step that none of them is past: all tell of it after that step, and those that were not asked tell
    SIGTERM. A second SIGTERM has no effect.
    """
    asked: list[int] = []
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
        return asked[0] if asked else signal.SIGTERM if several else None

    with contextlib.suppress(ValueError):
        before.update({number: signal.signal(number, remember) for number in numbers})
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
