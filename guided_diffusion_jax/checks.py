"""Numbers that users give, refused in the same words for a key of the configuration and for a keyword of a function.

>>> integer("steps", 10**30, 1)
Traceback (most recent call last):
guided_diffusion_jax.errors.InputError: steps=1000000000000000000000000000000 must be a whole number of at most 64 bits
>>> real("weight", float("nan"))
Traceback (most recent call last):
guided_diffusion_jax.errors.InputError: weight=nan must be a finite number
"""

import inspect
import math
import numbers
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from guided_diffusion_jax.errors import hint, require

LARGEST = 2**63 - 1
"""The largest whole number of 64 bits, and the largest seed."""

LARGEST_REAL = float(np.finfo(np.float32).max)
"""Beyond it a number is infinite in float32, in which everything is computed."""


def shown(value: Any) -> str:
    """A value for a message, cut where it is long.

    >>> shown("x" * 1000), shown(10**5000)
    ("'xxxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxxxx'", 'a whole number of 16610 bits')
    """
    if isinstance(value, int) and value.bit_length() > 200:  # Python refuses to print numbers of 4300 digits
        return f"a whole number of {value.bit_length()} bits"
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 62
    return " ".join(short.repr(value).split())


def integer(name: str, value: Any, least: int = -LARGEST - 1, most: int = LARGEST) -> int:
    """The value of a key or keyword that must be a whole number in `least .. most`.

    Raises:
        InputError: another type (True and 2.0 are none), or a number out of its range.
    """
    require(_is_whole(value), f"{name}={shown(value)} must be a whole number")
    number = int(value)
    require(-LARGEST - 1 <= number <= LARGEST, f"{name}={shown(number)} must be a whole number of at most 64 bits")
    require(number >= least, f"{name}={number} must {f'be at least {least}' if least else 'not be negative'}")
    require(number <= most, f"{name}={number} must be at most {most}")
    return number


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool)


def real(
    name: str,
    value: Any,
    least: float | int = -math.inf,
    most: float | int = math.inf,
    *,
    below: bool = False,
    note: str = "",
) -> float:
    """The value of a key or keyword that must be a finite number in [least, most].

    Args:
        name: of the key or keyword.
        value: any real number but True and False.
        least: the smallest.
        most: the largest, or with `below` the smallest that is too large.
        below: `most` itself is too large.
        note: the end of the message, such as what 0 means.

    Raises:
        InputError: another type, a number that is not finite in float32, or one out of its range.
    """
    finite = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool)
    require(finite, f"{name}={shown(value)} must be a number")
    # Whole numbers can be too large for a float.
    require(bool(abs(value) <= LARGEST_REAL), f"{name}={shown(value)} must be a finite number")
    inside = bool(least <= value and (value < most if below else value <= most))
    words = f"lie in [{least}, {most}{')' if below else ']'}" if most < math.inf else f"be at least {least}"
    words = "not be negative" if (least, most) == (0, math.inf) else words
    require(inside, f"{name}={shown(value)} must {words}{f'; {note}' * bool(note)}")
    return float(value)


def reals(name: str, values: Any) -> np.ndarray:
    """The values of a keyword that may be one number, or an array or list of them, all finite.

    Raises:
        InputError: something else among them.
    """
    if np.ndim(values) == 0 and not hasattr(values, "dtype"):
        return np.asarray(real(name, values))
    array = np.asarray(values)
    require(array.dtype.kind in "iuf", f"{name}={shown(values)} must be a number, or an array of numbers")
    require(bool((np.abs(array) <= LARGEST_REAL).all()), f"{name}={shown(values)} must be finite, in every place")
    return array


def seed(name: str, value: Any) -> int:
    """The value of a key or keyword that must be a seed.

    Raises:
        InputError: something else than a whole number in 0 .. 2**63 - 1.
    """
    valid = _is_whole(value) and 0 <= int(value) <= LARGEST
    require(valid, f"{name}={shown(value)} must be a whole number in 0 .. 2**63 - 1")
    return int(value)


def options(what: str, function: Callable[..., Any] | None, given: Mapping[str, Any], skip: int = 0) -> None:
    """Raises `InputError` for an option that a function does not take, or that is no number where it takes one.

    Args:
        what: is built, for the message.
        function: its constructor; None has no options.
        given: options by name.
        skip: leading arguments that are no options.

    >>> options("spacing='x'", lambda levels, rho=7: 0, {"roh": 3}, 1)
    Traceback (most recent call last):
    guided_diffusion_jax.errors.InputError: spacing='x' has no option 'roh'; it has rho; did you mean 'rho'?
    """
    parameters = list(inspect.signature(function).parameters.values())[skip:] if function else []
    known = {parameter.name: parameter.default for parameter in parameters}
    for name, value in given.items():
        has = f"it has {', '.join(known)}" if known else "it has none"
        require(name in known, f"{what} has no option {shown(name)}; {has}{hint(str(name), known)}")
        if isinstance(known[name], float) and not getattr(value, "ndim", 0):
            real(f"{what}: {name}", value)
