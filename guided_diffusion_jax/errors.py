"""Wrong input: the value, the limit and the remedy, in one line. And the disk that is full.

>>> choose({"linear": 1, "cosine": 2}, "cosin", "diffusion.schedule")
Traceback (most recent call last):
guided_diffusion_jax.errors.InputError: diffusion.schedule='cosin' is not one of linear, cosine; did you mean 'cosine'?
"""

import difflib
import errno
import os
import sys
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


LINE = 300
"""Characters of a line about what is wrong, at most."""
PREFIX = "error: "


def one_line(text: object, most: int = LINE) -> str:
    """The text on one line of at most `most` printable characters: others are escaped, and a long middle left out.

    >>> one_line("a name on" + chr(10) + "two lines")
    'a name on two lines'
    >>> one_line("x" * 50_000_000, 20)
    'xxxxxxxxx ... xxxxxx'
    """
    text = str(text)
    if len(text) > 8 * most:  # nothing of the middle would stay
        text = f"{text[: 4 * most]} {text[-4 * most :]}"
    words = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    tail = most // 3
    return line if len(line) <= most else f"{line[: most - tail - 5]} ... {line[-tail:]}"


def shown(name: object) -> str:
    """A name out of a file as messages quote it: short and printable."""
    return one_line(name, 60)


class InputError(ValueError):
    """What the user gave cannot work, in one line. `main.py` prints it and exits with 2."""

    def __init__(self, message: object = ""):
        super().__init__(one_line(message, LINE - len(PREFIX)))


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
    print(one_line(f"{PREFIX}{who}{error}"), file=sys.stderr)
    return code


def hint(name: str, known: Iterable[str]) -> str:
    """`"; did you mean '...'?"` with the nearest known name, or nothing where none is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1) if name not in names else []  # slow, and most names are right
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
