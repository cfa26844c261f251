"""A command in a pseudo-terminal: what it says when, and keys that are pressed."""

import fcntl
import itertools
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Terminal:
    """A Python program in a terminal of its own.

    Args:
        arguments: of Python.
        environment: more variables.
    """

    def __init__(self, *arguments, **environment):
        main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))  # lines, columns
        self.begun = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
        )
        os.close(side)
        self._main, self.heard = main, []  # (time, text)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._reader.join()
        os.close(self._main)

    def _read(self):
        while True:
            try:
                ready, _, _ = select.select([self._main], [], [], 0.1)
                got = os.read(self._main, 65536) if ready else None
            except OSError:
                return
            if got:
                self.heard.append((time.monotonic(), got.decode(errors="replace")))
            elif self._process.poll() is not None:
                return

    @property
    def text(self):
        return "".join(text for _, text in self.heard)

    def wait_for(self, pattern, seconds=120):
        """Until it has said something like this; how long that took."""
        begun = time.monotonic()
        while not re.search(pattern, self.text):
            assert self._reader.is_alive() or re.search(pattern, self.text), self.text[-3000:]
            assert time.monotonic() < begun + seconds, self.text[-3000:]
            time.sleep(0.01)
        return time.monotonic() - begun

    def press(self):
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def code(self, seconds=120):
        """The exit code once it has ended; how long that took."""
        begun = time.monotonic()
        code = self._process.wait(seconds)
        took = time.monotonic() - begun
        self._reader.join()
        return code, took

    @property
    def longest_silence(self):
        """Seconds between two things that it said, or since it began."""
        times = [self.begun, *(when for when, _ in self.heard)]
        return max(later - earlier for earlier, later in itertools.pairwise(times))
