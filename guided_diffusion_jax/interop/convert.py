"""ADM's tensors to our parameters and back, one tensor at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.interop.layout import Row, rows
from guided_diffusion_jax.models.classifier import Classifier
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.typing import Conditions, Params

Network = UNet | SuperResolution | Classifier


def params_from_state_dict(
    module: Network, state_dict: Mapping[str, Any], *, image_size: int, attention_order: str
) -> Params:
    """ADM's weights as our parameters, float32: `module.apply({"params": params}, x, time, ...)`.

    Args:
        module: what `unet_from_args`, `super_resolution_from_args` or `classifier_from_args` gives.
        state_dict: names of ADM's tensors to arrays in torch's layout. Whatever has a `shape` and converts to a NumPy
            array will do, also half precision; each tensor is converted once, after all shapes have been checked.
        image_size: of the images that the network sees; it decides which blocks attend.
        attention_order: "new" where ADM's `use_new_attention_order` is True, "legacy" where it is False.

    Raises:
        InputError: for missing, extra or misshapen tensors; it names the first few of each.
    """
    network, wrap = _core(module)
    given = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    first = given.get("input_blocks.0.0.weight", ())
    sees = first[1] if len(first) == 4 else None  # only the number of input channels comes from the weights
    expected = adm_shapes(module, image_size=image_size, attention_order=attention_order, sees=sees)
    _refuse_misfits(given, expected)
    flat = {row.path: _ours(row, state_dict[row.name]) for row in rows(network, image_size, attention_order)}
    return wrap(unflatten_dict(flat))


def state_dict_from_params(
    module: Network, params: Params, *, image_size: int, attention_order: str
) -> dict[str, np.ndarray]:
    """The inverse of `params_from_state_dict`; the null class, which ADM has not, is left out.

    The arrays are views of the parameters where the layout allows it, and so they may be strided.
    """
    network, _ = _core(module)
    flat = flatten_dict(params["unet"] if isinstance(module, SuperResolution) else params)
    table = rows(network, image_size, attention_order)
    return {row.name: row.kind.theirs(np.asarray(flat[row.path])) for row in table}


def adm_shapes(
    module: Network, *, image_size: int, attention_order: str, sees: int | None = None
) -> dict[str, tuple[int, ...]]:
    """The names and shapes that a module's parameters have in ADM; nothing is computed.

    Args:
        module: as for `params_from_state_dict`.
        image_size: as there.
        attention_order: as there.
        sees: channels that the network sees; None is 3, and 6 for an upsampler.
    """
    network, _ = _core(module)
    channels = sees or (6 if isinstance(module, SuperResolution) else 3)
    x, time = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32), jnp.zeros(1)
    inputs = (x, time) if isinstance(network, Classifier) else (x, time, Conditions())
    ours = flatten_dict(jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"])
    table = list(rows(network, image_size, attention_order))
    unknown = set(ours) ^ {row.path for row in table}
    assert not unknown, f"the table and the module disagree on {sorted(unknown)}"
    return {row.name: row.kind.theirs(np.broadcast_to(np.float32(0), ours[row.path].shape)).shape for row in table}


def _ours(row: Row, tensor: Any) -> jax.Array:
    # Waiting here frees the file's copy of one tensor before the next is read.
    return jax.block_until_ready(jnp.asarray(row.kind.ours(np.asarray(tensor)), jnp.float32))


def _core(module: Network) -> tuple[UNet | Classifier, Callable[[Params], Params]]:
    """The network that ADM's names belong to, and what makes its parameters those of the whole module."""
    if isinstance(module, SuperResolution):
        return module.unet, lambda params: {"unet": params}
    return module, lambda params: params


def _refuse_misfits(given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [name for name in expected if name in given and given[name] != expected[name]]
    misfits = {
        "missing": [name for name in expected if name not in given],
        "extra": [name for name in given if name not in expected],
        "misshapen": [f"{name} {given[name]} instead of {expected[name]}" for name in wrong],
    }
    faults = [f"{len(names)} {fault} ({_first_few(names)})" for fault, names in misfits.items() if names]
    if faults:
        raise InputError(
            f"the state dict does not fit the network: {'; '.join(faults)}; "
            "give the arguments that the weights were trained with."
        )


def _first_few(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
