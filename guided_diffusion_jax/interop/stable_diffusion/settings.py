"""Modules from the settings in a folder of diffusers (config.json)."""

from collections.abc import Mapping
from typing import Any

from guided_diffusion_jax.errors import InputError, choose, require, shown
from guided_diffusion_jax.models.autoencoder import AutoencoderKL
from guided_diffusion_jax.models.clip import ACTIVATIONS, ClipText
from guided_diffusion_jax.models.controlnet import ControlNetModel
from guided_diffusion_jax.models.embeddings import TextTimeEmbedding
from guided_diffusion_jax.models.text import ContextEncoder
from guided_diffusion_jax.models.unet import UNet

Config = Mapping[str, Any]

FIXED: dict[str, dict[str, Any]] = {
    "unet": {
        "act_fn": "silu", "attention_type": "default", "center_input_sample": False, "class_embed_type": None,
        "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None,
        "downsample_padding": 1, "dual_cross_attention": False, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
        "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "num_class_embeds": None, "only_cross_attention": False,
        "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
        "reverse_transformer_layers_per_block": None, "time_cond_proj_dim": None, "time_embedding_act_fn": None,
        "time_embedding_dim": None, "time_embedding_type": "positional", "timestep_post_act": None,
    },
    "autoencoder": {
        "act_fn": "silu", "latents_mean": None, "latents_std": None, "mid_block_add_attention": True,
        "use_post_quant_conv": True, "use_quant_conv": True,
    },
    "controlnet": {"controlnet_conditioning_channel_order": "rgb", "global_pool_conditions": False},
    "text encoder": {"layer_norm_eps": 1e-5},
}  # fmt: skip
"""Settings that have to be what Stable Diffusion has, where a file says them."""


def unet(config: Config, where: str = "unet") -> UNet:
    """A U-Net as its config.json describes it. `where` names it in messages.

    A network that sees more channels than it predicts (inpainting) gets the others as the control image, which enters
    beside its input.

    Raises:
        InputError: it is none of Stable Diffusion's.
    """
    fields = _unet_fields(config, where)
    down, up = (
        [choose(kinds, kind, f"{where}: {way}_block_types") for kind in config.get(f"{way}_block_types", ())]
        for way, kinds in (("down", DOWN), ("up", UP))
    )
    require(down == up[::-1], f"{where}: down_block_types and up_block_types are not one the other's mirror")
    seen, out = _whole(config.get("in_channels", 4)), _whole(config.get("out_channels", 4))
    require(
        seen in (out, 2 * out + 1),
        f"{where}: in_channels={seen} is not supported; {out} (latents) and {2 * out + 1} (with a mask and the masked "
        "image, for inpainting) are",
    )
    return UNet(**fields, out_channels=out, control_channels=seen - out)


def sample_size(config: Config) -> int:
    """Height and width of the latents that a U-Net was trained on, the larger where they differ; 64 by default."""
    size = config.get("sample_size") or 64
    return max(_whole(n) for n in (size if isinstance(size, list) and size else [size]))


def controlnet(config: Config, where: str = "controlnet") -> ControlNetModel:
    """A ControlNet as its config.json describes it. Raises `InputError` if it is none of Stable Diffusion's."""
    _check_fixed(config, "controlnet", where)
    return ControlNetModel(
        **_unet_fields(config, where),
        hint_channels=_numbers(
            {"conditioning_embedding_out_channels": [16, 32, 96, 256], **config},
            "conditioning_embedding_out_channels",
            where,
        ),
        image_channels=_whole(config.get("conditioning_channels", 3)),
    )


def _unet_fields(config: Config, where: str) -> dict[str, Any]:
    """The fields of `UNetSettings`."""
    _check_fixed(config, "unet", where)
    channels = _numbers(config, "block_out_channels", where)
    levels = len(channels)
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    depths = _each(config.get("transformer_layers_per_block", 1), levels, "transformer_layers_per_block", where)
    attending = [choose(DOWN, kind, f"{where}: down_block_types") for kind in config.get("down_block_types", ())]
    require(len(attending) == levels, f"{where}: down_block_types must hold {levels} blocks")
    return {
        "width": channels[0],
        "channel_mult": tuple(c / channels[0] for c in channels),
        "num_res_blocks": _whole(config.get("layers_per_block", 2)),
        "attention_resolutions": (),
        "head_width": 0,
        "num_heads": _each(heads, levels, "attention_head_dim", where),
        "transformer_depth": tuple(depth * attends for depth, attends in zip(depths, attending, strict=True)),
        "middle_depth": depths[-1],
        "dropout": float(config.get("dropout", 0.0)),
        "time_injection": "add",
        "resample": "conv",
        "norm_groups": _whole(config.get("norm_num_groups", 32)),
        "norm_eps": float(config.get("norm_eps", 1e-5)),
        "text": ContextEncoder(_whole(config.get("cross_attention_dim", 1280))),
        "text_time": _text_time(config, channels[0], where),
    }


DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
"""Types of blocks, and whether they have transformers."""


def _text_time(config: Config, width: int, where: str) -> TextTimeEmbedding | None:
    if config.get("addition_embed_type") is None:
        return None
    choose({"text_time": None}, config["addition_embed_type"], f"{where}: addition_embed_type")
    frequencies, features = config.get("addition_time_embed_dim"), config.get("projection_class_embeddings_input_dim")
    numbers = 6
    pooled = _whole(features) - numbers * _whole(frequencies)
    require(pooled > 0, f"{where}: projection_class_embeddings_input_dim={features} has no room for the pooled text")
    return TextTimeEmbedding(pooled, 4 * width, _whole(frequencies), numbers)


def autoencoder(config: Config, where: str = "vae") -> AutoencoderKL:
    """An autoencoder as its config.json describes it. Raises `InputError` if it is none of Stable Diffusion's."""
    _check_fixed(config, "autoencoder", where)
    channels = _numbers(config, "block_out_channels", where)
    for kind in (*config.get("down_block_types", ()), *config.get("up_block_types", ())):
        choose({"DownEncoderBlock2D": None, "UpDecoderBlock2D": None}, kind, f"{where}: block types")
    return AutoencoderKL(
        width=channels[0],
        channel_mult=tuple(c / channels[0] for c in channels),
        num_res_blocks=_whole(config.get("layers_per_block", 1)),
        latent_channels=_whole(config.get("latent_channels", 4)),
        channels=_whole(config.get("in_channels", 3)),
        scaling_factor=float(config.get("scaling_factor", 0.18215)),
        norm_groups=_whole(config.get("norm_num_groups", 32)),
    )


def text_encoder(config: Config, where: str = "text_encoder") -> ClipText:
    """A text encoder as its config.json describes it. Raises `InputError` if it is not CLIP's."""
    _check_fixed(config, "text encoder", where)
    projects = "CLIPTextModelWithProjection" in (config.get("architectures") or ())
    end, activation = config.get("eos_token_id", 2), config.get("hidden_act", "quick_gelu")
    choose(ACTIVATIONS, activation, f"{where}: hidden_act")
    return ClipText(
        vocabulary=_whole(config.get("vocab_size", 49408)),
        width=_whole(config.get("hidden_size", 512)),
        depth=_whole(config.get("num_hidden_layers", 12)),
        heads=_whole(config.get("num_attention_heads", 8)),
        hidden=_whole(config.get("intermediate_size", 2048)),
        length=_whole(config.get("max_position_embeddings", 77)),
        activation=activation,
        projection=_whole(config.get("projection_dim", 512)) if projects else 0,
        end=None if end == 2 else _whole(end),  # 2 is wrong in every file of CLIP's; the largest number is meant
    )


def _check_fixed(config: Config, kind: str, where: str) -> None:
    for key, value in FIXED[kind].items():
        if key in config and config[key] not in (value, None):
            raise InputError(f"{where}: {key}={shown(config[key])} is not supported; Stable Diffusion has {value!r}")


def _numbers(config: Config, key: str, where: str) -> tuple[int, ...]:
    values = config.get(key)
    if not isinstance(values, list) or not values or not all(type(n) is int and n > 0 for n in values):
        raise InputError(f"{where}: {key}={shown(values)} must be a list of whole numbers")
    return tuple(values)


def _each(value: Any, levels: int, key: str, where: str) -> tuple[int, ...]:
    """One number a level, of one for all or of a list."""
    values = [value] * levels if type(value) is int else value
    fits = isinstance(values, list) and len(values) == levels and all(type(n) is int and n > 0 for n in values)
    require(fits, f"{where}: {key}={shown(value)} must be a whole number, or one for each of the {levels} levels")
    return tuple(values)


def _whole(value: Any) -> int:
    require(type(value) is int, f"{shown(value)} in a config.json must be a whole number")
    return value
