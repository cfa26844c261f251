"""Kinds of keys of a configuration: what a value may be, how the command line writes it, and how it is refused.

A `Key` holds a default, what the key means and a kind of values; `experiment.default` is the table of all keys.

>>> size = Key(32, "pixels", integer(1))
>>> size.read("data.image_size", "64")
64
>>> size.read("data.image_size", "0")
Traceback (most recent call last):
guided_diffusion_jax.errors.InputError: data.image_size=0 must be at least 1
"""

import ast
import math
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from guided_diffusion_jax import checks
from guided_diffusion_jax.checks import shown
from guided_diffusion_jax.errors import InputError, choose, require

LONGEST_TEXT, LONGEST_PATH, LONGEST_NAME = 10_000, 4096, 255
"""Characters of a text, of a path and of one folder's name in it, as file systems have them."""


class Values(NamedTuple):
    """A kind of values.

    Attributes:
        words: for `--help`, such as "whole number, at least 1".
        check: `check(name, value)` raises `InputError`, with the key's name, for a value that is none of them.
        parse: text of the command line to a value, which is then checked; `ValueError` where it can be none.
    """

    words: str
    check: Callable[[str, Any], Any]
    parse: Callable[[str], Any]


class Key(NamedTuple):
    """A key of the configuration.

    Attributes:
        default: the value in `default.get_config`; None is no number.
        meaning: for `--help`.
        values: those that it takes.
    """

    default: Any
    meaning: str
    values: Values

    def check(self, name: str, value: Any) -> None:
        """Raises `InputError` for a value that the key cannot take; `name` is the key's."""
        if value is not None or self.default is not None:
            self.values.check(name, value)

    def read(self, name: str, text: str) -> Any:
        """The value that a text of the command line means.

        Raises:
            InputError: it means none that the key can take.
        """
        if self.default is None and text in ("", "None"):
            return None
        try:
            value = self.values.parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise InputError(f"{name}={shown(text)[1:-1]} must be: {self.values.words}") from None
        self.check(name, value)
        return value


def integer(least: int = 0, most: int = checks.LARGEST, note: str = "") -> Values:
    """Whole numbers in `least .. most`."""
    words = _words("whole number", least, most, checks.LARGEST, note)
    return Values(words, lambda name, value: checks.integer(name, value, least, most), int)


def real(
    least: float | int = -checks.LARGEST_REAL,
    most: float | int = checks.LARGEST_REAL,
    *,
    below: bool = False,
    note: str = "",
) -> Values:
    """Finite numbers in [least, most], or with `below` in [least, most)."""
    words = _words("number", least, most, checks.LARGEST_REAL, note, below)
    top = math.inf if most == checks.LARGEST_REAL else most
    return Values(words, lambda name, value: checks.real(name, value, least, top, below=below, note=note), float)


def _words(
    kind: str, least: float | int, most: float | int, largest: float | int, note: str, below: bool = False
) -> str:
    if most < largest:
        kind += f" in [{least}, {most}{')' if below else ']'}"
    elif least >= 0:
        kind += f", at least {least}"
    return f"{kind}; {note}" if note else kind


SEED = Values("whole number in 0 .. 2**63 - 1", checks.seed, int)
"""Seeds of random numbers."""


def _check_flag(name: str, value: Any) -> None:
    require(isinstance(value, bool), f"{name}={shown(value)} must be True or False")


def _parse_flag(text: str) -> bool:
    if text.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "t", "1")


FLAG = Values("True or False", _check_flag, _parse_flag)


def choice(of: Collection[str]) -> Values:
    """One of a table's names, or of a tuple's."""
    return Values(
        f"one of {', '.join(of)}", lambda name, value: choose(dict.fromkeys(of), _text(name, value)[:100], name), str
    )


def text(words: str = "text") -> Values:
    """Any text, of at most 10,000 characters."""
    return Values(words, _text, str)


def _text(name: str, value: Any) -> str:
    require(isinstance(value, str), f"{name}={shown(value)} must be a text")
    valid = len(value) <= LONGEST_TEXT and "\0" not in value
    require(valid, f"{name}={shown(value)} has {len(value)} characters; at most {LONGEST_TEXT}, and none of them zero")
    return value


def path(words: str) -> Values:
    """The name of a file or a folder, which need not exist."""
    return Values(words, _path, str)


def _path(name: str, value: Any) -> None:
    parts = _text(name, value).encode("utf-8", "surrogateescape").split(b"/")
    require(
        len(value) <= LONGEST_PATH and max(map(len, parts)) <= LONGEST_NAME,
        f"{name}={shown(value)} is too long for the name of a file",
    )


def _number_or_text(name: str, value: Any) -> None:
    require(isinstance(value, str | int | float), f"{name}={shown(value)} must be a number or a text")


ANYTHING = Values("number or text", _number_or_text, str)
"""The value of an option, whose rule knows what it may be."""


def several(item: Values, words: str = "", length: int | None = None, empty: bool = True) -> Values:
    """A tuple of values of a kind; on the command line one, or several with commas between them.

    It has `length` values, or with `empty` none.
    """
    words = words or f"{item.words}, or several with commas"

    def check(name: str, values: Any) -> None:
        require(isinstance(values, tuple | list), f"{name}={shown(values)} must be several values; {words}")
        require(
            length in (None, len(values)) or (empty and not values), f"{name}={shown(values)} must have {length} values"
        )
        for value in values:
            item.check(name, value)

    def parse(text: str) -> tuple[Any, ...]:
        if item.parse is str and not text.startswith(("(", "[", "'", '"')):
            return tuple(part for word in text.split(",") if (part := word.strip()))
        found = literal(text)
        return found if isinstance(found, tuple) else (found,)

    return Values(words, check, parse)


def rows(words: str, *columns: Values) -> Values:
    """A tuple of rows with a value of each of these kinds; a single row needs no outer tuple."""

    def check(name: str, values: Any) -> None:
        for row in pairs(values, name, len(columns)):
            for column, value in zip(columns, row, strict=True):
                column.check(name, value)

    return Values(words, check, lambda text: literal(text))


def literal(text: str) -> Any:
    """The numbers, texts and tuples that a text writes as Python does; lists are tuples, nothing is `()`.

    Raises:
        ValueError, SyntaxError, TypeError, MemoryError, RecursionError: it is nothing of the kind.
    """
    if not text.strip():
        return ()
    with warnings.catch_warnings(action="ignore"):  # of Python's parser, about numbers that run into words
        try:
            return _with_tuples(ast.literal_eval(text.strip()))
        except (ValueError, SyntaxError):  # 0,inf: infinity is no literal
            return tuple(float(part) for part in text.split(","))


ANYTHING = Values("anything", lambda name, value: None, literal)
"""A value that whoever reads it checks."""


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, tuple | list) else value


def pairs(values: Any, key: str, width: int) -> list[tuple[Any, ...]]:
    """Entries of a tuple of tuples; a single entry may be given without the outer tuple.

    Raises:
        InputError: an entry that has not `width` values.
    """
    require(isinstance(values, Sequence) and not isinstance(values, str), f"{key}: {shown(values)} must be rows")
    rows = tuple(values)
    if rows and not isinstance(rows[0], tuple | list):
        rows = (rows,)
    for row in rows:
        require(isinstance(row, tuple | list) and len(row) == width, f"{key}: {shown(row)} must have {width} values")
    return [tuple(row) for row in rows]


def guess(default: Any) -> Key:
    """A key that the table does not have, of a user's own configuration: its kind is its default's."""
    if isinstance(default, bool):
        return Key(default, "", FLAG)
    if isinstance(default, int):
        return Key(default, "", integer(-checks.LARGEST))
    if isinstance(default, float):
        return Key(default, "", real())
    return Key(default, "", text() if isinstance(default, str) else ANYTHING)


def section(name: str, keys: dict[str, Key], **defaults: object) -> dict[str, Key]:
    """Keys with the name of their section, some with other defaults."""
    return {f"{name}.{key}": entry._replace(default=defaults.get(key, entry.default)) for key, entry in keys.items()}
