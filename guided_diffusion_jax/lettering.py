"""Text within images: a font of most alphabets, what it can draw, and lines that fit a width."""

import functools
import importlib.util
import unicodedata
from pathlib import Path

from PIL import ImageFont, features

SIZE = 13
"""Pixels of the letters."""

LINE = 16
"""Pixels from one line of text to the next."""


@functools.cache
def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which comes with matplotlib; where it is missing, Pillow's font of Latin letters."""
    path = _path()
    return ImageFont.load_default(SIZE) if path is None else ImageFont.truetype(path, SIZE)


def clean(text: str) -> str:
    """The text on one line, composed (NFC), without characters that control and are not seen."""
    composed = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(c for c in composed if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))


def drawable(text: str) -> bool:
    """Whether the font has a glyph for every character, and something is left to be seen.

    >>> drawable("naïve кот"), drawable("猫"), drawable(" ")
    (True, False, False)
    """
    seen = clean(text)
    return bool(seen) and all(map(_has_glyph, seen))


def legible(text: str) -> str:
    """The text with a question mark for each character that the font lacks."""
    return "".join(c if _has_glyph(c) else "?" for c in clean(text))


def width(text: str) -> int:
    """Pixels that a line takes."""
    return int(font().getlength(text)) + 1


def wrap(text: str, pixels: int, lines: int) -> list[str]:
    """The text in lines of at most so many pixels, broken between words where that is possible.

    Args:
        text: any; characters without a glyph become question marks.
        pixels: width of a line.
        lines: number of lines; what is beyond them is cut, and "…" stands for it.
    """
    made, line = [], ""
    for word in legible(text).split():
        joined = f"{line} {word}".strip()
        if width(joined) <= pixels:
            line = joined
            continue
        made += [line] if line else []
        while width(word) > pixels and len(word) > 1:
            most = next((n for n in range(len(word) - 1, 1, -1) if width(word[:n]) <= pixels), 1)
            made, word = [*made, word[:most]], word[most:]
        line = word
    made += [line] if line else []
    return made if len(made) <= lines else [*made[: lines - 1], _shortened(" ".join(made[lines - 1 :]), pixels)]


def _shortened(text: str, pixels: int) -> str:
    while text and width(f"{text}…") > pixels:
        text = text[:-1].rstrip()
    return f"{text}…"


def _has_glyph(character: str) -> bool:
    if character.isascii():
        return character.isprintable()
    # Right-to-left text needs Raqm, or it is drawn backwards.
    backwards = unicodedata.bidirectional(character) in ("R", "AL") and not features.check("raqm")
    return ord(character) in _glyphs() and not backwards


@functools.cache
def _glyphs() -> frozenset[int]:
    path = _path()
    if path is None:
        return frozenset()
    from fontTools.ttLib import TTFont  # read for names that are not ASCII alone

    with TTFont(path, lazy=True) as opened:
        return frozenset(opened.getBestCmap())


@functools.cache
def _path() -> Path | None:
    """The font's file, found without importing matplotlib, which takes half a second."""
    found = importlib.util.find_spec("matplotlib")
    path = Path(found.origin or "").parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf" if found else None
    return path if path is not None and path.exists() else None
