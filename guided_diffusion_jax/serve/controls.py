"""What a page offers for a pipeline: its conditions, the ways of steering it, and the bounds of every value."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from guided_diffusion_jax import bundled
from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.guidance import GUIDANCE
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.samplers import SAMPLERS
from guided_diffusion_jax.sampling_inputs import NATIVE
from guided_diffusion_jax.sweeps import AXES
from guided_diffusion_jax.trajectories import SPACINGS

NEED_MORE = ("autoguidance", "reconstruction")
"""Rules that need a second network or a function, which a page cannot give."""

LIMITS: Mapping[str, tuple[float, float]] = {
    "weight": (-1.0, 15.0), "classifier_weight": (0.0, 50.0), "strength": (0.05, 1.0), "eta": (0.0, 1.0),
    "steps": (1, 200), "count": (1, 16), "seed": (0, 2**31 - 1), "frames": (2, 24),
}  # fmt: skip
"""Smallest and largest value of each number; the interval is within the process."""

LONGEST_TEXT = 1000
"""Characters of a prompt."""

SWEEP_VALUES, SWEEP_COUNT = 6, 4
"""Values of an axis of a sweep, and images at each pair of them, at most."""

LARGEST_UPLOAD, LARGEST_SIDE, MOST_PIXELS = 4 * 2**20, 8192, 2**24
"""Bytes of an uploaded file, pixels of its longer side, and of all of it, at most."""

SMALL_IMAGE = 64 * 64
"""Pixels up to which an image is made in a moment, so that the page may follow a slider."""

ALL = "*"
"""The class that stands for all of them, in turn."""


class Controls(NamedTuple):
    """What a page offers.

    Attributes:
        name: of the run, as `load` and --workdir take it.
        step: of the training.
        image_shape: (h, w, c) of the images.
        classes: names; empty without classes.
        attributes: names, and the names of their values.
        prompt: whether there is a prompt.
        images: shape (h, w, c) of each image that can be given, by keyword.
        free_guidance: whether the model knows the absence of conditions, as classifier-free guidance needs it.
        classifier: whether there is a classifier of the class.
        samplers: names.
        with_eta: those of them that take eta.
        spacings: names.
        rules: names.
        axes: keywords that can be swept.
        last_time: T - 1.
        limits: smallest and largest value of each number.
        defaults: value of each widget at first.
        follow: whether images are made while a slider moves.
    """

    name: str
    step: int
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    attributes: tuple[tuple[str, tuple[str, ...]], ...]
    prompt: bool
    images: Mapping[str, tuple[int, ...]]
    free_guidance: bool
    classifier: bool
    samplers: tuple[str, ...]
    with_eta: tuple[str, ...]
    spacings: tuple[str, ...]
    rules: tuple[str, ...]
    axes: tuple[str, ...]
    last_time: int
    limits: Mapping[str, tuple[float, float]]
    defaults: Mapping[str, Any]
    follow: bool


def controls(pipe: Pipeline, name: str = "", defaults: Mapping[str, Any] | None = None) -> Controls:
    """Controls of a pipeline.

    Args:
        pipe: the pipeline.
        name: as which `load` finds it; its folder by default.
        defaults: values of widgets at first, in the place of the usual ones; brought within the bounds.

    Raises:
        InputError: a super-resolution model, or one with several ControlNets, for which there is no page.
    """
    specs, native = pipe.specs, pipe.scheduler is not None
    require("low_res" not in specs, "there is no page for super-resolution models; use --mode=sample")
    hints = specs["control_hints"].shape if "control_hints" in specs else (1,)
    require(hints[0] == 1, "there is no page for several ControlNets at once; load one of them")
    shape = pipe.codec.image_shape or pipe.codec.shape
    images: dict[str, tuple[int, ...]] = {"image": shape, "inpaint_mask": (*shape[:2], 1)}
    for keyword in ("control_image", "reference_image"):
        if keyword in specs and specs[keyword].shape[-1] in (1, 3):
            images[keyword] = specs[keyword].shape
    if len(hints) == 4:
        images["control_image"] = hints[1:]
    classifier = has_classifier(pipe)
    classes = pipe.info.class_names if "label" in specs or classifier else ()
    prompt = pipe.prompts is not None and "text" in specs
    attributes = pipe.info.attributes if "attributes" in specs else ()
    last = pipe.process.num_steps - 1
    small = shape[0] * shape[1] <= SMALL_IMAGE
    free_guidance = pipe.null_trained and bool(specs)
    swept = {"guidance_scale": False, "classifier_weight": classifier, "weight": free_guidance}
    limits = {**LIMITS, "steps": (1, min(int(LIMITS["steps"][1]), pipe.process.num_steps))}
    first: dict[str, Any] = {
        # none beside a prompt, which the class would contradict
        "label": "" if prompt or not classes else ALL if small else classes[0], "prompt": "", "negative": "",
        "weight": pipe.default_weight if pipe.null_trained else 0.0, "classifier_weight": 5.0,
        "classifier": classifier and "label" not in specs, "interval": [0, last],
        "strength": 0.7, "steps": min(20, limits["steps"][1]), "sampler": NATIVE if native else "ddim",
        "spacing": NATIVE if native else "linspace", "rule": "cfg", "eta": 0.0, "seed": 0,
        "count": min(10, max(4, len(classes))) if small else 1, "frames": 12, **(defaults or {}),
    }  # fmt: skip
    for key, (least, most) in limits.items():
        first[key] = min(max(first[key], least), most)
    samplers = ((NATIVE,) if native else ()) + tuple(SAMPLERS)
    spacings = ((NATIVE,) if native else ()) + tuple(key for key, rows in SPACINGS.items() if _is_complete(rows))
    if first["spacing"] not in spacings:
        first["spacing"] = spacings[0]
    return Controls(
        name=name or bundled.name_of(pipe.workdir or ".") or str(pipe.workdir or "RUN"),
        step=pipe.step,
        image_shape=shape,
        classes=tuple(classes),
        attributes=tuple((key, tuple(values)) for key, values in attributes),
        prompt=prompt,
        images=images,
        free_guidance=free_guidance,
        classifier=classifier,
        samplers=samplers,
        with_eta=tuple(key for key, make in SAMPLERS.items() if "eta" in inspect.signature(make).parameters),
        spacings=spacings,
        rules=tuple(key for key in GUIDANCE if key not in NEED_MORE),
        axes=tuple(key for key in AXES if swept.get(key, True)),
        last_time=last,
        limits=limits,
        defaults=first,
        follow=small,
    )


def has_classifier(pipe: Pipeline) -> bool:
    """Whether a pipeline has a classifier of the class."""
    try:
        return bool(pipe.classifier("label").class_names)
    except InputError:
        return False


def _is_complete(spacing: Any) -> bool:
    """Whether a spacing has a default for each of its options."""
    options = list(inspect.signature(spacing).parameters.values())[2:]
    return all(option.default is not inspect.Parameter.empty for option in options)
