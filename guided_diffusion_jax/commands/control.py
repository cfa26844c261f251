"""The base that a control branch is trained on: another run, whose parameters stay as they are."""

from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax.commands import config as configs
from guided_diffusion_jax.commands import networks, sample
from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.typing import Params

TOLD = ("image_size", "channels", "low_res_size", "attributes", "attribute_values", "text", "style")
"""Keys of `data` that decide what a network is told; a branch must have its base's."""


def with_base(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """The config with the network, the diffusion and the conditions of `control.base`, where there is a base.

    Its data and `data.map` remain its own. A run that has begun holds them itself, so that its base may be gone.

    Raises:
        InputError: there is no such run, it sees a map already, or there is no map for the branch.
    """
    if not config.control.base:
        return config
    path, begun, merged = config.control.base, configs.stored(workdir), config.copy_and_resolve_references()
    require(bool(config.data.map), f"control.base={path} needs data.map: what the branch shall obey")
    if begun is not None and begun.control.base == path:
        base = begun
    else:
        base = _stored(path)
        require(not base.data.map, f"control.base={path} sees data.map={base.data.map!r} already; give one without")
        require(not base.control.base, f"control.base={path} has a branch itself; give its base")
    merged.model, merged.diffusion = base.model, base.diffusion
    merged.data.update({key: base.data[key] for key in TOLD})
    return merged


def load(config: ConfigDict) -> Params:
    """The base's newest averaged parameters as the frozen part of a branch's; nothing without a base."""
    path = config.control.base
    if not path:
        return {}
    base = _stored(path)
    params, step = sample.averaged(networks.network(base), base, epath.Path(path))
    print(f"control.base={path}: frozen as it is at step {step}", flush=True)
    return {"unet": params}


def _stored(path: str) -> ConfigDict:
    found = configs.stored(epath.Path(path))
    if found is None:
        raise InputError(f"control.base={path} holds no config.json; give the folder of a trained run")
    return found
