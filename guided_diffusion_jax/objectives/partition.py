"""Parameters that are trained and parameters that stay as they are, by a predicate on their paths."""

from collections.abc import Callable

from flax.traverse_util import flatten_dict as flatten_params
from flax.traverse_util import unflatten_dict as unflatten_params

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.typing import Params

__all__ = ["AUXILIARY", "Trainable", "flatten_params", "merge", "network", "split", "unflatten_params"]

Trainable = Callable[[tuple[str, ...]], bool]
"""Whether the parameter at a path, such as ("encoder", "down_0_0", "res", "conv_1", "kernel"), is trained."""


AUXILIARY = "auxiliary"
"""First part of the paths of parameters that an objective trains along: always trained, and no part of the network."""


def network(params: Params) -> Params:
    """Parameters of the network alone, without those that an objective trains along."""
    return {name: value for name, value in params.items() if name != AUXILIARY} if AUXILIARY in params else params


def split(params: Params, trainable: Trainable | None) -> tuple[Params, Params]:
    """Two nested dicts: those that are trained, and the others. None trains all.

    Raises:
        InputError: nothing is trained.
    """
    if trainable is None:
        return params, {}
    flat = flatten_params(params)
    trained = {path: value for path, value in flat.items() if path[0] == AUXILIARY or trainable(path)}
    require(bool(trained), f"trainable selects none of {len(flat)} parameters; paths look like {next(iter(flat))}")
    return unflatten_params(trained), unflatten_params({path: flat[path] for path in flat.keys() - trained.keys()})


def merge(params: Params, other: Params) -> Params:
    """Both nested dicts as one; where both have a value it is that of `other`."""
    if not other:
        return params
    return unflatten_params({**flatten_params(params), **flatten_params(other)})
