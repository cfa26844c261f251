"""A single file in the original layout: the U-Net, the autoencoder and the text encoders under their first names."""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from etils import epath
from jax.typing import DTypeLike

from guided_diffusion_jax.data import clip_tokenizer
from guided_diffusion_jax.errors import InputError, choose, one_line, require, shown
from guided_diffusion_jax.interop import files, foreign
from guided_diffusion_jax.interop.stable_diffusion import presets, settings
from guided_diffusion_jax.interop.stable_diffusion.convert import params_from_tensors
from guided_diffusion_jax.interop.stable_diffusion.folder import Loaded, Part, current_name, read_json
from guided_diffusion_jax.interop.stable_diffusion.presets import Preset
from guided_diffusion_jax.models.autoencoder import AutoencoderKL
from guided_diffusion_jax.models.controlnet import ControlNetModel
from guided_diffusion_jax.models.unet import UNet

UNET, AUTOENCODER, CONTROLNET = "model.diffusion_model.", "first_stage_model.", "control_model."
TEXT = (
    ("cond_stage_model.transformer.", "diffusers"),
    ("cond_stage_model.model.", "openclip"),
    ("conditioner.embedders.0.transformer.", "diffusers"),
    ("conditioner.embedders.1.model.", "openclip"),
)
"""Prefixes of the text encoders' tensors, in the order of their features in the context, and how these are named."""

IGNORED = re.compile(
    r".*position_ids|model_ema\..*|(alphas|betas|sqrt_|log_one|posterior_|logvar|lvlb|denoiser\.).*"
    r"|(first_stage_model\.)?loss\..*|.*\.logit_scale|v_pred|ztsnr"
)
"""Tensors that stand in such files and are no parameters of the networks, the tables of the schedule above all."""

TOLD: dict[str, Mapping[str, Any]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}
"""Names that trainers of SDXL add to tell of its noise levels, and the scheduler's settings that they stand for."""

PREDICTIONS = {"epsilon": None, "v_prediction": None}


def is_single_file(path: epath.PathLike) -> bool:
    """Whether a file of weights has Stable Diffusion's original names."""
    with files.opened(path) as tensors:
        return any(name.startswith(UNET) for name in tensors)


def load(
    path: epath.PathLike,
    *,
    config: epath.PathLike | None = None,
    tokenizer: epath.PathLike | tuple[epath.PathLike, ...] = (),
    prediction_type: str | None = None,
    dtype: DTypeLike | None = None,
) -> Loaded:
    """All parts of a single file.

    Args:
        path: a `.safetensors` file (or one of torch's) with `model.diffusion_model.` and so on.
        config: a folder in diffusers' layout, whose weights are not needed, with the settings of other networks than
            the published ones, and with the tokenizers.
        tokenizer: a folder for each text encoder, or one for both, where `config` has none.
        prediction_type: "epsilon" or "v_prediction"; must be given for 2.x without `config`, unless the file says it.
        dtype: of the parameters; None is that of the file.

    Raises:
        InputError: the file holds another kind of model, or its tensors do not fit.
    """
    with files.opened(path) as tensors:
        if not any(name.startswith(UNET) for name in tensors):
            guess = foreign.tensors(tensors)
            raise InputError(
                f"{path} has no tensors named {UNET}..., so it is no single file of Stable Diffusion 1, 2 or XL"
                + (f"; it seems to be {guess}" if guess else "")
            )
        groups, rest = _groups(tensors)
        require(not rest, f"{path} holds {len(rest)} tensors of no known part ({', '.join(map(shown, rest[:2]))})")
        found = _from_config(config, len(groups) - 2) if config is not None else _published(path, groups[UNET])
        expected = (UNET, AUTOENCODER, *(prefix for prefix, _ in TEXT if prefix in groups))
        modules = (found.unet, found.autoencoder, *found.text_encoders)
        missing = [prefix for prefix in (UNET, AUTOENCODER) if prefix not in groups]
        require(
            not missing and len(expected) == len(modules),
            f"{path} holds the parts {', '.join(groups)}; {len(found.text_encoders)} text encoders and an autoencoder "
            "belong to its U-Net",
        )
        scheduler = dict(found.scheduler)
        for name in TOLD.keys() & tensors.keys():
            scheduler |= TOLD[name]
        if prediction_type is not None:
            choose(PREDICTIONS, prediction_type, "prediction_type")
            scheduler["prediction_type"] = prediction_type
        require(
            config is not None or "prediction_type" in scheduler,
            f"{path}: the file of a Stable Diffusion 2 does not tell what its network predicts; give "
            "prediction_type='epsilon' (512-base) or 'v_prediction' (768-v)",
        )
        parts = [_part(module, groups[prefix], prefix, dtype) for prefix, module in zip(expected, modules, strict=True)]
    tokenizers = _tokenizers(config, tokenizer, len(parts) - 2)
    return Loaded(parts[0], parts[1], tuple(parts[2:]), tokenizers, scheduler, found.sample_size)


def load_part(path: epath.PathLike, module: nn.Module, *, dtype: DTypeLike | None = None) -> Part:
    """One network of a file: of a whole model's, or of a file that holds it alone.

    Args:
        path: with the original names or diffusers', with their prefix or without.
        module: a `UNet`, an `AutoencoderKL` or a `ControlNetModel` with the settings of the weights, which the file
            does not tell.
        dtype: of the parameters; None is that of the file.

    Raises:
        InputError: the tensors do not fit these settings.
    """
    prefix = next(before for kind, before in PREFIXES.items() if isinstance(module, kind))
    with files.opened(path) as tensors:
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)} or tensors
        named = {current_name(name.removeprefix(prefix)): own[name] for name in own if not IGNORED.fullmatch(name)}
        naming = "diffusers" if any("down_blocks." in name for name in named) else "original"
        return Part(module, params_from_tensors(module, named, naming, dtype=dtype, part=str(path)))


PREFIXES: dict[type, str] = {UNet: UNET, AutoencoderKL: AUTOENCODER, ControlNetModel: CONTROLNET}
"""Prefixes of the tensors of networks that stand in files of their own as well."""


def _groups(tensors: files.Tensors) -> tuple[dict[str, files.Tensors], list[str]]:
    """The tensors of each part by prefix, without it, and the names that belong to none."""
    groups: dict[str, files.Tensors] = {}
    rest = []
    for name, tensor in tensors.items():
        if IGNORED.fullmatch(name):
            continue
        prefix = next((p for p in (UNET, AUTOENCODER, *dict(TEXT)) if name.startswith(p)), None)
        if prefix is None:
            rest.append(name)
        else:
            groups.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    return groups, rest


def _part(module: nn.Module, tensors: files.Tensors, prefix: str, dtype: DTypeLike | None) -> Part:
    naming = dict(TEXT).get(prefix, "original")
    if naming == "diffusers":
        tensors = {current_name(name): tensor for name, tensor in tensors.items()}
    elif naming == "openclip":
        depth, projects = module.depth, module.projection  # type: ignore[attr-defined]
        last = f"transformer.resblocks.{depth}."  # the layer that Stable Diffusion 2 does without
        tensors = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.startswith(last) and (projects or name != "text_projection")
        }
    return Part(module, params_from_tensors(module, tensors, naming, dtype=dtype, part=prefix.rstrip(".")))


def _from_config(config: epath.PathLike, encoders: int) -> Preset:
    folder = epath.Path(config)
    names = ("text_encoder", "text_encoder_2")[:encoders]
    config_of_unet = read_json(folder / "unet" / "config.json")
    unet = settings.unet(config_of_unet)
    autoencoder = settings.autoencoder(read_json(folder / "vae" / "config.json"))
    texts = tuple(settings.text_encoder(read_json(folder / name / "config.json"), name) for name in names)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    return Preset(unet, autoencoder, texts, settings.sample_size(config_of_unet), scheduler)


def _published(path: epath.PathLike, unet: Mapping[str, Any]) -> Preset:
    """The published model that a U-Net's tensors belong to."""
    context = next((t.shape[1] for name, t in unet.items() if name.endswith("attn2.to_k.weight")), 0)
    channels = next((t.shape[1] for name, t in unet.items() if name == "input_blocks.0.0.weight"), 0)
    found = presets.find(context, channels)
    if found is None:
        raise InputError(
            one_line(
                f"{path}: no published Stable Diffusion has a U-Net with {channels} input channels and a context of "
                f"{context} features; give config= of a folder with its settings"
            )
        )
    return found


def _tokenizers(
    config: epath.PathLike | None, given: epath.PathLike | tuple[epath.PathLike, ...], count: int
) -> tuple[clip_tokenizer.ClipTokenizer, ...]:
    folders = given if isinstance(given, tuple) else (given,) * count
    if not folders and config is not None:
        folders = tuple(epath.Path(config) / name for name in ("tokenizer", "tokenizer_2")[:count])
    require(
        len(folders) in (0, count),
        f"tokenizer= has {len(folders)} folders for {count} text encoders; give one for each",
    )
    return tuple(map(clip_tokenizer.load, folders))
