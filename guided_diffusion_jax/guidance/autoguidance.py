"""Autoguidance (Karras et al. 2024): away from a worse version of the model itself."""

from jax.tree_util import Partial

from guided_diffusion_jax.guidance.rules import Contrast, as_partial, option
from guided_diffusion_jax.guidance.weights import Weight
from guided_diffusion_jax.typing import ConditionalDenoiser


def autoguidance(denoise: ConditionalDenoiser | None = None, weight: Weight = 1.0) -> Contrast:
    """Autoguidance (Karras et al. 2024, eq. 4): D_1 + w (D_1 - D_0), D_0 with the conditions of D_1.

    D_0 is an earlier step of the run, a smaller model or one that was trained for a shorter time. By itself it is all
    of the guidance; with CFG before it, both directions add.

    Args:
        denoise: D_0, `(x, level, conditions) -> Prediction`, e.g. `pipeline.denoiser` of another pipeline, whose
            parameters are data; None for `pipe(..., autoguidance=other)`, which gives it.
        weight: w; 0 is the plain model. The paper's w is 1 + w.
    """
    weight = option("autoguidance: weight", weight)
    return Contrast(None if denoise is None else replacing(denoise), weight, "autoguidance")


def replacing(denoise: ConditionalDenoiser) -> Partial:
    """Contrast's `worse` of another network, whatever the model is."""
    return Partial(_instead, other=as_partial(denoise))


def _instead(denoise, *, other):
    return other
