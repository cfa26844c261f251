"""Noise levels that end at pure noise (Lin et al. 2024)."""

from guided_diffusion_jax.errors import require
from guided_diffusion_jax.stable_diffusion import StableDiffusion


def with_zero_snr(pipe: StableDiffusion) -> StableDiffusion:
    """The pipeline with noise levels that end at pure noise, to be fine-tuned on them (Lin et al. 2024).

    Raises:
        InputError: the network predicts eps, which tells nothing of the image there.
    """
    require(
        pipe.process.prediction != "eps",
        "at zero SNR eps tells nothing of the image, and this network predicts it; use one that predicts v",
    )
    scheduler = {**pipe.parts.scheduler, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return pipe.with_parts(pipe.fused._replace(scheduler=scheduler))
