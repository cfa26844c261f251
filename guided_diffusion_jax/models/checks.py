"""Settings that cannot work, refused before anything is built."""

import numbers
from typing import Any

from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.models.encoder import RESAMPLERS
from guided_diffusion_jax.models.layers import INJECTIONS
from guided_diffusion_jax.models.plan import Backbone, Stage, encoder_plan, middle_plan


def check_backbone(backbone: Backbone, image_size: int, *, part: str = "model") -> None:
    """Raises `InputError` for settings that cannot work with square images of this size.

    Args:
        backbone: the settings.
        image_size: height and width of the images.
        part: the config's part that the messages name.
    """
    for key in ("width", "num_res_blocks", "num_heads"):
        check_whole(getattr(backbone, key), f"{part}.{key}", least=1)
    check_whole(backbone.head_width, f"{part}.head_width", least=0)
    check_whole(image_size, "data.image_size", least=1)
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
    choose(INJECTIONS, backbone.injection, f"{part}.injection")
    choose(RESAMPLERS, backbone.resample, f"{part}.resample")

    factor = 2 ** (len(mults) - 1)
    below = image_size // factor * factor
    remedy = f"use {below} or {below + factor}" if below else f"use {factor}"
    require(
        image_size % factor == 0,
        f"data.image_size={image_size} is not divisible by {factor}, the U-Net's factor for {len(mults)} levels; "
        f"{remedy}.",
    )
    for stage in (*encoder_plan(backbone, image_size), *middle_plan(backbone, image_size)):
        if stage.heads is not None:
            _check_heads(backbone, stage, part)


def check_whole(value: Any, key: str, *, least: int) -> None:
    """Raises `InputError` unless `value` is a whole number, `least` or more."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    require(whole and value >= least, f"{key}={value!r} must be a whole number, {least} or more.")


def _check_heads(backbone: Backbone, stage: Stage, part: str) -> None:
    key = "head_width" if backbone.head_width else "num_heads"
    value, c = getattr(backbone, key), stage.channels
    divisors = [d for d in range(1, c + 1) if c % d == 0]
    near = [d for d in divisors if d < value][-1:] + [d for d in divisors if d > value][:1]
    require(
        c % value == 0,
        f"{part}.{key}={value} does not divide the {c} channels that attend at {stage.pixels} pixels ({stage.name}); "
        f"use {' or '.join(map(str, near))}.",
    )
