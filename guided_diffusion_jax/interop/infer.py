"""The architecture of an ADM network, as far as its tensors' names and shapes tell it."""

from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

TOLD_BY = {
    "width": "time_embed.0.weight",
    "num_res_blocks": "where its levels end",
    "channel_mult": "input_blocks.*.0.out_layers.3.weight",
    "attention_resolutions": "input_blocks.*.1.qkv.weight",
    "injection": "input_blocks.1.0.emb_layers.1.weight",
    "out_channels": "out.2.weight",
    "pool": "out.*",
    "num_classes": "out.*",
}
"""Settings and the tensors that tell them."""


def is_classifier(shapes: Shapes) -> bool:
    """Whether there is no decoder."""
    return not any(name.startswith("output_blocks.") for name in shapes)


def settings(shapes: Shapes, image_size: int, num_res_blocks: int | None = None) -> dict[str, Any]:
    """The fields of `UNet` or `Classifier` that can be told; what cannot be, through a missing tensor say, is left out.

    Heads are never told. Nor are, in a classifier with `resample` "block", residual blocks from down-samplers: there
    `num_res_blocks` must be given.

    Args:
        shapes: of ADM's tensors by name.
        image_size: of the images that the network sees; attention is told by level.
        num_res_blocks: used where it cannot be told.
    """
    told: dict[str, Any] = {"width": _size(shapes, "time_embed.0.weight", 1)}
    told |= _output(shapes)
    count = _count(shapes, "input_blocks")
    down = next((i for i in range(count) if f"input_blocks.{i}.0.op.weight" in shapes), None)
    blocks = num_res_blocks if is_classifier(shapes) and down is None else _blocks(shapes, down)
    told["num_res_blocks"] = blocks
    if blocks and count % (blocks + 1) == 0:
        told |= _levels(shapes, image_size, told["width"], [1 + i for i in range(0, count, blocks + 1)])
        if count > blocks + 1:
            told["resample"] = "block" if down is None else "conv"
    return {key: value for key, value in told.items() if value is not None}


def _size(shapes: Shapes, name: str, axis: int) -> int | None:
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else None


def _count(shapes: Shapes, part: str) -> int:
    """Blocks of a part, which are numbered from 0."""
    numbers = [name.split(".")[1] for name in shapes if name.startswith(f"{part}.")]
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def _blocks(shapes: Shapes, down: int | None) -> int | None:
    """Residual blocks a level: a down-sampler follows the first level's, an up-sampler ends the deepest level."""
    if down is not None:
        return down - 1
    count = _count(shapes, "output_blocks")
    ups = (k for k in range(count) for i in (1, 2) if f"output_blocks.{k}.{i}.in_layers.0.weight" in shapes)
    return next(ups, count - 1)


def _levels(shapes: Shapes, image_size: int, width: int | None, firsts: list[int]) -> dict[str, Any]:
    """Each level's channels and attention, and how the embedding enters; `firsts` are the levels' first blocks."""
    channels = [_size(shapes, f"input_blocks.{i}.0.out_layers.3.weight", 0) for i in firsts]
    told: dict[str, Any] = {
        "attention_resolutions": tuple(
            image_size >> level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in shapes
        )
    }
    if width and None not in channels:
        multiples = [c / width for c in channels if c is not None]
        told["channel_mult"] = tuple(int(m) if m == int(m) else m for m in multiples)
    projected = _size(shapes, f"input_blocks.{firsts[0]}.0.emb_layers.1.weight", 0)
    if projected and channels[0]:
        told["injection"] = {2 * channels[0]: "scale_shift", channels[0]: "add"}.get(projected)
    return told


def _output(shapes: Shapes) -> dict[str, Any]:
    """The pool and the classes of a classifier; the classes and the channels of a U-Net."""
    if not is_classifier(shapes):
        return {
            "num_classes": _size(shapes, "label_emb.weight", 0) or 0,
            "out_channels": _size(shapes, "out.2.weight", 0),
        }
    pools = {"out.2.c_proj.weight": "attention", "out.2.weight": "spatial", "out.3.weight": "spatial_v2"}
    for name, pool in pools.items():
        if name in shapes:
            pool = "adaptive" if len(shapes[name]) == 4 else pool
            return {"pool": pool, "num_classes": shapes[name][0]}
    return {}
