"""TensorBoard event files, written in the calling thread, so that a full disk raises an error in the call.

tensorboardX's `SummaryWriter` writes in a thread that ends at its first error; the eleventh value after that blocks
forever, and so does the end of the program. tensorboardX is imported late, because it loads PyTorch if that is there.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

FLUSH = 10.0
"""Seconds between flushes."""


class TensorBoard:
    """`MetricWriter` for TensorBoard; a resumed run starts a new file in the same folder.

    Args:
        folder: created if missing.
        purge_step: TensorBoard drops what earlier files of the folder hold from this step on.
    """

    def __init__(self, folder: epath.Path, purge_step: int):
        self._folder, self._purge_step = folder, purge_step
        self._file: Any = None
        self._flushed = 0.0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes metrics. Raises `OSError` if that is impossible; the next call begins a new file."""
        from tensorboardX import summary

        for name, value in values.items():
            self._add(summary=summary.scalar(name, value), step=step)

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Writes an image; raises like `scalars`."""
        from tensorboardX import summary

        self._add(summary=summary.image(name, image, dataformats="HWC"), step=step)

    def close(self) -> None:
        """Flushes; on a full disk the rest is lost."""
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
