"""Kinds of fine-tuning: which parameters there are, which of them are trained, and what a pipeline gains by them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Key

from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.finetuning.objective import LORA, WORDS, Networks
from guided_diffusion_jax.interop import files
from guided_diffusion_jax.interop.stable_diffusion import Loaded, Part, embeddings, save_controlnet
from guided_diffusion_jax.interop.stable_diffusion.lora import tensors_of
from guided_diffusion_jax.models import init_params
from guided_diffusion_jax.models import lora as factors
from guided_diffusion_jax.models.controlnet import ControlledUNet, controlnet_of
from guided_diffusion_jax.models.lora import LAYERS
from guided_diffusion_jax.objectives.partition import Trainable
from guided_diffusion_jax.stable_diffusion import ENCODERS, StableDiffusion
from guided_diffusion_jax.typing import Params

Layers = str | Callable[[tuple[str, ...]], bool]


class Kind(NamedTuple):
    """A kind of fine-tuning.

    Attributes:
        networks: that a step applies.
        base: the parameters that there are already, by network.
        init: `init(key)`, fresh ones beside them.
        trainable: which parameters are trained.
        finished: a pipeline and the trained parameters to the pipeline with what was learned.
        save: writes what was learned alone.
        described: what a continued run must have in common with its beginning.
    """

    networks: Networks
    base: Params
    init: Callable[[Key[Array, ""]], Params]
    trainable: Trainable
    finished: Callable[[StableDiffusion, Params], StableDiffusion]
    save: Callable[[epath.PathLike, Params], None]
    described: Mapping[str, Any]


def base(parts: Loaded, dtype: DTypeLike, remat: bool, text_encoder: bool) -> tuple[Networks, Params]:
    """The networks of a step and their parameters, the text encoders among them where they are part of it."""
    unet: Any = parts.unet.model
    require(
        unet.control_channels == 0, "fine-tuning is for U-Nets that see latents alone, and this one is for inpainting"
    )
    encoders = dict(zip(ENCODERS, parts.text_encoders, strict=False)) if text_encoder else {}
    nets: dict[str, Any] = {name: part.model for name, part in encoders.items()}
    networks = Networks(
        unet.clone(dtype=dtype, remat=remat),
        {name: net.clone(dtype=dtype) for name, net in nets.items()},
        sizes=len(parts.text_encoders) > 1,
    )
    return networks, {"unet": parts.unet.params} | {name: part.params for name, part in encoders.items()}


def full(parts: Loaded, dtype: DTypeLike, remat: bool, *, text_encoder: bool = False) -> Kind:
    """All parameters of the U-Net, and of the text encoders if they are asked for."""
    networks, params = base(parts, dtype, remat, text_encoder)

    def changed(trained: Params) -> Loaded:
        texts = tuple(
            part._replace(params=trained.get(name, part.params))
            for name, part in zip(ENCODERS, parts.text_encoders, strict=False)
        )
        return parts._replace(unet=parts.unet._replace(params=trained["unet"]), text_encoders=texts)

    def save(path: epath.PathLike, trained: Params) -> None:
        from guided_diffusion_jax.interop import stable_diffusion

        stable_diffusion.save(path, changed(trained))

    return Kind(
        networks, params, lambda key: {}, lambda path: True, lambda pipe, trained: pipe.with_parts(changed(trained)),
        save, {"kind": "full", "text_encoder": text_encoder},
    )  # fmt: skip


def lora(
    parts: Loaded,
    dtype: DTypeLike,
    remat: bool,
    *,
    rank: int = 8,
    alpha: float | None = None,
    layers: Layers = "attention",
    text_encoder: bool = False,
) -> Kind:
    """Low-rank changes of the U-Net's matrices, and of the text encoders' attention if they are asked for."""
    networks, params = base(parts, dtype, remat, text_encoder)
    scale = 1.0 if alpha is None else alpha / rank
    chosen = choose(LAYERS, layers, "layers") if isinstance(layers, str) else layers
    models: dict[str, Any] = {"unet": parts.unet.model, **networks.encoders}
    where = {name: chosen if name == "unet" else LAYERS["attention"] for name in models}

    def init(key: Key[Array, ""]) -> Params:
        keys = jax.random.split(key, len(where))
        made = {
            name: factors.init(each, params[name], rank, fits)
            for each, (name, fits) in zip(keys, where.items(), strict=True)
        }
        return {LORA: {name: factors.to_params(of_part) for name, of_part in made.items()}}

    def learned(trained: Params) -> dict[str, factors.Lora]:
        found = {name: factors.from_params(tree) for name, tree in trained[LORA].items()}
        return {
            name: {path: pair._replace(up=pair.up * np.float32(scale)) for path, pair in of_part.items()}
            for name, of_part in found.items()
        }

    described = {"kind": "lora", "rank": rank, "alpha": alpha, "text_encoder": text_encoder}
    return Kind(
        networks._replace(lora_scale=scale), params, init, lambda path: path[0] == LORA,
        lambda pipe, trained: pipe.with_lora(learned(trained)),
        lambda path, trained: files.write(path, tensors_of(learned(trained), models)), described,
    )  # fmt: skip


def controlnet(parts: Loaded, dtype: DTypeLike, remat: bool, *, channels: int = 3) -> Kind:
    """A ControlNet that begins as the U-Net's first half, followed by matrices of zeros (Zhang et al. 2023)."""
    networks, params = base(parts, dtype, remat, False)
    unet: Any = parts.unet.model
    factor: int = getattr(parts.autoencoder.model, "factor", 8)
    hint = (16, 32, 96, 256)[-factor.bit_length() :]
    model = controlnet_of(unet, hint_channels=hint, image_channels=channels)
    name = "controlnets_0"
    shape = (parts.sample_size, parts.sample_size, unet.out_channels)
    controlled = ControlledUNet(networks.unet, (model.clone(dtype=dtype, remat=remat),))  # type: ignore[arg-type]
    begun = {part: params["unet"][part] for part in ("embedding", "encoder")}

    def learned(trained: Params) -> Part:
        return Part(model, trained[name])

    return Kind(
        networks._replace(unet=controlled), {**params, name: begun},
        lambda key: {name: init_params(controlled, key, shape)[name]}, lambda path: path[0] == name,
        lambda pipe, trained: pipe.with_controlnet(learned(trained)),
        lambda path, trained: save_controlnet(path, learned(trained)), {"kind": "controlnet"},
    )  # fmt: skip


def textual_inversion(
    parts: Loaded, dtype: DTypeLike, remat: bool, *, token: str, rows: Mapping[str, np.ndarray]
) -> Kind:
    """New rows of the tables of tokens, the last ones of `parts`, which begin as `rows` `[k d]` by text encoder."""
    networks, params = base(parts, dtype, remat, True)

    def learned(trained: Params) -> Sequence[np.ndarray]:
        return [np.asarray(trained[WORDS][name]) for name in networks.encoders]

    def finished(pipe: StableDiffusion, trained: Params) -> StableDiffusion:
        def changed(part: Part, new: np.ndarray) -> Part:
            flat = flatten_dict(part.params)
            table = flat[embeddings.TABLE]
            flat[embeddings.TABLE] = table.at[-len(new) :].set(new.astype(table.dtype))
            return part._replace(params=unflatten_dict(flat))

        texts = tuple(map(changed, parts.text_encoders, learned(trained)))
        return pipe.with_parts(parts._replace(text_encoders=texts))

    return Kind(
        networks, params, lambda key: {WORDS: {name: jnp.asarray(row) for name, row in rows.items()}},
        lambda path: path[0] == WORDS, finished,
        lambda path, trained: embeddings.save(path, token, learned(trained)),
        {"kind": "textual_inversion", "token": token},
    )  # fmt: skip
