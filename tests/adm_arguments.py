"""The constructor arguments of ADM's networks to our modules."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.models.classifier import Classifier
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.unet import UNet

ARGUMENTS: dict[str, Any] = {
    "dropout": 0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "use_checkpoint": False,
    "num_heads": 1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "pool": "adaptive",
}
"""ADM's defaults of the arguments that matter here."""


def unet_from_args(args: Mapping[str, Any]) -> UNet:
    """Our U-Net for the constructor arguments of ADM's `UNetModel`.

    `use_fp16` is not carried over: the weights stay float32, and `unet.clone(dtype=jnp.bfloat16)` computes in bfloat16.

    Args:
        args: `image_size`, `model_channels`, `out_channels`, `num_res_blocks` and `attention_resolutions` (there:
            factors of down-sampling) must be present; the others have ADM's defaults.

    Raises:
        InputError: for arguments that ask for what our U-Net has not.
    """
    given = _complete(args)
    if given["num_head_channels"] == -1:
        _limit(given, "num_heads_upsample", (-1, None, given["num_heads"]))
    return UNet(num_classes=given["num_classes"] or 0, out_channels=given["out_channels"], **_backbone(given))


def super_resolution_from_args(args: Mapping[str, Any]) -> SuperResolution:
    """Our upsampler for the constructor arguments of ADM's `SuperResModel`; as `unet_from_args`."""
    return SuperResolution(unet_from_args(args))


def classifier_from_args(args: Mapping[str, Any]) -> Classifier:
    """Our classifier for the constructor arguments of ADM's `EncoderUNetModel`; as `unet_from_args`.

    ADM's `out_channels` is the number of classes. Its attention pool asks for `num_head_channels`.
    """
    given = _complete(args)
    require(
        given["pool"] != "attention" or given["num_head_channels"] != -1,
        "ADM's num_head_channels=-1 does not go with pool='attention'; give the channels of a head, for example 64.",
    )
    return Classifier(num_classes=given["out_channels"], pool=given["pool"], **_backbone(given))


MODULES: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "UNetModel": unet_from_args,
    "SuperResModel": super_resolution_from_args,
    "EncoderUNetModel": classifier_from_args,
}
"""ADM's class names, and what builds our counterpart from their arguments."""


def _complete(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with ADM's defaults for those left out."""
    needed = ("image_size", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions")
    absent = [key for key in needed if key not in args]
    require(not absent, f"ADM's arguments lack {', '.join(absent)}; give them as its constructor has them.")
    given = {**ARGUMENTS, **args}
    for key, allowed in {"dims": (2,), "conv_resample": (True,)}.items():
        _limit(given, key, allowed)
    return given


def _limit(given: Mapping[str, Any], key: str, allowed: tuple) -> None:
    require(given[key] in allowed, f"ADM's {key}={given[key]!r} has no counterpart here; only {allowed[0]} has.")


def _backbone(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Backbone`."""
    factors = {2**level for level in range(len(given["channel_mult"]))}.intersection(given["attention_resolutions"])
    return {
        "width": given["model_channels"],
        "channel_mult": tuple(given["channel_mult"]),
        "num_res_blocks": given["num_res_blocks"],
        "attention_resolutions": tuple(given["image_size"] // factor for factor in sorted(factors)),
        "head_width": max(given["num_head_channels"], 0),
        "num_heads": given["num_heads"],
        "dropout": float(given["dropout"]),
        "time_injection": "scale_shift" if given["use_scale_shift_norm"] else "add",
        "resample": "block" if given["resblock_updown"] else "conv",
        "remat": bool(given["use_checkpoint"]),
    }
