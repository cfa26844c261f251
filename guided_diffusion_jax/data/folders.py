"""A folder of images as a data set: a folder a class, a `labels.csv`, or pictures alone.

```
data_dir/cat/1.png           data_dir/labels.csv        data_dir/1.png
data_dir/cat/more/2.jpg      data_dir/1.png             data_dir/2.png
data_dir/dog/3.webp          data_dir/2.png
```

- A folder a class: the classes are the first folders' names, sorted; deeper folders belong to their class.
- `labels.csv` has lines `file,label`, with or without that header; files are relative to its folder, and only those
  that it lists count. Labels that are all whole numbers number the classes; otherwise they are names, sorted.
- Pictures alone have no labels.

`train` beside `test`, `val` or `validation` in `data_dir` are splits, each laid out as above, and the classes are
those of `train`. Without them everything is split `train`. Hidden files and folders are left out.

Sentences come from a `captions.jsonl` in the split's folder (see `text.captions`). Maps lie in a folder of their own
with the same names inside: `edges/cat/1.png` is the map of `data_dir/cat/1.png` or `.jpg`.
"""

import csv
import dataclasses
import functools
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from guided_diffusion_jax.data.images import decode, is_grey
from guided_diffusion_jax.data.source import CHUNK, NO_COLUMNS, Columns, Source, pool
from guided_diffusion_jax.data.text import captions
from guided_diffusion_jax.errors import InputError, require

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "gif")
"""Endings of the files that count as images, in upper or lower case; of an animated one the first picture counts."""

SPLITS = ("test", "val", "validation")
LABELS = "labels.csv"
MAX_CLASSES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder holds: files by their path inside it, a label's name for each or none at all, and the classes."""

    files: list[str]
    labels: list[str]
    class_names: tuple[str, ...]


def folder_source(data_dir: str, *, split: str = "train", image_size: int, columns: Columns = NO_COLUMNS) -> Source:
    """The images of a folder (see the module), decoded while they are read.

    Images are grey (1 channel) when all of the split's files are grey, and RGB otherwise; so are maps.

    Args:
        data_dir: the folder, on a disk or `gs://`.
        split: "train", or another split's folder.
        image_size: height and width in pixels after `centre_crop`.
        columns: `text` "caption" reads the captions, `map` is the folder of maps; there are no others.

    Raises:
        InputError: the folder or its split is missing or empty, its labels make no sense, or it lacks a caption or map.
    """
    require(data_dir != "", "data.name='folder' needs data.data_dir, the folder of images")
    root = epath.Path(data_dir).expanduser()
    require(root.is_dir(), f"data.data_dir={data_dir} is not a folder")
    folder, train = _split_folders(root, split)
    listing = _listing(folder)
    class_names = listing.class_names if folder == train else _listing(train).class_names
    unknown = sorted(set(listing.labels) - set(class_names))
    require(not unknown, f"{folder} has a class {', '.join(unknown[:1])} that {train} lacks")
    number = {name: index for index, name in enumerate(class_names)}
    labels = np.array([number[label] for label in listing.labels] or [0] * len(listing.files), np.int32)
    sentences = _sentences(folder, listing.files, columns)
    paths = {"image": [folder / file for file in listing.files]}
    if columns.map:
        paths["map"] = _maps(columns.map, folder.name if folder != root else "", listing.files)
    channels = {key: 1 if _all_grey(files) else 3 for key, files in paths.items()}

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        batch: dict[str, np.ndarray] = {"label": labels[indices]}
        for key, files in paths.items():
            decode_one = functools.partial(_decode, size=image_size, channels=channels[key])
            batch[key] = np.stack(list(pool().map(decode_one, [files[index] for index in indices])))
        return batch if sentences is None else batch | {"text": sentences[indices]}

    return Source(
        name=str(folder),
        length=len(listing.files),
        image_shape=(image_size, image_size, channels["image"]),
        class_names=class_names if listing.labels else (),
        read=read,
        map_channels=channels.get("map", 0),
        home=folder,
    )


def _decode(path: Any, *, size: int, channels: int) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return decode(data, name=str(path), size=size, channels=channels)


def _sentences(folder: Any, files: list[str], columns: Columns) -> np.ndarray | None:
    """The caption of each file; None where none are asked for."""
    require(not columns.attributes, f"data.attributes={columns.attributes}, but a folder has none; use ()")
    require(not columns.style, f"data.style={columns.style!r}, but a folder has no pictures of style; leave it empty")
    require(
        columns.text in ("", "caption"), f"data.text={columns.text!r}; for a folder it is 'caption', or empty for none"
    )
    if not columns.text:
        return None
    found = captions(folder, files)
    if found is None:
        raise InputError(f"data.text='caption', but {folder} holds no captions.jsonl; write one, or leave it empty")
    return np.array(found, object)


def _maps(given: str, split: str, files: list[str]) -> list[Any]:
    """The map of each file."""
    root = epath.Path(given).expanduser() / split
    require(root.is_dir(), f"data.map={given}: {root} is not a folder")
    there = {file.rpartition(".")[0]: file for file in _files(root)}
    lacking = [file for file in files if file.rpartition(".")[0] not in there]
    require(
        not lacking,
        f"data.map={given} lacks the maps of {len(lacking)} images, the first {(lacking or [''])[0]}; "
        "a map has its image's name",
    )
    return [root / there[file.rpartition(".")[0]] for file in files]


def _split_folders(root: Any, split: str) -> tuple[Any, Any]:
    """The folders of this split and of `train`."""
    # A class may be called "train", so that alone does not make splits.
    if not ((root / "train").is_dir() and any((root / other).is_dir() for other in SPLITS)):
        require(split == "train", f"{root} has no split {split!r}; put its images into folders train and {split} there")
        return root, root
    require(
        not (root / LABELS).exists(),
        f"{root} has both {LABELS} and folders of splits; put a {LABELS} into each of these folders instead",
    )
    require((root / split).is_dir(), f"{root} has no split {split!r}; make a folder of that name there")
    return root / split, root / "train"


def _listing(folder: Any) -> Listing:
    files = sorted(_files(folder))
    require(len(files) > 0, f"no images ({', '.join(EXTENSIONS)}) in {folder}")
    if (folder / LABELS).exists():
        return _labelled(folder, files)
    beside = [file for file in files if "/" not in file]
    if len(beside) == len(files):
        return Listing(files, [], ())
    require(
        not beside,
        f"{folder} has {len(beside)} images beside its folders of classes, the first {(beside or [''])[0]}; "
        f"move them into a folder, or list all images in a {LABELS}",
    )
    labels = [file.split("/")[0] for file in files]
    return Listing(files, labels, tuple(sorted(set(labels))))


def _files(folder: Any, prefix: str = "") -> Iterator[str]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.suffix[1:].lower() in EXTENSIONS:
            yield prefix + path.name
        elif path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")


def _labelled(folder: Any, files: list[str]) -> Listing:
    """The files that `labels.csv` lists, in its order."""
    table = folder / LABELS
    try:
        rows = list(csv.reader(io.StringIO(table.read_bytes().decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} is no CSV text in UTF-8: {error}") from error
    known, found = set(files), dict[str, str]()
    for line, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (line == 1 and [cell.lower() for cell in cells] == ["file", "label"]):
            continue
        require(len(cells) == 2 and all(cells), f"{table} line {line} is {','.join(row)!r}; it must be file,label")
        file, label = cells[0].removeprefix("./"), cells[1]
        require(
            file in known, f"{table} line {line} names {file}, which is no image ({', '.join(EXTENSIONS)}) in {folder}"
        )
        require(file not in found, f"{table} line {line} names {file} again; one line a file")
        found[file] = label
    require(len(found) > 0, f"{table} lists no images; remove it, or write lines file,label")
    labels = list(found.values())
    if not all(re.fullmatch("[+-]?[0-9]+", label) for label in labels):
        return Listing(list(found), labels, tuple(sorted(set(labels))))
    numbers = [int(label) for label in labels]
    require(
        min(numbers) >= 0 and max(numbers) < MAX_CLASSES,
        f"the labels in {table} go from {min(numbers)} to {max(numbers)}; "
        f"numbers must lie in 0 .. {MAX_CLASSES - 1}, names may be anything",
    )
    return Listing(list(found), [str(n) for n in numbers], tuple(str(n) for n in range(max(numbers) + 1)))


def _all_grey(paths: list[Any]) -> bool:
    # A folder in colour, the usual kind, is known by its first file; only a grey one has all its headers read.
    def grey(path: Any) -> bool:
        with path.open("rb") as file:
            return is_grey(file)

    if not grey(paths[0]):
        return False
    return all(all(pool().map(grey, paths[start : start + CHUNK])) for start in range(0, len(paths), CHUNK))
