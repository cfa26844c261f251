"""From prompts to the conditions that a model reads, a row for each."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from guided_diffusion_jax.data.text import TextEncoder
from guided_diffusion_jax.inputs import repeated

Rows = Mapping[str, np.ndarray]
"""Conditions by name, `[n ...]` each."""


@runtime_checkable
class PromptReader(Protocol):
    """Turns prompts into conditions, for models that read more than one of each or whose null is not zero.

    `options` are keywords of a request, such as a size that the network is told.
    """

    @property
    def options(self) -> tuple[str, ...]:
        """Names of its options."""

    def read(self, prompts: Sequence[str], *, negative: bool = False, **options: Any) -> Rows:
        """Conditions of these prompts; `negative` of prompts to steer away from."""

    def absent(self, **options: Any) -> Rows:
        """Conditions of no prompt, `[1 ...]`, where their null is not zero."""

    def overflow(self, prompt: str) -> str:
        """What is lost of a prompt that is too long, to complete "the prompt has ..."; empty if it fits."""


class TextReader:
    """Reader whose only condition is "text", the output of a text encoder."""

    options = ()

    def __init__(self, encoder: TextEncoder):
        self.encoder = encoder

    def read(self, prompts: Sequence[str], *, negative: bool = False, **options: Any) -> Rows:
        """The encoded prompts."""
        return {"text": self.encoder.encode(list(prompts))}

    def absent(self, **options: Any) -> Rows:
        """Nothing: the null is zero."""
        return {}

    def overflow(self, prompt: str) -> str:
        """What is lost of a prompt that is too long."""
        return self.encoder.overflow(prompt)


def read(
    reader: PromptReader, prompts: Sequence[str], rows: int, *, negative: bool = False, **options: Any
) -> dict[str, np.ndarray]:
    """Conditions of so many samples from one prompt or several in turn; says what is lost of long ones."""
    for prompt in prompts:
        if cut := reader.overflow(prompt):
            print(f"warning: the prompt has {cut}", flush=True)
    found = reader.read(prompts, negative=negative, **options)
    return {name: _for_each(values, rows) for name, values in found.items()}


def _for_each(values: np.ndarray, rows: int) -> np.ndarray:
    return repeated(values, rows) if len(values) == 1 else np.resize(values, (rows, *values.shape[1:]))


def parts(
    reader: PromptReader, prompt: str | Sequence[str], rows: int, **options: Any
) -> list[tuple[dict[str, np.ndarray], bool]]:
    """The conditions of the parts of a prompt, and whether each is negated; those that are not come first.

    "a AND b AND NOT c" has three parts; a list of prompts, one for each sample, is one.
    """
    if isinstance(prompt, str) and not prompt.strip():
        return []
    if not isinstance(prompt, str):
        return [(read(reader, prompt, rows, **options), False)]
    found = []
    for part in re.split(r"\s+AND\s+", prompt.strip()):
        negated = part.strip().startswith("NOT ")
        found.append((read(reader, [part.strip().removeprefix("NOT ").strip()], rows, **options), negated))
    return sorted(found, key=lambda part: part[1])
