"""What a file that is no network of guided-diffusion seems to be: by its first bytes, its entries, its keys, its names.

Each table is searched from the top, and the first row that fits decides.
"""

import re
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from typing import Any

Match = Callable[[str, str], re.Match[str] | None]

CONTENT: tuple[tuple[str, str], ...] = (
    (r"version https://git-lfs", "a pointer of Git LFS instead of the file itself; fetch it with: git lfs pull"),
    (r"\s*<(?i:!doctype|html|\?xml|!--)", "a web page; the download has gone wrong"),
    (r"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write"),
    (r"GGUF|GGML|ggjt|lmgg", "a GGUF file of llama.cpp"),
    (r"\x93NUMPY", "an array of NumPy (.npy)"),
    (r"(?s:....)TFL3", "a TensorFlow Lite model"),
    (r"\x08[\x01-\x1f](\x12.|\x1a.|:|B)(?s:.*)", "an ONNX model"),
    (r"\x08\x01\x12", "a TensorFlow SavedModel"),
    (r"(?s:.{257})ustar", "a tar archive; unpack it"),
    (r"\x1f\x8b|BZh|\xfd7zXZ\x00|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!", "a compressed file; unpack it"),
    (r"\x89PNG|\xff\xd8\xff|GIF8|RIFF", "an image"),
    (r"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", "a file of torch's from before 1.6"),
    (r"\x80[\x02-\x05]", "a bare pickle"),
    (r"PK\x03\x04", "a zip archive, as torch writes to .pt"),
    (r"(?s:.{8})\{\s*[\"}]", "a safetensors file; name it .safetensors"),
    (r"\s*[\{\[]\s*[\"\[\{\}]", "JSON text"),
    (r"(?s:\x00{16})", "empty: it begins with zeros; the download has gone wrong"),
)
"""Patterns of a file's first bytes, read as Latin-1."""

ARCHIVES: tuple[tuple[str, str], ...] = (
    (r"[^/]+/(constants\.pkl|code/.*)", "a TorchScript archive (torch.jit.save); save the state_dict() of the module"),
    (r".*\.npy", "a file of NumPy's arrays (.npz)"),
    (r"model\.weights\.h5|keras_metadata.*", "a Keras model"),
    (r".*\.safetensors", "an archive of .safetensors files; unpack it"),
    (r".*\.mlmodel|Manifest\.json", "a Core ML model"),
    (r"data\.json|pytorch_variables\.pth|policy\.pth", "a model of Stable Baselines"),
)
"""Patterns of the name of a zip archive's entry."""

CHECKPOINTS: tuple[tuple[str, str], ...] = (
    ("pytorch-lightning_version", "a PyTorch Lightning checkpoint"),
    ("string_to_param", "an embedding of textual inversion"),
    ("param_groups", "the state of an optimizer"),
    ("optimizer_states", "a checkpoint of a training with its optimizer"),
    ("optimizer_state_dict", "a checkpoint of a training with its optimizer"),
    ("optimizer", "a checkpoint of a training with its optimizer"),
    ("opt", "a checkpoint of a training with its optimizer"),
    ("ema_state_dict", "a checkpoint with averaged parameters (EMA)"),
    ("ema", "a checkpoint with averaged parameters (EMA)"),
    ("state_dict", "a checkpoint with a state dict inside"),
    ("model_state_dict", "a checkpoint with a state dict inside"),
    ("model", "a checkpoint with a state dict inside"),
)
"""Keys of a pickled dict that is no state dict."""

INNER = (
    "ema_state_dict", "ema_model", "params_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "net",
    "module", "params",
)  # fmt: skip
"""Keys under which checkpoints keep a state dict, the averaged parameters first."""

TENSORS: tuple[tuple[str, str], ...] = (
    (r"lora_(up|down|A|B|unet|te\d?)\b|lora\.(up|down)\.|lora_.*\.(lora_)?(up|down)\.|\.hada_w", "a LoRA file"),
    (r"control_model\.|controlnet_|input_hint_block\.", "a ControlNet"),
    (r"ip_adapter\.|image_proj\.", "an IP-Adapter"),
    (r"model\.diffusion_model\.", "a single file of Stable Diffusion"),
    (r"first_stage_model\.|quant_conv\.", "an autoencoder of latent diffusion"),
    (r"down_blocks\.|(^|\.)conv_in\.|mid_block\.", "a diffusers U-Net"),
    (r"input_blocks\..*transformer_blocks\.", "a U-Net of latent diffusion"),
    (r"double_blocks\.|single_transformer_blocks\.|joint_blocks\.|x_embedder\.", "a diffusion transformer"),
    (r"transformer_blocks\.", "a U-Net of latent diffusion"),
    (r"text_model\.|transformer\.resblocks\.|visual\.", "CLIP"),
    (r"model\.(enc|dec|map_layer\d)\.|(^|\.)enc\.\d+x\d+", "a network of EDM"),
    (r"(^|\.)down\.\d+\.block\.|(^|\.)temb\.dense\.", "a network of DDPM's PyTorch versions"),
    (r"(^|\.)init_conv\.|(^|\.)downs\.\d", "a network of denoising-diffusion-pytorch"),
    (r"exp_avg|momentum_buffer", "the state of an optimizer"),
    (r"encoder\.block\.|encoder\.layers?\.\d|embeddings\.|self_attn\.|lm_head\.", "a language model"),
    (r"layer[1-4]\.\d+\.conv\d|Mixed_\d|features\.\d", "a network for image classification"),
    (r"emb_params|clip_[lg]$", "an embedding of textual inversion"),
)
"""Patterns of tensor names."""


ENOUGH, LONG = 2000, 200
"""How many names are looked at, and so many characters of each: what a file seems to be is told by fewer."""


def _first(table: Iterable[tuple[str, str]], texts: Iterable[str], match: Match) -> str | None:
    looked_at = [text[:LONG] for text in islice(texts, ENOUGH)]
    return next((what for pattern, what in table if any(match(pattern, text) for text in looked_at)), None)


def content(head: bytes) -> str | None:
    """What a file seems to be that begins with these bytes.

    >>> content(b"<!DOCTYPE html><title>Not found")
    'a web page; the download has gone wrong'
    """
    return next((what for pattern, what in CONTENT if re.match(pattern, head.decode("latin-1"))), None)


def archive(entries: Iterable[str]) -> str | None:
    """What a zip archive seems to be that has entries of these names."""
    return _first(ARCHIVES, entries, re.fullmatch)


def checkpoint(keys: Collection[Any]) -> tuple[str, str]:
    """What a pickled dict with these keys seems to be, to begin a message with, and what of it to save."""
    found = next((f"it seems to be {what}: " for key, what in CHECKPOINTS if key in keys), "")
    inner = next((key for key in INNER if key in keys), None)
    advice = f'save its "{inner}" alone: torch.save(torch.load(old)["{inner}"], new)' if inner else ""
    return found, advice or "save the model's state_dict() alone."


def tensors(names: Iterable[str]) -> str | None:
    """What network has tensors of these names."""
    return _first(TENSORS, names, re.search)
