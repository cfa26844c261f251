"""Condition adherence on the data set `shapes`: what images show, measured by exact image analysis.

Nothing is learned. A scene is background * (1 - A) + colour * B, where A is the coverage of its objects, and B that
times their texture's brightness (`data.shapes.draw`). The squared distance of an image to every scene that can be
drawn, in every colour, is a few matrix products with all A and B; the nearest scene is the result, which for pixels
with Gaussian noise is the most probable one.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Integer, UInt8

from guided_diffusion_jax.data import load
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.data.shapes import captions
from guided_diffusion_jax.data.shapes.draw import BACKGROUNDS, COLOURS, SHADE, draw
from guided_diffusion_jax.data.shapes.scenes import ATTRIBUTES, JITTERS, Scenes, most_objects
from guided_diffusion_jax.errors import choose, require

LARGEST = 32
"""Pixels of the images that are compared; larger ones are averaged down to it."""

BATCH_SIZE = 32
"""Images compared at a time; at 32 pixels there are 23,328 scenes, whose A and B take 120 MB."""

SHADES = np.linspace(SHADE, 1, 5)
"""Brightnesses that `foreground` tries."""

STYLE = ("texture", "background")
"""Attributes that a reference image shares with the image that it stands for."""

CONDITIONS = ("label", "attributes", "text", "reference_image", "control_image")
"""Conditions whose adherence can be measured."""

Attributes = Mapping[str, Integer[np.ndarray, " n"]]
"""Attributes of N images by the names in `ATTRIBUTES`, values from 0."""


def adherence(
    images: UInt8[np.ndarray, "n p p 3"],
    examples: Mapping[str, np.ndarray],
    conditions: Sequence[str],
    given_attributes: Sequence[str] = (),
) -> dict[str, float]:
    """Share of images that show what they were conditioned on, for each condition; and each attribute alone.

    Args:
        images: generated with the conditions of the examples.
        examples: what these show: "label" (shape), "attributes" `[n k]` from 1, of all attributes but the shape in
            `ATTRIBUTES`' order, "text" captions, "control_image" segmentations; as the data set reads them.
        conditions: that the images were generated with, of `CONDITIONS`: a label and attributes require all that were
            given, a text all that the caption names, a reference image texture and background; a control image gives
            the mean intersection over union (IoU) of the objects' areas.
        given_attributes: names of the attributes that were given.

    Raises:
        InputError: an unknown condition, or images of a size that `read_attributes` refuses.
    """
    for condition in conditions:
        choose(dict.fromkeys(CONDITIONS), condition, "conditions")
    others = [name for name in ATTRIBUTES if name != "shape"]
    truth = {"shape": examples["label"]} | {name: examples["attributes"][:, i] - 1 for i, name in enumerate(others)}
    found = read_attributes(images)
    correct = {name: found[name] == truth[name] for name in ATTRIBUTES}
    shares = {f"{name} right": float(of_it.mean()) for name, of_it in correct.items()}

    def all_correct(names: Sequence[str]) -> float:
        return float(np.all([correct[name] for name in names], axis=0).mean())

    given = ["shape"] * ("label" in conditions) + list(given_attributes) * ("attributes" in conditions)
    if given:
        shares["all given attributes right"] = all_correct(given)
    if "text" in conditions:
        shares["all named attributes right"] = float(matches_caption(list(examples["text"]), found).mean())
    if "reference_image" in conditions:
        shares["reference image right"] = all_correct(STYLE)
    if "control_image" in conditions:
        shares["control image IoU"] = float(
            iou(foreground(images, found), examples["control_image"][..., 0] > 127).mean()
        )
    return shares


def check(data: Dataset, conditions: Sequence[str]) -> None:
    """Raises `InputError` for a data set that is not of shapes, or conditions whose adherence cannot be measured."""
    require(
        data.name.startswith("shapes"),
        f"evaluate.metrics=adherence analyses images of shapes, not of data.name={data.name!r}; use "
        "evaluate.metrics=bpd",
    )
    for name in conditions:
        choose(dict.fromkeys(CONDITIONS), name, "evaluate.conditions")


def examples(name: str, split: str, image_size: int, data_dir: str, count: int, **chosen: Any) -> dict[str, np.ndarray]:
    """What the first examples of a data set of shapes show; see `adherence`. `chosen` is by a word, as in `load`."""
    attributes = tuple(attribute for attribute in ATTRIBUTES if attribute != "shape")
    data = load(
        name, split=split, image_size=image_size, data_dir=data_dir, attributes=attributes, text="caption",
        control_image="segmentation", memory_limit=0, **chosen,
    )  # fmt: skip
    return data.read(np.arange(count))


def read_attributes(images: UInt8[np.ndarray, "n p p 3"]) -> dict[str, Int[np.ndarray, " n"]]:
    """Attributes of each image's nearest scene, by the names in `ATTRIBUTES`.

    There always is a nearest one: `scene_distance` tells whether the image is anything like it.

    Args:
        images: RGB, of at most 32 pixels or a multiple of 32; below 32 they show one object.

    Raises:
        InputError: the images have another size.
    """
    return _nearest_scenes(images)[0]


def scene_distance(images: UInt8[np.ndarray, "n p p 3"]) -> Float[np.ndarray, " n"]:
    """Root mean squared difference of images from their nearest scene, in grey levels of 0 .. 255.

    Raises:
        InputError: as `read_attributes` does.
    """
    return _nearest_scenes(images)[1]


def _nearest_scenes(
    images: UInt8[np.ndarray, "n p p 3"],
) -> tuple[dict[str, Int[np.ndarray, " n"]], Float[np.ndarray, " n"]]:
    """Results of `read_attributes` and `scene_distance`."""
    pixels = images.shape[1]
    require(
        8 <= pixels <= LARGEST or pixels % LARGEST == 0,
        f"images of {pixels} pixels cannot be analysed; use 8 to {LARGEST}, or a multiple of {LARGEST}",
    )
    bank = _bank(min(pixels, LARGEST), most_objects(pixels))
    parts = [_nearest(images[start : start + BATCH_SIZE], bank) for start in range(0, len(images), BATCH_SIZE)]
    values = {name: np.concatenate([part[name] for part, _ in parts] or [np.zeros(0, int)]) for name in ATTRIBUTES}
    return values, np.concatenate([distance for _, distance in parts] or [np.zeros(0)])


def foreground(images: UInt8[np.ndarray, "n p p 3"], attributes: Attributes | None = None) -> Bool[np.ndarray, "n p p"]:
    """Pixels that objects cover by half at least, whatever the shape.

    Each pixel is explained as a mixture of the image's background and its colour, in the brightness that fits best.

    Args:
        images: RGB, as for `read_attributes`.
        attributes: result of `read_attributes` for them, to save its time.

    Raises:
        InputError: as `read_attributes` does.
    """
    attributes = read_attributes(images) if attributes is None else attributes
    background = BACKGROUNDS[attributes["background"]][:, None, None]
    difference = images.astype(np.float32) - background
    smallest = np.full(images.shape[:3], np.inf, np.float32)
    coverage = np.zeros_like(smallest)
    for shade in SHADES.astype(np.float32):
        direction = shade * COLOURS[attributes["colour"]][:, None, None] - background
        share = np.clip((difference * direction).sum(-1) / (direction**2).sum(-1), 0, 1)
        rest = ((difference - share[..., None] * direction) ** 2).sum(-1)
        coverage = np.where(rest < smallest, share, coverage)
        smallest = np.minimum(rest, smallest)
    return coverage >= 0.5


def iou(a: Bool[np.ndarray, "n p p"], b: Bool[np.ndarray, "n p p"]) -> Float[np.ndarray, " n"]:
    """Intersection over union of each pair of masks, 0 .. 1; two empty masks agree."""
    both, either = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def matches_caption(caption: Sequence[str], attributes: Attributes) -> Bool[np.ndarray, " n"]:
    """Whether each image has all the attributes that its caption names (`captions.parse`)."""
    return np.array(
        [
            all(attributes[name][index] == value for name, value in captions.parse(text).items())
            for index, text in enumerate(caption)
        ],
        bool,
    )


class _Bank(NamedTuple):
    """Every scene except its colour and background: S silhouettes, each with T textures, scene s * T + t.

    Attributes:
        scenes: all S * T of them.
        coverage: A of each silhouette.
        light: B of each scene.
        coverage_squared, light_squared, product: sums over the pixels of A^2 of each silhouette, and of B^2 and A B of
            each scene.
    """

    scenes: Scenes
    coverage: Float32[np.ndarray, "s q"]
    light: Float32[np.ndarray, "st q"]
    coverage_squared: Float32[np.ndarray, " s"]
    light_squared: Float32[np.ndarray, " st"]
    product: Float32[np.ndarray, " st"]


@functools.lru_cache(maxsize=2)
def _bank(pixels: int, objects: int) -> _Bank:
    names = ("shape", "size", "count", "place", "jitter", "texture")
    sizes = {**{name: len(values) for name, values in ATTRIBUTES.items()}, "jitter": JITTERS, "count": objects}
    columns = np.indices([sizes[name] for name in names]).reshape(len(names), -1)
    nothing = np.zeros(columns.shape[1], int)
    scenes = Scenes(colour=nothing, background=nothing, **dict(zip(names, columns, strict=True)))
    light = np.empty((len(nothing), pixels * pixels), np.float32)
    coverage = np.empty((len(nothing) // sizes["texture"], pixels * pixels), np.float32)
    step = 256 * sizes["texture"]
    for start in range(0, len(nothing), step):
        drawing = draw(Scenes(*(column[start : start + step] for column in scenes)), pixels)
        light[start : start + step] = drawing.light.reshape(len(drawing.light), -1)
        silhouettes = drawing.coverage[:: sizes["texture"]]
        coverage[start // sizes["texture"] :][: len(silhouettes)] = silhouettes.reshape(len(silhouettes), -1)
    return _Bank(
        scenes,
        coverage,
        light,
        coverage_squared=np.einsum("sq,sq->s", coverage, coverage),
        light_squared=np.einsum("sq,sq->s", light, light),
        product=np.einsum("sq,stq->st", coverage, light.reshape(len(coverage), -1, light.shape[1])).ravel(),
    )


def _nearest(
    images: UInt8[np.ndarray, "n p p 3"], bank: _Bank
) -> tuple[dict[str, Int[np.ndarray, " n"]], Float[np.ndarray, " n"]]:
    """Attributes of the scene with the smallest |x - background (1-A) - c B|^2 for each image, and its RMS distance."""
    count, pixels = images.shape[:2]
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    distance = ((np.median(border, axis=1)[:, None] - BACKGROUNDS) ** 2).sum(-1)
    backgrounds = distance.argmin(1)
    background = BACKGROUNDS[backgrounds]

    factor = max(pixels // LARGEST, 1)
    tiles = images.reshape(count, pixels // factor, factor, pixels // factor, factor, 3)
    small = tiles.mean((2, 4), dtype=np.float32).reshape(count, -1, 3)
    difference = small - background[:, None]

    # |d + background A - c B|^2 with d = x - background, multiplied out; |d|^2 is the same for all and left out.
    by_silhouette = 2 * (difference * background[:, None]).sum(-1) @ bank.coverage.T
    by_silhouette += (background**2).sum(-1)[:, None] * bank.coverage_squared
    by_silhouette = np.repeat(by_silhouette, len(bank.light) // len(bank.coverage), axis=1)
    towards = (difference.transpose(0, 2, 1).reshape(count * 3, -1) @ bank.light.T).reshape(count, 3, -1)
    smallest = np.full(count, np.inf)
    chosen = np.zeros((2, count), int)
    for colour, rgb in enumerate(COLOURS):
        squared = by_silhouette + (rgb**2).sum() * bank.light_squared - 2 * (background @ rgb)[:, None] * bank.product
        squared -= 2 * np.einsum("nch,c->nh", towards, rgb)
        scene = squared.argmin(1)
        value = squared[np.arange(count), scene]
        chosen = np.where(value < smallest, np.stack([scene, np.full(count, colour)]), chosen)
        smallest = np.minimum(value, smallest)
    scenes = Scenes(*(column[chosen[0]] for column in bank.scenes))
    scenes = scenes._replace(colour=chosen[1], background=backgrounds)
    squared_sum = (difference.astype(np.float64) ** 2).sum((1, 2)) + smallest
    distances = np.sqrt(np.maximum(squared_sum, 0) / difference[0].size)
    return {name: getattr(scenes, name) for name in ATTRIBUTES}, distances
