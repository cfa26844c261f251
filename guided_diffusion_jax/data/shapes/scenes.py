"""The scenes of `shapes` as numbers: seven attributes, drawn at random, some combinations held out."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "heart"),
    "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
    "size": ("small", "medium", "large"),
    "place": ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right"),
    "count": ("one", "two", "three"),
    "texture": ("flat", "striped", "dotted", "outlined"),
    "background": ("white", "grey", "sky", "sand"),
}
"""The attributes and the names of their values; everywhere a value is its index here."""

JITTERS = 9
"""Number of small displacements of a group at its place: 3 x 3, row by row."""

SPLITS = ("train", "test", "novel")

SEED = 0

BLOCK = 500
"""Scenes that are drawn at once; a block depends on the seed, the split and the block's number alone."""


class Scenes(NamedTuple):
    """N scenes; each entry int `[n]`, indices into `ATTRIBUTES`, and `jitter` in 0 .. `JITTERS` - 1."""

    shape: Int[np.ndarray, " n"]
    colour: Int[np.ndarray, " n"]
    size: Int[np.ndarray, " n"]
    place: Int[np.ndarray, " n"]
    count: Int[np.ndarray, " n"]  # type: ignore[assignment]  # tuples have a method of this name
    texture: Int[np.ndarray, " n"]
    background: Int[np.ndarray, " n"]
    jitter: Int[np.ndarray, " n"]


def most_objects(pixels: int) -> int:
    """Largest number of objects in an image of this width: below 32 pixels, three are too small to show a shape."""
    return len(ATTRIBUTES["count"]) if pixels >= 32 else 1


def is_novel(shape: Int[np.ndarray, "..."], colour: Int[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
    """Whether the pair is one of the 8, with every shape and every colour once, that only the split `novel` has."""
    return colour == (3 * shape + 5) % len(ATTRIBUTES["colour"])


def draw_block(split: str, block: int, objects: int) -> tuple[Scenes, Scenes, np.random.RandomState]:
    """`BLOCK` random scenes of a split, and as many for their reference images.

    A reference has the scene's texture and background, and nothing else in common with it, as far as there is choice;
    it never shows a held-out pair.

    Args:
        split: one of `SPLITS`.
        block: its number, from 0.
        objects: the largest count. Where it is the same, so are the scenes, whatever the pixels.

    Returns:
        The scenes, their references, and the block's random numbers, to go on with.
    """
    # RandomState, because NumPy promises never to change its stream; a Generator's may.
    random = np.random.RandomState([SEED, SPLITS.index(split), block])
    shape, colour = np.divmod(np.arange(64), 8)
    novel = is_novel(shape, colour)
    pairs = random.choice(np.flatnonzero(novel == (split == "novel")), BLOCK)

    def uniform(end: int) -> Int[np.ndarray, " n"]:
        return random.randint(0, end, BLOCK)

    def other(values: Int[np.ndarray, " n"], end: int) -> Int[np.ndarray, " n"]:
        return (values + random.randint(1, end, BLOCK)) % end if end > 1 else values

    scenes = Scenes(
        shape=shape[pairs],
        colour=colour[pairs],
        size=uniform(3),
        place=uniform(9),
        count=uniform(objects),
        texture=uniform(4),
        background=uniform(4),
        jitter=uniform(JITTERS),
    )
    allowed = (shape != scenes.shape[:, None]) & (colour != scenes.colour[:, None]) & ~novel
    other_pairs = np.argmax(random.random_sample(allowed.shape) * allowed, axis=1)
    references = scenes._replace(
        shape=shape[other_pairs],
        colour=colour[other_pairs],
        size=other(scenes.size, 3),
        place=other(scenes.place, 9),
        count=other(scenes.count, objects),
        jitter=uniform(JITTERS),
    )
    return scenes, references, random
