"""Signs of life: what takes long says what it is, and in a terminal shows that it goes on."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from tqdm import tqdm

from guided_diffusion_jax.runtime import compilation_cache

DELAY_S = 1.0
"""What is done within so many seconds is not worth a line."""

BEAT_S = 2.0
"""Seconds between two signs of life in a terminal."""


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """In a terminal, says what is being done if it takes longer than a moment, and counts the seconds."""
    with _counting(lambda: what) if sys.stderr.isatty() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def compiling(what: str, *arguments: Any) -> Iterator[None]:
    """Around the first call of a jitted function: says that it compiles, how long that usually takes, if it is kept.

    The duration is that of the last such program on this machine, known where compiled programs are kept; see
    `compilation_cache`.

    Args:
        what: "the training step".
        arguments: of the function; their shapes tell one program from another.
    """
    key = compilation_cache.program_key(what, arguments)
    hits: list[str] = []

    def details() -> str:
        known = compilation_cache.seconds(key)
        notes = [f"usually {known:.0f} s"] if known else []
        notes += ["cached for next time"] if compilation_cache.folder() is not None else []
        return f" ({', '.join(notes)})" * bool(notes)

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    begun = time.monotonic()
    jax.monitoring.register_event_listener(listen)
    try:
        with _counting(lambda: f"compiling {what}{details()}"):
            yield
    finally:
        jax.monitoring.unregister_event_listener(listen)
    took = time.monotonic() - begun
    if took > DELAY_S and not hits and _is_main():
        compilation_cache.remember(key, took)


@contextlib.contextmanager
def progress(total: int | None, desc: str, unit: str, *, shown: bool = True, **options: Any) -> Iterator[tqdm]:
    """A progress bar in a terminal, whose clock goes on while nothing advances it. Of several processes the main one's.

    Args:
        total: of what is done; None where nobody knows.
        desc: what it is.
        unit: " images".
        shown: False shows nothing.
        options: of `tqdm`.
    """
    disable = None if shown and _is_main() else True  # None: where there is no terminal
    with tqdm(total=total, desc=desc, unit=unit, disable=disable, dynamic_ncols=True, **options) as bar, ticking(bar):
        yield bar


@contextlib.contextmanager
def ticking(bar: tqdm) -> Iterator[None]:
    """Within it the clock of a bar goes on."""
    with contextlib.nullcontext() if bar.disable else _beating(bar.refresh):
        yield


@contextlib.contextmanager
def _counting(line: Callable[[], str]) -> Iterator[None]:
    """Prints a line on stderr if the block takes longer than a moment; in a terminal it counts the seconds.

    A thread of its own does this, so that the block may be one long call of a compiler. Of several processes the main
    one speaks.
    """
    begun = time.time()
    bars: list[tqdm] = []

    def beat() -> None:
        if bars:
            bars[0].refresh()
        elif not _is_main():
            return
        elif sys.stderr.isatty():
            bars.append(tqdm(desc=line(), bar_format="{desc} {elapsed}", file=sys.stderr))
            bars[0].start_t = begun
        else:
            bars.append(tqdm(disable=True))
            tqdm.write(line(), file=sys.stderr)

    try:
        with _beating(beat):
            yield
    finally:
        for bar in bars:
            bar.close()


@contextlib.contextmanager
def _beating(beat: Callable[[], Any]) -> Iterator[None]:
    """Calls `beat` in a thread of its own, first after `DELAY_S` and then every `BEAT_S`."""
    done = threading.Event()

    def run() -> None:
        wait = DELAY_S
        while not done.wait(wait):
            beat()
            wait = BEAT_S

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _is_main() -> bool:
    return not jax.distributed.is_initialized() or jax.process_index() == 0
