"""OpenAI's guided-diffusion (ADM): its constructor arguments to our modules, its weights to our parameters and back.

Both directions follow one table, `rows`, which walks along the plan that the modules themselves are built from.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from guided_diffusion_jax.errors import InputError, choose, require
from guided_diffusion_jax.models.plan import Backbone, Stage, decoder_plan, encoder_plan, middle_plan
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.typing import Conditions, Params


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


def rows(unet: UNet, image_size: int, order: str) -> Iterator[Row]:
    """Every tensor of a U-Net: our path, ADM's name, the change of layout.

    Raises:
        InputError: for a U-Net with a fusion that ADM has not.
    """
    if unet.num_classes:
        require(unet.fusion == "add", f"model.fusion={unet.fusion!r} has no counterpart in ADM; use 'add'.")
        yield Row(("embedding", "label", "rows", "embedding"), "label_emb.weight", CLASSES)
    yield from encoder_rows(unet, image_size, order)
    yield from decoder_rows(unet, image_size, order)


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
    needed = ("image_size", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions")
    absent = [key for key in needed if key not in args]
    require(not absent, f"ADM's arguments lack {', '.join(absent)}; give them as its constructor has them.")
    given = {**ARGUMENTS, **args}
    limits = {"dims": (2,), "conv_resample": (True,), "num_heads_upsample": (-1, None, given["num_heads"])}
    if given["num_head_channels"] != -1:
        del limits["num_heads_upsample"]
    for key, allowed in limits.items():
        require(given[key] in allowed, f"ADM's {key}={given[key]!r} has no counterpart here; only {allowed[0]} has.")
    factors = {2**level for level in range(len(given["channel_mult"]))}.intersection(given["attention_resolutions"])
    return UNet(
        width=given["model_channels"],
        channel_mult=tuple(given["channel_mult"]),
        num_res_blocks=given["num_res_blocks"],
        attention_resolutions=tuple(given["image_size"] // factor for factor in sorted(factors)),
        head_width=max(given["num_head_channels"], 0),
        num_heads=given["num_heads"],
        dropout=float(given["dropout"]),
        num_classes=given["num_classes"] or 0,
        injection="scale_shift" if given["use_scale_shift_norm"] else "add",
        resample="block" if given["resblock_updown"] else "conv",
        out_channels=given["out_channels"],
        remat=bool(given["use_checkpoint"]),
    )


def super_resolution_from_args(args: Mapping[str, Any]) -> SuperResolution:
    """Our upsampler for the constructor arguments of ADM's `SuperResModel`; as `unet_from_args`."""
    return SuperResolution(unet_from_args(args))


MODULES: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "UNetModel": unet_from_args,
    "SuperResModel": super_resolution_from_args,
}
"""ADM's class names, and what builds our counterpart from their arguments."""


def params_from_state_dict(
    module: UNet | SuperResolution, state_dict: Mapping[str, Any], *, image_size: int, attention_order: str
) -> Params:
    """ADM's weights as our parameters, float32: `module.apply({"params": params}, x, time, conditions)`.

    Args:
        module: what `unet_from_args` or `super_resolution_from_args` gives.
        state_dict: names of ADM's tensors to arrays in torch's layout; memory-mapped and half-precision ones will do.
        image_size: of the images that the network makes; it decides which blocks attend.
        attention_order: "new" where ADM's `use_new_attention_order` is True, "legacy" where it is False.

    Raises:
        InputError: for missing, extra or misshapen tensors; it names the first few of each.
    """
    unet, wrap = _unet_of(module)
    table = list(rows(unet, image_size, attention_order))
    arrays = {name: np.asarray(array) for name, array in state_dict.items()}
    shapes = _expected_shapes(unet, image_size, arrays, table)
    _refuse_misfits({name: array.shape for name, array in arrays.items()}, shapes)
    flat = {row.path: jnp.asarray(row.kind.ours(arrays[row.name]), jnp.float32) for row in table}
    return wrap(unflatten_dict(flat))


def state_dict_from_params(
    module: UNet | SuperResolution, params: Params, *, image_size: int, attention_order: str
) -> dict[str, np.ndarray]:
    """The inverse of `params_from_state_dict`; the null class, which ADM has not, is left out."""
    unet, _ = _unet_of(module)
    flat = flatten_dict(params["unet"] if isinstance(module, SuperResolution) else params)
    table = rows(unet, image_size, attention_order)
    return {row.name: np.ascontiguousarray(row.kind.theirs(np.asarray(flat[row.path]))) for row in table}


def _unet_of(module: UNet | SuperResolution) -> tuple[UNet, Callable[[Params], Params]]:
    """The U-Net inside, and what makes its parameters those of the whole module."""
    if isinstance(module, SuperResolution):
        return module.unet, lambda params: {"unet": params}
    return module, lambda params: params


def _expected_shapes(
    unet: UNet, image_size: int, arrays: Mapping[str, np.ndarray], table: list[Row]
) -> dict[str, tuple[int, ...]]:
    """ADM's names and shapes, from our module's own; only the number of input channels comes from the weights."""
    first = arrays.get("input_blocks.0.0.weight")
    channels = first.shape[1] if first is not None and first.ndim == 4 else 3
    x, time = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32), jnp.zeros(1)
    ours = flatten_dict(jax.eval_shape(unet.init, jax.random.key(0), x, time, Conditions())["params"])
    unknown = set(ours) ^ {row.path for row in table}
    assert not unknown, f"the table and the module disagree on {sorted(unknown)}"
    return {row.name: row.kind.theirs(np.broadcast_to(np.float32(0), ours[row.path].shape)).shape for row in table}


def _refuse_misfits(given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [name for name in expected if name in given and given[name] != expected[name]]
    misfits = {
        "missing": [name for name in expected if name not in given],
        "extra": [name for name in given if name not in expected],
        "misshapen": [f"{name} {given[name]} instead of {expected[name]}" for name in wrong],
    }
    faults = [f"{len(names)} {fault} ({_first_few(names)})" for fault, names in misfits.items() if names]
    if faults:
        raise InputError(
            f"the state dict does not fit the network: {'; '.join(faults)}; "
            "give the arguments that the weights were trained with."
        )


def _first_few(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
