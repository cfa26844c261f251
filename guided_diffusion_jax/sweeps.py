"""Sweeps: the same images, from the same noise, at every pair of values of one or two settings."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from guided_diffusion_jax import requests
from guided_diffusion_jax.errors import hint, require
from guided_diffusion_jax.guidance.weights import weight_text

Axes = dict[str, list[Any]]
"""Name of each swept keyword, and its values."""


def _interval_text(interval: Sequence[float] | None) -> str:
    return "t anywhere" if interval is None else f"t in {weight_text(interval[0])} .. {weight_text(interval[1])}"


AXES: dict[str, Callable[[Any], str]] = {
    "weight": lambda w: f"w = {weight_text(w)}",
    "guidance_scale": lambda scale: f"guidance scale {weight_text(scale)}",
    "classifier_weight": lambda w: f"classifier w = {weight_text(w)}",
    "steps": lambda steps: f"{steps} step{'s'[: steps != 1]}",
    "sampler": str,
    "eta": lambda eta: f"eta = {weight_text(eta)}",
    "interval": _interval_text,
    "seed": lambda seed: f"seed {seed}",
}
"""Keywords that can be swept, and how a picture says a value."""


def axes_of(wishes: Mapping[str, Any], known: Sequence[str] = requests.KEYWORDS) -> Axes:
    """The keywords among `wishes` that have a list of values, in their order; of an interval a list of pairs.

    `known` are the keywords of a request.

    Raises:
        InputError: none or more than two, an empty list, or a keyword that there is not.

    >>> axes_of({"weight": [0, 1], "steps": 10, "interval": (0, 500)})
    {'weight': [0, 1]}
    """
    for name in wishes:
        require(name in known, f"{name} is no keyword of a sweep{hint(name, known)}")
    swept = {name: value for name, value in wishes.items() if name in AXES and _is_list(name, value)}
    axes = {name: value.tolist() if isinstance(value, np.ndarray) else list(value) for name, value in swept.items()}
    require(
        len(axes) in (1, 2),
        f"sweep needs a list for one or two of {', '.join(AXES)}, and has {', '.join(axes) or 'none'}",
    )
    for name, values in axes.items():
        require(len(values) > 0, f"{name} is an empty list; give the values that are to be swept")
    return axes


def points(axes: Axes, wishes: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The keywords of each request of a sweep, the last axis changing fastest."""
    for values in itertools.product(*axes.values()):
        yield {**wishes, **dict(zip(axes, values, strict=True))}


def _is_list(name: str, value: Any) -> bool:
    # Schedules of weights and samplers are tuples with named fields.
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str) or hasattr(value, "_fields"):
        return False
    return name != "interval" or any(one is None or np.ndim(one) == 1 for one in value) or len(value) == 0
