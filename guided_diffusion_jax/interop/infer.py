"""What the names and shapes of tensors tell about a network: whether it is ADM's, its settings, which published one."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from guided_diffusion_jax.errors import require, shown
from guided_diffusion_jax.interop import foreign, limits

Shapes = Mapping[str, tuple[int, ...]]


class Published(NamedTuple):
    """One of OpenAI's published networks, with the settings that its tensors do not tell."""

    kind: str
    image_size: int
    width: int
    channel_mult: tuple[int | float, ...]
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    head_width: int = 64  # 0: num_heads heads
    num_heads: int = 4
    attention_order: str = "legacy"
    schedule: str = "linear"


PUBLISHED = (
    Published("unet", 64, 192, (1, 2, 3, 4), 3, attention_order="new", schedule="cosine"),
    Published("unet", 128, 256, (1, 1, 2, 3, 4), head_width=0),
    Published("unet", 256, 256, (1, 1, 2, 2, 4, 4)),
    Published("unet", 512, 256, (0.5, 1, 1, 2, 2, 4, 4)),
    Published("super_resolution", 256, 192, (1, 1, 2, 2, 4, 4), head_width=0),
    Published("super_resolution", 512, 192, (1, 1, 2, 2, 4, 4), attention_resolutions=(32, 16)),
    Published("classifier", 64, 128, (1, 2, 3, 4), 4, schedule="cosine"),
    Published("classifier", 128, 128, (1, 1, 2, 3, 4)),
    Published("classifier", 256, 128, (1, 1, 2, 2, 4, 4)),
    Published("classifier", 512, 128, (0.5, 1, 1, 2, 2, 4, 4)),
)
"""The flags of https://github.com/openai/guided-diffusion."""


def is_adm(names: Iterable[str]) -> bool:
    """Whether tensors are named like a U-Net, an upsampler or a classifier of guided-diffusion."""
    names = list(names)
    known = all(any(name.startswith(part) for name in names) for part in ("input_blocks.", "middle_block."))
    return known and foreign.tensors(names) is None


def shared_prefix(names: Iterable[str]) -> str:
    """What all names have before ADM's own: "module." after torch's `DataParallel`.

    >>> shared_prefix(["module.input_blocks.0.0.weight", "module.out.0.bias"])
    'module.'
    """
    names = list(names)
    prefix = next((name.split("input_blocks.")[0] for name in names if "input_blocks." in name), "")
    own = foreign.tensors(names) is None and all(name.startswith(prefix) for name in names)
    return prefix if own else ""


def require_adm(names: Iterable[str]) -> None:
    """Raises `InputError` for names of another network's tensors; it says which network that may be."""
    names = list(names)
    require(bool(names), "it holds no tensors")
    found = foreign.tensors(names)
    first = ", ".join(map(shown, names[:3]))
    guess = f"it seems to be {found}" if found else f"its tensors are {first}{', ...' * (len(names) > 3)}"
    require(is_adm(names), f"it is no network of guided-diffusion: {guess}")


def kind(shapes: Shapes, channels: int = 3) -> str:
    """The key of `models`: "classifier" without a decoder; "super_resolution" where it also sees a small image."""
    if not any(name.startswith("output_blocks.") for name in shapes):
        return "classifier"
    seen = _size(shapes, "input_blocks.0.0.weight", 1)
    seen = channels if seen is None else seen
    require(
        seen in (channels, 2 * channels),
        f"the weights see {seen} channels; a U-Net for images of {channels} channels sees {channels}, an upsampler "
        f"{2 * channels}.",
    )
    return "unet" if seen == channels else "super_resolution"


def published(shapes: Shapes, kind: str) -> Published | None:
    """The published network that has these tensors, as far as they tell."""
    for network in PUBLISHED:
        told = settings(shapes, network.image_size, network.num_res_blocks)
        same = ("width", "channel_mult", "num_res_blocks", "attention_resolutions")
        if network.kind == kind and all(told.get(key) == getattr(network, key) for key in same):
            return network
    return None


def settings(shapes: Shapes, image_size: int, num_res_blocks: int | None = None) -> dict[str, Any]:
    """The fields of `UNet` or `Classifier` that tensors tell; without those whose tensors are missing.

    Tensors never tell the attention heads. In a classifier with `resample` "block" a down-sampler looks like a residual
    block, so `num_res_blocks` must be given.

    Args:
        shapes: of ADM's tensors by name.
        image_size: of the images that the network sees; attention is known by level.
        num_res_blocks: used where tensors do not tell it.
    """
    decoder = any(name.startswith("output_blocks.") for name in shapes)
    count = _count(shapes, "input_blocks")
    require(count <= limits.BLOCKS, f"it has {count} blocks on its way down; at most {limits.BLOCKS} are read")
    down = next((i for i in range(count) if f"input_blocks.{i}.0.op.weight" in shapes), None)
    blocks = _blocks(shapes, down) if decoder or down is not None else num_res_blocks
    found: dict[str, Any] = dict(_output(shapes, decoder), width=_size(shapes, "time_embed.0.weight", 1))
    found["num_res_blocks"] = blocks
    if count and blocks and blocks > 0 and count % (blocks + 1) == 0:
        found |= _levels(shapes, image_size, found["width"], range(1, count + 1, blocks + 1))
        if count > blocks + 1:
            found["resample"] = "block" if down is None else "conv"
    return {key: value for key, value in found.items() if value is not None}


def _size(shapes: Shapes, name: str, axis: int) -> int | None:
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else None


def _count(shapes: Shapes, part: str) -> int:
    """The number of a part's blocks, which are numbered from 0 without a gap; what stands after a gap is no block."""
    numbers = {name.split(".", 2)[1] for name in shapes if name.startswith(f"{part}.")}
    return next(number for number in range(len(numbers) + 1) if str(number) not in numbers)


def _blocks(shapes: Shapes, down: int | None) -> int:
    """Residual blocks per level: a down-sampler follows the first level's, an up-sampler ends the deepest level."""
    if down is not None:
        return down - 1
    count = _count(shapes, "output_blocks")
    ups = (k for k in range(count) for i in (1, 2) if f"output_blocks.{k}.{i}.in_layers.0.weight" in shapes)
    return next(ups, count - 1)


def _levels(shapes: Shapes, image_size: int, width: int | None, firsts: range) -> Iterator[tuple[str, Any]]:
    """Each level's channels and attention, and the time injection; `firsts` are the first blocks of the levels."""
    attending = (level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in shapes)
    yield "attention_resolutions", tuple(image_size >> level for level in attending)
    channels = [_size(shapes, f"input_blocks.{i}.0.out_layers.3.weight", 0) or 0 for i in firsts]
    if width and all(channels):
        multiples = (c / width for c in channels)
        yield "channel_mult", tuple(int(m) if m == int(m) else m for m in multiples)
    projected = _size(shapes, f"input_blocks.{firsts[0]}.0.emb_layers.1.weight", 0)
    if projected and channels[0]:
        yield "time_injection", {2 * channels[0]: "scale_shift", channels[0]: "add"}.get(projected)


def _output(shapes: Shapes, decoder: bool) -> dict[str, Any]:
    """The pool and the classes of a classifier; the classes and the channels of a U-Net."""
    if decoder:
        classes = _size(shapes, "label_emb.weight", 0) or 0
        return {"num_classes": classes, "out_channels": _size(shapes, "out.2.weight", 0)}
    pools = {"out.2.c_proj.weight": "attention", "out.2.weight": "spatial", "out.3.weight": "spatial_v2"}
    for name, pool in pools.items():
        if name in shapes:
            pool = "adaptive" if len(shapes[name]) == 4 else pool
            return {"pool": pool, "num_classes": _size(shapes, name, 0)}
    return {}
