"""From a configuration to the objects it names: data set, model, process, trainer."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from guided_diffusion_jax import models
from guided_diffusion_jax.data import load
from guided_diffusion_jax.data.dataset import Dataset, DatasetInfo
from guided_diffusion_jax.data.text import TextEncoder, text_encoder
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.experiment.default import DTYPES, NETWORKS, VERIFY
from guided_diffusion_jax.experiment.keys import pairs
from guided_diffusion_jax.interop.stable_diffusion import Part
from guided_diffusion_jax.models import (
    AutoencoderKL,
    ByteEncoder,
    Classifier,
    ControlNet,
    FeatureEncoder,
    ImageEncoder,
    SuperResolution,
    UNet,
)
from guided_diffusion_jax.models.lora import LoraUNet
from guided_diffusion_jax.models.plan import level_channels
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.runtime import distributed, notices
from guided_diffusion_jax.training import latents
from guided_diffusion_jax.training.settings import TrainSettings

BACKBONE = (
    "width", "channel_mult", "num_res_blocks", "attention_resolutions", "head_width", "num_heads", "dropout",
    "time_injection", "resample", "remat",
)  # fmt: skip
"""Fields that `config.model` and `config.classifier.model` pass on as they are."""


def reader(config: ConfigDict) -> TextEncoder | None:
    """Encoder of prompts and captions; None for a model without text."""
    return text_encoder(config.model.text_encoder, config.model.text_length) if config.data.text else None


def dataset(config: ConfigDict, split: str = "train", *, buckets: int = 0) -> Dataset:
    """Data set of a configuration, of squares or in buckets; prints what was understood of it.

    Raises:
        InputError: there is none such, or it lacks what the configuration makes conditions of.
    """
    d = config.data
    with notices.working(f"opening {d.name}"):
        opened = load(
            d.name,
            split=split,
            image_size=d.image_size,
            data_dir=d.data_dir,
            attributes=tuple(d.attributes),
            text=d.text,
            caption_has=d.caption_has,
            caption_lacks=d.caption_lacks,
            reference_image=d.reference_image,
            control_image=d.control_image,
            labels=d.labels,
            channels=d.channels,
            buckets=buckets,
            text_encoder=reader(config),
        )
    if distributed.is_main_process():
        print(opened.describe(), flush=True)
    return opened


def process(config: ConfigDict) -> Process:
    """Process of a configuration."""
    d = config.diffusion
    require(d.num_steps >= 1, f"diffusion.num_steps={d.num_steps} must be at least 1")
    return Process.create(
        d.schedule,
        d.num_steps,
        shift=d.shift,
        zero_terminal_snr=d.zero_terminal_snr,
        prediction=d.prediction,
        variance=d.variance,
        sigma_data=d.sigma_data,
    )


def _backbone(section: ConfigDict, part: str) -> dict[str, Any]:
    return {key: section[key] for key in BACKBONE} | {"dtype": choose(DTYPES, section.dtype, f"{part}.dtype")}


def model(config: ConfigDict, info: DatasetInfo, shape: tuple[int, int, int] | None = None) -> nn.Module:
    """Network of a configuration, for a data set.

    Args:
        config: the configuration.
        info: of the data set.
        shape: (h, w, c) of what the network sees; None is that of the images.

    Raises:
        InputError: settings that cannot work.
    """
    m, d, shape = config.model, config.data, shape or info.image_shape
    channels = shape[2]
    choose(dict.fromkeys(NETWORKS), m.name, "model.name")
    upsampler = m.name == "super_resolution"
    require(
        upsampler == bool(d.low_res_size) and 0 <= d.low_res_size < d.image_size,
        f"data.low_res_size={d.low_res_size} must lie in 1 .. {d.image_size - 1} for model.name='super_resolution', "
        "and be 0 for others",
    )
    dtype = choose(DTYPES, m.dtype, "model.dtype")
    text: nn.Module | None = None
    reference = None
    if d.text:
        encoder = reader(config)
        assert encoder is not None
        encoded = encoder.encode([""]).shape
        if len(encoded) == 2:
            text = ByteEncoder(width=m.text_width, depth=m.text_depth, length=m.text_length, dtype=dtype)
        else:
            text = FeatureEncoder(features=encoded[-1], width=m.text_width, length=m.text_length, dtype=dtype)
    if d.reference_image:
        reference = ImageEncoder(channels=channels, width=m.reference_width, depth=m.reference_depth, dtype=dtype)
    unet = UNet(
        num_classes=len(info.class_names) if m.use_labels else 0,
        attribute_sizes=tuple(len(values) for _, values in info.attributes),
        text=text,
        reference=reference,
        control_channels=0 if m.name == "controlnet" else info.control_channels,
        masked_channels=channels if m.inpainting else 0,
        condition_resolutions=tuple(
            (name, tuple(np.atleast_1d(pixels).tolist()))
            for name, pixels in pairs(m.condition_resolutions, "model.condition_resolutions", 2)
        ),
        class_fusion=m.class_fusion,
        norm_groups=m.norm_groups,
        out_channels=channels * (2 if config.diffusion.variance == "learned_range" else 1),
        **_backbone(m, "model"),
    )
    made: nn.Module = unet
    if upsampler:
        made = SuperResolution(unet, low_res_size=d.low_res_size)
    if m.name in ADDITIONS:
        made = ADDITIONS[m.name](unet, config, info)
    models.check(made, shape)
    return made


def with_branch(unet: UNet, config: ConfigDict, info: DatasetInfo) -> ControlNet:
    """ControlNet on a U-Net, for the control images of a data set.

    Raises:
        InputError: it has none, or the U-Net sees one itself.
    """
    require(
        unet.control_channels == 0,
        f"pretrained={config.pretrained} is a U-Net that sees a control image already; give one that does not",
    )
    require(info.control_channels > 0, "model.name='controlnet' needs data.control_image, the map that it sees")
    return ControlNet(unet, control_channels=info.control_channels)


def with_lora(unet: UNet, config: ConfigDict, info: DatasetInfo) -> LoraUNet:
    """A U-Net with the low-rank changes of a configuration."""
    m = config.model
    return LoraUNet(unet, rank=m.lora_rank, alpha=m.lora_alpha, layers=m.lora_layers)


ADDITIONS: dict[str, Callable[[UNet, ConfigDict, DatasetInfo], nn.Module]] = {
    "controlnet": with_branch,
    "lora": with_lora,
}
"""What is trained beside a frozen U-Net, by `model.name`."""


def classifier_model(config: ConfigDict, num_classes: int, image_shape: tuple[int, int, int]) -> Classifier:
    """Noise-aware classifier of a configuration."""
    m = config.classifier.model
    made = Classifier(num_classes=num_classes, pool=m.pool, **_backbone(m, "classifier.model"))
    models.check(made, image_shape)
    return made


def autoencoder(config: ConfigDict, workdir: epath.Path | None) -> Part | None:
    """The autoencoder of `model.autoencoder`, a folder in the run's or any other; None for a model of pixels.

    A run that has begun holds a copy, which does where the folder is gone.

    Raises:
        InputError: there is none.
    """
    path = epath.Path(config.model.autoencoder).expanduser()
    if not config.model.autoencoder:
        return None
    places = [path] if workdir is None else [workdir / path, path, workdir / latents.FOLDER]
    return latents.load_autoencoder(next((place for place in places if place.exists()), places[0]))


def autoencoder_model(config: ConfigDict, image_shape: tuple[int, int, int]) -> AutoencoderKL:
    """Autoencoder that a configuration's `autoencoder` describes; its scaling factor is measured after training."""
    m = config.autoencoder.model
    fields: dict[str, Any] = {key: m[key] for key in ("width", "channel_mult", "num_res_blocks", "remat")}
    made = AutoencoderKL(
        **fields,
        latent_channels=m.latent_channels,
        channels=image_shape[2],
        scaling_factor=1.0,
        dtype=choose(DTYPES, m.dtype, "autoencoder.model.dtype"),
    )
    models.check(made, image_shape)
    # Four channels or more a group, as in Stable Diffusion: alone in its group, a channel loses its mean, the colour.
    groups = math.gcd(32, *(max(1, channels // 4) for channels in level_channels(made.backbone)))
    return made.clone(norm_groups=groups)  # a divisor of every width, as diffusers needs it


def adm_settings(config: ConfigDict, kind: str, path: str) -> dict[str, Any]:
    """Arguments of `interop.adm.load` for a network of this kind, "unet", "super_resolution" or "classifier".

    Raises:
        InputError: the configuration has conditions that guided-diffusion's networks do not take.
    """
    d, m = config.data, config.classifier.model if kind == "classifier" else config.model
    part = "classifier.model" if kind == "classifier" else "model"
    others = [key for key in ("attributes", "text", "reference_image", "control_image") if d[key]]
    others += ["inpainting"] * config.model.inpainting + ["pretrained"] * bool(config.pretrained)
    require(
        not others, f"the config has {', '.join(others)}, which guided-diffusion's networks do not take; leave it empty"
    )
    upsampler = config.model.name == "super_resolution"
    require(
        kind == "classifier" or upsampler == (kind == "super_resolution"),
        f"{path} is a {kind} of guided-diffusion, and the configuration has model.name={config.model.name!r}",
    )
    given = _backbone(m, part) | {"attention_order": m.attention_order, "image_size": d.image_size}
    if kind == "classifier":
        return given | {"pool": m.pool}
    given |= {"null_label": d.null_label} if m.use_labels else {"num_classes": 0}
    outputs = 6 if config.diffusion.variance == "learned_range" else 3
    return given | {"class_fusion": m.class_fusion, "out_channels": outputs}


def settings(section: ConfigDict, part: str) -> TrainSettings:
    """Frozen settings of `config.train` or `config.classifier.train`."""
    verify = choose(VERIFY, section.verify, f"{part}.verify")
    fields = {field.name for field in dataclasses.fields(TrainSettings)} - {"part", "verify"}
    return TrainSettings(part=part, verify=verify, **{name: section[name] for name in fields})
