"""Where ADM's tensors lie in our parameters, and how their layout changes: one table for both directions.

The table walks along the plan that the modules themselves are built from.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.models.classifier import Classifier
from guided_diffusion_jax.models.plan import Backbone, Stage, decoder_plan, encoder_plan, middle_plan
from guided_diffusion_jax.models.signals import taken
from guided_diffusion_jax.models.unet import UNet


class Kind(NamedTuple):
    """How a tensor's layout changes: from ADM's to ours, and back.

    Attributes:
        ours: ADM's array to ours.
        theirs: our array to ADM's.
    """

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


class Row(NamedTuple):
    """One tensor of the table.

    Attributes:
        path: of our parameter.
        name: of ADM's tensor.
        kind: the change of layout.
    """

    path: tuple[str, ...]
    name: str
    kind: Kind


VECTOR = Kind(lambda v: v, lambda v: v)
LINEAR = Kind(lambda w: w.T, lambda w: w.T)
CONV = Kind(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))
CONV1D = Kind(lambda w: w[:, :, 0].T, lambda w: w.T[:, :, None])
CONV1X1 = Kind(lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])
# ADM has no null class; zeros in that row leave the time embedding alone, as in an unconditional network.
CLASSES = Kind(lambda rows: np.concatenate([rows, np.zeros_like(rows[:1])]), lambda rows: rows[:-1])


def swap_heads(array: np.ndarray, outer: int, inner: int) -> np.ndarray:
    """Channels `[outer][inner][ch]` on the first axis to `[inner][outer][ch]`."""
    split = array.reshape(outer, inner, -1, *array.shape[1:])
    return split.swapaxes(0, 1).reshape(array.shape)


def legacy_order(heads: int, kind: Kind) -> Kind:
    """Qkv channels in ADM's first order, `[head][q,k,v][ch]`, to ours."""
    return Kind(
        lambda a: kind.ours(swap_heads(a, heads, 3)),
        lambda a: swap_heads(kind.theirs(a), 3, heads),
    )


def new_order(heads: int, kind: Kind) -> Kind:
    """Qkv channels in ADM's later order, `[q,k,v][head][ch]`, which is ours."""
    return kind


ORDERS: dict[str, Callable[[int, Kind], Kind]] = {"legacy": legacy_order, "new": new_order}
"""Choices of `attention_order`."""

Path = tuple[str, ...]


def _layer(path: Path, name: str, kind: Kind) -> Iterator[Row]:
    """A convolution's or a matrix's two tensors."""
    yield Row((*path, "kernel"), f"{name}.weight", kind)
    yield Row((*path, "bias"), f"{name}.bias", VECTOR)


def _norm(path: Path, name: str) -> Iterator[Row]:
    yield Row((*path, "scale"), f"{name}.weight", VECTOR)
    yield Row((*path, "bias"), f"{name}.bias", VECTOR)


def _res_block(path: Path, name: str, projects: bool) -> Iterator[Row]:
    """`projects`: whether the skip path has a 1x1 convolution."""
    yield from _norm((*path, "norm_in"), f"{name}.in_layers.0")
    yield from _layer((*path, "conv_in"), f"{name}.in_layers.2", CONV)
    yield from _layer((*path, "injection", "project"), f"{name}.emb_layers.1", LINEAR)
    yield from _norm((*path, "injection", "norm"), f"{name}.out_layers.0")
    yield from _layer((*path, "conv_out"), f"{name}.out_layers.3", CONV)
    if projects:
        yield from _layer((*path, "skip"), f"{name}.skip_connection", CONV1X1)


def _attention(path: Path, name: str, heads: int, order: str) -> Iterator[Row]:
    reorder = choose(ORDERS, order, "attention_order")
    yield from _norm((*path, "norm"), f"{name}.norm")
    yield Row((*path, "qkv", "kernel"), f"{name}.qkv.weight", reorder(heads, CONV1D))
    yield Row((*path, "qkv", "bias"), f"{name}.qkv.bias", reorder(heads, VECTOR))
    yield from _layer((*path, "project"), f"{name}.proj_out", CONV1D)


def _resampler(backbone: Backbone, path: Path, name: str, conv: str) -> Iterator[Row]:
    """`conv`: what ADM calls the convolution of this direction."""
    if backbone.resample == "conv":
        yield from _layer((*path, "conv"), f"{name}.{conv}", CONV)
    else:
        yield from _res_block(path, name, projects=False)


def _time_rows() -> Iterator[Row]:
    yield from _layer(("embedding", "time", "hidden"), "time_embed.0", LINEAR)
    yield from _layer(("embedding", "time", "out"), "time_embed.2", LINEAR)


def encoder_rows(backbone: Backbone, image_size: int, order: str) -> Iterator[Row]:
    """Time embedding, `input_blocks` and `middle_block`: what ADM's U-Net and classifier share."""
    yield from _time_rows()
    channels = None
    for i, stage in enumerate(encoder_plan(backbone, image_size)):
        path, name = ("encoder", stage.name), f"input_blocks.{i}"
        if stage.kind == "conv":
            yield from _layer(path, f"{name}.0", CONV)
        elif stage.kind == "down":
            yield from _resampler(backbone, path, f"{name}.0", "op")
        else:
            yield from _block(path, f"{name}.0", f"{name}.1", stage, order, projects=channels != stage.channels)
        channels = stage.channels
    first, second = middle_plan(backbone, image_size)
    yield from _block(("encoder", first.name), "middle_block.0", "middle_block.1", first, order, projects=False)
    yield from _block(("encoder", second.name), "middle_block.2", "", second, order, projects=False)


def decoder_rows(backbone: Backbone, image_size: int, order: str) -> Iterator[Row]:
    """`output_blocks` and `out`. An up-sampler of ADM's lies in the block before it."""
    i, place = -1, 0
    for stage in decoder_plan(backbone, image_size):
        path = ("decoder", stage.name)
        if stage.kind == "up":
            yield from _resampler(backbone, path, f"output_blocks.{i}.{place}", "conv")
        else:
            i, place = i + 1, 1 if stage.heads is None else 2
            name = f"output_blocks.{i}"
            # The skip adds channels to the activation, so that there are always more than the block puts out.
            yield from _block(path, f"{name}.0", f"{name}.1", stage, order, projects=True)
    yield from _norm(("decoder", "output_norm"), "out.0")
    yield from _layer(("decoder", "output_conv"), "out.2", CONV)


def _block(path: Path, res: str, attention: str, stage: Stage, order: str, *, projects: bool) -> Iterator[Row]:
    yield from _res_block((*path, "res"), res, projects)
    if stage.heads is not None:
        yield from _attention((*path, "attention"), attention, stage.heads, order)


POOLS: dict[str, tuple[tuple[str, str, Kind | None], ...]] = {
    "adaptive": (("norm", "out.0", None), ("logits", "out.3", CONV1X1)),
    "attention": (("norm", "out.0", None), ("qkv", "out.2.qkv_proj", CONV1D), ("logits", "out.2.c_proj", CONV1D)),
    "spatial": (("hidden", "out.0", LINEAR), ("logits", "out.2", LINEAR)),
    "spatial_v2": (("hidden", "out.0", LINEAR), ("norm", "out.1", None), ("logits", "out.3", LINEAR)),
}
"""The layers of each of a classifier's pools: our name, ADM's, the kernel's kind; None is a norm."""


def pool_rows(pool: str) -> Iterator[Row]:
    """A classifier's `out`."""
    for ours, theirs, kind in choose(POOLS, pool, "classifier.pool"):
        path = ("pooling", ours)
        yield from _norm(path, theirs) if kind is None else _layer(path, theirs, kind)
    if pool == "attention":
        yield Row(("pooling", "position"), "out.2.positional_embedding", LINEAR)


def rows(network: UNet | Classifier, image_size: int, order: str) -> Iterator[Row]:
    """Every tensor of a U-Net or a classifier: our path, ADM's name, the change of layout.

    Raises:
        InputError: for a U-Net with a fusion or with conditions that ADM has not.
    """
    if isinstance(network, UNet):
        others = sorted(set(taken(network)) - {"label"}) + ["known"] * bool(network.known_channels)
        require(
            not others, f"a network that takes {', '.join(others)} has no counterpart in ADM, which takes labels only."
        )
    if isinstance(network, UNet) and network.num_classes:
        require(network.fusion == "add", f"model.fusion={network.fusion!r} has no counterpart in ADM; use 'add'.")
        yield Row(("embedding", "label", "rows", "embedding"), "label_emb.weight", CLASSES)
    yield from encoder_rows(network, image_size, order)
    if isinstance(network, UNet):
        yield from decoder_rows(network, image_size, order)
    else:
        yield from pool_rows(network.pool)
