"""What the buttons of a page do: wishes to rows of images, with texts that reproduce them.

No slider compiles: all images are made in batches of one size, and branches of weight 0 are computed like all others,
where `Pipeline` itself would leave them out with a program of their own.
"""

import base64
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from guided_diffusion_jax import sweeps
from guided_diffusion_jax.data.images import to_png
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.guidance.weights import weight_text
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.serve import forms, texts
from guided_diffusion_jax.serve.controls import SMALL_IMAGE, SWEEP_COUNT, Controls
from guided_diffusion_jax.serve.forms import Wishes
from guided_diffusion_jax.serve.texts import Called

BATCH = 10
"""Small images that are made at a time; of large ones it is one."""

Answer = dict[str, Any]
"""What the page shows, as JSON: rows of images, the names of columns, notes, texts."""


Emit = Callable[[Answer], Any]
"""Takes a part of an answer that is there already: {"frame": images} of a trajectory."""


def answer(
    pipe: Pipeline, offered: Controls, action: str, given: Any, called: Called, emit: Emit = lambda part: None
) -> Answer:
    """What a button of the page shows.

    Args:
        pipe: the pipeline.
        offered: its controls.
        action: a key of `ACTIONS`.
        given: values of the widgets.
        called: how commands are written.
        emit: called with each frame of a trajectory as soon as it is there.

    Returns:
        "rows": a list of {"name", "cells"}, where a cell is a list of images as data URLs, and none for a trajectory,
        whose frames were emitted; "columns": names of the cells; "python" and "command": texts that reproduce it;
        "inputs": the images that were given, as the model sees them; "notes"; and "seconds".

    Raises:
        InputError: a value that cannot be.
    """
    act = choose(ACTIONS, action, "action")
    wishes, begun = forms.read(offered, given), time.monotonic()
    shown = {"columns": [], "notes": [], **act(pipe, offered, wishes, called, emit)}
    inputs = {name: data_url(value) for name, value in wishes.keywords.items() if isinstance(value, np.ndarray)}
    return {**shown, "inputs": inputs, "seconds": round(time.monotonic() - begun, 3)}


def keywords(wishes: Wishes) -> dict[str, Any]:
    """Keywords of `Pipeline` for what is asked for."""
    steered = {} if wishes.weight is None else {"weight": wishes.weight}
    steered |= {"classifier_weight": wishes.classifier_weight} if wishes.classifier else {}
    return {**wishes.keywords, **steered, "count": wishes.count}


def commanded(offered: Controls, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords as a command writes them: where it names no class it means all of them, so w = -1 stands for none."""
    unsteered = offered.classes and not (forms.CONDITIONS | {"image"}) & asked.keys()
    return {**asked, "weight": -1.0} if unsteered and offered.free_guidance else dict(asked)


def images_of(pipe: Pipeline, asked: Mapping[str, Any]) -> UInt8[np.ndarray, "n h w c"]:
    """The images of `pipe(**asked)`, by programs that differ in the solver, the rules and what is given alone."""
    size = batch_size(pipe)
    count = asked["count"]
    request = pipe.request(**{**asked, "count": -(-count // size) * size})
    return pipe.generate(request, batch_size=size, progress=False)[:count]


def few(wishes: Wishes, most: int) -> dict[str, Any]:
    """Keywords for the first images of what is asked for."""
    asked = {**keywords(wishes), "count": min(wishes.count, most)}
    return {**asked, "labels": asked["labels"][:most]} if "labels" in asked else asked


def batch_size(pipe: Pipeline) -> int:
    """Images that are made at a time."""
    height, width, _ = pipe.codec.image_shape or pipe.codec.shape
    return BATCH if height * width <= SMALL_IMAGE else 1


def generate(pipe: Pipeline, offered: Controls, wishes: Wishes, called: Called, emit: Emit) -> Answer:
    """Images."""
    asked = keywords(wishes)
    images = images_of(pipe, asked)
    return {
        "rows": [{"name": "", "cells": [urls(images)]}],
        "python": texts.python(called.name, {"images": asked}, offered.last_time),
        "command": texts.command(called, commanded(offered, asked)),
    }


def ways(pipe: Pipeline, offered: Controls, wishes: Wishes, called: Called, emit: Emit) -> Answer:
    """The three ways of steering, from the same noise: conditional, by a classifier, classifier-free."""
    require(wishes.weight is not None, "the three ways need something to steer to: choose a class, or give a prompt")
    plain = {**wishes.keywords, "count": wishes.count}
    asked, variables = {"conditional, w = 0": {**plain, "weight": 0.0}}, ["conditional"]
    notes = []
    if offered.classifier and "labels" in plain:
        name = f"classifier guidance, w = {weight_text(wishes.classifier_weight)}"
        unsteered = -1.0 if offered.free_guidance else 0.0
        asked[name] = {**plain, "weight": unsteered, "classifier_weight": wishes.classifier_weight}
        variables.append("by_classifier")
    else:
        notes.append(
            "classifier guidance steers to a class: choose one"
            if offered.classifier
            else "this run has no classifier, so classifier guidance is left out (train one: --mode=classifier)"
        )
    if offered.free_guidance:
        assert wishes.weight is not None
        asked[f"classifier-free guidance, w = {weight_text(wishes.weight)}"] = {**plain, "weight": wishes.weight}
        variables.append("classifier_free")
    else:
        notes.append("this run was trained without dropping conditions, so classifier-free guidance is left out")
    return {
        "rows": [{"name": name, "cells": [urls(images_of(pipe, one))]} for name, one in asked.items()],
        "notes": notes,
        "python": texts.python(called.name, dict(zip(variables, asked.values(), strict=True)), offered.last_time),
        "command": "\n".join(texts.command(called, one) for one in asked.values()),
    }


def trajectory(pipe: Pipeline, offered: Controls, wishes: Wishes, called: Called, emit: Emit) -> Answer:
    """Images on their way from noise."""
    size = batch_size(pipe)
    asked = few(wishes, size)
    request = pipe.request(**{**asked, "count": size})

    def watch(state: UInt8[np.ndarray, "n h w c"]) -> None:
        emit({"frame": urls(state[: asked["count"]])})

    pipe.trajectory(request, frames=wishes.frames, batch_size=size, watch=watch)
    return {
        "rows": [],
        "python": texts.python(
            called.name, {"frames": {**asked, "frames": wishes.frames}}, offered.last_time, "pipe.trajectory"
        ),
        "command": texts.command(called, commanded(offered, asked), frames=wishes.frames),
    }


def sweep(pipe: Pipeline, offered: Controls, wishes: Wishes, called: Called, emit: Emit) -> Answer:
    """A grid of images over one or two settings, from the same noise."""
    require(bool(wishes.sweep), f"a sweep needs values for one or two of {', '.join(offered.axes)}")
    require(wishes.weight is not None or "weight" not in wishes.sweep, "a sweep of the weight needs a condition")
    asked = few(wishes, SWEEP_COUNT)
    swept = {key: value for key, value in asked.items() if key not in wishes.sweep}
    made = [images_of(pipe, point) for point in sweeps.points(dict(wishes.sweep), swept)]
    names = [[sweeps.AXES[key](value) for value in values] for key, values in wishes.sweep.items()]
    columns = names[1] if len(names) > 1 else [""]
    across = len(columns)
    rows = [
        {"name": name, "cells": [urls(images) for images in made[i * across : (i + 1) * across]]}
        for i, name in enumerate(names[0])
    ]
    return {
        "rows": rows,
        "columns": columns if len(names) > 1 else [],
        "python": texts.python(called.name, {"images": {**swept, **wishes.sweep}}, offered.last_time, "pipe.sweep"),
        "command": texts.command(called, commanded(offered, asked), wishes.sweep),
    }


ACTIONS: dict[str, Callable[[Pipeline, Controls, Wishes, Called, Emit], Answer]] = {
    "generate": generate, "ways": ways, "trajectory": trajectory, "sweep": sweep,
}  # fmt: skip
"""Buttons of the page."""


def urls(images: UInt8[np.ndarray, "n h w c"]) -> list[str]:
    """Each image as a data URL."""
    return [data_url(image) for image in images]


def data_url(image: UInt8[np.ndarray, "h w c"]) -> str:
    """An image as a data URL of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(to_png(image)).decode()}"
