"""Settings that cannot work, refused before anything is built."""

import numbers
from typing import Any

from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.models.embeddings import FUSIONS
from guided_diffusion_jax.models.encoder import RESAMPLERS
from guided_diffusion_jax.models.layers import INJECTIONS
from guided_diffusion_jax.models.plan import Backbone, Stage, encoder_plan, heights, middle_plan
from guided_diffusion_jax.models.signals import KINDS, Conditioned, encoders, taken, token_heights


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


def check_conditions(network: Conditioned, image_size: int) -> None:
    """Raises `InputError` for conditions that cannot be taken, or cannot enter where `inject` wants them.

    Args:
        network: its backbone has passed `check_backbone`.
        image_size: height and width of the images.
    """
    for key in ("num_classes", "map_channels", "known_channels"):
        check_whole(getattr(network, key), f"model.{key}", least=0)
    for size in network.attribute_sizes:
        check_whole(size, "model.attribute_sizes", least=1)
    choose(FUSIONS, network.fusion, "model.fusion")

    there, takes = heights(network, image_size), taken(network)
    for pixels, kinds in network.inject:
        require(
            pixels in there,
            f"model.inject={pixels!r} is the height of no feature map, in pixels; use {', '.join(map(str, there))}.",
        )
        for kind in kinds:
            choose(dict.fromkeys(KINDS), kind, "model.inject")
            require(
                kind in takes,
                f"model.inject={kind!r} at {pixels} pixels, but the network takes {', '.join(takes) or 'nothing'}; "
                "leave it out.",
            )

    readers = encoders(network)
    for kind, encoder in readers.items():
        encoder.check(f"model.{kind}")
        for stage in (*encoder_plan(network, image_size), *middle_plan(network, image_size)):
            if stage.kind == "block" and stage.pixels in token_heights(network, kind, image_size):
                _check_heads(network, stage, "model")
    widths = {kind: encoder.width for kind, encoder in readers.items()}
    require(
        len(set(widths.values())) <= 1,
        f"model.style_width={widths.get('style')} is not model.text_width={widths.get('text')}, but their tokens are "
        "looked at together; use one width.",
    )


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
