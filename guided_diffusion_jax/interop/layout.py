"""ADM's tensors in the modules' parameters: one table of names and layouts for both directions.

The table follows the plan that the modules themselves are built from. `rows` and the constants below are all that
knows the modules' names.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from guided_diffusion_jax.conditions import condition_specs
from guided_diffusion_jax.errors import choose, require, shown
from guided_diffusion_jax.models.classifier import Classifier
from guided_diffusion_jax.models.plan import Backbone, Stage, decoder_plan, encoder_plan, middle_plan
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.unet import UNet

Network = UNet | SuperResolution | Classifier
Path = tuple[str, ...]

TIME: Path = ("embedding", "time")
LABEL: Path = ("embedding", "label", "rows", "embedding")
ENCODER: Path = ("encoder",)
DECODER: Path = ("decoder",)
POOLING: Path = ("pooling",)
INJECTION: Path = ("injection",)
"""Where the parts of a network, and the time injection of a residual block, have their parameters."""
UPSAMPLED: Path = ("unet",)
"""Where `SuperResolution` has those of its U-Net."""


class Layout(NamedTuple):
    """How the layout changes from ADM's array to the parameter, and back."""

    from_adm: Callable[[np.ndarray], np.ndarray]
    to_adm: Callable[[np.ndarray], np.ndarray]


class Row(NamedTuple):
    """One tensor: the parameter's path, the name in ADM, the change of layout."""

    path: Path
    name: str
    layout: Layout


VECTOR = Layout(lambda v: v, lambda v: v)
LINEAR = Layout(lambda w: w.T, lambda w: w.T)
CONV = Layout(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))
CONV1D = Layout(lambda w: w[:, :, 0].T, lambda w: w.T[:, :, None])
CONV1X1 = Layout(lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])
# ADM has no null class. A row of zeros leaves the time embedding unchanged, as in an unconditional network.
CLASSES = Layout(lambda rows: np.concatenate([rows, np.zeros_like(rows[:1])]), lambda rows: rows[:-1])


def classes(null_label: int | None) -> Layout:
    """Rows of the class embedding, of which `null_label` is the null class; the module has it last. None: none is."""
    if null_label is None:
        return CLASSES
    return Layout(
        lambda rows: np.concatenate([np.delete(rows, null_label, 0), rows[null_label : null_label + 1]]),
        lambda rows: np.insert(rows[:-1], null_label, rows[-1], 0),
    )


def shape_faults(
    expected: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
    extra: str = "extra",
    plain: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple,
) -> str:
    """What is wrong with the names and shapes of tensors, the first few of each fault; "" where they fit.

    Args:
        expected: names to shapes.
        given: the same of a file.
        extra: word for a tensor that is not expected.
        plain: shapes are compared after it.
    """
    wrong = [name for name in expected if name in given and plain(given[name]) != plain(expected[name])]
    misfits = {
        "missing": [name for name in expected if name not in given],
        extra: [shown(name) for name in given if name not in expected],
        "misshapen": [f"{name} {given[name]} instead of {expected[name]}" for name in wrong],
    }
    return "; ".join(
        f"{len(names)} {fault} ({', '.join(names[:2] + ['...'] * (len(names) > 2))})"
        for fault, names in misfits.items()
        if names
    )


def swap_heads(array: np.ndarray, outer: int, inner: int) -> np.ndarray:
    """Channels `[outer][inner][ch]` on the first axis to `[inner][outer][ch]`."""
    split = array.reshape(outer, inner, -1, *array.shape[1:])
    return split.swapaxes(0, 1).reshape(array.shape)


def legacy_order(heads: int, layout: Layout) -> Layout:
    """Qkv channels in ADM's first order, `[head][q,k,v][ch]`."""
    return Layout(lambda a: layout.from_adm(swap_heads(a, heads, 3)), lambda a: swap_heads(layout.to_adm(a), 3, heads))


ORDERS: dict[str, Callable[[int, Layout], Layout]] = {"legacy": legacy_order, "new": lambda heads, layout: layout}
"""Choices of `attention_order`; ADM's later order, `[q,k,v][head][ch]`, is also the modules' order."""


def _layer(path: Path, name: str, layout: Layout) -> Iterator[Row]:
    """A convolution's or a matrix's two tensors."""
    yield Row((*path, "kernel"), f"{name}.weight", layout)
    yield Row((*path, "bias"), f"{name}.bias", VECTOR)


def _norm(path: Path, name: str) -> Iterator[Row]:
    yield Row((*path, "scale"), f"{name}.weight", VECTOR)
    yield Row((*path, "bias"), f"{name}.bias", VECTOR)


def _res_block(path: Path, name: str, projects: bool) -> Iterator[Row]:
    """`projects`: whether the skip path has a 1x1 convolution."""
    yield from _norm((*path, "norm_in"), f"{name}.in_layers.0")
    yield from _layer((*path, "conv_in"), f"{name}.in_layers.2", CONV)
    yield from _layer((*path, *INJECTION, "project"), f"{name}.emb_layers.1", LINEAR)
    yield from _norm((*path, *INJECTION, "norm"), f"{name}.out_layers.0")
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


def encoder_rows(backbone: Backbone, image_size: int, order: str) -> Iterator[Row]:
    """Time embedding, `input_blocks` and `middle_block`: what ADM's U-Net and classifier share."""
    yield from _layer((*TIME, "hidden"), "time_embed.0", LINEAR)
    yield from _layer((*TIME, "out"), "time_embed.2", LINEAR)
    channels = None
    for i, stage in enumerate(encoder_plan(backbone, image_size)):
        path, name = (*ENCODER, stage.name), f"input_blocks.{i}"
        if stage.kind == "conv":
            yield from _layer(path, f"{name}.0", CONV)
        elif stage.kind == "down":
            yield from _resampler(backbone, path, f"{name}.0", "op")
        else:
            yield from _block(path, f"{name}.0", f"{name}.1", stage, order, projects=channels != stage.channels)
        channels = stage.channels
    first, second = middle_plan(backbone, image_size)
    yield from _block((*ENCODER, first.name), "middle_block.0", "middle_block.1", first, order, projects=False)
    yield from _block((*ENCODER, second.name), "middle_block.2", "", second, order, projects=False)


def decoder_rows(backbone: Backbone, image_size: int, order: str) -> Iterator[Row]:
    """`output_blocks` and `out`. ADM counts an up-sampler as part of the block before it."""
    i, place = -1, 0
    for stage in decoder_plan(backbone, image_size):
        path = (*DECODER, stage.name)
        if stage.kind == "up":
            yield from _resampler(backbone, path, f"output_blocks.{i}.{place}", "conv")
        else:
            i, place = i + 1, 1 if stage.heads is None else 2
            name = f"output_blocks.{i}"
            # The skip adds channels to the activation, so that there are always more than the block's output has.
            yield from _block(path, f"{name}.0", f"{name}.1", stage, order, projects=True)
    yield from _norm((*DECODER, "output_norm"), "out.0")
    yield from _layer((*DECODER, "output_conv"), "out.2", CONV)


def _block(path: Path, res: str, attention: str, stage: Stage, order: str, *, projects: bool) -> Iterator[Row]:
    yield from _res_block((*path, "res"), res, projects)
    if stage.heads is not None:
        yield from _attention((*path, "attention"), attention, stage.heads, order)


POOLS: dict[str, tuple[tuple[str, str, Layout | None], ...]] = {
    "adaptive": (("norm", "out.0", None), ("logits", "out.3", CONV1X1)),
    "attention": (("norm", "out.0", None), ("qkv", "out.2.qkv_proj", CONV1D), ("logits", "out.2.c_proj", CONV1D)),
    "spatial": (("hidden", "out.0", LINEAR), ("logits", "out.2", LINEAR)),
    "spatial_v2": (("hidden", "out.0", LINEAR), ("norm", "out.1", None), ("logits", "out.3", LINEAR)),
}
"""The layers of each of a classifier's pools: the module's name, ADM's, the kernel's layout; None is a norm."""


def pool_rows(pool: str) -> Iterator[Row]:
    """A classifier's `out`."""
    for layer, name, layout in choose(POOLS, pool, "classifier.pool"):
        path = (*POOLING, layer)
        yield from _norm(path, name) if layout is None else _layer(path, name, layout)
    if pool == "attention":
        yield Row((*POOLING, "position"), "out.2.positional_embedding", LINEAR)


def rows(module: Network, image_size: int, order: str, null_label: int | None = None) -> Iterator[Row]:
    """Every tensor of a network: the parameter's path, ADM's name, the change of layout.

    Raises:
        InputError: for a U-Net with a fusion or with conditions that ADM does not have.
    """
    if isinstance(module, SuperResolution):
        inner = rows(module.unet, image_size, order, null_label)
        yield from (row._replace(path=UPSAMPLED + row.path) for row in inner)
    elif isinstance(module, Classifier):
        yield from encoder_rows(module, image_size, order)
        yield from pool_rows(module.pool)
    else:
        _refuse_other_conditions(module)
        if module.num_classes:
            yield Row(LABEL, "label_emb.weight", classes(null_label))
        yield from encoder_rows(module, image_size, order)
        yield from decoder_rows(module, image_size, order)


def _refuse_other_conditions(unet: UNet) -> None:
    others = sorted(set(condition_specs(unet, (8, 8, 3))) - {"label"})
    require(not others, f"a network that takes {', '.join(others)} has no counterpart in ADM, which takes labels only.")
    fits = unet.class_fusion == "add" or not unet.num_classes
    require(fits, f"model.class_fusion={unet.class_fusion!r} has no counterpart in ADM; use 'add'.")
