"""What a full disk does to a run: it stops, or goes on and tries again at the next save."""

import contextlib
import sys
from collections.abc import Iterator

from etils import epath

from guided_diffusion_jax.errors import DiskFull, disk_full

POLICIES = ("stop", "go_on")


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
