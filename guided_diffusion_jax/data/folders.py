"""A folder of images as a data set: a folder a class, a table of labels, or images alone.

```
data_dir/cat/1.png           data_dir/labels.csv        data_dir/1.png
data_dir/cat/more/2.jpg      data_dir/1.png             data_dir/2.png
data_dir/dog/3.webp          data_dir/2.png
```

- A folder a class: the classes are the first folders' names, sorted, whole numbers by their value; deeper folders
  belong to their class.
- `labels.csv` has lines `file,label`, with or without that header; files are relative to its folder, and only those
  that it lists are used. Labels that are all whole numbers number the classes; otherwise they are names, sorted.
  The column `label` of a `metadata.csv` or `metadata.jsonl` does the same (see `tables`).
- `data.labels="filename"`: the part of each file's name before the first "_".
- Images alone have no labels.

Folders called train, val and test in `data_dir`, or by other usual names of these (`layout.SPLITS`, in any case), are
splits, each laid out as above, and the classes are those of `train`. Without them everything is split `train`. Hidden
files and folders are left out, and so is what is no image in a format that Pillow reads (`images.extensions`). What
could be meant in two ways is refused (`layout`). `Dataset.describe` shows what was understood.

Captions come from a column of a table in the split's folder, "caption" of `captions.jsonl` or of Hugging Face's
`metadata.jsonl`, or any other that `data.text` names:

```
{"file": "cat/1.png", "caption": "a cat asleep on a red chair"}
{"file_name": "cat/1.png", "text": "the same in a metadata.jsonl"}
```

Control images lie in a folder of their own with the same names inside: `edges/cat/1.png` belongs to
`data_dir/cat/1.png` or `.jpg`. Both are cropped alike, so they must have the same aspect ratio.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from guided_diffusion_jax.data.buckets import nearest
from guided_diffusion_jax.data.dataset import CHUNK, NO_COLUMNS, Columns, Dataset, grouped, pool
from guided_diffusion_jax.data.images import (
    Header,
    Size,
    class_ids,
    decode,
    decode_map,
    height_and_width,
    open_image,
    read_header,
    same_aspect,
)
from guided_diffusion_jax.data.layout import Layout, canonical, understand
from guided_diffusion_jax.data.scan import scan
from guided_diffusion_jax.data.tables import Table, file_lookup, missing_column, read_tables, with_column
from guided_diffusion_jax.data.understood import Understood
from guided_diffusion_jax.errors import InputError, require

MAX_HEADERS = 20_000
"""Files whose headers are read when a folder is opened; of more, this many spread evenly."""

MAPS = 16
"""Control images that are looked into to say how they are resized."""


class Headers(NamedTuple):
    """What the headers of files tell.

    Attributes:
        smallest, largest: width and height of the images with the fewest and the most pixels.
        grey: how many of those that were read are grey.
        read: how many were read.
        channels: 1 where all files are grey, else 3.
    """

    smallest: tuple[int, int]
    largest: tuple[int, int]
    grey: int
    read: int
    channels: int


def open_folder(
    data_dir: str, *, split: str = "train", image_size: Size, columns: Columns = NO_COLUMNS, buckets: int = 0
) -> Dataset:
    """The images of a folder (see the module), decoded while they are read.

    Images are grey (1 channel) when all of the split's files are grey, and RGB otherwise; so are control images.

    Args:
        data_dir: the folder, on a disk or `gs://`.
        split: "train", or another split's folder by any of its names.
        image_size: pixels after `centre_crop`, of a square's side or height and width.
        buckets: pixels that the sides of images of several aspect ratios are multiples of (see `buckets`), about as
            large as the square; 0 makes all images of `image_size`.
        columns: `text` is a column of a table, `labels` one or "folder" or "filename", `control_image` the folder of
            control images; no others.

    Raises:
        InputError: the folder or its split is missing or empty, its layout is doubtful, a file is no image, its labels
            are invalid, or it lacks a caption or a control image.
    """
    require(data_dir != "", "data.name='folder' needs data.data_dir, the folder of images")
    root = epath.Path(data_dir).expanduser()
    require(root.is_dir(), f"data.data_dir={data_dir} is not a folder")
    require(not columns.attributes, f"data.attributes={columns.attributes}, but a folder has none; use ()")
    require(
        not columns.reference_image,
        f"data.reference_image={columns.reference_image!r}, but a folder has no reference images; leave it empty",
    )
    skip = [os.path.realpath(epath.Path(columns.control_image).expanduser())] if columns.control_image else []
    layout = understand(root, split, columns.labels, skip)
    folder, files = layout.folder, layout.labels.files
    number = {name: index for index, name in enumerate(layout.class_names)}
    labels = np.array([number[label] for label in layout.labels.labels] or [0] * len(files), np.int32)
    texts, text_table = _captions(layout, columns.text)
    paths = {"image": [folder / file for file in files]}
    if columns.control_image:
        paths["control_image"] = _control_images(columns.control_image, folder.name if folder != root else "", files)
    headers = {key: _headers(paths[key]) for key in paths}
    if columns.control_image:
        _check_pairs(paths["image"], paths["control_image"])
    channels = {key: found.channels for key, found in headers.items()}
    decoders = {"image": decode, "control_image": decode_map}

    understood = Understood(
        split=layout.split,
        splits=layout.splits,
        classes_from=layout.labels.source,
        sizes=headers["image"][:2],
        colours=_colours(headers["image"], len(files)),
        text=text_table,
        control=_control_line(columns.control_image, paths.get("control_image", [])),
        left_out=dict(layout.left_out),
        notes=(*layout.notes, *_text_note(layout.tables, columns.text)),
    )

    def part(rows: np.ndarray, size: Size, understood: Understood) -> Dataset:
        def read(indices: np.ndarray) -> dict[str, np.ndarray]:
            indices = rows[indices]
            batch: dict[str, np.ndarray] = {"label": labels[indices]}
            for key, of_key in paths.items():
                one = functools.partial(_decode, decoders[key], size=size, channels=channels[key])
                batch[key] = np.stack(list(pool().map(one, [of_key[index] for index in indices])))
            return batch if texts is None else batch | {"text": texts[indices]}

        return Dataset(
            name=str(folder),
            length=len(rows),
            image_shape=(*height_and_width(size), channels["image"]),
            class_names=layout.class_names if layout.labels.labels else (),
            read=read,
            control_channels=channels.get("control_image", 0),
            home=folder,
            labels=labels[rows] if layout.labels.labels else None,
            understood=understood,
        )

    if not buckets:
        return part(np.arange(len(files)), image_size, understood)
    shapes, number, cut = _buckets(paths["image"], files, image_size, buckets)
    of_shape = sorted((np.flatnonzero(number == i) for i in range(len(shapes))), key=len, reverse=True)
    of_shape = [rows for rows in of_shape if len(rows)]
    sizes = [shapes[number[rows[0]]] for rows in of_shape]
    listed = ", ".join(f"{w}x{h} ({len(rows)})" for (h, w), rows in zip(sizes, of_shape, strict=True))
    note = f"images of {len(sizes)} shapes: {listed}; at most {cut.max():.0%} of one is cut"
    understood = dataclasses.replace(understood, sizes=None, notes=(note, *understood.notes))
    return grouped([part(rows, size, understood) for size, rows in zip(sizes, of_shape, strict=True)])


def _buckets(paths: Sequence[Any], files: Sequence[str], image_size: Size, step: int) -> Any:
    """Shapes, and of each image its shape and the share that is cut (see `buckets.nearest`)."""
    require(isinstance(image_size, int), f"image_size={image_size} has two sides, and buckets={step} needs one")
    sizes = [header.size for header in pool().map(_header, paths)]
    return nearest(sizes, files, image_size, step)  # type: ignore[arg-type]


def _decode(decoder: Any, path: Any, *, size: Size, channels: int) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return decoder(data, name=str(path), size=size, channels=channels)


# Captions


def _captions(layout: Layout, column: str) -> tuple[np.ndarray | None, str]:
    """The caption of each file, and where they come from; None unless they are asked for."""
    if not column:
        return None, ""
    found = captions(layout.folder, layout.labels.files, column)
    if found is None:
        raise missing_column(layout.tables, layout.folder, "data.text", column)
    empty = sum(not caption.strip() for caption in found)
    return np.array(found, object), f"column {column!r} of the tables" + f", {empty} of them empty" * (empty > 0)


def captions(folder: Any, files: Sequence[str], column: str = "caption") -> list[str] | None:
    """The caption of each of a folder's images, as a table of it gives them; None without a table of that column.

    Lines for images that exist but are not among `files` are skipped; a caption may be empty.

    Args:
        folder: an `epath.Path`.
        files: the images, relative to the folder, with "/" between folders.
        column: the name of the table's column.

    Raises:
        InputError: a line cannot be read, names an image twice or a missing one, or an image has no line.
    """
    tables = read_tables(folder)
    table = with_column(tables, column)
    if table is None:
        empty = [one for one in tables if not one.rows]
        if not empty:
            return None
        table = empty[0]

    def exists(file: str) -> bool:
        try:
            return any((folder / spelling).exists() for spelling in (file, file.replace("\\", "/")))
        except OSError:  # a name too long to be one
            return False

    found = table.column(column, files, exists)
    lacking = [file for file in files if file not in found]
    require(
        not lacking,
        f"{table.path} lacks {len(lacking)} of the {len(files)} images, the first {(lacking or [''])[0]}; "
        'give each a line, with the caption "" where there is nothing to say',
    )
    return [found[file] for file in files]


def _text_note(tables: Sequence[Table], column: str) -> list[str]:
    """The columns that could be captions, where none is asked for."""
    if column:
        return []
    found = [(table, [name for name in table.columns if name != "label"]) for table in tables]
    return [
        f'{table.path.name} has the columns {", ".join(names[:5])}; data.text="{names[-1]}" makes one the captions'
        for table, names in found
        if names
    ]


# Control images


def _control_images(root: str, split: str, files: Sequence[str]) -> list[Any]:
    """The control image of each file."""
    top = epath.Path(root).expanduser()
    folder = top / split
    if split and not folder.is_dir() and top.is_dir():
        same = [one for one in top.iterdir() if canonical(one.name) == canonical(split) is not None and one.is_dir()]
        folder = same[0] if same else folder
    require(folder.is_dir(), f"data.control_image={root}: {folder} is not a folder")
    by_stem = {file.rpartition(".")[0]: file for file in scan(folder).images}
    lookup = file_lookup(by_stem)
    stems = [lookup(file.rpartition(".")[0]) for file in files]
    lacking = [file for file, stem in zip(files, stems, strict=True) if stem is None]
    require(
        not lacking,
        f"data.control_image={root} lacks the control images of {len(lacking)} images, the first "
        f"{(lacking or [''])[0]}; a control image has its image's name",
    )
    return [folder / by_stem[stem] for stem in stems if stem is not None]


def _check_pairs(images: Sequence[Any], controls: Sequence[Any]) -> None:
    """Refuses control images that another part than the image's would be cropped from."""
    chosen = _spread(len(images))
    of_images, of_controls = ([_header(paths[i]) for i in chosen] for paths in (images, controls))
    wrong = [i for i, a, b in zip(chosen, of_images, of_controls, strict=True) if not same_aspect(a.size, b.size)]
    if wrong:
        a, b = (_header(paths[wrong[0]]).size for paths in (images, controls))
        raise InputError(
            f"{controls[wrong[0]]} has {b[0]}x{b[1]} pixels and its image {a[0]}x{a[1]}, of which other parts would be "
            f"cropped ({len(wrong)} such pairs); give both the same aspect ratio"
        )


def _control_line(root: str, paths: Sequence[Any]) -> str:
    """How the control images are resized."""
    if not root:
        return ""
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(MAPS, len(paths))).round().astype(int)]
    values = [count for count in pool().map(_map_values, chosen) if count]
    if not values:
        return f"{root}, resized with a bicubic filter"
    which = "" if len(values) == len(chosen) else f"{len(values)} of {len(chosen)} looked into are "
    return f"{root}: {which}maps of class ids (up to {max(values)} values), resized by nearest neighbour"


def _map_values(path: Any) -> int:
    with path.open("rb") as file:
        return open_image(file, str(path), class_ids)


# Headers


def _headers(paths: Sequence[Any]) -> Headers:
    """What the files' headers tell; a file that is no image is refused here, not in the midst of training."""
    remote = "://" in os.fspath(paths[0])  # there a header takes longer than a batch
    chosen = paths[:1] if remote else [paths[i] for i in _spread(len(paths))]
    found: list[Header] = []
    for start in range(0, len(chosen), CHUNK):
        found += pool().map(_header, chosen[start : start + CHUNK])
    sizes = sorted((header.size for header in found), key=lambda size: (size[0] * size[1], size))
    grey = sum(header.grey for header in found)
    everything = grey == len(found) and (len(found) == len(paths) or _all_grey(paths))
    return Headers(sizes[0], sizes[-1], grey, len(found), 1 if everything else 3)


def _header(path: Any) -> Header:
    try:
        with path.open("rb") as file:
            return read_header(file, str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _all_grey(paths: Sequence[Any]) -> bool:
    starts = range(0, len(paths), CHUNK)
    return all(all(header.grey for header in pool().map(_header, paths[start : start + CHUNK])) for start in starts)


def _spread(count: int) -> list[int]:
    return np.linspace(0, count - 1, min(count, MAX_HEADERS)).round().astype(int).tolist()


def _colours(headers: Headers, count: int) -> str:
    """How many files are grey where others are not, and how many were looked into where not all were."""
    grey = "" if headers.grey in (0, headers.read) else f"{headers.grey} of {headers.read} files are grey"
    return grey if headers.read == count else f"{grey or 'all alike'} in the {headers.read} that were looked into"
