"""Guidance rules, a file each. `GUIDANCE` is the table of them; a chain of them is one rule (see `chains`).

    cfg                eps = (1 + w) eps_cond - w eps_null                     (Ho & Salimans 2022, eq. 6)
      composed         eps = eps_null + sum_k (1 + w_k) (eps_k - eps_null)     (Liu et al. 2022, section 3)
    cfgpp              x0 as cfg, renoised with eps_null                       (Chung et al. 2024)
    apg                cfg without what only enlarges x0                       (Sadat et al. 2024)
    cfg_zero           cfg with the null at its best scale                     (Fan et al. 2025)
    autoguidance       away from a worse network                               (Karras et al. 2024)
    pag, seg           away from worse self-attention                          (Ahn et al. 2024, Hong 2024)
    rescale            back to the contrast of the conditional prediction      (Lin et al. 2023)
    dynamic_threshold  x0 scaled back into its range                           (Saharia et al. 2022)
    reconstruction     eps + w sigma grad_x loss(x0)                           (Bansal et al. 2023, Chung et al. 2023)

Beside the chain stand classifiers, eps - w sigma grad_x log p(y given x) (Dhariwal & Nichol 2021, algorithm 2), and an
interval of time or noise in which all of this acts (Kynkaanniemi et al. 2024).

All weights count from the plain model: w = 0 leaves it as it is. Other libraries' `guidance_scale` is 1 + w.
"""

from collections.abc import Callable
from typing import Any

from guided_diffusion_jax.guidance import chains
from guided_diffusion_jax.guidance.apg import apg
from guided_diffusion_jax.guidance.autoguidance import autoguidance, replacing
from guided_diffusion_jax.guidance.base import Branches, Evaluate, Guidance, evaluate_branches, guided
from guided_diffusion_jax.guidance.cfg import cfg, composed, prune_branches
from guided_diffusion_jax.guidance.cfg_zero import cfg_zero
from guided_diffusion_jax.guidance.cfgpp import cfgpp
from guided_diffusion_jax.guidance.chains import Chain
from guided_diffusion_jax.guidance.classifier import LogProb, classifier, gradient, total, weighted
from guided_diffusion_jax.guidance.constraints import clip_x0, inpaint
from guided_diffusion_jax.guidance.dynamic_threshold import dynamic_threshold
from guided_diffusion_jax.guidance.perturbed_attention import pag, seg
from guided_diffusion_jax.guidance.reconstruction import reconstruction
from guided_diffusion_jax.guidance.rescale import rescale
from guided_diffusion_jax.guidance.rules import Adjuster, Combiner, Contrast, LossGradient, Rule
from guided_diffusion_jax.guidance.weights import Interval, Weight, WeightSchedule, inside, negated, regional, weight_at

GUIDANCE: dict[str, Callable[..., Any]] = {
    "cfg": cfg,
    "cfgpp": cfgpp,
    "apg": apg,
    "cfg_zero": cfg_zero,
    "autoguidance": autoguidance,
    "pag": pag,
    "seg": seg,
    "rescale": rescale,
    "dynamic_threshold": dynamic_threshold,
    "reconstruction": reconstruction,
}
"""Choices of `sample.guidance.rules`: a name to a constructor, whose arguments are the options that the rule has."""


def create(name: str, **options: Any) -> Any:
    """Rule of `GUIDANCE` by its name, with its options; see `chains.create`.

    >>> create("apg", phi=0.7)
    Traceback (most recent call last):
    guided_diffusion_jax.errors.InputError: guidance: apg has no option 'phi'; it has eta, norm_threshold, momentum
    """
    return chains.create(GUIDANCE, name, **options)


def chain(rules: Any) -> Chain:
    """Chain of rules, by their names or as they are; see `chains.chain`.

    >>> [rule.name for rule in chain(["pag", rescale(0.5)])]
    ['cfg', 'pag', 'rescale']
    >>> chain(["rescale", "cfg"])
    Traceback (most recent call last):
    guided_diffusion_jax.errors.InputError: guidance: rescale comes before cfg, but a combiner makes the prediction that
    the others change
    """
    return chains.chain(GUIDANCE, rules)


__all__ = [
    "GUIDANCE",
    "Adjuster",
    "Branches",
    "Chain",
    "Combiner",
    "Contrast",
    "Evaluate",
    "Guidance",
    "Interval",
    "LogProb",
    "LossGradient",
    "Rule",
    "Weight",
    "WeightSchedule",
    "apg",
    "autoguidance",
    "cfg",
    "cfg_zero",
    "cfgpp",
    "chain",
    "classifier",
    "clip_x0",
    "composed",
    "create",
    "dynamic_threshold",
    "evaluate_branches",
    "gradient",
    "guided",
    "inpaint",
    "inside",
    "negated",
    "pag",
    "prune_branches",
    "reconstruction",
    "regional",
    "replacing",
    "rescale",
    "seg",
    "total",
    "weight_at",
    "weighted",
]
