"""Gives back to the system what the C library keeps of memory that was freed; glibc only, elsewhere nothing.

Compiling frees some hundred megabytes, and every save starts threads, each of which glibc gives a heap of its own: a
small run held twice what it used, and more from save to save (`benchmarks/growth.py`).
"""

import ctypes
import functools

ARENA_MAX = -8
"""`M_ARENA_MAX` of glibc's malloc.h."""

ARENAS = 2
"""Heaps that all threads share; glibc makes up to 8 for each core."""


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


def limit() -> None:
    """Lets threads that begin from now on share a few heaps; where many have one already, they share these."""
    if library := _glibc():
        library.mallopt(ARENA_MAX, ARENAS)


def trim() -> None:
    """Gives back all that is free."""
    if library := _glibc():
        library.malloc_trim(0)
