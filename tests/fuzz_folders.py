"""Random folders of images: whatever lies in them, they are read as the printed block says, or refused in one line.

    python tests/fuzz_folders.py [--count=300] [--seed=0]

Each folder is a random mixture of layouts, endings, names, sizes, modes, damage, links and tables. Opening and reading
all of it must end without a traceback, and the numbers of the block must add up to the files on the disk.
"""

import argparse
import io
import json
import os
import random
import re
import shutil
import socket
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from guided_diffusion_jax.data import Dataset, folder
from guided_diffusion_jax.data.scan import SYSTEM_FOLDERS
from guided_diffusion_jax.errors import InputError

NAMES = (
    "a", "b c", "naïve", "nai\u0308ve", "猫 1", "x\ny", "tab\there", "it's", '"q"', "50%", "-dash", "~", "#1", "a,b",
    "semi;colon", "back\\slash", "n" * 120, ".hidden", "cat_01", "dog_02", "IMG_1", "0", "1", "10", "\u202eltr", "é.x",
    " ", "byte\udcff",
)  # fmt: skip
CLASSES = (
    "cats",
    "dogs",
    "0",
    "1",
    "2",
    "10",
    "Träume",
    "Tra\u0308ume",
    "x\ny",
    "train2017",
    "a b",
    "images",
    "evaluation",
)
SPLIT_NAMES = (
    ("train", "Train", "training"), ("val", "valid", "Validation", "dev"), ("test", "TESTING", "eval"),
    ("test", "dev", "holdout", "bus"),
)  # fmt: skip
ENDINGS = ("png", "jpg", "JPG", "jpeg", "jfif", "tif", "tiff", "webp", "bmp", "gif", "jp2", "tga", "ppm", "avif", "ico")
NO_IMAGES = ("txt", "heic", "svg", "pdf", "mp4", "csv", "json", "", "xmp", "db", "npz")
MODES = ("RGB", "RGB", "RGB", "L", "LA", "P", "RGBA", "CMYK", "I;16", "1", "F")
SIZES = ((1, 1), (3000, 10), (10, 3000), (7, 5), (12, 10), (64, 64), (2, 90))
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-16-le")


class Outcome(NamedTuple):
    """What became of one folder: the data set, or why it was refused."""

    dataset: Dataset | None
    refused: str


def make(root: Path, rng: random.Random) -> None:
    """Fills a folder with anything."""
    root.mkdir()
    layout = rng.choice(("flat", "classes", "classes", "splits", "splits", "any"))
    tops = [""]
    if layout == "classes":
        tops = rng.sample(CLASSES, rng.randint(1, 4))
    elif layout in ("splits", "any"):
        names = rng.sample(CLASSES, rng.randint(1, 3))
        splits = [rng.choice(names) for names in rng.sample(SPLIT_NAMES, rng.randint(1, 3))]
        if rng.random() < 0.8:
            others = [rng.choice(names) for names in rng.sample(SPLIT_NAMES[1:], rng.randint(0, 2))]
            splits = [rng.choice(SPLIT_NAMES[0]), *others]
        inner = rng.random() < 0.8
        tops = [f"{split}/{name}" for split in splits for name in names] if inner else list(splits)
        tops += [rng.choice(CLASSES), ""] if layout == "any" else []
    files: list[str] = []
    for top in tops:
        (root / top).mkdir(parents=True, exist_ok=True)
        for _ in range(rng.choice((0, 1, 2, 3, 3, 4)) if rng.random() < 0.3 else 3):
            deep = f"deep{rng.randint(1, 2)}/" if rng.random() < 0.03 else ""
            name = f"{top}/{deep}{rng.choice(NAMES)}{rng.randint(0, 99)}".lstrip("/")
            files.append(add_file(root, name, rng))
    for _ in range(rng.choice((0, 0, 1, 3))):
        add_oddity(root, rng.choice(tops), files, rng)
    if rng.random() < 0.4:
        where = rng.choice([top.split("/")[0] if layout == "splits" else "" for top in tops])
        add_table(root / where, [file.removeprefix(f"{where}/") for file in files if file], rng)


def add_file(root: Path, name: str, rng: random.Random) -> str:
    """An image, or something else; gives its path."""
    path = root / f"{name}.{rng.choice(ENDINGS if rng.random() < 0.93 else NO_IMAGES)}".removesuffix(".")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = encoded(path.suffix.lower(), rng)
    if rng.random() < 0.012:
        data = rng.choice((b"", b"<html>404</html>", data[: len(data) // 2], data[:20], b"\0" * 500))
    if not path.is_dir():
        path.write_bytes(data)
    return os.fspath(path.relative_to(root))


def encoded(suffix: str, rng: random.Random) -> bytes:
    width, height = rng.choice(SIZES)
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (height, width, 4), np.uint8)
    mode = rng.choice(MODES)
    if mode in ("I;16", "F"):
        image = Image.fromarray(pixels[..., 0].astype(np.uint16 if mode == "I;16" else np.float32))
    else:
        image = Image.fromarray(pixels, "RGBA").convert(mode)
    kind = Image.registered_extensions().get(suffix, "PNG")
    buffer = io.BytesIO()
    for candidate in (image, image.convert("RGB")):
        try:
            candidate.save(buffer, kind)
            return buffer.getvalue()
        except (OSError, ValueError, KeyError, SystemError):  # a format without this mode or size
            buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")  # under the wrong ending, which is no matter
    return buffer.getvalue()


def add_oddity(root: Path, top: str, files: list[str], rng: random.Random) -> None:
    """A link, a pipe, a socket, a hidden or a system's folder."""
    name = f"odd{rng.randint(0, 9)}"
    path = root / top / rng.choice((name, f"{name}.png"))
    if os.path.lexists(path):
        return
    kind = rng.choice(("circle", "up", "again", "file", "broken", "pipe", "socket", "device", "hidden", "macos"))
    if kind in ("circle", "up", "again", "file", "broken", "device"):
        target = {
            "circle": path,
            "up": root.parent,
            "again": root / top,
            "broken": root / "gone",
            "device": "/dev/zero",
        }
        path.symlink_to(target[kind] if kind != "file" else root / rng.choice(files or ["gone"]))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket" and len(os.fspath(path)) < 100:
        socket.socket(socket.AF_UNIX).bind(os.fspath(path))
    elif kind in ("hidden", "macos"):
        inside = root / top / {"hidden": ".cache", "macos": "__MACOSX"}[kind]
        inside.mkdir(exist_ok=True)
        (inside / "x.png").write_bytes(b"nothing")


def add_table(where: Path, files: list[str], rng: random.Random) -> None:
    """A table of some files, in some encoding, mostly a right one."""
    if not where.is_dir():
        return
    name = rng.choice(("labels.csv", "metadata.csv", "metadata.jsonl", "captions.jsonl"))
    files = [file for file in files if Path(file).suffix[1:] in ENDINGS or rng.random() < 0.2]
    listed = files if rng.random() < 0.7 else rng.sample(files, rng.randint(0, len(files)))
    listed = [file for file in listed if (where / file).exists()]
    if rng.random() < 0.15:
        listed += rng.choice(([*listed[:1]], ["gone.png"], [""]))
    if rng.random() < 0.2:
        listed = [file.replace("/", "\\") for file in listed]
    rows = [(file, rng.choice(("cat", "dog", "3", "7", "naïve")), "a caption") for file in listed]
    if name.endswith(".csv"):
        separator = rng.choice(",;\t|")
        header = ["file,label", "file_name,label,text", ""][0 if name == "labels.csv" else 1].replace(",", separator)
        cells = [row[: header.count(separator) + 1] for row in rows]
        quoted = [separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells]
        text = rng.choice(("\n", "\r\n", "\r")).join([header, *quoted])
    else:
        keys = ("file_name", "label", "text") if name == "metadata.jsonl" else ("file", "label", "caption")
        text = "\n".join(json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=rng.random() < 0.5) for row in rows)
    if rng.random() < 0.08:
        text += rng.choice(('\n"unclosed', "\n{", "\n\0", "\na,b,c,d", "\n[[[["))
    data = text.encode(rng.choice(ENCODINGS) if rng.random() < 0.5 else "utf-8", "replace")
    target = where / name
    if not os.path.lexists(target):
        target.write_bytes(data)


def try_folder(root: Path, rng: random.Random) -> Outcome:
    """Opens a folder and reads every image, by the split and the labels that somebody may ask for."""
    split = "train" if rng.random() < 0.85 else rng.choice(("test", "validation", "val"))
    labels = "" if rng.random() < 0.85 else rng.choice(("filename", "folder", "label"))
    text = "" if rng.random() < 0.85 else "caption"
    try:
        dataset = folder(root, image_size=8, split=split, labels=labels, text=text, channels=rng.choice((0, 0, 1, 3)))
        dataset.fingerprint()
    except InputError as error:
        return Outcome(None, str(error))
    return Outcome(dataset, "")


def check(root: Path, dataset: Dataset) -> None:
    """The block states what is read, and accounts for every file."""
    block = dataset.describe()
    assert len(block.splitlines()) <= 12 and all(line.isprintable() for line in block.splitlines()), block
    batch = dataset.read(np.arange(len(dataset)))
    assert batch["image"].shape == (len(dataset), *dataset.image_shape)
    stated = dict(line.split(maxsplit=1) for line in block.replace("left out", "left_out").splitlines())
    assert stated["data"].endswith(f" {len(dataset)} images")
    if dataset.class_names:
        counts = np.bincount(batch["label"], minlength=dataset.num_classes).tolist()
        assert [int(n) for n in re.findall(r" \((\d+)\)(?:,|$)", stated["classes"])] == counts
    else:
        assert stated["classes"] == "none" and not batch["label"].any()
    found = Counter(map(int, re.findall(r"\d+", stated.get("left_out", "0:").partition(":")[0])))
    read = int(np.sum([*dataset.understood.splits.values()] or [len(dataset)]))
    table = sum(file.name in TABLES and is_regular(file) for file in tables_of(root, dataset))
    (left_out,) = found
    not_listed = sum(count for why, count in dataset.understood.left_out.items() if why.startswith("not in "))
    read -= not_listed if dataset.understood.splits else 0
    assert read + left_out + table == entries(root), (read, left_out, table, entries(root), block)


TABLES = ("labels.csv", "metadata.csv", "metadata.jsonl", "captions.jsonl")


def is_regular(path: Path) -> bool:
    return path.is_file()


def tables_of(root: Path, dataset: Dataset) -> list[Path]:
    """Tables where tables are looked for."""
    folders = [root / split for split in dataset.understood.splits] or [root]
    return [folder / name for folder in folders for name in TABLES]


def entries(root: Path) -> int:
    """Files, and whatever else is no folder; a hidden folder and a link to a folder count as one."""
    count = 0
    for path, folders, files in os.walk(root):
        kept = [name for name in folders if not name.startswith(".") and name.casefold() not in SYSTEM_FOLDERS]
        real = [name for name in kept if not os.path.islink(os.path.join(path, name))]
        count += len(files) + len(folders) - len(real)
        folders[:] = real
    return count


def run(count: int, seed: int) -> Counter[str]:
    """Makes, reads and removes so many folders; counts what became of them."""
    outcomes: Counter[str] = Counter()
    for number in range(count):
        rng = random.Random(seed + number)
        with tempfile.TemporaryDirectory() as home:
            root = Path(home) / "data"
            try:
                make(root, rng)
                outcome = try_folder(root, rng)
                if outcome.dataset is None:
                    assert outcome.refused
                else:
                    check(root, outcome.dataset)
            except Exception as error:
                error.add_note(f"of the folder with seed {seed + number}")
                raise
            finally:
                shutil.rmtree(root, ignore_errors=True)
        outcomes["read" if outcome.dataset is not None else "refused"] += 1
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(dict(run(arguments.count, arguments.seed)))
