"""Files of LoRA: kohya's and diffusers' (peft's and older) names, as changes of our parameters, and back."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors import safe_open

from guided_diffusion_jax.errors import InputError, require, shown
from guided_diffusion_jax.interop import files
from guided_diffusion_jax.interop.layout import CONV
from guided_diffusion_jax.interop.stable_diffusion.folder import current_name
from guided_diffusion_jax.interop.stable_diffusion.names import Row, table
from guided_diffusion_jax.models.lora import Factors, Lora
from guided_diffusion_jax.models.unet import UNet

PARTS = ("unet", "text_encoder", "text_encoder_2")
KOHYA = re.compile(r"lora_(unet|te|te1|te2)_(.+)\.(alpha|lora_down\.weight|lora_up\.weight)")
KOHYA_PARTS = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
DOTTED = re.compile(
    r"(?:(unet|text_encoder|text_encoder_2)\.)?(.+)\.(?:lora_|lora\.|lora_linear_layer\.)(A|B|down|up)(?:\.default)?\.weight"
)
PROCESSOR = re.compile(r"(?:(unet|text_encoder)\.)?(.+)\.processor\.(to_[qkv]|to_out)_lora\.(down|up)\.weight")
"""Names of tensors: kohya's; peft's and diffusers'; those of diffusers before 0.20, which had attention alone."""

OTHERS = {
    ".hada_": "LoHa", ".lokr_": "LoKr", ".oft_": "OFT", ".dora_scale": "DoRA", ".lora_magnitude_vector": "DoRA",
    ".lora_mid.": "LoCon with a third matrix",
}  # fmt: skip
"""Parts of names by which other methods than LoRA are known."""

SIDES = {"A": "down", "B": "up", "lora_down.weight": "down", "lora_up.weight": "up"}


def load(path: epath.PathLike, models: Mapping[str, nn.Module]) -> dict[str, Lora]:
    """The changes that a file of LoRA makes to each of these networks.

    Args:
        path: `.safetensors`, or one of torch's files.
        models: "unet", "text_encoder" and, of SDXL, "text_encoder_2".

    Raises:
        InputError: names or shapes of tensors do not fit the networks, as of a LoRA for another base; it names them.
    """
    with files.opened(path) as tensors:
        other = next((kind for part, kind in OTHERS.items() if any(part in name for name in tensors)), None)
        require(other is None, f"{path} holds {other}, which is not supported; LoRA is, of matrices and convolutions")
        named = {name: _meaning(name) for name in tensors}
        unknown = [name for name, meaning in named.items() if meaning is None or meaning[0] not in models]
        kernels = {part: _kernels(model) for part, model in models.items() if part in PARTS}
        grouped: dict[tuple[str, str], dict[str, Any]] = {}
        for name, meaning in named.items():
            if meaning is None or name in unknown:
                continue
            part, module, side = meaning
            if module not in kernels[part]:
                unknown.append(name)
            else:
                grouped.setdefault((part, module), {})[side] = np.asarray(tensors[name])
        require(
            not unknown,
            f"{path}: {len(unknown)} of {len(named)} tensors fit no layer ({', '.join(map(shown, unknown[:2]))}); the "
            "LoRA may be for another base",
        )
        require(bool(grouped), f"{path} holds no LoRA")
        metadata = _metadata(path)
        loras: dict[str, dict[tuple[str, ...], Factors]] = {}
        for (part, module), sides in grouped.items():
            row, shape = kernels[part][module]
            factors = _factors(
                f"{path}: {module}", row, shape, sides, _alpha(metadata, part, module, sides.get("down"))
            )
            loras.setdefault(part, {})[row.path] = factors
    return dict(loras)


def tensors_of(
    loras: Mapping[str, Lora], models: Mapping[str, nn.Module], *, linear: bool = True
) -> dict[str, np.ndarray]:
    """Tensors under peft's names, which diffusers loads: the inverse of `load`, with alpha in `lora_B`.

    `linear` is whether the transformers' projections are matrices in the base's files.
    """
    found = {}
    for part, lora in loras.items():
        rows, _ = table(models[part], "diffusers", linear=linear)
        for row in rows:
            if row.path in lora:
                down, up = (np.asarray(side, np.float32) for side in lora[row.path])
                up = up[None, None] if row.layout is CONV else up
                name = f"{part}.{row.name.removesuffix('.weight')}"
                found[f"{name}.lora_A.weight"] = np.array(row.layout.to_adm(down), order="C")
                found[f"{name}.lora_B.weight"] = np.array(row.layout.to_adm(up), order="C")
    return found


def _meaning(name: str) -> tuple[str, str, str] | None:
    """The part, the name of the module with underscores for its dots, and the side of a tensor; None for others."""
    if match := KOHYA.fullmatch(name):
        part, module, side = match.groups()
        return KOHYA_PARTS[part], module, SIDES.get(side, side)
    if match := PROCESSOR.fullmatch(name):
        found, before, matrix, side = match.groups()
        module = f"{before}.{matrix}" + ".0" * (matrix == "to_out")
        return found or "unet", _joined(module), side
    if match := DOTTED.fullmatch(name):
        found, module, side = match.groups()
        return found or "unet", _joined(current_name(module)), SIDES.get(side, side)
    return None


def _joined(module: str) -> str:
    return module.replace(".", "_")


def _kernels(model: nn.Module) -> dict[str, tuple[Row, tuple[int, ...]]]:
    """For each module that LoRA can change, under each of its names, its row and its kernel's shape."""
    found = {}
    for naming in ("diffusers", "original") if isinstance(model, UNet) else ("diffusers",):
        rows, shapes = table(model, naming)
        for row in rows:
            if row.path[-1] == "kernel":
                found[_joined(row.name.removesuffix(".weight"))] = (row, shapes[row.path].shape)
    return found


def _factors(where: str, row: Row, shape: Sequence[int], sides: Mapping[str, Any], alpha: float | None) -> Factors:
    missing = [side for side in ("down", "up") if side not in sides]
    require(not missing, f"{where} has no {' and no '.join(missing)} matrix")
    down, up = sides["down"], sides["up"]
    rank = down.shape[0]
    wanted = (rank, shape[-2], *shape[:-2])
    fits = down.size == math.prod(wanted) and up.size == shape[-1] * rank
    require(
        fits, f"{where} is {up.shape} times {down.shape}, but the layer has a kernel of {tuple(shape)}: another base's?"
    )
    down = down.reshape(wanted).astype(np.float32)
    down = down.transpose(2, 3, 1, 0) if len(wanted) == 4 else down.T
    alpha = float(np.asarray(sides["alpha"]).reshape(())) if "alpha" in sides else alpha
    scale = 1.0 if alpha is None else alpha / rank
    return Factors(jnp.asarray(down), jnp.asarray(up.reshape(-1, rank).T.astype(np.float32) * np.float32(scale)))


def _metadata(path: epath.PathLike) -> Mapping[str, Any]:
    """What peft's header says of alpha; nothing for files without one."""
    if not str(path).endswith(".safetensors"):
        return {}
    with safe_open(str(path), "np") as file:
        text = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: lora_adapter_metadata in its header is no JSON") from None
    return value if isinstance(value, dict) else {}


def _alpha(metadata: Mapping[str, Any], part: str, module: str, down: np.ndarray | None) -> float | None:
    """What a header says of a module's alpha; of one that is divided by sqrt(rank) (Kalajdzievski 2023), times that."""
    alpha = metadata.get(f"{part}.lora_alpha")
    for name, other in (metadata.get(f"{part}.alpha_pattern") or {}).items():
        alpha = other if module.endswith(_joined(name)) else alpha
    rank = len(down) if metadata.get(f"{part}.use_rslora") and down is not None else 1
    return None if alpha is None else float(alpha) * math.sqrt(rank)
