"""Wrong input: the value, the limit and the remedy, in one line. And the disk that is full.

>>> choose({"linear": 1, "cosine": 2}, "cosin", "diffusion.schedule")
Traceback (most recent call last):
guided_diffusion_jax.errors.InputError: diffusion.schedule='cosin' is not one of linear, cosine; did you mean 'cosine'?
"""

import difflib
import errno
import numbers
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """What the user gave cannot work. `main.py` prints it on one line and exits with 2."""


class DiskFull(OSError):
    """There is no room for what should be written, says the disk or a quota. Exit code 1."""


class Missing(Exception):
    """One of the processes of a run did not come, or not in time. Exit code 1."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system calls it: the disk, a quota of the user, a limit on one file."""


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is about a full disk; TensorStore only quotes the system's words."""
    while error is not None:
        words = str(error)
        if isinstance(error, DiskFull) or getattr(error, "errno", None) in FULL:
            return True
        if any(os.strerror(code) in words for code in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def report(error: Exception, wrong: tuple[type[Exception], ...] = (InputError,), who: str = "") -> int:
    """Says on one line of stderr what the user can mend, and gives the exit code.

    It is 2 for wrong input, 1 for a full disk and a missing process. `who` is the process that says it.

    Raises:
        Exception: `error` itself, if it is none of them.
    """
    code = 2 if isinstance(error, wrong) else 1
    if code == 1 and not isinstance(error, Missing) and not disk_full(error):
        raise error
    print(f"error: {who}{' '.join(str(error).split())}", file=sys.stderr)
    return code


def hint(name: str, known: Iterable[str]) -> str:
    """`"; did you mean '...'?"` with the nearest known name, or nothing where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def choose(choices: Mapping[str, T], value: str, key: str) -> T:
    """`choices[value]`, or an `InputError` that names the config `key`, the choices and the nearest of them."""
    if value not in choices:
        raise InputError(f"{key}={value!r} is not one of {', '.join(choices)}{hint(str(value), choices)}")
    return choices[value]


def require(condition: bool, message: str) -> None:
    """Raises `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def check_whole(value: Any, key: str, *, least: int) -> None:
    """Raises `InputError` unless `value` is a whole number, `least` or more."""
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    require(integral and value >= least, f"{key}={value!r} must be a whole number, {least} or more.")
