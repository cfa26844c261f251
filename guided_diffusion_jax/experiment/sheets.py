"""Labelled pages of a request's images: their classes or prompts, what they were made from, and how."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from guided_diffusion_jax import grids
from guided_diffusion_jax.data.images import to_uint8
from guided_diffusion_jax.experiment.keys import pairs
from guided_diffusion_jax.generation import Request
from guided_diffusion_jax.guidance.weights import weight_text
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.sweeps import AXES

SHOWN = {"control_image": "control", "reference_image": "reference", "low_res": "low resolution"}
"""Conditions that are images, and what a page calls them."""


def page(
    pipe: Pipeline,
    request: Request,
    images: UInt8[np.ndarray, "n h w c"],
    *,
    title: str = "",
    captions: Sequence[str] = (),
    given: Mapping[str, UInt8[np.ndarray, "n _ _ _"]] | None = None,
) -> grids.Canvas:
    """The first images of a request on a page (`grids.sheet`).

    Args:
        pipe: that generated them.
        request: of n images or more, before branches without influence were left out.
        images: the first n.
        title: above.
        captions: prompt of each, where there is one.
        given: further images that they shall stand below, such as real ones, by name.
    """
    first = request.rows(np.arange(len(images)))
    beside = {**(given or {}), **given_images(pipe, first)}
    return grids.sheet(images, class_names(pipe, first), captions, beside, title, request.size)


def class_names(pipe: Pipeline, request: Request) -> list[str]:
    """Class of each image; empty where none is asked for, or the model neither knows classes nor is steered to one."""
    names = pipe.info.class_names if "label" in pipe.specs or request.guides else ()
    if (request.labels == len(names)).all():
        names = ()
    return [grids.class_name(int(label), names) for label in request.labels]


def given_images(pipe: Pipeline, request: Request) -> dict[str, UInt8[np.ndarray, "n _ _ _"]]:
    """The images that a request gives the model, by what a page calls them."""
    found = {}
    for name, shown in SHOWN.items():
        for conditions in (*request.branches, request.null):
            if name in conditions and (conditions[name] != pipe.specs[name].null).any():
                found[shown] = to_uint8(np.asarray(conditions[name]))
                break
    if request.inpaint is not None and request.inpaint.images.shape[-1] in (1, 3):
        found["photo"] = to_uint8(np.asarray(request.inpaint.images))
        found["mask"] = to_uint8(1 - 2 * np.asarray(request.inpaint.mask))  # white is drawn anew, as it was given
    return found


def sweep_page(
    axes: Mapping[str, Sequence], images: UInt8[np.ndarray, "*k n h w c"], names: Sequence[str], title: str
) -> grids.Canvas:
    """A sweep as one picture: a row for each value of the first axis, a column for each of the second.

    With two axes each cell has the first images in a square; with one, a row has them side by side.

    Args:
        axes: keyword to values, one or two of them.
        images: of `Pipeline.sweep`.
        names: class of each of the n images.
        title: above.
    """
    rows, *columns = ([AXES[name](value) for value in values] for name, values in axes.items())
    if not columns:
        return grids.grid(list(images[:, : grids.COLUMNS]), rows, title, columns=names[: grids.COLUMNS])
    across = math.ceil(math.sqrt(images.shape[2]))
    size = images.shape[4] * grids.enlargement(*images.shape[3:5])
    across = max(1, min(across, grids.HIGHEST // (len(columns[0]) * size)))
    cells = [[grids.block(cell[: across**2], across) for cell in row] for row in images]
    shown = [name for name in names[: across**2] if name]
    title = ", ".join(filter(None, [title, f"in each cell: {', '.join(shown)}" if shown else ""]))
    return grids.grid(list(map(np.stack, cells)), rows, title, columns=columns[0])


def title(config: ConfigDict, pipe: Pipeline, request: Request, swept: Collection[str] = ()) -> str:
    """What `config.sample` asks for beside the class, its weights, and the sampler, in words.

    Args:
        config: the configuration.
        pipe: of the run.
        request: that the configuration asks for.
        swept: keywords that the title leaves out, for they have several values.
    """
    s, g = config.sample, config.sample.guidance
    weight = g.weight if g.guidance_scale is None else g.guidance_scale - 1
    own = dict(pairs(g.weights, "sample.guidance.weights", 2))
    parts = [f'"{s.prompt}"'] if s.prompt else []
    parts += [f'away from "{s.negative}"'] if s.negative else []
    parts += [f"{name} {value}" for name, value in pairs(s.attributes, "sample.attributes", 2)]
    if not request.branches:
        parts.append("unconditional")
    elif {"weight", "guidance_scale"} & set(swept):
        pass
    elif g.weight_schedule:
        values = [float(w) for _, w in pairs(g.weight_schedule, "sample.guidance.weight_schedule", 2)]
        parts.append(f"w = {weight_text(values[0])} to {weight_text(values[-1])}")
    elif len(request.branches) > len(own):
        parts.append(f"w = {weight_text(weight)}")
    parts += [f"{name} w = {weight_text(float(w))}" for name, w in own.items()]
    parts += [f"rules {', '.join(g.rules)}"] if tuple(g.rules) != ("cfg",) and request.branches else []
    parts += (
        [f"classifier w = {weight_text(g.classifier_weight)}"]
        if g.classifier_weight and "classifier_weight" not in swept
        else []
    )
    parts += [
        f"{name} {value} w = {weight_text(float(w))}"
        for name, value, w in pairs(g.classifiers, "sample.guidance.classifiers", 3)
    ]
    steps = sum(s.sections) if s.sections else s.steps
    solver = [s.sampler] if "sampler" not in swept else []
    solver += [f"{steps} steps"] if "steps" not in swept else []
    return ", ".join([*parts, *([" ".join(solver)] if solver else [])])
