"""A folder of images as a data set: a folder a class, a `labels.csv`, or images alone.

```
data_dir/cat/1.png           data_dir/labels.csv        data_dir/1.png
data_dir/cat/more/2.jpg      data_dir/1.png             data_dir/2.png
data_dir/dog/3.webp          data_dir/2.png
```

- A folder a class: the classes are the first folders' names, sorted; deeper folders belong to their class.
- `labels.csv` has lines `file,label`, with or without that header; files are relative to its folder, and only those
  that it lists are used. Labels that are all whole numbers number the classes; otherwise they are names, sorted.
- Images alone have no labels.

`train` beside `test`, `val` or `validation` in `data_dir` are splits, each laid out as above, and the classes are
those of `train`. Without them everything is split `train`. Hidden files and folders are left out.

Captions come from a `captions.jsonl` in the split's folder, a line an image:

```
{"file": "cat/1.png", "caption": "a cat asleep on a red chair"}
```

`file_name` and `text`, the names that Hugging Face's image folders use, work as well. Control images lie in a folder of
their own with the same names inside: `edges/cat/1.png` belongs to `data_dir/cat/1.png` or `.jpg`.
"""

import csv
import dataclasses
import functools
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from guided_diffusion_jax.data.dataset import CHUNK, NO_COLUMNS, Columns, Dataset, pool
from guided_diffusion_jax.data.images import decode, is_grey
from guided_diffusion_jax.errors import InputError, require

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "gif")
"""File extensions of images, in upper or lower case; of an animation the first frame is used."""

SPLITS = ("test", "val", "validation")
LABELS = "labels.csv"
CAPTIONS = "captions.jsonl"
CAPTION_KEYS = (("file", "caption"), ("file_name", "text"))
MAX_CLASSES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of a folder: paths inside it, the class name of each (or none at all), and the classes."""

    files: list[str]
    labels: list[str]
    class_names: tuple[str, ...]


def open_folder(data_dir: str, *, split: str = "train", image_size: int, columns: Columns = NO_COLUMNS) -> Dataset:
    """The images of a folder (see the module), decoded while they are read.

    Images are grey (1 channel) when all of the split's files are grey, and RGB otherwise; so are control images.

    Args:
        data_dir: the folder, on a disk or `gs://`.
        split: "train", or another split's folder.
        image_size: height and width in pixels after `centre_crop`.
        columns: `text` "caption" reads the captions, `control_image` is the folder of control images; no others.

    Raises:
        InputError: the folder or its split is missing or empty, its labels are invalid, or it lacks a caption or a
            control image.
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
    texts = _captions(folder, listing.files, columns)
    paths = {"image": [folder / file for file in listing.files]}
    if columns.control_image:
        subfolder = folder.name if folder != root else ""
        paths["control_image"] = _control_images(columns.control_image, subfolder, listing.files)
    channels = {key: 1 if _all_grey(files) else 3 for key, files in paths.items()}

    def read(indices: np.ndarray) -> dict[str, np.ndarray]:
        batch: dict[str, np.ndarray] = {"label": labels[indices]}
        for key, files in paths.items():
            decode_one = functools.partial(_decode, size=image_size, channels=channels[key])
            batch[key] = np.stack(list(pool().map(decode_one, [files[index] for index in indices])))
        return batch if texts is None else batch | {"text": texts[indices]}

    return Dataset(
        name=str(folder),
        length=len(listing.files),
        image_shape=(image_size, image_size, channels["image"]),
        class_names=class_names if listing.labels else (),
        read=read,
        control_channels=channels.get("control_image", 0),
        home=folder,
    )


def _decode(path: Any, *, size: int, channels: int) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return decode(data, name=str(path), size=size, channels=channels)


def _captions(folder: Any, files: list[str], columns: Columns) -> np.ndarray | None:
    """The caption of each file; None unless the columns ask for captions."""
    require(not columns.attributes, f"data.attributes={columns.attributes}, but a folder has none; use ()")
    require(
        not columns.reference_image,
        f"data.reference_image={columns.reference_image!r}, but a folder has no reference images; leave it empty",
    )
    require(
        columns.text in ("", "caption"), f"data.text={columns.text!r}; for a folder it is 'caption', or empty for none"
    )
    if not columns.text:
        return None
    found = captions(folder, files)
    if found is None:
        raise InputError(f"data.text='caption', but {folder} holds no captions.jsonl; write one, or leave it empty")
    return np.array(found, object)


def captions(folder: Any, files: Sequence[str]) -> list[str] | None:
    """The caption of each of a folder's images, as its `captions.jsonl` gives them; None without that file.

    Lines for images that exist but are not among `files` are skipped; a caption may be empty.

    Args:
        folder: an `epath.Path`.
        files: the images, relative to the folder, with "/" between folders.

    Raises:
        InputError: a line cannot be read, names an image twice or a missing one, or an image has no line.
    """
    path = folder / CAPTIONS
    if not path.exists():
        return None
    found = dict[str, str]()
    for line, data in enumerate(path.read_bytes().split(b"\n"), start=1):
        if data.strip():
            file, caption = _caption_entry(data, f"{path} line {line}")
            require(file not in found, f"{path} line {line} names {file} again; one line a file")
            found[file] = caption
    known = set(files)
    gone = [file for file in found if file not in known and not (folder / file).exists()]
    require(not gone, f"{path} names {len(gone)} files that are not in {folder}, the first {(gone or [''])[0]}")
    lacking = [file for file in files if file not in found]
    require(
        not lacking,
        f"{path} lacks {len(lacking)} of the {len(files)} images, the first {(lacking or [''])[0]}; "
        'give each a line, with the caption "" where there is nothing to say',
    )
    return [found[file] for file in files]


def _caption_entry(data: bytes, where: str) -> tuple[str, str]:
    """The file and the caption of one line."""
    try:
        entry = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:  # of UTF-8 or of JSON
        raise InputError(f"{where} is no JSON in UTF-8: {error}") from error
    for keys in CAPTION_KEYS:
        if isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in keys):
            return entry[keys[0]].removeprefix("./"), entry[keys[1]]
    text = data.decode("utf-8-sig").strip()
    raise InputError(f'{where} is {text[:80]}; it must be {{"file": "...", "caption": "..."}}')


def _control_images(root: str, split: str, files: list[str]) -> list[Any]:
    """The control image of each file."""
    folder = epath.Path(root).expanduser() / split
    require(folder.is_dir(), f"data.control_image={root}: {folder} is not a folder")
    by_stem = {file.rpartition(".")[0]: file for file in _files(folder)}
    lacking = [file for file in files if file.rpartition(".")[0] not in by_stem]
    require(
        not lacking,
        f"data.control_image={root} lacks the control images of {len(lacking)} images, the first "
        f"{(lacking or [''])[0]}; a control image has its image's name",
    )
    return [folder / by_stem[file.rpartition(".")[0]] for file in files]


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
    # The first file of a colour folder suffices; only of a grey one all headers are read.
    def grey(path: Any) -> bool:
        with path.open("rb") as file:
            return is_grey(file)

    if not grey(paths[0]):
        return False
    return all(all(pool().map(grey, paths[start : start + CHUNK])) for start in range(0, len(paths), CHUNK))
