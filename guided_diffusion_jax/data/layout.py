"""How a folder of images is to be read: its splits, its classes, and what is too doubtful to be read at all."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from guided_diffusion_jax.data.images import COMMON
from guided_diffusion_jax.data.scan import CACHE_FOLDERS, Scan, ending, scan
from guided_diffusion_jax.data.tables import LABELS, TABLES, Table, missing_column, read_tables, with_column
from guided_diffusion_jax.errors import InputError, require
from guided_diffusion_jax.runtime.files import is_regular

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
"""Names of the folders of each split, in any case."""

PLAIN_FOLDERS = ("images", "image", "imgs", "img")
"""Folders inside the folder of a class that hold its images and mean nothing themselves."""

MAX_CLASSES = 1_000_000


class Labels(NamedTuple):
    """The images that are used, the class of each (or none at all), and where that comes from."""

    files: list[str]
    labels: list[str]
    class_names: tuple[str, ...]
    source: str = ""


class Layout(NamedTuple):
    """A folder of images as it is understood.

    Attributes:
        folder: of the split.
        split: its name: "train", "validation", "test", or the folder's.
        splits: number of images of each split by the folder's name; empty without splits.
        labels: the images, relative to `folder`.
        class_names: the classes of the training split.
        tables: of the folder.
        left_out: number of files by the reason why they are not used.
        notes: what somebody may have wanted otherwise, with the remedy.
    """

    folder: Any
    split: str
    splits: dict[str, int]
    labels: Labels
    class_names: tuple[str, ...]
    tables: list[Table]
    left_out: Counter[str]
    notes: list[str]


def understand(root: Any, split: str = "train", labels: str = "", skip: Collection[str] = ()) -> Layout:
    """Reads the names in a folder, and its tables.

    Args:
        root: an `epath.Path`.
        split: "train" or another split, by any of its names (`SPLITS`), or another folder beside "train".
        labels: where the classes come from: "folder", "filename", a column of a table; empty: what there is.
        skip: real paths of folders inside that belong to something else.

    Raises:
        InputError: there are no images, or what they belong to is doubtful; the message has the remedy.
    """
    found = scan(root, skip)
    folders = _split_folders(root, found)
    name = _choose_split(root, folders, split, found)
    train = next((folder for folder in folders if canonical(folder) == "train"), name)
    part = _part(root, name, found, labels)
    class_names = part.class_names if name == train else _part(root, train, found, labels).class_names
    unknown = sorted(set(part.labels) - set(class_names))
    require(not unknown, f"{root / name} has a class {', '.join(unknown[:1])} that {root / train} lacks")
    folder = root / name if name else root
    require(
        bool(part.labels) or not class_names,
        f"{folder} has no classes, and {root / train} has {', '.join(class_names[:3])}; lay out both alike",
    )
    tables = read_tables(folder)
    notes = [] if part.labels else _file_name_note(part.files)
    if len(class_names) == 1:
        notes.append(_one_class_note(folder, class_names[0], part.files))
    return Layout(
        folder=folder,
        split=(canonical(name) or name) if name else "train",
        splits={one: len(inside(one, found.images)) for one in folders},
        labels=part,
        class_names=class_names,
        tables=tables,
        left_out=_left_out(found, folders, name, part),
        notes=notes,
    )


def canonical(folder: str) -> str | None:
    """The split that a folder's name stands for; None where it is no name of a split.

    >>> canonical("Valid"), canonical("training"), canonical("cats")
    ('validation', 'train', None)
    """
    return next((split for split, names in SPLITS.items() if folder.casefold() in names), None)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in the order of their labels: whole numbers by their value, anything else as text.

    >>> ordered(["10", "9", "0"]), ordered(["10", "9", "x"])
    (('0', '9', '10'), ('10', '9', 'x'))
    """
    known = set(names)
    numeric = all(_is_whole_number(name) for name in known)
    return tuple(sorted(known, key=lambda name: (int(name) if numeric else 0, name)))


def inside(folder: str, files: Iterable[str]) -> list[str]:
    """The files of a folder, relative to it; all for ""."""
    return [file.removeprefix(f"{folder}/") for file in files if file.startswith(f"{folder}/")] if folder else [*files]


def _grouped(files: Iterable[str]) -> dict[str, list[str]]:
    """Files by their first folder, relative to it; those in none under ""."""
    groups: dict[str, list[str]] = {}
    for file in files:
        folder, _, rest = file.partition("/") if "/" in file else ("", "", file)
        groups.setdefault(folder, []).append(rest)
    return groups


def _is_whole_number(text: str) -> bool:
    return re.fullmatch("[+-]?[0-9]{1,18}", text) is not None


# Splits


def _split_folders(root: Any, found: Scan) -> list[str]:
    """Names of the first folders that are splits; none where they are classes, or there are none."""
    groups = _grouped(found.images)
    beside = groups.pop("", [])
    named = [folder for folder in found.folders if "/" not in folder and canonical(folder)]
    others = [folder for folder in groups if folder not in named]
    if is_regular(root / LABELS):
        require(
            len(named) < 2,
            f"{root} has both {LABELS} and folders of splits; put a {LABELS} into each of these folders instead",
        )
        return []
    alike = _alike(groups)
    doubtful = [folder for folder in others if folder in alike]
    if not named or (others and len(named) == 1 and canonical(named[0]) != "train"):
        _check_classes(root, groups, alike)
        return []
    require(
        not doubtful,
        f"{root} has {', '.join(doubtful[:3])} with the same folders inside as {', '.join(named)}; "
        "rename it to train, val or test if it is a split, else move it away",
    )
    if others and len(named) == 1:  # "train" may be a class, beside "bus"
        require(
            all(map(_is_direct, groups.values())),
            f"{root} has {named[0]} beside {', '.join(others[:3])}: a split or a class? Name all splits train, val and "
            "test, or put the images of all classes directly into folders beside each other",
        )
        return []
    require(
        not beside,
        f"{root} has {len(beside)} images beside its folders of splits ({', '.join(named)}), the first "
        f"{(beside or [''])[0]}; move them into one of these",
    )
    for split in SPLITS:
        same = [folder for folder in named if canonical(folder) == split]
        require(len(same) < 2, f"{root} has {' and '.join(same)}, which all mean {split}; make them one folder")
    return sorted(named, key=lambda folder: list(SPLITS).index(canonical(folder) or ""))


def _choose_split(root: Any, folders: Sequence[str], split: str, found: Scan) -> str:
    """The folder of a split; "" where the folder itself is all there is."""
    if not folders:
        require(
            canonical(split) == "train",
            f"{root} has no split {split!r}; put its images into folders train and {split} there, or use split train",
        )
        return ""
    name = next((folder for folder in folders if canonical(folder) == (canonical(split) or split)), None)
    if name is None and canonical(split) is None and "/" not in split and split in found.folders:
        return split  # a folder beside the splits, by its name
    if name is None:
        raise InputError(
            f"{root} has no split {split!r}; it has {', '.join(folders)}: use one of these (evaluate.split="
            f"{canonical(folders[0])}), or make a folder {split} there"
        )
    return name


def _check_classes(root: Any, groups: Mapping[str, list[str]], alike: Mapping[str, str]) -> None:
    """Refuses folders of classes that look like splits under names that are none."""
    first = next(iter(alike), "")
    require(
        not alike,
        f"{root} has {first} and {alike.get(first)} with the same folders inside; rename them to train, val or test if "
        "they are splits; if they are classes, put their images directly into them",
    )
    hits = {folder: split for folder in groups if (split := _split_in_name(folder))}
    require(
        len({*hits.values()}) < 2,
        f"{root} has {', '.join([*hits][:3])}, which look like splits; rename them to train, val or test",
    )
    if len(groups) == 1:
        (folder,) = groups
        inner = [name for name in _grouped(groups[folder]) if canonical(name)]
        where = root / folder
        require(not inner, f"{where} has the splits {', '.join(inner)}; set data.data_dir={where}")


def _split_in_name(folder: str) -> str | None:
    """The split in a name like "train2017" or "test_images"."""
    return next((canonical(word) for word in re.split("[^a-z]+", folder.casefold()) if canonical(word)), None)


def _alike(groups: Mapping[str, list[str]]) -> dict[str, str]:
    """Folders to the first other one with the same inner folders, or where one of the two lacks some.

    Folders with images directly inside count for nothing here: these are classes.
    """
    subfolders = {folder: _inner(files) for folder, files in groups.items() if not _is_direct(files)}
    found = dict[str, str]()
    for folder, own in subfolders.items():
        for other, theirs in subfolders.items():
            if other != folder and own and theirs and (own <= theirs or theirs <= own):
                found.setdefault(folder, other)
    return found


def _is_direct(files: Sequence[str]) -> bool:
    """Whether a folder holds images directly, and not only in folders of its own."""
    return any("/" not in file for file in files)


def _inner(files: Sequence[str]) -> set[str]:
    """Folders inside a folder that may mean something."""
    return {name for name in _grouped(files) if name and name not in PLAIN_FOLDERS}


# Classes


def _part(root: Any, name: str, found: Scan, labels: str) -> Labels:
    """The images of a split and their classes."""
    folder = root / name if name else root
    files = inside(name, found.images)
    instead = Counter(map(_reason, inside(name, found.others)))
    require(len(files) > 0, f"no images ({COMMON}) in {folder}, nor others that Pillow reads{_among(instead)}")
    if labels == "filename":
        return _from_file_names(folder, files)
    if labels != "folder":
        tables = read_tables(folder)
        table = with_column(tables, labels or "label")
        table = table or next((t for t in tables if t.path.name == LABELS and not t.rows), None)
        if table is not None:
            return _from_table(folder, files, table, labels)
        if labels:
            raise missing_column(tables, folder, "data.labels", labels)
    beside = [file for file in files if "/" not in file]
    if len(beside) == len(files):
        require(labels != "folder", f"data.labels='folder', but {folder} has no folders of classes; leave it empty")
        return Labels(files, [], ())
    require(
        not beside,
        f"{folder} has {len(beside)} images beside its folders of classes, the first {(beside or [''])[0]}; "
        f"move them into a folder, or list all images in a {LABELS}",
    )
    empty = [path for path in inside(name, found.folders) if "/" not in path and path not in CACHE_FOLDERS]
    groups = _grouped(files)
    empty = [path for path in empty if path not in groups]
    if empty:
        where, instead = folder / empty[0], Counter(map(_reason, inside(empty[0], inside(name, found.others))))
        raise InputError(f"{where} holds no images{_among(instead)}; put images of this class there, or remove it")
    shallow = [one for one, of_one in groups.items() if _is_direct(of_one)]
    deep = {one: _inner(of_one) for one, of_one in groups.items() if not _is_direct(of_one)}
    deep = {one: inner for one, inner in deep.items() if inner}
    if shallow and deep:
        first, inner = next(iter(deep.items()))
        raise InputError(
            f"{folder} has classes at different depths: {shallow[0]} holds images, {first} only folders "
            f"({', '.join(sorted(inner)[:3])}); put the folders of all classes beside each other"
        )
    names = [unicodedata.normalize("NFC", file.split("/")[0]) for file in files]
    return Labels(files, names, ordered(names), "the folders' names")


def _among(others: Counter[str]) -> str:
    """Endings of the files that there are instead, as part of a message."""
    return f", only {', '.join(f'{count} {name}' for name, count in others.most_common(3))}" if others else ""


def _from_file_names(folder: Any, files: Sequence[str]) -> Labels:
    labels = [os.path.basename(file).partition("_")[0] for file in files]
    wrong = [file for file, label in zip(files, labels, strict=True) if not label or "_" not in os.path.basename(file)]
    require(
        not wrong,
        f"data.labels='filename' takes the part before the first _, which {len(wrong)} of the {len(files)} images in "
        f"{folder} lack, the first {(wrong or [''])[0]}; rename them",
    )
    labels = [unicodedata.normalize("NFC", label) for label in labels]
    return Labels([*files], labels, ordered(labels), "the files' names before the first _")


def _from_table(folder: Any, files: Sequence[str], table: Table, column: str) -> Labels:
    """The files that a table lists, in its order."""
    found = table.column(column or "label", files)
    path = table.path
    require(len(found) > 0, f"{path} lists no images; remove it, or write lines file,label")
    _check_agreement(folder, files, found, path, asked=bool(column))
    labels = [unicodedata.normalize("NFC", label) for label in found.values()]
    if not all(_is_whole_number(label) for label in labels):
        return Labels(list(found), labels, ordered(labels), path.name)
    numbers = [int(label) for label in labels]
    require(
        min(numbers) >= 0 and max(numbers) < MAX_CLASSES,
        f"the labels in {path} go from {min(numbers)} to {max(numbers)}; "
        f"numbers must lie in 0 .. {MAX_CLASSES - 1}, names may be anything",
    )
    names = tuple(str(n) for n in range(max(numbers) + 1))
    return Labels(list(found), [str(n) for n in numbers], names, path.name)


def _check_agreement(folder: Any, files: Sequence[str], found: Mapping[str, str], path: Any, *, asked: bool) -> None:
    """Refuses a table beside folders that look like classes, unless it was asked for or says the same."""
    folders = {file.split("/")[0] for file in files if "/" in file}
    if asked or len(folders) < 2:
        return
    same = all(file.split("/")[0] == label for file, label in found.items() if "/" in file)
    require(
        same and len(found) == len(files),
        f"{folder} has both {path.name} and folders that may be classes ({', '.join(sorted(folders)[:3])}); "
        "data.labels='label' takes the table, data.labels='folder' the folders",
    )


# What is said


def _left_out(found: Scan, folders: Sequence[str], name: str, part: Labels) -> Counter[str]:
    """Files that are not used, by reason; other splits are no reason, they are listed."""
    count = Counter(found.left_out)
    own = {f"{one}/{table}" if one else table for one in folders or [""] for table in TABLES}
    for file in found.others:
        if file not in own:
            count[_reason(file)] += 1
    used = len(part.files)
    listed = len(inside(name, found.images))
    if listed > used:
        count[f"not in {part.source}"] += listed - used
    if folders:
        for file in found.images:
            first = file.split("/")[0]
            if first not in folders and first != name:
                count[f"in {first}/, which is no split"] += 1
    return count


def _reason(file: str) -> str:
    short = ending(file)
    return short if re.fullmatch(r"\.[a-z0-9]{1,8}", short) else "without a usual ending"


def _file_name_note(files: Sequence[str]) -> list[str]:
    """The classes that names like cat_01.jpg may stand for."""
    names = [os.path.basename(file) for file in files]
    prefixes = Counter(name.partition("_")[0] for name in names if "_" in name.lstrip("_"))
    if sum(prefixes.values()) < len(names) or not 2 <= len(prefixes) <= len(names) // 2:
        return []
    some = ", ".join(f"{prefix}_" for prefix in sorted(prefixes)[:3]) + ", ..." * (len(prefixes) > 3)
    return [f'no classes, but all names begin with {some}: data.labels="filename" makes classes of them']


def _one_class_note(folder: Any, name: str, files: Sequence[str]) -> str:
    inner = sorted({part[1] for file in files if len(part := file.split("/")) > 2})
    if len(inner) < 2:
        return "one class alone: nothing to choose between when sampling"
    return f"one class alone: if {', '.join(inner[:3])} are the classes, set data.data_dir={folder / name}"
