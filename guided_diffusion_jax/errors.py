"""Wrong input: the value, the limit and the remedy, in one line.

>>> choose({"linear": 1, "cosine": 2}, "cosin", "diffusion.schedule")
Traceback (most recent call last):
guided_diffusion_jax.errors.InputError: diffusion.schedule='cosin' is not one of linear, cosine; did you mean 'cosine'?
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """What the user gave cannot work. `main.py` prints it on one line and exits with 2."""


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
