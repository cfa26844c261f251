"""Texts that reproduce what a page shows: a block of Python, and commands."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from guided_diffusion_jax.guidance.weights import weight_text
from guided_diffusion_jax.sampling_inputs import NATIVE

KEYS = {
    "labels": "labels", "prompt": "prompt", "negative": "negative", "attributes": "attributes",
    "control_image": "control_image", "reference_image": "reference_image", "image": "image",
    "strength": "strength", "inpaint_mask": "inpaint_mask", "count": "count", "weight": "guidance.weight",
    "classifier_weight": "guidance.classifier_weight", "interval": "guidance.interval", "guidance": "guidance.rules",
    "sampler": "sampler", "spacing": "spacing", "steps": "steps", "eta": "eta", "seed": "seed",
}  # fmt: skip
"""Keyword of a pipeline to the key of `config.sample`."""

UNSAID = {"guidance": ["cfg"], "spacing": "linspace", "sampler": "ddim", "eta": 0.0}
"""Values that Python need not write, for they are the defaults."""


class Called(NamedTuple):
    """How commands are written.

    Attributes:
        name: of the run, as `load` and --workdir take it.
        program: how the program is called.
        own: value of keys of `config.sample` in the run's own configuration, which need not be written.
    """

    name: str
    program: str = "guided-diffusion-jax"
    own: Mapping[str, Any] = {}


def python(name: str, calls: Mapping[str, Mapping[str, Any]], last_time: int, function: str = "pipe") -> str:
    """A block of Python that makes these images.

    Args:
        name: as which `load` finds the run.
        calls: name of a variable to the keywords of the call that gives it.
        last_time: T - 1; an interval up to it is the whole.
        function: that is called.
    """
    lines = ["import guided_diffusion_jax as gd", "", f"pipe = gd.load({name!r})"]
    for variable, keywords in calls.items():
        written = {
            key: value
            for key, value in keywords.items()
            if value is not None
            and not (key in UNSAID and UNSAID[key] == value)
            and not (key == "interval" and tuple(value) == (0, last_time))
        }
        arguments = ", ".join(f"{key}={_python(key, value)}" for key, value in written.items())
        lines.append(f"{variable} = {function}({arguments})")
    return "\n".join(lines)


def command(
    called: Called, keywords: Mapping[str, Any], sweep: Mapping[str, Sequence[Any]] | None = None, **further: Any
) -> str:
    """A command that makes these images.

    Args:
        called: program and run.
        keywords: of the pipeline.
        sweep: keyword to values, which are swept.
        further: keys of `config.sample`.
    """
    parts = [f"--workdir={called.name}", "--mode=sample"]
    for key, value in keywords.items():
        if key in ("sampler", "spacing"):
            value = value or NATIVE
        same = not isinstance(value, np.ndarray) and _listed(called.own.get(KEYS[key])) == _listed(value)
        if value is None or (same and key != "weight") or (sweep and key in sweep):
            continue
        if key == "weight" and value == 1:  # left at its default the key means the model's own weight
            parts.append("--config.sample.guidance.guidance_scale=2")
        elif sweep and key == "count":
            parts.append(f"--config.sample.sweep.count={value}")
        else:
            parts.append(f"--config.sample.{KEYS[key]}={_value(key, value)}")
    parts += [f"--config.sample.{key}={value}" for key, value in further.items()]
    parts += [f"--config.sample.sweep.{key}={_value(key, values)}" for key, values in (sweep or {}).items()]
    return " ".join([called.program, *map(shlex.quote, parts)])


def _python(key: str, value: Any) -> str:
    if isinstance(value, np.ndarray):
        return repr(f"{key}.png")
    if key == "guidance":
        return repr(value[0] if len(value) == 1 else value)
    return repr(value)


def _value(key: str, value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{key}.png"
    if isinstance(value, Mapping):
        return repr(tuple(value.items()))
    if isinstance(value, list | tuple):
        if not all(isinstance(one, int | float) or (isinstance(one, str) and _is_bare(one)) for one in value):
            return repr(tuple(value))
        return ",".join(_value(key, one) for one in value)
    return weight_text(value) if isinstance(value, float) else str(value)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_bare(text: str) -> bool:
    """Whether a text can stand in a list with commas without quotes."""
    return bool(text.strip() == text and text) and not set(text) & set(",()[]'\"")
