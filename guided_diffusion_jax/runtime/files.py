"""Files that are whole or not there: written beside their place, then renamed."""

import contextlib
import json
import uuid
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

from guided_diffusion_jax.errors import DiskFull, disk_full


@contextlib.contextmanager
def atomic_write(path: epath.PathLike, mode: str = "wb") -> Iterator[IO]:
    """An open file that takes its place, or that of an older one, when the block ends well; else nothing is left of it.

    Args:
        path: its place; anything that `epath` takes.
        mode: "wb" or "w".

    Raises:
        DiskFull: there is no room for it; names the file, which the system's own error does not.
    """
    path = epath.Path(path)
    # A name of its own, so that two processes that write the same file do not write into each other's.
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with beside.open(mode) as file:
            yield file
        beside.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if disk_full(error) and not isinstance(error, DiskFull):
            raise DiskFull(f"{path}: {error}") from error
        raise


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes a value as JSON, with a line for each part of it."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(value, indent=2) + "\n")
