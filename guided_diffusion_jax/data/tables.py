"""Tables beside images: `labels.csv`, `metadata.csv`, `metadata.jsonl`, `captions.jsonl`.

All have a line an image. CSV is separated by commas, semicolons, tabs or bars, which is found out, and may be quoted. A
first line of names is needed unless a line is `file,label`. The file's column is called file, file_name (Hugging Face's
image folders), filename, image or path. Text is UTF-8, or UTF-16 or UTF-32 with their mark.
"""

import codecs
import csv
import io
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from guided_diffusion_jax.data.images import COMMON, extensions
from guided_diffusion_jax.data.scan import ending
from guided_diffusion_jax.errors import InputError, hint, require
from guided_diffusion_jax.runtime.files import is_regular

LABELS, CAPTIONS = "labels.csv", "captions.jsonl"
TABLES = (LABELS, "metadata.csv", "metadata.jsonl", CAPTIONS)
FILE_COLUMNS = ("file", "file_name", "filename", "image", "path", "file_path", "filepath", "image_path")
SEPARATORS = ",;\t|"
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
"""Byte-order marks and their encodings; that of UTF-32 begins as that of UTF-16."""


class Row(NamedTuple):
    """A line of a table.

    Attributes:
        where: the table and the line, for errors.
        text: the line as it is, for errors.
        file: as the line names it.
        values: of the other columns, by name.
    """

    where: str
    text: str
    file: str
    values: Mapping[str, Any]


class Table(NamedTuple):
    """A table of a folder: its path and its rows."""

    path: Any
    rows: list[Row]

    @property
    def columns(self) -> list[str]:
        """Names of all columns but the file's."""
        return list(dict.fromkeys(name for row in self.rows for name in row.values))

    def column(self, name: str, files: Sequence[str], exists: Callable[[str], bool] = lambda file: False) -> dict:
        """The value of each file, in the table's order.

        Args:
            name: of the column.
            files: of the folder, relative to it.
            exists: whether a file that is none of them is there all the same; its line is skipped.

        Raises:
            InputError: a line without a value, or with a file that is not there or has a line already.
        """
        found, lookup, gone = dict[str, str](), file_lookup(files), list[str]()
        form = f"file,{name}" if self.path.suffix == ".csv" else f'{{"file": "...", "{name}": "..."}}'
        for row in self.rows:
            value = row.values.get(name)
            if isinstance(value, int | float) and name not in ("caption", "text"):
                value = str(value)
            if not isinstance(value, str) or not row.file or (name == "label" and not value.strip()):
                raise InputError(f"{row.where} is {row.text[:80]}; it must be {form}")
            file = lookup(row.file)
            if file is None and not exists(row.file):
                gone.append(row.file)
                require(
                    name != "label", f"{row.where} names {row.file}, which is no image ({COMMON}) in {self.path.parent}"
                )
            file = row.file if file is None else file
            require(file not in found, f"{row.where} names {file} again; one line a file")
            found[file] = value.strip() if name == "label" else value
        require(
            not gone,
            f"{self.path} names {len(gone)} files that are not in {self.path.parent}, the first {(gone or [''])[0]}",
        )
        return found


def read_tables(folder: Any) -> list[Table]:
    """All tables of a folder, an `epath.Path`.

    Raises:
        InputError: one is unreadable; the message has the line.
    """
    return [read_table(folder / name) for name in TABLES if is_regular(folder / name)]


def read_table(path: Any) -> Table:
    """A table, by its name CSV or JSON lines.

    Raises:
        InputError: it is unreadable; the message has the line.
    """
    if path.suffix == ".csv":
        return Table(path, list(_csv_rows(path, _text(path, "CSV text"))))
    return Table(path, list(_json_rows(path, _text(path, "JSON"))))


def with_column(tables: Iterable[Table], name: str) -> Table | None:
    """The table that has a column; None where none has it.

    Raises:
        InputError: several have it.
    """
    having = [table for table in tables if any(name in row.values for row in table.rows)]
    require(
        len(having) < 2,
        f"{' and '.join(str(table.path) for table in having[:2])} both have a column {name!r}; remove it from one",
    )
    return having[0] if having else None


def missing_column(tables: Sequence[Table], folder: Any, key: str, name: str) -> InputError:
    """The error about a column that no table of a folder has; `key` names the setting."""
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    if not tables:
        expected = LABELS if key == "data.labels" else CAPTIONS
        return InputError(
            f"{key}={name!r}, but {folder} holds no {expected} or metadata.jsonl; write one, or leave it empty"
        )
    return InputError(
        f"{key}={name!r} is no column of {', '.join(table.path.name for table in tables)} in {folder}, which have "
        f"{', '.join(columns) or 'none'}{hint(name, columns)}"
    )


def file_lookup(files: Iterable[str]) -> Callable[[str], str | None]:
    """From a file as a table names it to the file of the folder; None where it is not there.

    "./a/1.png" and the same with Windows' backslashes are "a/1.png". So is a name that differs in Unicode composition
    alone (a letter with its accent, or the two one after the other), unless two files do.
    """
    known = set(files)
    composed: dict[str, str | None] = {}

    def lookup(name: str) -> str | None:
        for spelling in (name, name.replace("\\", "/")):
            if spelling.removeprefix("./") in known:
                return spelling.removeprefix("./")
        if not composed:
            for file in known:
                key = unicodedata.normalize("NFC", file)
                composed[key] = None if key in composed else file
        return composed.get(unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./"))

    return lookup


def _text(path: Any, kind: str) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} line {line} is no {kind} in UTF-8: {error.reason}; save it as UTF-8") from error
    require("\0" not in text, f"{path} is no {kind} in UTF-8 but has characters of code 0; save it as UTF-8")
    return text


def _csv_rows(path: Any, text: str) -> Iterable[Row]:
    separator, has_names = _separator(text)
    names = ["file", "label"]
    for line, row in _cells_with_lines(path, text, separator):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if has_names:
            has_names, names = False, _column_names(cells, path.name)
            continue
        where, shown = f"{path} line {line}", repr(separator.join(cells))
        require(len(cells) == len(names), f"{where} is {shown[:80]}; it must be {','.join(names)}")
        yield _row(where, shown, dict(zip(names, cells, strict=True)))


def _column_names(cells: list[str], table: str) -> list[str]:
    names = [cell.casefold() if cell.casefold() in (*FILE_COLUMNS, "label") else cell for cell in cells]
    if table == LABELS and len(names) == 2 and "label" not in names:  # "class", "category", ...
        names[names[0] in FILE_COLUMNS] = "label"
    return names


def _separator(text: str) -> tuple[str, bool]:
    """What separates the cells, and whether the first line has the columns' names."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    split = {s: [cell.strip().strip('"') for cell in first.split(s)] for s in SEPARATORS}
    for separator, cells in split.items():
        if len(cells) > 1 and any(cell.casefold() in FILE_COLUMNS for cell in cells):
            return separator, True
    images = extensions()
    fitting = (s for s, cells in split.items() if len(cells) > 1 and ending(cells[0]) in images)
    return next(fitting, ","), False


def _cells_with_lines(path: Any, text: str, separator: str) -> Iterable[tuple[int, list[str]]]:
    # `newline=""` leaves the ends of lines, also of Windows and of old Macs, to the reader.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path} line {line} is no CSV text: {error}") from error
        yield line, cells
        line = reader.line_num + 1


def _json_rows(path: Any, text: str) -> Iterable[Row]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        where = f"{path} line {line}"
        try:
            entry = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is no JSON in UTF-8: {error}") from error
        if not isinstance(entry, dict) or not any(isinstance(entry.get(key), str) for key in FILE_COLUMNS):
            raise InputError(f'{where} is {content.strip()[:80]}; it must be {{"file": "...", "caption": "..."}}')
        yield _row(where, content.strip(), entry)


def _row(where: str, text: str, values: Mapping[str, Any]) -> Row:
    key = next(key for key in FILE_COLUMNS if isinstance(values.get(key), str))
    others = {name: value for name, value in values.items() if name != key}
    if key == "file_name" and "text" in others:  # what Hugging Face's image folders call the caption
        others.setdefault("caption", others["text"])
    return Row(where, text, values[key], others)
