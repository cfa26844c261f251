"""Ctrl-C is answered at once, whatever the main thread is doing.

Python runs the handler of a signal in the main thread and between two of its instructions, of which one may compile for
minutes or wait for a device. A thread that the signal itself wakes (`signal.set_wakeup_fd`) speaks without waiting for
that, and on the command line it can end the process. This module imports nothing that takes time, so that it is there
before everything else.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

STOPPED = "stopped by Ctrl-C; files that were finished are kept, nothing else was written"
"""The last line of a command that Ctrl-C ends."""

UNSAVED = "ended by Ctrl-C without saving; the last checkpoint is as it was"
"""The last line of a training that a second Ctrl-C ends."""

GRACE_S = 2.0
"""Seconds that the main thread has to remove what is half done; it may be where no exception reaches it."""


@dataclasses.dataclass
class _Promise:
    """Of code that stops by itself after a first Ctrl-C, and what that is answered with."""

    answer: str
    given: bool = False


_promise: _Promise | None = None
_grace_s = GRACE_S
_ends_process = False
_ending = threading.Lock()


@contextlib.contextmanager
def promises_to_stop(answer: str) -> Iterator[None]:
    """Answers the first Ctrl-C within it by a line on stderr, at once; the code within stops by a handler of its own.

    Outside the main thread, where Python handles no signals, it does nothing.
    """
    global _promise
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _promise = _Promise(answer)
    try:
        with contextlib.nullcontext() if _ends_process else _watching(_keep_promise):
            yield
    finally:
        _promise = None


@contextlib.contextmanager
def ends_process() -> Iterator[None]:
    """For the command line: Ctrl-C within it ends the process with one line and exit code 1.

    What is under way is unwound by a KeyboardInterrupt, within `GRACE_S`. Code that promises to stop by itself gets its
    time; then the second Ctrl-C ends the process on the spot.
    """
    global _ends_process
    pressed = threading.Event()

    def answer() -> None:
        if _keep_promise():
            return
        pressed.set()
        if _promise is not None:
            _end(UNSAVED)
        time.sleep(_grace_s)
        _end(STOPPED)

    sys.unraisablehook = _without_interrupts(sys.unraisablehook)
    with _watching(answer):
        _ends_process = True
        try:
            yield
        except SystemExit:
            raise
        except BaseException as error:  # an import that is cut short may turn the interrupt into any other error
            if not pressed.is_set() and not isinstance(error, KeyboardInterrupt):
                raise
            _end(STOPPED)
        finally:
            _ends_process = False


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """Within `ends_process`, for imports: no exception, which C code that is being set up may not survive."""
    global _grace_s
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:
        signal.signal(signal.SIGINT, lambda *_: None)
    _grace_s = 0.0
    try:
        yield
    finally:
        _grace_s = GRACE_S
        if handled:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _keep_promise() -> bool:
    """Gives the answer that was promised; False if none was, or it was given before."""
    promise = _promise
    if promise is None or promise.given:
        return False
    promise.given = True
    _say(promise.answer)
    return True


@contextlib.contextmanager
def _watching(answer: Callable[[], Any]) -> Iterator[None]:
    """Calls `answer` in a thread of its own at each Ctrl-C, as soon as it is pressed."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(read, 1)[0]:
            if before != -1:
                with contextlib.suppress(OSError):
                    os.write(before, bytes([number]))
            if number == signal.SIGINT:
                answer()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(write, b"\0")
        thread.join()
        os.close(read)
        os.close(write)


def _say(line: str, file: TextIO | None = None) -> None:
    # On a terminal a progress bar, or ^C, stands in the line.
    file = file or sys.stderr
    print("\n" * file.isatty() + line, file=file, flush=True)


def _end(line: str) -> NoReturn:
    """Ends the process, with this line as the last one; of two threads that want to, the first one does."""
    _ending.acquire()
    sys.stdout.flush()
    sys.stderr.flush()
    with open(os.dup(2), "w", closefd=False) as last, open(os.devnull, "w") as nowhere:
        for stream in (1, 2):  # a progress bar of another thread would come after it
            os.dup2(nowhere.fileno(), stream)
        _say(line, last)
        os._exit(1)


def _without_interrupts(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The hook, deaf to a KeyboardInterrupt in a destructor or a callback, where it can be raised no further."""

    def report(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            hook(unraisable)

    return report
