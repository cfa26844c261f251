"""Orbax logs, in pages, what it raises as well, and warns of what was asked for; here it only raises."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from absl import logging as absl_logging


@contextlib.contextmanager
def orbax() -> Iterator[None]:
    """Within it nothing of Orbax is logged, nor that TensorStore ends its other writes after one has failed."""

    def foreign(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    def tell(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    logger, before = absl_logging.get_absl_logger(), sys.unraisablehook
    logger.addFilter(foreign)
    sys.unraisablehook = tell
    try:
        yield
    finally:
        logger.removeFilter(foreign)
        sys.unraisablehook = before
