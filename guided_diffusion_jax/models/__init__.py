"""Models. Names are imported when they are first used, so that `conditions` can use parts of models."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guided_diffusion_jax.models.autoencoder import AutoencoderKL
    from guided_diffusion_jax.models.classifier import Classifier
    from guided_diffusion_jax.models.clip import ClipText
    from guided_diffusion_jax.models.controlnet import ControlNet, ControlNetModel, branch_from
    from guided_diffusion_jax.models.embeddings import TextTimeEmbedding
    from guided_diffusion_jax.models.image_encoder import ImageEncoder
    from guided_diffusion_jax.models.registry import MODELS, check, create, describe, init_params, num_classes
    from guided_diffusion_jax.models.super_resolution import SuperResolution
    from guided_diffusion_jax.models.text import ByteEncoder, ContextEncoder, FeatureEncoder
    from guided_diffusion_jax.models.unet import UNet

_MODULES = {
    "autoencoder": ("AutoencoderKL",),
    "classifier": ("Classifier",),
    "clip": ("ClipText",),
    "controlnet": ("ControlNet", "ControlNetModel", "branch_from"),
    "embeddings": ("TextTimeEmbedding",),
    "image_encoder": ("ImageEncoder",),
    "registry": ("MODELS", "check", "create", "describe", "init_params", "num_classes"),
    "super_resolution": ("SuperResolution",),
    "text": ("ByteEncoder", "ContextEncoder", "FeatureEncoder"),
    "unet": ("UNet",),
}

__all__ = [
    "MODELS", "AutoencoderKL", "ByteEncoder", "Classifier", "ClipText", "ContextEncoder", "ControlNet",
    "ControlNetModel", "FeatureEncoder", "ImageEncoder", "SuperResolution", "TextTimeEmbedding", "UNet",
    "branch_from", "check", "create", "describe", "init_params", "num_classes",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
