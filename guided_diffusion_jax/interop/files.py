"""Files of weights, by their ending."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from etils import epath

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.interop import pt, safetensors
from guided_diffusion_jax.interop.tensors import Stored


class Format(NamedTuple):
    """How one kind of file is read and written; both take a path, `write` a state dict as well."""

    opened: Callable[[epath.PathLike], AbstractContextManager[dict[str, Stored]]]
    write: Callable[[epath.PathLike, Mapping[str, Any]], None]


FORMATS = {
    ".pt": Format(pt.opened, pt.write),
    ".pth": Format(pt.opened, pt.write),
    ".safetensors": Format(safetensors.opened, safetensors.write),
}
"""Endings of files."""


def format_of(path: epath.PathLike) -> Format:
    """Raises `InputError` for an ending that is none of `FORMATS`."""
    return choose(FORMATS, epath.Path(path).suffix, f"the ending of {path}")
