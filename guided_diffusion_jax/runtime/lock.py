"""Lock of a run's folder: one process at a time writes to it."""

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import datetime

import filelock
from etils import epath

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.runtime import distributed

FILE = "training.lock"


@contextlib.contextmanager
def exclusive(folder: epath.Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which is created if missing.

    The operating system releases the lock when the process ends, however that happens. The file names its holder.
    Remote folders (`gs://`) are not locked, nor are they by other processes than the main one. Reading needs no lock.

    Raises:
        InputError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not distributed.is_main_process() or not os.path.isdir(folder):
        yield
        return
    try:
        with filelock.FileLock(folder / FILE, timeout=0, preserve_lock_file=True):
            name = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n"
            with contextlib.suppress(OSError):  # on a full disk it is held without a name
                (folder / FILE).write_text(name)
            yield
    except filelock.Timeout:
        holder = (folder / FILE).read_text().strip() or "another process"
        raise InputError(
            f"{folder} is being written by {holder}; wait for it, end it, or use another --workdir."
        ) from None
