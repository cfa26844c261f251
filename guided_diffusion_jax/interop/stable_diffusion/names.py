"""Tensors of Stable Diffusion in the modules' parameters, by their names in diffusers' folders and in original files.

Each table walks the plan that the modules are built from. A row that has no parameter (a bias, the projection of a skip
path that a block does not have) is left out, so the tables say what there may be.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from guided_diffusion_jax import models
from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.interop.layout import CONV, CONV1X1, LINEAR, VECTOR, Layout, Path
from guided_diffusion_jax.models import autoencoder
from guided_diffusion_jax.models.autoencoder import AutoencoderKL
from guided_diffusion_jax.models.clip import ClipText
from guided_diffusion_jax.models.controlnet import ControlNetModel
from guided_diffusion_jax.models.plan import Backbone, Stage, decoder_plan, encoder_plan, middle_plan
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.typing import Params

Shapes = dict[Path, jax.ShapeDtypeStruct]
Names = Mapping[str, tuple[str, str]]
"""For each stage the names of its residual block (or convolution) and of its attention."""


class Row(NamedTuple):
    """One tensor, or one part of it: the parameter's path, the tensor's name, the change of layout.

    Attributes:
        path: of the parameter.
        name: of the tensor.
        layout: from the tensor's to the parameter's.
        part: (i, n): the tensor is the i-th of n parts of the parameter, side by side on its last axis.
        piece: (i, n): the parameter is the i-th of n pieces of the tensor, one after another on its first axis.
    """

    path: Path
    name: str
    layout: Layout
    part: tuple[int, int] = (0, 1)
    piece: tuple[int, int] = (0, 1)


@functools.lru_cache(maxsize=16)
def table(module: nn.Module, naming: str, *, linear: bool = True) -> tuple[list[Row], Shapes]:
    """The rows of a network, and the shapes of its parameters.

    Args:
        module: a `UNet`, a `ControlNetModel`, an `AutoencoderKL` or a `ClipText`.
        naming: "diffusers", "original" or, for a text encoder alone, "openclip".
        linear: whether the transformers' projections are matrices in the files; else they are 1x1 convolutions.
    """
    if isinstance(module, UNet):
        size = 1 << (len(module.channel_mult) - 1)
        shapes = jax.eval_shape(
            lambda: models.init_params(module, jax.random.key(0), (size, size, module.out_channels))
        )
        rows = unet_rows(module, naming, LINEAR if linear else CONV1X1)
    elif isinstance(module, ControlNetModel):
        shapes = jax.eval_shape(lambda: _init_controlnet(module))
        rows = controlnet_rows(module, naming, LINEAR if linear else CONV1X1)
    elif isinstance(module, AutoencoderKL):
        shapes = jax.eval_shape(lambda: autoencoder.init_params(module, jax.random.key(0)))
        rows = autoencoder_rows(module, naming)
    else:
        assert isinstance(module, ClipText)
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])
        rows = openclip_rows(module) if naming == "openclip" else clip_rows(module)
    flat = flatten_dict(shapes)
    kept = [row for row in rows if row.path in flat]
    unnamed = set(flat) - {row.path for row in kept}
    assert not unnamed, f"the table has no names for {sorted(unnamed)}"
    return kept, flat


def _init_controlnet(module: ControlNetModel) -> Params:
    size = 1 << (len(module.channel_mult) - 1)
    image = size << (len(module.hint_channels) - 1)
    shapes = ((1, size, size, 4), (1,)), (1, image, image, module.image_channels)
    (x, time), hint = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda s: isinstance(s[0], int))
    return module.init(jax.random.key(0), x, time, {}, hint)["params"]


def _layer(path: Path, name: str, layout: Layout) -> Iterator[Row]:
    yield Row((*path, "kernel"), f"{name}.weight", layout)
    yield Row((*path, "bias"), f"{name}.bias", VECTOR)


def _norm(path: Path, name: str) -> Iterator[Row]:
    yield Row((*path, "scale"), f"{name}.weight", VECTOR)
    yield Row((*path, "bias"), f"{name}.bias", VECTOR)


# --- blocks

RES_BLOCK: dict[str, tuple[str, ...]] = {
    "diffusers": ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"),
    "original": ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"),
    "original_autoencoder": ("norm1", "conv1", "", "norm2", "conv2", "nin_shortcut"),
}
"""Names of a residual block's layers, in the order of their use."""

ATTENTION: dict[str, tuple[str, str, str, str, str, Layout]] = {
    "diffusers": ("group_norm", "to_q", "to_k", "to_v", "to_out.0", LINEAR),
    "original_autoencoder": ("norm", "q", "k", "v", "proj_out", CONV1X1),
}
"""Names of an autoencoder's attention, and the layout of its matrices."""


def _res_block(path: Path, name: str, naming: str) -> Iterator[Row]:
    norm_in, conv_in, project, norm, conv_out, skip = (f"{name}.{layer}" for layer in RES_BLOCK[naming])
    yield from _norm((*path, "norm_in"), norm_in)
    yield from _layer((*path, "conv_in"), conv_in, CONV)
    yield from _layer((*path, "injection", "project"), project, LINEAR)
    yield from _norm((*path, "injection", "norm"), norm)
    yield from _layer((*path, "conv_out"), conv_out, CONV)
    yield from _layer((*path, "skip"), skip, CONV1X1)


def _attention(path: Path, name: str, naming: str) -> Iterator[Row]:
    norm, *qkv, out, layout = ATTENTION[naming]
    yield from _norm((*path, "norm"), f"{name}.{norm}")
    for i, layer in enumerate(qkv):
        for row in _layer((*path, "qkv"), f"{name}.{layer}", layout):
            yield row._replace(part=(i, 3))
    yield from _layer((*path, "project"), f"{name}.{out}", layout)


def _transformer(path: Path, name: str, depth: int, projection: Layout) -> Iterator[Row]:
    yield from _norm((*path, "norm"), f"{name}.norm")
    yield from _layer((*path, "project_in"), f"{name}.proj_in", projection)
    for i in range(depth):
        layer, theirs = (*path, f"layer_{i}"), f"{name}.transformer_blocks.{i}"
        for ours, number in (("self", 1), ("cross", 2)):
            yield from _norm((*layer, f"norm_{ours}"), f"{theirs}.norm{number}")
            for matrix, to in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("out", "to_out.0")):
                yield from _layer((*layer, f"{ours}_attention", matrix), f"{theirs}.attn{number}.{to}", LINEAR)
        yield from _norm((*layer, "norm_feed_forward"), f"{theirs}.norm3")
        yield from _layer((*layer, "feed_forward", "hidden"), f"{theirs}.ff.net.0.proj", LINEAR)
        yield from _layer((*layer, "feed_forward", "out"), f"{theirs}.ff.net.2", LINEAR)
    yield from _layer((*path, "project_out"), f"{name}.proj_out", projection)


def _stages(
    stages: Iterable[Stage], where: Path, names: Names, naming: str, projection: Layout = LINEAR, prefix: str = ""
) -> Iterator[Row]:
    for stage in stages:
        path = (*where, stage.name)
        first, second = (prefix + name for name in names[stage.name])
        if stage.kind == "conv":
            yield from _layer(path, first, CONV)
        elif stage.kind != "block":
            yield from _layer((*path, "conv"), first, CONV)
        else:
            yield from _res_block((*path, "res"), first, naming)
            if stage.depth:
                yield from _transformer((*path, "transformer"), second, stage.depth, projection)
            elif stage.heads is not None:
                yield from _attention((*path, "attention"), second, naming)


# --- names of the stages


def encoder_stages(net: Backbone) -> list[Stage]:
    """The stages of a network's first half, the middle included."""
    size = 1 << (len(net.channel_mult) - 1)
    return [*encoder_plan(net, size), *middle_plan(net, size)]


def decoder_stages(net: Backbone) -> list[Stage]:
    """The stages of a network's second half."""
    return list(decoder_plan(net, 1 << (len(net.channel_mult) - 1)))


def _diffusers_names(net: Backbone) -> Names:
    last = len(net.channel_mult) - 1
    names = {"input_conv": ("conv_in", "")}
    for stage in (*encoder_stages(net)[1:], *decoder_stages(net)):
        place, *_, number = stage.name.split("_")
        block = {"down": f"down_blocks.{stage.level}", "up": f"up_blocks.{last - stage.level}"}.get(place, "mid_block")
        attention = f"{block}.attentions.{number}"
        names[stage.name] = (f"{block}.resnets.{number}", attention)
        if stage.kind != "block":
            names[stage.name] = (f"{block}.{place}samplers.0.conv", "")
    return names


def _original_names(net: Backbone) -> Names:
    names = {"middle_0": ("middle_block.0", "middle_block.1"), "middle_1": ("middle_block.2", "")}
    for i, stage in enumerate(encoder_stages(net)[:-2]):
        names[stage.name] = (f"input_blocks.{i}.0" + ".op" * (stage.kind == "down"), f"input_blocks.{i}.1")
    i, place = -1, 0
    for stage in decoder_stages(net):  # an up-sampler belongs to the block before it
        if stage.kind == "up":
            names[stage.name] = (f"output_blocks.{i}.{place}.conv", "")
        else:
            i, place = i + 1, 1 if stage.heads is None else 2
            names[stage.name] = (f"output_blocks.{i}.0", f"output_blocks.{i}.1")
    return names


def _original_autoencoder_names(net: Backbone) -> Names:
    names = {"input_conv": ("conv_in", "")}
    for stage in (*encoder_stages(net)[1:], *decoder_stages(net)):
        place, *_, number = stage.name.split("_")
        if place == "middle":
            names[stage.name] = (f"mid.block_{int(number) + 1}", "mid.attn_1")
        elif stage.kind == "block":
            names[stage.name] = (f"{place}.{stage.level}.block.{number}", "")
        else:
            names[stage.name] = (f"{place}.{stage.level}.{place}sample.conv", "")
    return names


# --- networks

UNET: dict[str, tuple[tuple[str, str], tuple[str, str], str, str]] = {
    "diffusers": (
        ("time_embedding.linear_1", "time_embedding.linear_2"),
        ("add_embedding.linear_1", "add_embedding.linear_2"),
        "conv_norm_out",
        "conv_out",
    ),
    "original": (("time_embed.0", "time_embed.2"), ("label_emb.0.0", "label_emb.0.2"), "out.0", "out.2"),
}
"""Names of a U-Net's embeddings of the time and of text and sizes, and of its output."""


def encoder_rows(unet: Backbone, naming: str, projection: Layout) -> Iterator[Row]:
    """A U-Net's embeddings and first half, which a ControlNet has as well."""
    time, text_time, _, _ = choose(UNET, naming, "naming")
    for part, layers in (("time", time), ("text_time", text_time)):
        for ours, theirs in zip(("hidden", "out"), layers, strict=True):
            yield from _layer(("embedding", part, ours), theirs, LINEAR)
    names = _diffusers_names(unet) if naming == "diffusers" else _original_names(unet)
    yield from _stages(encoder_stages(unet), ("encoder",), names, naming, projection)


def unet_rows(unet: UNet, naming: str, projection: Layout) -> Iterator[Row]:
    """A U-Net. `projection` is the layout of the matrices before and after a transformer's layers."""
    names = _diffusers_names(unet) if naming == "diffusers" else _original_names(unet)
    yield from encoder_rows(unet, naming, projection)
    yield from _stages(decoder_stages(unet), ("decoder",), names, naming, projection)
    _, _, norm, conv = UNET[naming]
    yield from _norm(("decoder", "output_norm"), norm)
    yield from _layer(("decoder", "output_conv"), conv, CONV)


def controlnet_rows(model: ControlNetModel, naming: str, projection: Layout) -> Iterator[Row]:
    """A ControlNet."""
    yield from encoder_rows(model, naming, projection)
    convs = 2 * (len(model.hint_channels) - 1)
    layers = ("input_conv", *(f"conv_{i}" for i in range(convs)), "output_conv")
    theirs: list[str] = [f"input_hint_block.{2 * i}" for i in range(convs + 2)]
    skip, middle = "zero_convs.{}.0", "middle_block_out.0"
    if naming == "diffusers":
        hint = "controlnet_cond_embedding"
        theirs = [f"{hint}.conv_in", *(f"{hint}.blocks.{i}" for i in range(convs)), f"{hint}.conv_out"]
        skip, middle = "controlnet_down_blocks.{}", "controlnet_mid_block"
    for layer, name in zip(layers, theirs, strict=True):
        yield from _layer(("hint", layer), name, CONV)
    for i in range(len(encoder_stages(model)) - 2):
        yield from _layer((f"skip_{i}",), skip.format(i), CONV1X1)
    yield from _layer(("middle",), middle, CONV1X1)


def autoencoder_rows(model: AutoencoderKL, naming: str) -> Iterator[Row]:
    """An autoencoder."""
    net, diffusers = model.backbone, naming == "diffusers"
    names = _diffusers_names(net) if diffusers else _original_autoencoder_names(net)
    layers = "diffusers" if diffusers else "original_autoencoder"
    size = 1 << (len(net.channel_mult) - 1)
    middle_and_up = [*middle_plan(net, size), *decoder_stages(net)]
    yield from _stages(encoder_stages(net), ("encoder", "encoder"), names, layers, prefix="encoder.")
    yield from _stages(middle_and_up, ("decoder",), names, layers, prefix="decoder.")
    yield from _layer(("decoder", "input_conv"), "decoder.conv_in", CONV)
    for half in ("encoder", "decoder"):
        yield from _norm((half, "output_norm"), f"{half}.{'conv_norm_out' if diffusers else 'norm_out'}")
        yield from _layer((half, "output_conv"), f"{half}.conv_out", CONV)
    yield from _layer(("moments",), "quant_conv", CONV1X1)
    yield from _layer(("from_latents",), "post_quant_conv", CONV1X1)


def clip_rows(model: ClipText) -> Iterator[Row]:
    """A text encoder as transformers names it."""
    yield Row(("tokens", "embedding"), "text_model.embeddings.token_embedding.weight", VECTOR)
    yield Row(("positions",), "text_model.embeddings.position_embedding.weight", VECTOR)
    for i in range(model.depth):
        path, name = (f"layer_{i}",), f"text_model.encoder.layers.{i}"
        yield from _norm((*path, "norm_attention"), f"{name}.layer_norm1")
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
            yield from _layer((*path, "attention", ours), f"{name}.self_attn.{theirs}_proj", LINEAR)
        yield from _norm((*path, "norm_mlp"), f"{name}.layer_norm2")
        yield from _layer((*path, "hidden"), f"{name}.mlp.fc1", LINEAR)
        yield from _layer((*path, "out"), f"{name}.mlp.fc2", LINEAR)
    yield from _norm(("norm",), "text_model.final_layer_norm")
    yield Row(("project", "kernel"), "text_projection.weight", LINEAR)


def openclip_rows(model: ClipText) -> Iterator[Row]:
    """A text encoder as OpenCLIP names it: one tensor holds the matrices of query, key and value."""
    yield Row(("tokens", "embedding"), "token_embedding.weight", VECTOR)
    yield Row(("positions",), "positional_embedding", VECTOR)
    for i in range(model.depth):
        path, name = (f"layer_{i}",), f"transformer.resblocks.{i}"
        yield from _norm((*path, "norm_attention"), f"{name}.ln_1")
        for j, matrix in enumerate(("query", "key", "value")):
            yield Row((*path, "attention", matrix, "kernel"), f"{name}.attn.in_proj_weight", LINEAR, piece=(j, 3))
            yield Row((*path, "attention", matrix, "bias"), f"{name}.attn.in_proj_bias", VECTOR, piece=(j, 3))
        yield from _layer((*path, "attention", "out"), f"{name}.attn.out_proj", LINEAR)
        yield from _norm((*path, "norm_mlp"), f"{name}.ln_2")
        yield from _layer((*path, "hidden"), f"{name}.mlp.c_fc", LINEAR)
        yield from _layer((*path, "out"), f"{name}.mlp.c_proj", LINEAR)
    yield from _norm(("norm",), "ln_final")
    yield Row(("project", "kernel"), "text_projection", VECTOR)
