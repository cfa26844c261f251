"""Captions of scenes in many wordings, and a parser that reads the attributes back from a caption.

Wordings are data: patterns with slots, `[...]` around parts that are omitted when their attribute is not named, and the
words that may fill a slot. The first word for a value is the shortest.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from guided_diffusion_jax.data.shapes.scenes import ATTRIBUTES, Scenes

LONGEST = 64
"""Bytes of a caption, at most."""

NAMED = 0.75
"""Probability that each of size, texture, place and background is named; count, colour and shape always are."""

PATTERNS = (
    "{count} {colour}[ {texture}] {shape}[, {size}][, {place}][, {on}]",
    "{count}[ {size}][ {texture}] {colour} {shape}[ {at}][ {on}]",
    "{count}[ {size}] {colour}[ {texture}] {shape}[, {place}][, {on}]",
    "{count} {colour} {shape}[, {size}][, {texture}][, {on}][, {place}]",
    "{count}[ {texture}][ {size}] {colour} {shape}[ {on}][ {at}]",
    "[{place}: ]{count}[ {size}] {colour}[ {texture}] {shape}[ {on}]",
    "[{background}, ]{count}[ {size}][ {texture}] {colour} {shape}[ {at}]",
)

WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "count": (("a", "one"), ("two", "2", "a pair of"), ("three", "3", "a trio of")),
    "size": (("small", "little", "tiny"), ("medium", "mid-sized"), ("large", "big")),
    "texture": (("flat", "plain", "solid"), ("striped",), ("dotted", "spotted"), ("outlined",)),
    "colour": (("red",), ("orange",), ("yellow",), ("green",), ("cyan",), ("blue",), ("purple", "violet"), ("pink",)),
    "place": (
        ("top left", "upper left"),
        ("top",),
        ("top right", "upper right"),
        ("left",),
        ("centre", "middle"),
        ("right",),
        ("bottom left", "lower left"),
        ("bottom",),
        ("bottom right", "lower right"),
    ),
    "background": (("white",), ("grey", "gray"), ("sky",), ("sand",)),
}

SHAPES = (
    (("circle", "circles"), ("disc", "discs")),
    (("square", "squares"),),
    (("triangle", "triangles"),),
    (("diamond", "diamonds"), ("rhombus", "rhombuses")),
    (("cross", "crosses"), ("plus", "pluses")),
    (("star", "stars"),),
    (("ring", "rings"), ("hoop", "hoops")),
    (("heart", "hearts"),),
)
"""Singular and plural of each shape."""

FRAMES = {
    "at": ("place", ("at {}", "at the {}")),
    "on": ("background", ("on {}", "on a {} background")),
    "background": ("background", ("on {}", "{} background")),
}
"""Slots with words around those of an attribute."""


def captions(scenes: Scenes, random: np.random.RandomState) -> list[str]:
    """A caption for each scene, lower case, at most `LONGEST` bytes; `parse` reads its attributes back."""
    columns = np.stack([getattr(scenes, name) for name in ATTRIBUTES], 1)
    patterns = random.randint(0, len(PATTERNS), len(columns))
    named = random.random_sample((len(columns), len(ATTRIBUTES))) < NAMED
    choices = random.randint(0, 2**16, (len(columns), 2 * len(ATTRIBUTES)))
    found = []
    for row, pattern, chosen, choice in zip(columns.tolist(), patterns, named.tolist(), choices.tolist(), strict=True):
        values = dict(zip(ATTRIBUTES, row, strict=True))
        names = {name for name, is_named in zip(ATTRIBUTES, chosen, strict=True) if is_named}
        caption = phrase(PATTERNS[pattern], values, names, choice)
        if len(caption) > LONGEST:
            caption = phrase(PATTERNS[pattern], values, names, [0] * len(choice))
        found.append(caption)
    return found


def phrase(pattern: str, values: dict[str, int], named: set[str], choice: list[int]) -> str:
    """Fills in a pattern: an optional part stays if its attribute is in `named`; `choice` selects the words."""
    numbers = iter(choice)
    kept = _OPTIONAL.sub(lambda part: part[1] if _attribute(part[1]) in named else "", pattern)
    caption = _SLOT.sub(lambda slot: _fill(slot[1], values, numbers), kept)
    return re.sub(r"\ba (?=[aeiou])", "an ", caption)


def _attribute(part: str) -> str:
    """The attribute of an optional part."""
    slot = _SLOT.findall(part)[0]
    return FRAMES[slot][0] if slot in FRAMES else slot


def _fill(slot: str, values: dict[str, int], numbers: Iterator[int]) -> str:
    if slot == "shape":
        return _pick([words[values["count"] > 0] for words in SHAPES[values["shape"]]], numbers)
    attribute, frames = FRAMES.get(slot, (slot, ("{}",)))
    return _pick(frames, numbers).format(_pick(WORDS[attribute][values[attribute]], numbers))


def _pick(options: Sequence[str], numbers: Iterator[int]) -> str:
    return options[next(numbers) % len(options)]


def parse(caption: str) -> dict[str, int]:
    """The attributes that a caption names, with their values; anything else in it is ignored.

    >>> parse("two red striped circles, top left")
    {'count': 1, 'colour': 0, 'texture': 1, 'shape': 0, 'place': 0}
    """
    return dict(PHRASES[match] for match in _KNOWN.findall(caption.lower()))


def _phrases() -> Iterator[tuple[str, tuple[str, int]]]:
    yield "an", ("count", 0)
    for name, values in WORDS.items():
        frames = [frame for attribute, frames in FRAMES.values() if attribute == name for frame in frames]
        # A background's bare word could be anything's, so only its frames count.
        for frame in frames + ["{}"] * (name != "background"):
            yield from ((frame.format(word), (name, value)) for value, words in enumerate(values) for word in words)
    for value, words in enumerate(SHAPES):
        yield from ((word, ("shape", value)) for numbers in words for word in numbers)


_SLOT = re.compile(r"\{(\w+)\}")
_OPTIONAL = re.compile(r"\[(.*?)\]")

PHRASES: dict[str, tuple[str, int]] = dict(_phrases())
"""Every phrase of a caption that names an attribute's value, with the attribute and the value."""

_KNOWN = re.compile(r"\b(?:" + "|".join(sorted(map(re.escape, PHRASES), key=len, reverse=True)) + r")\b")
