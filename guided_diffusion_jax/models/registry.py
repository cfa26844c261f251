"""The table of models: descriptions that JSON can hold, models from them, checks and fresh parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from guided_diffusion_jax.conditions import ImageShape, condition_specs, nulls, setting
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.models import autoencoder
from guided_diffusion_jax.models.autoencoder import AutoencoderKL
from guided_diffusion_jax.models.classifier import Classifier
from guided_diffusion_jax.models.clip import ClipText
from guided_diffusion_jax.models.controlnet import ControlNet, ControlNetModel
from guided_diffusion_jax.models.embeddings import TextTimeEmbedding
from guided_diffusion_jax.models.image_encoder import ImageEncoder
from guided_diffusion_jax.models.lora import LoraUNet
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.text import ByteEncoder, ContextEncoder, FeatureEncoder
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.typing import Params

MODELS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "super_resolution": SuperResolution,
    "controlnet": ControlNet,
    "lora": LoraUNet,
    "classifier": Classifier,
    "autoencoder_kl": AutoencoderKL,
    "clip_text": ClipText,
    "controlnet_model": ControlNetModel,
    "byte_encoder": ByteEncoder,
    "feature_encoder": FeatureEncoder,
    "context_encoder": ContextEncoder,
    "text_time_embedding": TextTimeEmbedding,
    "image_encoder": ImageEncoder,
}
"""Models, and the encoders that are settings of models, by name."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
"""Choices of `dtype`."""


def describe(module: nn.Module) -> dict[str, Any]:
    """Name and settings of a model of `MODELS`, for JSON; modules inside it are described as well.

    >>> describe(ByteEncoder(width=32))
    {'name': 'byte_encoder', 'width': 32, 'depth': 2, 'heads': 4, 'length': 64, 'dtype': 'float32'}
    """
    names = {kind.__name__: name for name, kind in MODELS.items()}
    name = choose(names, type(module).__name__, "model")
    return {"name": name} | {key: _plain(key, getattr(module, key)) for key in _settings(type(module))}


def create(description: Mapping[str, Any]) -> nn.Module:
    """The inverse of `describe`. Settings that are left out have their defaults.

    Raises:
        InputError: a name or a setting that there is not.
    """
    kind = choose(MODELS, description["name"], "model.name")
    settings = {key: value for key, value in description.items() if key != "name"}
    for key in settings:
        choose(_settings(kind), key, description["name"])
    return kind(**{key: _setting(key, value) for key, value in settings.items()})


def check(model: nn.Module, image_shape: ImageShape) -> None:
    """Raises `InputError` for settings that cannot work with images `(h, w, c)`, where the model has a `check`."""
    if hasattr(model, "check"):
        model.check(image_shape)


def num_classes(model: nn.Module) -> int:
    """Number of classes that a model, or the U-Net inside it, takes or predicts; 0 for none."""
    return setting(model, "num_classes") or 0


def init_params(model: nn.Module, key: Key[Array, ""], image_shape: ImageShape) -> Params:
    """Fresh parameters for images `(h, w, c)`; under `jax.eval_shape` their shapes alone."""
    if isinstance(model, AutoencoderKL):
        return autoencoder.init_params(model, key)
    inputs: tuple[Any, ...] = (jnp.zeros((1, *image_shape)), jnp.zeros(1))
    if not isinstance(model, Classifier):
        inputs += (jax.tree.map(jnp.asarray, nulls(condition_specs(model, image_shape), 1)),)
    return model.init(key, *inputs)["params"]


def _settings(kind: type[nn.Module]) -> dict[str, None]:
    """Names of a module's fields, without Flax's own."""
    return {field.name: None for field in dataclasses.fields(kind) if field.name not in ("parent", "name")}


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, nn.Module):
        return describe(value)
    if isinstance(value, tuple | list):
        return [_plain("", item) for item in value]
    return jnp.dtype(value).name if key == "dtype" else value


def _setting(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return create(value)
    if isinstance(value, tuple | list):
        return tuple(_setting("", item) for item in value)
    return choose(DTYPES, value, "dtype") if key == "dtype" and isinstance(value, str) else value
