"""Networks. `MODELS` is the table of modules that a description or a configuration can name."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from guided_diffusion_jax.conditions import condition_specs, nulls, setting
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.models.classifier import Classifier
from guided_diffusion_jax.models.controlnet import ControlNet
from guided_diffusion_jax.models.image_encoder import ImageEncoder
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.text import ByteEncoder, FeatureEncoder
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.typing import Params

MODELS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "super_resolution": SuperResolution,
    "controlnet": ControlNet,
    "classifier": Classifier,
    "byte_encoder": ByteEncoder,
    "feature_encoder": FeatureEncoder,
    "image_encoder": ImageEncoder,
}
"""Modules by name."""

__all__ = [
    "MODELS",
    "ByteEncoder",
    "Classifier",
    "ControlNet",
    "FeatureEncoder",
    "ImageEncoder",
    "SuperResolution",
    "UNet",
    "check",
    "create",
    "describe",
    "init_params",
    "num_classes",
]


def describe(module: nn.Module) -> dict[str, Any]:
    """JSON-able description of a module and those inside it, from which `create` makes an equal one.

    Raises:
        InputError: the module is of no kind in `MODELS`; add it there.
    """
    names = {kind: name for name, kind in MODELS.items()}
    name = choose({kind.__name__: name for kind, name in names.items()}, type(module).__name__, "model")
    fields = [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")]
    return {"name": name, **{field: _describe_value(getattr(module, field)) for field in fields}}


def _describe_value(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return describe(value)
    if isinstance(value, tuple | list):
        return [_describe_value(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return jnp.dtype(value).name


def create(description: dict[str, Any]) -> nn.Module:
    """Module of a description.

    >>> create({"name": "unet", "width": 32, "dtype": "bfloat16"}).width
    32
    """
    kind = choose(MODELS, description["name"], "model.name")
    return kind(**{key: _create_value(key, value) for key, value in description.items() if key != "name"})


def _create_value(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return create(value)
    if isinstance(value, list):
        return tuple(_create_value(key, one) for one in value)
    return getattr(jnp, value) if key == "dtype" else value


def check(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Raises `InputError` for settings that cannot work with images `(h, w, c)`, before anything is compiled."""
    checks = getattr(model, "check", None)
    if checks is not None:
        checks(tuple(image_shape))


def num_classes(model: nn.Module) -> int:
    """Number of classes that a model, or the U-Net inside it, takes or predicts; 0 for none."""
    return setting(model, "num_classes") or 0


def init_params(model: nn.Module, key: Key[Array, ""], image_shape: tuple[int, int, int]) -> Params:
    """Fresh parameters for images `(h, w, c)`; under `jax.eval_shape` their shapes alone."""
    x, time = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    if isinstance(model, Classifier):
        return model.init(key, x, time)["params"]
    conditions = jax.tree.map(jnp.asarray, nulls(condition_specs(model, image_shape), 1))
    return model.init(key, x, time, conditions)["params"]
