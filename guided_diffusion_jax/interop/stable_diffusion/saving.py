"""A folder in diffusers' layout from our networks: what `folder.load` reads, diffusers loads."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from guided_diffusion_jax.data.clip_tokenizer import END, START, ClipTokenizer
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.interop import files
from guided_diffusion_jax.interop.stable_diffusion.convert import tensors_from_params
from guided_diffusion_jax.interop.stable_diffusion.folder import MODEL_INDEX, Loaded, Part
from guided_diffusion_jax.models.autoencoder import AutoencoderKL
from guided_diffusion_jax.models.clip import ClipText
from guided_diffusion_jax.models.controlnet import ControlNetModel
from guided_diffusion_jax.models.embeddings import TextTimeEmbedding
from guided_diffusion_jax.models.plan import heads, level_channels
from guided_diffusion_jax.models.text import ContextEncoder
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.runtime.files import atomic_write

Config = dict[str, Any]


def save(path: epath.PathLike, parts: Loaded, *, linear: bool = True) -> None:
    """Writes a folder that diffusers loads as a StableDiffusionPipeline, or as SDXL's.

    Args:
        path: the folder; it is made.
        parts: the networks, tokenizers and the scheduler's settings. Parameters are written in their own precision.
        linear: whether the transformers' projections are matrices in the files, as in 2.x and XL, or convolutions, as
            in 1.x; the effect is the same.

    Raises:
        InputError: a U-Net that diffusers' settings cannot describe.
    """
    folder = epath.Path(path)
    second, unet = len(parts.text_encoders) > 1, parts.unet.model
    _write_part(
        folder / "unet",
        parts.unet,
        {**unet_config(unet, linear), "sample_size": parts.sample_size},
        linear=linear,
    )
    save_autoencoder(folder / "vae", parts.autoencoder)
    index: Config = {
        "_class_name": f"StableDiffusion{'XL' * second}{'Inpaint' * (unet.control_channels > 0)}Pipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", parts.scheduler.get("_class_name", "DDIMScheduler")],
        "feature_extractor": [None, None],
    }
    large = {"force_zeros_for_empty_prompt": parts.zero_negative}
    index |= large if second else {"safety_checker": [None, None], "requires_safety_checker": False}
    for i, (encoder, tokenizer) in enumerate(zip(parts.text_encoders, parts.tokenizers, strict=True)):
        ending = f"_{i + 1}" * (i > 0)
        config = text_encoder_config(encoder.model)
        _write_part(folder / f"text_encoder{ending}", encoder, config, "model")
        _write_tokenizer(folder / f"tokenizer{ending}", tokenizer)
        index[f"text_encoder{ending}"] = ["transformers", config["architectures"][0]]
        index[f"tokenizer{ending}"] = ["transformers", "CLIPTokenizer"]
    _write_json(folder / "scheduler" / "scheduler_config.json", parts.scheduler)
    _write_json(folder / MODEL_INDEX, index)


def save_controlnet(path: epath.PathLike, part: Part, *, linear: bool = True) -> None:
    """Writes a folder that diffusers loads as a ControlNetModel, and `load_part` as a `ControlNetModel` of ours."""
    _write_part(epath.Path(path), part, controlnet_config(part.model, linear), linear=linear)


def save_autoencoder(folder: epath.PathLike, part: Part) -> None:
    """Writes an `AutoencoderKL` as a folder that diffusers loads, the `vae/` of its pipelines."""
    _write_part(epath.Path(folder), part, autoencoder_config(part.model))


def unet_config(unet: Any, linear: bool = True) -> Config:
    """The config.json of a `UNet`, the inverse of `settings.unet`. Raises `InputError` for one that has none."""
    assert isinstance(unet, UNet)
    return {
        "_class_name": "UNet2DConditionModel",
        **_shared_config(unet, linear),
        "center_input_sample": False,
        "dropout": unet.dropout,
        "in_channels": unet.out_channels + unet.control_channels,
        "out_channels": unet.out_channels,
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in unet.transformer_depth[::-1]],
    }


def controlnet_config(model: Any, linear: bool = True) -> Config:
    """The config.json of a `ControlNetModel`, the inverse of `settings.controlnet`."""
    assert isinstance(model, ControlNetModel)
    return {
        "_class_name": "ControlNetModel",
        **_shared_config(model, linear),
        "conditioning_channels": model.image_channels,
        "conditioning_embedding_out_channels": list(model.hint_channels),
        "in_channels": 4,
    }


def _shared_config(unet: Any, linear: bool) -> Config:
    """Settings that U-Nets and ControlNets have in common."""
    depths, levels = unet.transformer_depth, range(len(unet.channel_mult))
    fits = isinstance(unet.text, ContextEncoder) and bool(depths) and depths[-1] in (0, unet.middle_depth)
    fits &= (unet.time_injection, unet.resample) == ("add", "conv")
    require(fits, "the U-Net has no counterpart in diffusers: it is none of Stable Diffusion's kind")
    assert isinstance(unet.text, ContextEncoder)
    config: Config = {
        "act_fn": "silu",
        "attention_head_dim": [heads(unet, level) for level in levels],
        "block_out_channels": list(level_channels(unet)),
        "cross_attention_dim": unet.text.features,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "layers_per_block": unet.num_res_blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": unet.norm_eps,
        "norm_num_groups": unet.norm_groups,
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), unet.middle_depth],
        "use_linear_projection": linear,
    }
    if isinstance(added := unet.text_time, TextTimeEmbedding):
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": added.frequencies,
            "projection_class_embeddings_input_dim": added.pooled + added.numbers * added.frequencies,
        }
    return config


def autoencoder_config(model: Any) -> Config:
    """The config.json of an `AutoencoderKL`, the inverse of `settings.autoencoder`."""
    assert isinstance(model, AutoencoderKL)
    levels = len(model.channel_mult)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(level_channels(model.backbone)),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": model.channels,
        "latent_channels": model.latent_channels,
        "layers_per_block": model.num_res_blocks,
        "norm_num_groups": model.norm_groups,
        "out_channels": model.channels,
        "scaling_factor": model.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_encoder_config(model: Any) -> Config:
    """The config.json of a `ClipText`, the inverse of `settings.text_encoder`."""
    assert isinstance(model, ClipText)
    return {
        "architectures": ["CLIPTextModelWithProjection" if model.projection else "CLIPTextModel"],
        "bos_token_id": 0,
        "eos_token_id": 2 if model.end is None else model.end,
        "hidden_act": model.activation,
        "hidden_size": model.width,
        "intermediate_size": model.hidden,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": model.length,
        "model_type": "clip_text_model",
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.depth,
        "pad_token_id": 1,
        "projection_dim": model.projection or 512,
        "vocab_size": model.vocabulary,
    }


def _write_part(
    folder: epath.Path, part: Part, config: Config, stem: str = "diffusion_pytorch_model", *, linear: bool = True
) -> None:
    _write_json(folder / "config.json", config)
    tensors = tensors_from_params(part.model, part.params, "diffusers", linear=linear)
    files.write(folder / f"{stem}.safetensors", tensors)


def _write_tokenizer(folder: epath.Path, tokenizer: ClipTokenizer) -> None:
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": tokenizer.pad}
    merges = "\n".join(["#version: 0.2", *map(" ".join, tokenizer.merges), ""])
    added = {token: tokenizer.vocabulary[token] for token in tokenizer.added}
    if added:
        _write_json(folder / "added_tokens.json", added)
    _write_json(folder / "vocab.json", {token: i for token, i in tokenizer.vocabulary.items() if token not in added})
    with atomic_write(folder / "merges.txt") as file:
        file.write(merges.encode())
    _write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length, "do_lower_case": True}
    _write_json(folder / "tokenizer_config.json", settings | special)


def _write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(dict(value), indent=2, ensure_ascii=False).encode())
