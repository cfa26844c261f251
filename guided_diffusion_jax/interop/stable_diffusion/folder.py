"""A folder in diffusers' layout: a subfolder for each part, with config.json and its weights."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from etils import epath
from jax.typing import DTypeLike

from guided_diffusion_jax.data import clip_tokenizer
from guided_diffusion_jax.data.clip_tokenizer import ClipTokenizer
from guided_diffusion_jax.errors import InputError, require, shown
from guided_diffusion_jax.interop import files, limits
from guided_diffusion_jax.interop.stable_diffusion import settings
from guided_diffusion_jax.interop.stable_diffusion.convert import params_from_tensors
from guided_diffusion_jax.interop.stable_diffusion.presets import Preset
from guided_diffusion_jax.typing import Params

MODEL_INDEX = "model_index.json"
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = tuple(
    ending
    for kind in ("safetensors", "bin")
    for variant in ("", ".fp16", ".bf16")
    for ending in (f"{variant}.{kind}", f".{kind}.index{variant}.json", f"{variant}.{kind}.index.json")
)
"""Names of files of weights, the preferred first; an index names the shards of one that was split."""


class Part(NamedTuple):
    """A network, of one of the classes in `models`, and its parameters."""

    model: Any
    params: Params


class Loaded(NamedTuple):
    """What a folder or a file of Stable Diffusion holds.

    Attributes:
        unet: a `UNet`.
        autoencoder: an `AutoencoderKL`.
        text_encoders: one `ClipText`, or SDXL's two, in the order of their features in the U-Net's context.
        tokenizers: one for each text encoder.
        scheduler: the scheduler's settings, as diffusers names them.
        sample_size: height and width of the latents that the U-Net was trained on.
        zero_negative: SDXL's features are zero where there is no negative prompt.
    """

    unet: Part
    autoencoder: Part
    text_encoders: tuple[Part, ...]
    tokenizers: tuple[ClipTokenizer, ...]
    scheduler: Mapping[str, Any]
    sample_size: int
    zero_negative: bool = True


def is_folder(path: epath.PathLike) -> bool:
    """Whether this is a folder of one of diffusers' pipelines."""
    return (epath.Path(path) / MODEL_INDEX).exists()


def load(path: epath.PathLike, *, dtype: DTypeLike | None = None) -> Loaded:
    """All parts of a folder in diffusers' layout.

    Args:
        path: the folder, with model_index.json.
        dtype: of the parameters; None is that of the files.

    Raises:
        InputError: the folder holds another kind of model, a part of it is missing, or tensors do not fit.
    """
    folder = epath.Path(path)
    index = read_json(folder / MODEL_INDEX)
    kind = str(index.get("_class_name"))
    require(
        kind.startswith("StableDiffusion") and "3" not in kind,
        f"{folder} holds {shown(kind)}, which is not supported; Stable Diffusion 1, 2 and XL are",
    )
    names = [name for name in ("text_encoder", "text_encoder_2") if (index.get(name) or [None])[0] is not None]
    require(bool(names), f"{folder / MODEL_INDEX} names no text_encoder: the folder cannot read prompts")
    require(
        names[0] == "text_encoder",
        f"{folder} has SDXL's second text encoder alone, as its refiner, which is not supported; its base is",
    )
    for name in ("unet", "vae", *names, "scheduler"):
        require((folder / name).is_dir(), f"{folder} has no folder {name}")
    tokenizers = (clip_tokenizer.load(folder / name.replace("text_encoder", "tokenizer")) for name in names)
    return Loaded(
        load_part(folder / "unet", settings.unet, dtype=dtype),
        load_part(folder / "vae", settings.autoencoder, dtype=dtype),
        tuple(load_part(folder / name, settings.text_encoder, dtype=dtype) for name in names),
        tuple(tokenizers),
        read_json(folder / "scheduler" / "scheduler_config.json"),
        settings.sample_size(read_json(folder / "unet" / "config.json")),
        bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def modules(path: epath.PathLike) -> Preset:
    """The networks of a folder in diffusers' layout, of which no weights are read.

    Raises:
        InputError: a part of it is missing, or is of another kind.
    """
    folder = epath.Path(path)
    names = [name for name in ("text_encoder", "text_encoder_2") if (folder / name).is_dir()]
    unet = read_json(folder / "unet" / "config.json")
    return Preset(
        settings.unet(unet),
        settings.autoencoder(read_json(folder / "vae" / "config.json")),
        tuple(settings.text_encoder(read_json(folder / name / "config.json")) for name in names),
        settings.sample_size(unet),
        read_json(folder / "scheduler" / "scheduler_config.json"),
    )


def load_part(folder: epath.PathLike, module_of: Any, *, dtype: DTypeLike | None = None) -> Part:
    """One network of a folder.

    Args:
        folder: with config.json and weights.
        module_of: function of `settings`, from (config, where) to the module.
        dtype: as in `load`.
    """
    folder = epath.Path(folder)
    module = module_of(read_json(folder / "config.json"), str(folder))
    with opened(folder) as tensors:
        renamed = {current_name(name): tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
        return Part(module, params_from_tensors(module, renamed, "diffusers", dtype=dtype, part=str(folder)))


OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of an autoencoder's attention before diffusers 0.17, and its names since."""


def current_name(name: str) -> str:
    """The name that a tensor has in most files."""
    *before, layer, kind = name.split(".") if name.count(".") > 1 else ("", "", name)
    if layer in OLD_ATTENTION and "attentions" in before:
        return ".".join([*before, OLD_ATTENTION[layer], kind])
    # Some versions of transformers leave out the prefix.
    return f"text_model.{name}" if name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm.")) else name


@contextmanager
def opened(folder: epath.Path) -> Iterator[files.Tensors]:
    """The tensors of a folder's weights, which may be split among several files.

    Raises:
        InputError: there are no weights, or a file of several is missing or holds other tensors than the index says.
    """
    found = [folder / f"{stem}{ending}" for ending in ENDINGS for stem in STEMS]
    file = next((path for path in found if path.exists()), None)
    if file is None:
        raise InputError(f"{folder} holds no weights; {STEMS[0]}.safetensors, for example")
    with ExitStack() as stack:
        if file.suffix != ".json":
            yield stack.enter_context(files.opened(file))
            return
        shard_of: dict[Any, Any] = read_json(file).get("weight_map") or {}
        plain = isinstance(shard_of, dict) and bool(shard_of)
        plain = plain and all(isinstance(shard, str) and "/" not in shard for shard in shard_of.values())
        require(plain, f"{file} has no weight_map of tensors to files beside it")
        tensors: files.Tensors = {}
        for shard in sorted(set(shard_of.values())):
            more = stack.enter_context(files.opened(folder / shard))
            others = [name for name in more if shard_of.get(name) != shard]
            require(not others, f"{file} does not say that {shown(others[:1])} is in {shown(shard)}")
            tensors |= more
        missing = [name for name in shard_of if name not in tensors]
        require(not missing, f"{len(missing)} tensors of {file} are in no file ({', '.join(map(shown, missing[:2]))})")
        yield tensors


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object of a JSON file. Raises `InputError` where there is none."""
    require(path.exists(), f"{path} does not exist")
    require(path.stat().length <= limits.DESCRIPTION, f"{path} has {path.stat().length:,} bytes, too many for settings")
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from None
    require(isinstance(value, dict), f"{path} holds no JSON object")
    return value
