"""Settings that cannot work, refused before anything is built."""

import math
import numbers
from typing import Any

from guided_diffusion_jax.conditions import CONDITIONS, condition_specs
from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.models.encoder import RESAMPLERS
from guided_diffusion_jax.models.layers import TIME_INJECTIONS
from guided_diffusion_jax.models.placement import FUSIONS, token_resolutions
from guided_diffusion_jax.models.plan import (
    Backbone,
    Stage,
    UNetSettings,
    encoder_plan,
    heads,
    middle_plan,
    resolutions,
)


def check_backbone(backbone: Backbone, image_shape: tuple[int, int, int], *, part: str = "model") -> None:
    """Raises `InputError` for settings that cannot work with these images.

    Args:
        backbone: the settings.
        image_shape: (h, w, c) of the images.
        part: prefix of the settings in messages.
    """
    for key in ("width", "num_res_blocks", "norm_groups"):
        check_whole(getattr(backbone, key), f"{part}.{key}", least=1)
    check_whole(backbone.head_width, f"{part}.head_width", least=0)
    for size in image_shape[:2]:
        check_whole(size, "data.image_size", least=1)
    for pixels in backbone.attention_resolutions:
        check_whole(pixels, f"{part}.attention_resolutions", least=1)
    mults = backbone.channel_mult
    require(
        len(mults) > 0 and all(isinstance(m, numbers.Real) and int(m * backbone.width) >= 1 for m in mults),
        f"{part}.channel_mult={mults!r} must hold a positive number for each level; for example (1, 2, 2).",
    )
    require(
        isinstance(backbone.dropout, numbers.Real) and 0 <= backbone.dropout < 1,
        f"{part}.dropout={backbone.dropout!r} must lie in [0, 1); 0 turns dropout off.",
    )
    _check_levels(backbone, part)
    choose(TIME_INJECTIONS, backbone.time_injection, f"{part}.time_injection")
    choose(RESAMPLERS, backbone.resample, f"{part}.resample")

    factor = 2 ** (len(mults) - 1)
    for size in image_shape[:2]:
        below = size // factor * factor
        remedy = f"use {below} or {below + factor}" if below else f"use {factor}"
        require(
            size % factor == 0,
            f"data.image_size={size} is not divisible by {factor}, the U-Net's factor for {len(mults)} levels; "
            f"{remedy}.",
        )
    for stage in (*encoder_plan(backbone, image_shape[0]), *middle_plan(backbone, image_shape[0])):
        if stage.heads is not None:
            _check_heads(backbone, stage, part)


def check_conditions(unet: UNetSettings, image_shape: tuple[int, int, int]) -> None:
    """Raises `InputError` for conditions that cannot be taken, or cannot enter where `condition_resolutions` says.

    Args:
        unet: its backbone has passed `check_backbone`.
        image_shape: (h, w, c) of the images.
    """
    for key in ("num_classes", "control_channels", "masked_channels"):
        check_whole(getattr(unet, key), f"model.{key}", least=0)
    for size in unet.attribute_sizes:
        check_whole(size, "model.attribute_sizes", least=1)
    choose(FUSIONS, unet.class_fusion, "model.class_fusion")

    key, image_size, listed = "model.condition_resolutions", image_shape[0], dict(unet.condition_resolutions)
    encoders = {name: kind.encoder for name, kind in CONDITIONS.items() if kind.encoder is not None}
    taken = [name for name in condition_specs(unet, image_shape) if name in encoders]
    for name, pixels in listed.items():
        choose(encoders, name, key)
        require(
            name in taken, f"{key} has {name!r}, but the network takes {', '.join(taken) or 'nothing'}; leave it out."
        )
        for height in pixels:
            require(
                height in resolutions(unet, image_size),
                f"{key}={height!r} for {name!r} is the height of no feature map, in pixels; use "
                f"{', '.join(map(str, resolutions(unet, image_size)))}.",
            )

    widths = {}
    for name in taken:
        if CONDITIONS[name].place != "tokens":
            continue
        encoder, setting = encoders[name](unet), f"model.{name.removesuffix('_image')}"
        if hasattr(encoder, "check"):
            encoder.check(setting)
        if hasattr(encoder, "width"):
            widths[f"{setting}_width"] = encoder.width
        for stage in (*encoder_plan(unet, image_size), *middle_plan(unet, image_size)):
            if stage.kind == "block" and stage.pixels in listed.get(name, token_resolutions(unet, image_size)):
                _check_heads(unet, stage, "model")
    require(
        len(set(widths.values())) <= 1,
        f"{' and '.join(f'{name}={width}' for name, width in widths.items())} differ, but cross-attention sees their "
        "tokens together; use one width.",
    )


def check_whole(value: Any, key: str, *, least: int) -> None:
    """Raises `InputError` unless `value` is a whole number, `least` or more."""
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    require(integral and value >= least, f"{key}={value!r} must be a whole number, {least} or more.")


def _check_levels(backbone: Backbone, part: str) -> None:
    """Raises `InputError` for settings of attention that are not one number for each level."""
    levels, many = len(backbone.channel_mult), backbone.num_heads
    for key, values, least in (
        ("num_heads", many if isinstance(many, tuple) else (many,) * levels, 1),
        ("transformer_depth", backbone.transformer_depth or (0,) * levels, 0),
        ("middle_depth", (backbone.middle_depth,) * levels, 0),
    ):
        require(len(values) == levels, f"{part}.{key}={values!r} must hold a number for each of the {levels} levels.")
        for value in values:
            check_whole(value, f"{part}.{key}", least=least)


def _check_heads(backbone: Backbone, stage: Stage, part: str) -> None:
    key = "head_width" if backbone.head_width else "num_heads"
    value, c = backbone.head_width or heads(backbone, stage.level), stage.channels
    if c % value == 0:
        return
    small = [d for d in range(1, math.isqrt(c) + 1) if c % d == 0]
    divisors = sorted({*small, *(c // d for d in small)})
    near = [d for d in divisors if d < value][-1:] + [d for d in divisors if d > value][:1]
    raise InputError(
        f"{part}.{key}={value} does not divide the {c} channels that attend at {stage.pixels} pixels ({stage.name}); "
        f"use {' or '.join(map(str, near))}."
    )
