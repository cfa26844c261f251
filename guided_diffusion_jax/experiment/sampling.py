"""From `config.sample` to the keywords of a pipeline."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from guided_diffusion_jax import guidance
from guided_diffusion_jax.checks import real
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.experiment.keys import pairs
from guided_diffusion_jax.guidance import WeightSchedule
from guided_diffusion_jax.sampling_inputs import NATIVE
from guided_diffusion_jax.sweeps import AXES

ALL = ("all",)
"""`sample.labels` for every class."""


def wishes(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    """Keywords of `Pipeline.request` that `config.sample` asks for.

    Args:
        config: the configuration.
        num_classes: of the model, or of the data where a classifier steers.
    """
    s, g = config.sample, config.sample.guidance
    given = {
        "prompt": s.prompt or None,
        "negative": s.negative or None,
        "attributes": dict(pairs(s.attributes, "sample.attributes", 2)) or None,
        "reference_image": s.reference_image or None,
        "control_image": s.control_image or None,
        "image": s.image or None,
        "strength": s.strength,
        "inpaint_mask": s.inpaint_mask or None,
    }
    labels: Any = tuple(map(str, s.labels))  # a name that is a number is a name first
    if labels == ALL:
        anything = any(value is not None for value in given.values())
        labels = None if anything or not num_classes else tuple(range(num_classes))
    else:
        require(num_classes > 0, f"sample.labels={s.labels}, but this run has no classes; leave it at ('all',)")
    weight: Any = g.weight
    if g.weight_schedule:
        times, values = zip(*pairs(g.weight_schedule, "sample.guidance.weight_schedule", 2), strict=True)
        weight = WeightSchedule(np.array(times, np.float32), np.array(values, np.float32))
    return {
        **given,
        "labels": labels,
        "low_res": None,
        "soft_mask": s.soft_mask,
        "regions": tuple(s.regions),
        "count": s.count,
        "weight": None if g.guidance_scale is not None else weight,
        "guidance_scale": g.guidance_scale,
        "weights": {
            name: real(f"sample.guidance.weights: {name}", own)
            for name, own in pairs(g.weights, "sample.guidance.weights", 2)
        },
        **rule_wishes(config),
        "classifier_weight": g.classifier_weight or None,
        "classifiers": {
            name: (value, own) for name, value, own in pairs(g.classifiers, "sample.guidance.classifiers", 3)
        },
        **solver_wishes(config),
    }


def sweep_axes(config: ConfigDict) -> dict[str, list[Any]]:
    """Keywords of `Pipeline.sweep` to the values that `config.sample.sweep` has for them; none for no sweep."""
    s = config.sample.sweep
    intervals = [tuple(map(float, pair)) for pair in pairs(s.interval, "sample.sweep.interval", 2)]
    values = {**s.to_dict(), "interval": intervals}
    return {name: list(values[name]) for name in AXES if len(values[name])}


def rule_wishes(config: ConfigDict) -> dict[str, Any]:
    """Keywords that say which rules of guidance apply, and where. The other network of autoguidance is not loaded."""
    g = config.sample.guidance
    options: dict[str, dict[str, Any]] = {name: {} for name in g.rules}
    for name, option, value in pairs(g.options, "sample.guidance.options", 3):
        words = f"sample.guidance.options: {name!r} is none of the rules that apply: {', '.join(g.rules)}"
        require(name in options, words)
        options[name][option] = value
    return {
        "interval": tuple(map(float, g.interval)),
        "sigma_interval": tuple(map(float, g.sigma_interval)) or None,
        "guidance": [guidance.create(name, **options[name]) for name in g.rules],
    }


def solver_wishes(config: ConfigDict) -> dict[str, Any]:
    """Keywords that say how `config.sample` samples, and nothing of what is wanted."""
    s = config.sample
    return {
        "sampler": None if s.sampler == NATIVE else s.sampler,
        "sampler_options": dict(pairs(s.sampler_options, "sample.sampler_options", 2)),
        "steps": tuple(s.sections) or s.steps,
        "spacing": None if s.spacing == NATIVE else s.spacing,
        "scheduler": dict(pairs(s.scheduler, "sample.scheduler", 2))
        or (NATIVE if NATIVE in (s.sampler, s.spacing) else None),
        "spacing_options": dict(pairs(s.spacing_options, "sample.spacing_options", 2)),
        "eta": s.eta,
        "seed": s.seed,
    }


def program_settings(config: ConfigDict) -> dict[str, Any]:
    """Keywords of `Pipeline.generate` that `config.sample` sets."""
    s = config.sample
    return {
        "batch_size": s.batch_size,
        "clip": s.clip and s.clip_order,
        "sequential": s.sequential,
        "rematerialize": s.guidance.rematerialize,
        "tile": s.tile,
    }
