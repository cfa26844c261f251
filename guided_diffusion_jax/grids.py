"""Labelled grids of images. Small images are enlarged by whole factors, each pixel a square: nothing is smoothed."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from guided_diffusion_jax import lettering

COLUMNS, ROWS = 10, 20
"""Images beside and below each other on a page, at most."""

PAGE = COLUMNS * ROWS
"""Images of a page, at most."""

SMALLEST = 64
"""Pixels that an image of a grid is at least enlarged to, by a whole factor."""

HIGHEST = 4096
"""Pixels of a page, about: large images stand in fewer rows."""

GAP, FRAME = 6, "#c4c4c4"
NAME_WIDTH, CAPTION_WIDTH, CAPTION_LINES, TITLE_WIDTH = 170, 120, 4, 420

Canvas = UInt8[np.ndarray, "height width 3"]


def enlargement(height: int, width: int) -> int:
    """Whole factor that makes the shorter side at least `SMALLEST` pixels.

    >>> enlargement(8, 8), enlargement(28, 28), enlargement(32, 32), enlargement(64, 64)
    (8, 3, 2, 1)
    """
    return math.ceil(SMALLEST / min(height, width))


def to_image(image: UInt8[np.ndarray, "h w c"], width: int, height: int) -> Image.Image:
    """RGB image of this size: each pixel a square where it is enlarged, averages where it is reduced.

    An image of neither 1 nor 3 channels, a map of classes, shows the strongest channel as a shade of grey.
    """
    if image.shape[-1] not in (1, 3):
        shades = np.linspace(0, 255, image.shape[-1]).astype(np.uint8)
        image = shades[image.argmax(axis=-1)][..., None]
    rgb = Image.fromarray(np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))))
    smaller = width < rgb.width or height < rgb.height
    return rgb.resize((width, height), Image.Resampling.BOX if smaller else Image.Resampling.NEAREST)


def grid(
    rows: Sequence[UInt8[np.ndarray, "_ _ _ _"]],
    names: Sequence[str] = (),
    title: str = "",
    captions: Sequence[Sequence[str]] = (),
    columns: Sequence[str] = (),
) -> Canvas:
    """Rows of images on white, each with its name at the left, under a title.

    Args:
        rows: images, grey or RGB; rows may differ in length. All are shown as large as those of the last row.
        names: one a row, or none; a long one is broken into lines.
        title: above, or none.
        captions: for each row a text below each image; none, or an empty row, for rows without.
        columns: a name above each column, or none.
    """
    height, width = (size * enlargement(*rows[-1].shape[1:3]) for size in rows[-1].shape[1:3])
    longest = max((lettering.width(lettering.legible(text)) for row in (*captions, columns) for text in row), default=0)
    step_x = max(width, min(longest, CAPTION_WIDTH)) + GAP
    lines = max(1, height // lettering.LINE)
    beside = [lettering.wrap(name, NAME_WIDTH, lines) for name in names]
    left = GAP + max((lettering.width(line) + GAP for name in beside for line in name), default=0)
    below = [[lettering.wrap(text, step_x - GAP, CAPTION_LINES) for text in row] for row in captions]
    full_width = left + max(len(row) for row in rows) * step_x
    full_width = max(full_width, min(lettering.width(lettering.legible(title)), TITLE_WIDTH) + 2 * GAP)
    above = lettering.wrap(title, full_width - 2 * GAP, CAPTION_LINES)
    heads = [lettering.wrap(text, step_x - GAP, CAPTION_LINES) for text in columns]
    heads_top = GAP + (len(above) * lettering.LINE + GAP if above else 0)
    top = heads_top + (max(map(len, heads)) * lettering.LINE + GAP // 2 if any(heads) else 0)
    heights = [height + GAP + lettering.LINE * max(map(len, _of(below, r)), default=0) for r in range(len(rows))]
    canvas = Image.new("RGB", (full_width, top + sum(heights)), "white")
    draw = ImageDraw.Draw(canvas)

    def write(text: Sequence[str], x: int, y: int) -> None:
        for i, line in enumerate(text):
            draw.text((x, y + i * lettering.LINE), line, fill="black", font=lettering.font())

    write(above, GAP, GAP)
    for c, text in enumerate(heads):
        write(text, left + c * step_x, heads_top)
    for r, row in enumerate(rows):
        name = _of(beside, r)
        write(name, GAP, top + (height - len(name) * lettering.LINE) // 2)
        for c, image in enumerate(row):
            x = left + c * step_x
            draw.rectangle((x - 1, top - 1, x + width, top + height), outline=FRAME)
            canvas.paste(to_image(image, width, height), (x, top))
        for c, text in enumerate(_of(below, r)):
            write(text, left + c * step_x, top + height + 1)
        top += heights[r]
    return np.asarray(canvas)


def block(images: UInt8[np.ndarray, "n h w c"], across: int) -> Canvas:
    """Images close together in rows of `across`, enlarged as `grid` does, as one image for it."""
    height, width = (size * enlargement(*images.shape[1:3]) for size in images.shape[1:3])
    canvas = Image.new("RGB", (across * (width + 1) - 1, -(-len(images) // across) * (height + 1) - 1), FRAME)
    for i, image in enumerate(images):
        canvas.paste(to_image(image, width, height), (i % across * (width + 1), i // across * (height + 1)))
    return np.asarray(canvas)


def sheet(
    images: UInt8[np.ndarray, "n h w c"],
    names: Sequence[str] = (),
    captions: Sequence[str] = (),
    given: Mapping[str, UInt8[np.ndarray, "n _ _ _"]] | None = None,
    title: str = "",
    total: int | None = None,
) -> Canvas:
    """A page of images that says what each was asked to show.

    Rows are classes, in the order of their first images, as long as that fits on a page; else the class stands below
    each image. What was given for each image (a control image, a real image) stands in a row above it; what was
    given for all of them stands once, above all.

    Args:
        images: at least 1; those that do not fit on the page are left out, and the title says so.
        names: class of each image; () or "" for none.
        captions: prompt of each image; one that is the same for all becomes part of the title; () for none.
        given: name to the images that each one was made from.
        title: above.
        total: number of images of which these are the first; by default there are no others.
    """
    cell = images.shape[1] * enlargement(*images.shape[1:3]) + GAP
    varying = {name: some for name, some in (given or {}).items() if not _same(some)}
    constant = {name: some[0] for name, some in (given or {}).items() if name not in varying}
    most = min(ROWS, max(1, HIGHEST // cell)) // (1 + len(varying)) or 1
    total, shown = total or len(images), min(len(images), COLUMNS * most)
    images, names, captions = images[:shown], names[:shown], captions[:shown]
    if captions and len(set(captions)) == 1:
        title, captions = f'"{captions[0]}", {title}'.removesuffix(", ") if captions[0] else title, ()
    if shown < total:
        title = f"{title}, first {shown} of {total}".removeprefix(", ")
    chunks = [np.arange(start, min(start + COLUMNS, shown)) for start in range(0, shown, COLUMNS)]
    headings = [""] * len(chunks)
    if any(names) and not varying and not captions:
        of_class = {name: np.flatnonzero(np.array(names) == name) for name in dict.fromkeys(names)}
        by_class = [
            (name, rows[start : start + COLUMNS])
            for name, rows in of_class.items()
            for start in range(0, len(rows), COLUMNS)
        ]
        if len(by_class) <= most:
            headings, chunks = [name for name, _ in by_class], [rows for _, rows in by_class]
            names = ()
    texts = _below(names, captions)
    rows, row_names, below = [], [], []
    if constant:
        rows.append(np.stack([np.asarray(to_image(one, *images.shape[2:0:-1])) for one in constant.values()]))
        row_names.append("given")
        below.append(list(constant))
    for heading, chunk in zip(headings, chunks, strict=True):
        for name, some in varying.items():
            rows.append(some[chunk])
            row_names.append(name)
            below.append([])
        rows.append(images[chunk])
        row_names.append("generated" if varying or (constant and not heading) else heading)
        below.append([texts[i] for i in chunk] if texts else [])
    return grid(rows, row_names, title, below)


def class_name(label: int, class_names: Sequence[str]) -> str:
    """Name of a class as it is drawn: its number where the font lacks a letter of it, "any" for the null.

    >>> class_name(0, ("кот", "猫")), class_name(1, ("кот", "猫")), class_name(2, ("кот", "猫")), class_name(0, ())
    ('кот', 'class 1', 'any', '')
    """
    if not class_names:
        return ""
    name = [*class_names, "any"][label]
    return lettering.clean(name) if lettering.drawable(name) else f"class {label}"


def curve(x: Sequence[float], y: Sequence[float], title: str, x_name: str, chance: float) -> Canvas:
    """Shares y in [0, 1] over x as a line, with a dashed line at what chance would give."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second that sampling does not wait for
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, xlabel=x_name, ylim=(0, 1))
    axes.plot(x, y, marker=".")
    axes.axhline(chance, linestyle="--", color="grey", linewidth=1)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _of(rows: Sequence, r: int) -> Sequence:
    return rows[r] if r < len(rows) else []


def _same(images: np.ndarray) -> bool:
    """Whether all images are one; a single one is."""
    return images.strides[0] == 0 or bool((images == images[:1]).all())


def _below(names: Sequence[str], captions: Sequence[str]) -> list[str]:
    if any(names) and captions:
        return [f"{name}: {caption}" for name, caption in zip(names, captions, strict=True)]
    return list(captions or (names if any(names) else ()))
