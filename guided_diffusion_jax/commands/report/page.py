"""A page as one HTML file that needs nothing else, and as Markdown with its pictures in a folder beside it."""

import base64
import functools

import jinja2
from etils import epath
from markupsafe import Markup

from guided_diffusion_jax.commands.report import strips
from guided_diffusion_jax.commands.report.parts import Page
from guided_diffusion_jax.runtime import files

NAME = "report"
"""Of the files, `report.html` and `report.md`, and of the folder of the latter's pictures."""


def write(page: Page, folder: epath.Path) -> list[epath.Path]:
    """Writes `report.html`, `report.md` and `report/*.png`; gives back the first two."""
    made = []
    for section in page.sections:
        for graph in section.graphs:
            _put(folder / NAME / f"{graph.name}.png", graph.chart.png)
        for gallery in section.galleries:
            _put(folder / NAME / f"{gallery.name}.png", strips.together(gallery.rows))
    for suffix in ("html", "md"):
        made.append(folder / f"{NAME}.{suffix}")
        _put(made[-1], render(page, suffix).encode())
    return made


def render(page: Page, suffix: str) -> str:
    """The text of the page, "html" or "md"; pictures of the latter are in the folder `report`."""
    return _templates().get_template(f"page.{suffix}.j2").render(page=page, folder=NAME)


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("guided_diffusion_jax.commands.report", "."),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["drawing"] = Markup
    environment.filters["data"] = lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}"
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment


def _put(path: epath.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as file:
        file.write(content)
