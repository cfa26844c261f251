"""Page of a report as self-contained HTML, and its tables as Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

import jinja2
from etils import epath

from guided_diffusion_jax.runtime.files import atomic_write


class Image(NamedTuple):
    """Image as a data URI; `alt` describes it for screen readers. Rows of images have a name and may have a note."""

    alt: str
    source: str
    name: str = ""
    note: str = ""


class Figure(NamedTuple):
    """Chart (one image) or rows of images, with a caption."""

    title: str
    caption: str
    images: Sequence[Image]


class Table(NamedTuple):
    """Table of text; the first cell of a row is its heading. A folded one opens by a click."""

    title: str
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


class Section(NamedTuple):
    """Heading, text, figures and tables."""

    title: str
    text: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


class Page(NamedTuple):
    """Title, sections, and warnings of the metrics."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    warnings: Sequence[str]


def write(page: Page, folder: epath.Path) -> list[epath.Path]:
    """Writes `report.html` and `report.md` and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {folder / "report.html": html(page), folder / "report.md": markdown(page)}
    for path, text in paths.items():
        with atomic_write(path, "w") as file:
            file.write(text)
    return list(paths)


def html(page: Page) -> str:
    """HTML page that needs no other file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("guided_diffusion_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(page=page)


def markdown(page: Page) -> str:
    """Tables of the page, without its charts and images."""
    lines = [f"# {page.title}", "", page.subtitle]
    for table in (table for section in page.sections for table in section.tables):
        rows = [table.head, ["---"] * len(table.head), *table.rows]
        cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
        lines += ["", f"## {table.title}", "", table.caption, "", *(f"| {' | '.join(row)} |" for row in cells)]
    return "\n".join([*lines, ""])
