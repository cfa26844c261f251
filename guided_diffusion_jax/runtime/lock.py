"""One process at a time writes to a run's folder."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from datetime import datetime

from etils import epath

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.runtime import distributed

FILE = "training.lock"


@contextlib.contextmanager
def exclusive(folder: epath.Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which is made where it is missing.

    It is the kernel's lock (`flock`) on a file that stays and tells who holds it: it goes with the process, however
    that ends, so that no lock is left behind. On NFS it holds among hosts. Of many processes that train together the
    first one takes it. Where there is no such lock, on `gs://` and the like, nothing is held. Reading needs none.

    Raises:
        InputError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not distributed.is_main_process() or not os.path.isdir(folder):
        yield
        return
    file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
            raise InputError(
                f"{folder} is being written by {holder}; wait for it, end it, or use another --workdir."
            ) from None
        except OSError as error:  # a file system without locks
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        name = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n"
        with contextlib.suppress(OSError):  # on a full disk it is held without a name
            os.truncate(file, 0)
            os.write(file, name.encode())
        yield
    finally:
        os.close(file)
