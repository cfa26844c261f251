"""Ctrl-C and SIGTERM end a training run between two steps, so that it can save."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


class Stopped(Exception):
    """Training was asked to stop and has saved.

    Attributes:
        by_system: whether it was SIGTERM, a scheduler's request, and no person.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.by_system = number == signal.SIGTERM


@contextlib.contextmanager
def requests() -> Iterator[Callable[[], int | None]]:
    """Within it the first Ctrl-C or SIGTERM is only remembered; a second one acts as usual.

    Yields a function that tells the signal's number, or None. Outside the main thread, where Python allows no
    handlers, it always tells None.
    """
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before: dict[int, Any] = {}

    def remember(number, frame):
        asked.append(number)
        signal.signal(number, before[number])

    with contextlib.suppress(ValueError):
        before.update({number: signal.signal(number, remember) for number in numbers})
    try:
        yield lambda: asked[0] if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
