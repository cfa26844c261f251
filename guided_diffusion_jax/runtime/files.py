"""Files that are whole or not there, written beside their place, then renamed; and JSON that people may have edited."""

import contextlib
import json
import os
import re
import stat
import uuid
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

from guided_diffusion_jax.errors import DiskFull, InputError, disk_full, require, shown


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


def is_regular(path: epath.Path) -> bool:
    """Whether a path is a file that can be read to its end: no folder, pipe or device."""
    try:
        return stat.S_ISREG(os.stat(os.fspath(path)).st_mode)
    except OSError:  # it is remote, or not there
        return path.is_file()


LARGEST_JSON = 64 * 2**20
"""Bytes."""


def read_json(path: epath.PathLike) -> Any:
    """The value of a JSON file in UTF-8, with or without a byte-order mark.

    Raises:
        InputError: names the file and the line: it is missing, damaged, too large, or a key comes twice.
    """
    path = epath.Path(path)
    require(is_regular(path), f"{path} is no file")
    require(path.stat().length <= LARGEST_JSON, f"{path} has more than {LARGEST_JSON:,} bytes")
    return parse_json(path.read_bytes(), str(path))


def parse_json(content: bytes, where: str, line: int = 1) -> Any:
    """The value of JSON that begins on this line of the file `where`; raises as `read_json`."""
    try:
        text = content.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        line, fault = line + content.count(b"\n", 0, error.start), "it is no JSON in UTF-8; save it as UTF-8"
    except json.JSONDecodeError as error:
        before = text[: error.pos].rstrip()
        if before.endswith(",") and text[error.pos : error.pos + 1] in ("}", "]"):
            line, fault = line + before.count("\n"), "it is no JSON: the last comma is one too many"
        else:
            line, fault = line + error.lineno - 1, f"it is no JSON: {error.msg if text.strip() else 'empty'}"
    except _Twice as error:
        seen: set[str] = set()
        first = (at for key, at in keys(text) if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        line, fault = line + next(first, 1) - 1, f"{shown(repr(error.args[0]))} comes twice; keep one of them"
    except RecursionError:
        fault = "it is nested too deeply"
    except ValueError as error:  # a number of thousands of digits
        fault = f"it is no JSON: {error}"
    raise InputError(f"{where}, line {line}: {fault}")


class _Twice(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _Twice(key)
        values[key] = value
    return values


TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]')


def keys(text: str) -> Iterator[tuple[str, int]]:
    """Each key of JSON text as "model.width", with its line, from 1.

    >>> list(keys('{"seed": 0, "model": {"width": 8}}'))
    [('seed', 1), ('model', 1), ('model.width', 1)]
    """
    parents: list[str] = []
    string = key = ""
    line, before = 1, 0
    for token in TOKEN.finditer(text):
        line, before = line + text.count("\n", before, token.start()), token.start()
        if token[0] == ":":
            key = json.loads(string)
            yield ".".join(filter(None, [*parents, key])), line
        elif token[0] in "{[":
            parents.append(key)
            key = ""
        elif token[0] in "}]":
            parents = parents[:-1]
        else:
            string = token[0]
