"""What a full disk does to a run: it stops, or goes on and tries again at the next save."""

import contextlib
import sys
from collections.abc import Iterator

from etils import epath

from guided_diffusion_jax.errors import DiskFull, disk_full

POLICIES = ("stop", "go_on")


@contextlib.contextmanager
def hide_abandoned_writes() -> Iterator[None]:
    """Keeps Python from printing a traceback for each write that TensorStore abandons after one has failed.

    The failure itself is raised by the save. A thread of TensorStore reports the rest to `sys.unraisablehook`, where
    only this message is dropped.
    """
    before = sys.unraisablehook

    def report(unraisable: "sys.UnraisableHookArgs") -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def tolerate_full(policy: str, folder: epath.Path) -> Iterator[None]:
    """Around what writes into a run's folder. With "go_on" a full disk is told of on stderr and no more.

    Raises:
        DiskFull: with "stop"; names the folder.
        Exception: any other error.
    """
    try:
        yield
    except Exception as error:
        if not disk_full(error):
            raise
        message = str(error) if isinstance(error, DiskFull) else f"{folder}: {error}"
        if policy == "stop":
            raise DiskFull(message) from error
        print(f"warning: {message} (on_full_disk=go_on: the run goes on)", file=sys.stderr, flush=True)
