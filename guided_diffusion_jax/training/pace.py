"""What a run says of itself: how long it will take, how often it reports, what it left where.

>>> duration(3.4e6), duration(1.3e5), duration(5e3), duration(40.0)
('39 days', '1.5 days', '83 minutes', '40 seconds')
"""

import time
from collections.abc import Callable

DAY = 86_400.0

FEWEST_LINES = 10
"""Lines of metrics that a run has at least, where it has so many steps."""

FEWEST_GRIDS = 2
"""Grids of samples that a run has at least, the one at its end among them."""

MEASURED_STEPS, MEASURED_SECONDS = 3, 5.0
"""Steps, and seconds, after the first step that show how fast a run is."""


def log_every(asked: int, steps: int) -> int:
    """Steps between two lines of metrics: as asked, or fewer where a run is so short that it would have few lines.

    It is counted from all steps of the run, so that a run that was interrupted logs what one without interruption does.

    >>> log_every(100, 200_000), log_every(100, 50), log_every(100, 4)
    (100, 5, 1)
    """
    return min(asked, max(1, steps // FEWEST_LINES))


def sample_every(asked: int, steps: int) -> int:
    """Steps between two grids of samples: as asked, or half a run; 0 is never.

    >>> sample_every(5000, 200_000), sample_every(5000, 1001), sample_every(0, 10)
    (5000, 500, 0)
    """
    return min(asked, max(1, steps // FEWEST_GRIDS))


def duration(seconds: float) -> str:
    """Seconds in words, in the unit that suits them."""
    for unit, size in (("days", DAY), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 1.5 * size:
            amount = seconds / size
            return f"{amount:.0f} {unit}" if amount >= 10 or amount == round(amount) else f"{amount:.1f} {unit}"
    return f"{seconds:.0f} seconds"


class Pace:
    """The speed of a run's first steps, and a warning, once, where the run takes longer than a day.

    Args:
        start: the step that the run goes on from.
        steps: the step that it ends at.
        clock: seconds.
    """

    def __init__(self, start: int, steps: int, clock: Callable[[], float] = time.monotonic):
        self._left, self._steps, self._clock = steps - start, steps, clock
        self._done, self._since, self._said = 0, 0.0, False

    def advance(self) -> str:
        """Counts a finished step; a warning, or "". The first step, which may wait for a compiler, is not measured."""
        self._done += 1
        if self._done == 1:
            self._since = self._clock()
        measured, seconds = self._done - 1, self._clock() - self._since
        if self._said or measured < MEASURED_STEPS or seconds < MEASURED_SECONDS:
            return ""
        self._said = True
        each = seconds / measured
        if each * self._left <= DAY:
            return ""
        speed = f"{each:.1f} seconds a step" if each >= 1 else f"{1 / each:.1f} steps a second"
        return (
            f"warning: at this speed ({speed}) the {self._steps:,} steps take {duration(each * self._left)}; "
            "--config=small is a network for a CPU, --config.train.steps=N ends sooner, Ctrl-C saves"
        )
