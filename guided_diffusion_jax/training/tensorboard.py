"""TensorBoard's event files, written in the calling thread, so that a full disk is an error of the call.

tensorboardX's `SummaryWriter` hands everything to a thread, which ends at its first error: the eleventh value after
that waits forever, and so does the end of the program. It is imported late, because it loads PyTorch wherever it finds
one: seconds that sampling saves.
"""

import os
import time
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

FLUSH = 10.0
"""Seconds after which TensorBoard sees what was written."""


class TensorBoard:
    """Metric writer of TensorBoard's event files in `folder`, one file each time that a run goes on.

    Args:
        folder: created if missing.
        purge_step: from here on TensorBoard forgets what earlier files of the folder say.
    """

    def __init__(self, folder: epath.Path, purge_step: int):
        self._folder, self._purge_step = folder, purge_step
        self._file: Any = None
        self._flushed = 0.0

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Metrics. Raises `OSError` where they cannot be written; the next call begins a new file."""
        from tensorboardX import summary

        for name, value in values.items():
            self._add(summary=summary.scalar(name, value), step=step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """An image; raises like `scalars`."""
        from tensorboardX import summary

        self._add(summary=summary.image(name, image, dataformats="HWC"), step=step)

    def close(self) -> None:
        """Writes what is left; what finds no room is lost."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                return

    def _add(self, **content: Any) -> None:
        from tensorboardX.proto import event_pb2

        try:
            if self._file is None:
                self._file = self._begin()
            self._file.write_event(event_pb2.Event(wall_time=time.time(), **content))
            if time.monotonic() > self._flushed + FLUSH:
                self._file.flush()
                self._flushed = time.monotonic()
        except OSError:
            self.close()
            raise

    def _begin(self) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._folder.mkdir(parents=True, exist_ok=True)
        # Names have whole seconds only, and a file that has the same is emptied.
        file = EventsWriter(os.fspath(self._folder / "events"), f".{os.getpid()}.{time.monotonic_ns()}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        file.write_event(event_pb2.Event(wall_time=time.time(), step=self._purge_step, session_log=start))
        return file
