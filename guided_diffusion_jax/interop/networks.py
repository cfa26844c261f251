"""Whole networks from files of ADM's weights, and to them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from etils import epath

from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.interop import infer
from guided_diffusion_jax.interop.convert import Network, params_from_state_dict, state_dict_from_params
from guided_diffusion_jax.interop.files import format_of
from guided_diffusion_jax.models import classifier as classifiers
from guided_diffusion_jax.models import unet as unets
from guided_diffusion_jax.models.classifier import Classifier
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.typing import Params

CONDITIONS = ("attribute_sizes", "text", "style", "map_channels", "known_channels", "inject")
"""Fields of ours that ADM's networks have not."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def load(path: epath.PathLike, config: Any) -> tuple[Network, Params]:
    """A network of guided-diffusion and its weights, as our module and parameters (float32).

    The file decides whether it is a U-Net, an upsampler or a classifier. What the config leaves out is inferred from
    the tensors; what it says is checked against them. It must say `data.image_size` and the heads, `head_width` or
    `num_heads`, which tensors do not tell. `attention_order` ("legacy" where it is left out, or "new") is
    guided-diffusion's `use_new_attention_order`.

    Args:
        path: `.pt`, `.pth` or `.safetensors`. It is read one tensor at a time; nothing in it is run.
        config: like `configs/imagenet64.py`, or a nested dict with some of its keys: `data`, `diffusion.variance`, and
            `model` for U-Nets and upsamplers, `classifier` for classifiers.

    Raises:
        InputError: the file is damaged or no state dict, or its tensors do not fit the config; it names them.

    >>> load("missing.pt", {"data": {"image_size": 64}, "model": {"head_width": 64}})
    Traceback (most recent call last):
    guided_diffusion_jax.errors.InputError: missing.pt is no file
    """
    config = _plain(config)
    image_size = _image_size(config)
    with format_of(path).opened(path) as tensors:
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        part = "classifier" if infer.is_classifier(shapes) else "model"
        chosen = _plain(config.get(part, {}))
        told = infer.settings(shapes, image_size, chosen.get("num_res_blocks"))
        fields = told | _chosen(chosen, part)
        if part == "model" and "variance" in config.get("diffusion", {}):
            fields["out_channels"] = _channels(config) * (1 + (config["diffusion"]["variance"] == "learned_range"))
        order = chosen.get("attention_order", "legacy")
        module = _classifier(fields, image_size) if part == "classifier" else _unet(fields, config, shapes)
        try:
            return module, params_from_state_dict(module, tensors, image_size=image_size, attention_order=order)
        except InputError as error:
            raise InputError(f"{path}: {error}{_hint(part, fields, told, image_size)}") from None


def save(path: epath.PathLike, module: Network, params: Params, config: Any) -> None:
    """Writes a file that guided-diffusion loads: the inverse of `load`, one tensor at a time.

    Args:
        path: `.pt`, `.pth` or `.safetensors`.
        module: a U-Net, an upsampler or a classifier.
        params: its parameters. The null class, which ADM has not, is left out.
        config: as for `load`; it gives `data.image_size` and the part's `attention_order`.
    """
    config = _plain(config)
    part = "classifier" if isinstance(module, Classifier) else "model"
    order = _plain(config.get(part, {})).get("attention_order", "legacy")
    weights = state_dict_from_params(module, params, image_size=_image_size(config), attention_order=order)
    format_of(path).write(path, weights)


def _plain(config: Any) -> dict[str, Any]:
    """A ConfigDict or a mapping as a dict."""
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def _image_size(config: Mapping[str, Any]) -> int:
    size = config.get("data", {}).get("image_size")
    require(size is not None, "data.image_size is missing: the weights do not tell it; give the size in pixels.")
    return size


def _channels(config: Mapping[str, Any]) -> int:
    """Of an image; ADM's have 3."""
    return config.get("data", {}).get("channels") or 3


def _chosen(chosen: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The module's fields that the config gives; -1 classes are left to the weights."""
    heads = [key for key in ("head_width", "num_heads") if key in chosen]
    require(bool(heads), f"{part}.head_width is missing: the weights do not tell it; give it, or {part}.num_heads.")
    network = Classifier if part == "classifier" else UNet
    known = {field.name for field in dataclasses.fields(network)} - {"parent", "name", "out_channels", *CONDITIONS}
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in chosen.items() if key in known}
    if fields.get("num_classes") == -1:
        del fields["num_classes"]
    if "dtype" in fields:
        fields["dtype"] = choose(DTYPES, fields["dtype"], f"{part}.dtype")
    return ({"head_width": 0} if heads == ["num_heads"] else {}) | fields


def _require_told(fields: Mapping[str, Any], part: str, *others: str) -> None:
    """Nothing may silently take a module's default."""
    for key in ("width", "num_res_blocks", "channel_mult", "attention_resolutions", "injection", *others):
        by = infer.TOLD_BY[key]
        require(key in fields, f"{part}.{key} is not in the config, and the file does not tell it by {by}; give it.")


def _classifier(fields: Mapping[str, Any], image_size: int) -> Classifier:
    _require_told(fields, "classifier", "pool", "num_classes")
    classifier = Classifier(**fields)
    classifiers.check(classifier, image_size)
    return classifier


def _unet(fields: Mapping[str, Any], config: Mapping[str, Any], shapes: infer.Shapes) -> UNet | SuperResolution:
    _require_told(fields, "model", "out_channels")
    unet = UNet(**fields)
    unets.check(unet, _image_size(config))
    channels = _channels(config)
    seen = shapes.get("input_blocks.0.0.weight", (0, channels))[1]
    small = config.get("data", {}).get("low_res_size")
    upsampler = small > 0 if small is not None else seen == 2 * channels
    wanted, kind = (2 * channels, "an upsampler") if upsampler else (channels, "a U-Net")
    require(seen == wanted, f"the weights see {seen} channels; {kind} for data.channels={channels} sees {wanted}.")
    return SuperResolution(unet) if upsampler else unet


def _hint(part: str, fields: Mapping[str, Any], told: Mapping[str, Any], image_size: int) -> str:
    """What the tensors tell that the config has otherwise."""

    def same(key: str) -> bool:
        if key != "attention_resolutions":
            return fields[key] == told[key]
        reached = {image_size >> level for level in range(len(fields["channel_mult"]))}
        return reached.intersection(fields[key]) == set(told[key])

    differing = [f"{part}.{key}={told[key]!r}, not {fields[key]!r}" for key in told if not same(key)]
    return f" By their shapes the weights have {'; '.join(differing)}." if differing else ""
