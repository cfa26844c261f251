"""From the values of a page's widgets to the keywords of a pipeline, each within its bounds."""

import base64
import binascii
from collections.abc import Mapping
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from guided_diffusion_jax import checks
from guided_diffusion_jax.data.images import decode, decode_map, open_image
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.sampling_inputs import NATIVE
from guided_diffusion_jax.serve.controls import (
    ALL,
    LARGEST_SIDE,
    LARGEST_UPLOAD,
    LONGEST_TEXT,
    MOST_PIXELS,
    SWEEP_VALUES,
    Controls,
)

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Formats of uploaded images, Pillow's names."""

CONDITIONS = {"labels", "prompt", "attributes", "control_image", "reference_image", "inpaint_mask"}
"""Keywords that guidance can steer to."""

TEXTS, IMAGES = ("prompt", "negative"), ("image", "inpaint_mask", "control_image", "reference_image")
NUMBERS = ("weight", "classifier_weight", "strength", "eta")
WHOLE = ("steps", "count", "seed", "frames")
KNOWN = (
    *TEXTS,
    *IMAGES,
    *NUMBERS,
    *WHOLE,
    "label",
    "attributes",
    "interval",
    "sampler",
    "spacing",
    "rule",
    "classifier",
    "sweep",
)


class Wishes(NamedTuple):
    """What a visitor asks for.

    Attributes:
        keywords: of `Pipeline.request`, without the weights of guidance; images are arrays.
        weight: of classifier-free guidance; None where nothing is given that it could steer to.
        classifier_weight: of the classifier.
        classifier: whether the classifier steers as well.
        count: number of images.
        frames: of a trajectory.
        sweep: keyword to values, one or two; empty without a sweep.
    """

    keywords: Mapping[str, Any]
    weight: float | None
    classifier_weight: float
    classifier: bool
    count: int  # type: ignore[assignment]  # tuples have a method of this name
    frames: int
    sweep: Mapping[str, list[Any]]


def read(offered: Controls, given: Any) -> Wishes:
    """What the values of the widgets ask for; a widget that is left out has its first value.

    Args:
        offered: by the page.
        given: values by name, as JSON has them; images as data URLs.

    Raises:
        InputError: a value that the page cannot send, or an upload that is no image.
    """
    require(isinstance(given, Mapping), "the request is no object of values")
    for name in given:
        choose(dict.fromkeys(KNOWN), checks.shown(name)[1:-1], "setting")
    values = {**offered.defaults, **{name: value for name, value in given.items() if value is not None}}
    numbers = {name: checks.real(name, values[name], *offered.limits[name]) for name in NUMBERS}
    whole = {name: checks.integer(name, values[name], *map(int, offered.limits[name])) for name in WHOLE}
    sampler, spacing = _choice(offered.samplers, values, "sampler"), _choice(offered.spacings, values, "spacing")
    keywords: dict[str, Any] = {
        **_conditions(offered, values, whole["count"]),
        **_images(offered, values),
        "interval": _interval(values["interval"], offered.last_time),
        "guidance": [_choice(offered.rules, values, "rule")],
        "sampler": None if sampler == NATIVE else sampler,
        "spacing": None if spacing == NATIVE else spacing,
        "steps": whole["steps"],
        "seed": whole["seed"],
    }
    if sampler in offered.with_eta:
        keywords["eta"] = numbers["eta"]
    if "image" in keywords and "inpaint_mask" not in keywords:
        keywords["strength"] = numbers["strength"]
    weight = numbers["weight"] if offered.free_guidance else 0.0
    require(isinstance(values["classifier"], bool), "classifier must be true or false")
    return Wishes(
        keywords,
        weight if CONDITIONS & keywords.keys() else None,
        numbers["classifier_weight"],
        values["classifier"] and offered.classifier,
        whole["count"],
        whole["frames"],
        _sweep(offered, values.get("sweep") or {}),
    )


def _conditions(offered: Controls, values: Mapping[str, Any], count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    label = _text("label", values.get("label", ""))
    if label == ALL and offered.classes:
        found["labels"] = list(offered.classes[:count])
    elif label:
        found["labels"] = [_choice(offered.classes, values, "label")]
    for name in TEXTS:
        text = _text(name, values[name]).strip()
        require(not text or offered.prompt, f"{name}: this model takes no prompt")
        if text:
            found[name] = text
    attributes = values.get("attributes") or {}
    require(isinstance(attributes, Mapping), "attributes is no object of names and values")
    wanted = {_text("attributes", name): _text("attributes", value) for name, value in attributes.items() if value}
    if wanted:  # the pipeline knows which there are
        found["attributes"] = wanted
    return found


def _text(name: str, value: Any) -> str:
    require(isinstance(value, str), f"{name}={checks.shown(value)} must be a text")
    require(len(value) <= LONGEST_TEXT, f"{name} has {len(value)} characters; at most {LONGEST_TEXT}")
    clean = value.encode("utf-8", "ignore").decode()
    require(clean == value and "\0" not in value, f"{name}={checks.shown(value)} holds what is no character")
    return value


def _choice(of: tuple[str, ...], values: Mapping[str, Any], name: str) -> str:
    return choose({key: key for key in of}, _text(name, values[name])[:100], name)


def _interval(value: Any, last: int) -> tuple[float, float]:
    require(isinstance(value, list | tuple) and len(value) == 2, f"interval={checks.shown(value)} must be two numbers")
    first, end = (checks.real("interval", bound, 0, last) for bound in value)
    require(first <= end, f"interval: {first:g} to {end:g} is empty")
    return first, end


def _sweep(offered: Controls, given: Any) -> dict[str, list[Any]]:
    require(isinstance(given, Mapping) and len(given) <= 2, "sweep must be one or two settings, each with values")
    axes: dict[str, list[Any]] = {}
    for name, values in given.items():
        choose(dict.fromkeys(offered.axes), checks.shown(name)[1:-1], "sweep")
        require(
            isinstance(values, list) and 0 < len(values) <= SWEEP_VALUES,
            f"sweep: {name} takes 1 to {SWEEP_VALUES} values",
        )
        axes[name] = [_swept(offered, name, value) for value in values]
    return axes


def _swept(offered: Controls, name: str, value: Any) -> Any:
    if name == "sampler":
        return _choice(tuple(key for key in offered.samplers if key != NATIVE), {name: value}, name)
    if name == "interval":
        return _interval(value, offered.last_time)
    if name in WHOLE:
        return checks.integer(name, value, *map(int, offered.limits[name]))
    return checks.real(name, value, *offered.limits[name])


def _images(offered: Controls, values: Mapping[str, Any]) -> dict[str, UInt8[np.ndarray, "h w c"]]:
    given = {name: values[name] for name in IMAGES if values.get(name)}
    found = {}
    for name, url in given.items():
        shape = choose(offered.images, name, "image")
        pixels = picture(name, url, shape, exact=name == "control_image")
        found[name] = np.where(pixels >= 128, np.uint8(255), np.uint8(0)) if name == "inpaint_mask" else pixels
    require("inpaint_mask" not in found or "image" in found, "the mask needs an image, of which it keeps the rest")
    return found


def picture(name: str, url: Any, shape: tuple[int, ...], *, exact: bool = False) -> UInt8[np.ndarray, "h w c"]:
    """Pixels of an uploaded image, cropped to the centre and scaled to a model's size.

    Its size is read before its pixels are, so that a small file of a huge image costs nothing.

    Args:
        name: of the widget, for messages.
        url: a data URL, `data:image/png;base64,...`.
        shape: (h, w, c) of the result.
        exact: a map of few values keeps them (`decode_map`).

    Raises:
        InputError: it is no image of `FORMATS`, a damaged one, or too large.
    """
    require(isinstance(url, str) and url.startswith("data:"), f"{name} is no uploaded image")
    most = LARGEST_UPLOAD * 4 // 3 + 100
    require(len(url) <= most, f"{name} has more than {LARGEST_UPLOAD // 2**20} MB; make it smaller")
    head, _, body = url.partition(",")
    require(head.endswith(";base64"), f"{name} is no uploaded image")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    size = open_image(BytesIO(data), name, lambda image: (*image.size, image.format))
    require(size[2] in FORMATS, f"{name} is a file of {size[2]}; send one of {', '.join(FORMATS)}")
    small = max(size[:2]) <= LARGEST_SIDE and size[0] * size[1] <= MOST_PIXELS
    require(small, f"{name} has {size[0]}x{size[1]} pixels; at most {LARGEST_SIDE} a side and {MOST_PIXELS:,} in all")
    height, width, channels = shape
    if height == width:
        return (decode_map if exact else decode)(data, name=name, size=height, channels=channels)
    plain = decode(data, name=name, size=max(height, width), channels=channels)
    scaled = Image.fromarray(plain[..., 0] if channels == 1 else plain).resize((width, height))
    return np.asarray(scaled).reshape(shape)
