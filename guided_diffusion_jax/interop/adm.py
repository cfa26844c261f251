"""OpenAI's guided-diffusion (ADM): its networks as our modules, its weights as our parameters, and back."""

from guided_diffusion_jax.interop.arguments import (
    MODULES,
    classifier_from_args,
    super_resolution_from_args,
    unet_from_args,
)
from guided_diffusion_jax.interop.convert import adm_shapes, params_from_state_dict, state_dict_from_params
from guided_diffusion_jax.interop.layout import ORDERS, VECTOR, rows
from guided_diffusion_jax.interop.networks import load, save

__all__ = [
    "MODULES",
    "ORDERS",
    "VECTOR",
    "adm_shapes",
    "classifier_from_args",
    "load",
    "params_from_state_dict",
    "rows",
    "save",
    "state_dict_from_params",
    "super_resolution_from_args",
    "unet_from_args",
]
