"""What a picture of the data set `shapes` shows, read from its pixels alone: how control is checked exactly.

There is nothing learned in it. A scene draws background * (1 - A) + colour * B, where A is what its objects cover and B
that times their texture's brightness (`data.shapes.draw`). So the squared distance of a picture to every scene that
can be drawn, in every colour, is a few matrix products with all A and B; the nearest scene is the reading, which for
pixels with Gaussian noise is the most probable one.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Integer, UInt8

from guided_diffusion_jax.data.shapes import captions
from guided_diffusion_jax.data.shapes.draw import BACKGROUNDS, COLOURS, SHADE, draw
from guided_diffusion_jax.data.shapes.scenes import ATTRIBUTES, JITTERS, Scenes, most_objects
from guided_diffusion_jax.errors import require

WIDEST = 32
"""Pixels of the pictures that are compared; wider ones are averaged down to it."""

BATCH = 32
"""Pictures that are compared at once; at 32 pixels there are 23,328 scenes, whose A and B take 120 MB."""

SHADES = np.linspace(SHADE, 1, 5)
"""The brightnesses that `foreground` tries."""

Reading = Mapping[str, Integer[np.ndarray, " n"]]
"""The attributes of N pictures by the names in `ATTRIBUTES`, values from 0."""


def read(images: UInt8[np.ndarray, "n p p 3"]) -> dict[str, Int[np.ndarray, " n"]]:
    """The attributes of pictures, drawn or generated: those of the nearest scene.

    Args:
        images: RGB, of at most 32 pixels or a multiple of 32; below 32 they show one object.

    Returns:
        For each name in `ATTRIBUTES`, each picture's value, an index from 0. There is always one: `misfit` tells
        whether the picture is anything like it.

    Raises:
        InputError: the pictures have another size.
    """
    return _fit(images)[0]


def misfit(images: UInt8[np.ndarray, "n p p 3"]) -> Float[np.ndarray, " n"]:
    """How far pictures are from the nearest scene: the root of the mean squared difference, of grey levels of 0 .. 255.

    Raises:
        InputError: as `read` does.
    """
    return _fit(images)[1]


def _fit(images: UInt8[np.ndarray, "n p p 3"]) -> tuple[dict[str, Int[np.ndarray, " n"]], Float[np.ndarray, " n"]]:
    """What `read` and `misfit` give."""
    pixels = images.shape[1]
    require(
        8 <= pixels <= WIDEST or pixels % WIDEST == 0,
        f"pictures of {pixels} pixels cannot be judged; use 8 to {WIDEST}, or a multiple of {WIDEST}",
    )
    bank = _bank(min(pixels, WIDEST), most_objects(pixels))
    parts = [_nearest(images[start : start + BATCH], bank) for start in range(0, len(images), BATCH)]
    values = {name: np.concatenate([part[name] for part, _ in parts] or [np.zeros(0, int)]) for name in ATTRIBUTES}
    return values, np.concatenate([distance for _, distance in parts] or [np.zeros(0)])


def foreground(images: UInt8[np.ndarray, "n p p 3"], reading: Reading | None = None) -> Bool[np.ndarray, "n p p"]:
    """Which pixels objects cover by half at least, pixel by pixel, whatever the shape.

    Each pixel is explained as a mixture of the picture's background and its colour, in the brightness that fits best.

    Args:
        images: RGB, as for `read`.
        reading: what `read` gave for them, where that is at hand.

    Raises:
        InputError: as `read` does.
    """
    reading = read(images) if reading is None else reading
    background = BACKGROUNDS[reading["background"]][:, None, None]
    difference = images.astype(np.float32) - background
    smallest = np.full(images.shape[:3], np.inf, np.float32)
    coverage = np.zeros_like(smallest)
    for shade in SHADES.astype(np.float32):
        direction = shade * COLOURS[reading["colour"]][:, None, None] - background
        share = np.clip((difference * direction).sum(-1) / (direction**2).sum(-1), 0, 1)
        rest = ((difference - share[..., None] * direction) ** 2).sum(-1)
        coverage = np.where(rest < smallest, share, coverage)
        smallest = np.minimum(rest, smallest)
    return coverage >= 0.5


def iou(a: Bool[np.ndarray, "n p p"], b: Bool[np.ndarray, "n p p"]) -> Float[np.ndarray, " n"]:
    """Intersection over union of each pair of masks, 0 .. 1; two empty masks agree."""
    both, either = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def edge_agreement(a: Bool[np.ndarray, "n p p"], b: Bool[np.ndarray, "n p p"]) -> Float[np.ndarray, " n"]:
    """How well two edge maps agree, 0 .. 1, where a pixel's deviation is forgiven: the F score of each pair.

    It is the harmonic mean of the shares of edge pixels in `a`, and in `b`, that touch one of the other; two empty maps
    agree. `data.shapes.draw.edges(foreground(images))` is the edge map of pictures.
    """
    matched, edges = (a & _grown(b)).sum((1, 2)), a.sum((1, 2))
    matched_b, edges_b = (b & _grown(a)).sum((1, 2)), b.sum((1, 2))
    precision, recall = matched / np.maximum(edges, 1), matched_b / np.maximum(edges_b, 1)
    score = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    return np.where(edges + edges_b > 0, score, 1.0)


def obeyed(sentences: Sequence[str], reading: Reading) -> Bool[np.ndarray, " n"]:
    """Whether each picture has all the attributes that its sentence names (`captions.said`)."""
    return np.array(
        [
            all(reading[name][index] == value for name, value in captions.said(sentence).items())
            for index, sentence in enumerate(sentences)
        ],
        bool,
    )


class _Bank(NamedTuple):
    """Every scene but for its colour and background: S silhouettes, each with T textures, scene s * T + t.

    Attributes:
        scenes: all S T of them.
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
    """The attributes of each picture's nearest scene on its background: the smallest |x - background (1-A) - c B|^2.

    Beside them, the root of that, divided by the number of values that were compared.
    """
    count, pixels = images.shape[:2]
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    distance = ((np.median(border, axis=1)[:, None] - BACKGROUNDS) ** 2).sum(-1)
    backgrounds = distance.argmin(1)
    background = BACKGROUNDS[backgrounds]

    factor = max(pixels // WIDEST, 1)
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
    whole = (difference.astype(np.float64) ** 2).sum((1, 2)) + smallest
    distances = np.sqrt(np.maximum(whole, 0) / difference[0].size)
    return {name: getattr(scenes, name) for name in ATTRIBUTES}, distances


def _grown(mask: Bool[np.ndarray, "n p p"]) -> Bool[np.ndarray, "n p p"]:
    """The mask and the eight neighbours of each of its pixels."""
    rows = np.pad(mask, ((0, 0), (1, 1), (0, 0)))
    rows = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
    columns = np.pad(rows, ((0, 0), (0, 0), (1, 1)))
    return columns[:, :, :-2] | columns[:, :, 1:-1] | columns[:, :, 2:]
