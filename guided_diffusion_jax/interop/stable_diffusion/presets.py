"""The published networks of Stable Diffusion, as presets of our U-Net, autoencoder and text encoders."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from guided_diffusion_jax.models.autoencoder import AutoencoderKL
from guided_diffusion_jax.models.clip import ClipText
from guided_diffusion_jax.models.controlnet import controlnet_of
from guided_diffusion_jax.models.embeddings import TextTimeEmbedding
from guided_diffusion_jax.models.text import ContextEncoder
from guided_diffusion_jax.models.unet import UNet


class Preset(NamedTuple):
    """Modules of a published model.

    Attributes:
        unet: the U-Net; 859,520,964 (1.5), 865,910,724 (2.1) and 2,567,463,684 (XL) parameters.
        autoencoder: 83,653,863 parameters.
        text_encoders: CLIP ViT-L (123,060,480), OpenCLIP ViT-H (340,387,840) or ViT-L and ViT-bigG (694,659,840).
        sample_size: height and width of the latents that the U-Net was trained on.
        scheduler: settings as diffusers names them.
    """

    unet: UNet
    autoencoder: AutoencoderKL
    text_encoders: tuple[ClipText, ...]
    sample_size: int
    scheduler: Mapping[str, Any]


VIT_L = ClipText()
VIT_H = ClipText(width=1024, depth=23, heads=16, hidden=4096, activation="gelu")
VIT_BIGG = ClipText(width=1280, depth=32, heads=20, hidden=5120, activation="gelu", projection=1280)
"""OpenAI's ViT-L/14; OpenCLIP's ViT-H/14 without its last layer; OpenCLIP's ViT-bigG/14."""

SD1 = UNet(
    width=320,
    channel_mult=(1, 2, 4, 4),
    num_res_blocks=2,
    attention_resolutions=(),
    head_width=0,
    num_heads=8,
    transformer_depth=(1, 1, 1, 0),
    middle_depth=1,
    time_injection="add",
    resample="conv",
    out_channels=4,
    text=ContextEncoder(768),
)
SD2 = SD1.clone(num_heads=(5, 10, 20, 20), text=ContextEncoder(1024))
SDXL = SD1.clone(
    channel_mult=(1, 2, 4),
    num_heads=(5, 10, 20),
    transformer_depth=(0, 2, 10),
    middle_depth=10,
    text=ContextEncoder(2048),
    text_time=TextTimeEmbedding(1280, 1280),
)

TRAINED: Mapping[str, Any] = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000,
    "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False,
}  # fmt: skip
PNDM: Mapping[str, Any] = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "prediction_type": "epsilon"}
EULER: Mapping[str, Any] = {
    "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "prediction_type": "epsilon",
}  # fmt: skip

CONTROLNETS = {name: controlnet_of(unet) for name, unet in (("sd15", SD1), ("sd21", SD2), ("sdxl", SDXL))}
"""ControlNets for the published models; 361,279,120 (1.5) and 1,251,014,160 (XL) parameters."""

PRESETS = {
    "sd15": Preset(SD1, AutoencoderKL(), (VIT_L,), 64, {**TRAINED, **PNDM}),
    "sd15_inpaint": Preset(SD1.clone(control_channels=5), AutoencoderKL(), (VIT_L,), 64, {**TRAINED, **PNDM}),
    "sd21": Preset(SD2, AutoencoderKL(), (VIT_H,), 96, {**TRAINED, "_class_name": "DDIMScheduler"}),
    "sd2_inpaint": Preset(
        SD2.clone(control_channels=5), AutoencoderKL(), (VIT_H,), 64, {**TRAINED, "_class_name": "DDIMScheduler"}
    ),
    "sdxl": Preset(SDXL, AutoencoderKL(scaling_factor=0.13025), (VIT_L, VIT_BIGG), 128, {**TRAINED, **EULER}),
}
"""Published models by name. The files of 2.x do not tell `prediction_type`, so their schedulers leave it out."""


def find(context: int, in_channels: int) -> Preset | None:
    """The published model whose U-Net has a context of so many features and sees so many channels."""
    for preset in PRESETS.values():
        unet = preset.unet
        assert isinstance(unet.text, ContextEncoder)
        if unet.text.features == context and unet.out_channels + unet.control_channels == in_channels:
            return preset
    return None
