"""Pictures of the page in Chromium, for the docs: `python -m benchmarks.page_pictures --out=docs/images`.

Of the digits that come with the package: the three ways of steering (`serve.png`), a weight that is moved
(`serve.gif`), and a phone (`serve_phone.png`). With `--workdir=RUN`, of a run on shapes with text and control image: a
prompt with a negative one (`serve_prompt.png`), a map that is drawn (`serve_control.png`), and an image of which a
painted part is made anew (`serve_mask.png`). Needs playwright, and Chromium of the system.
"""

import argparse
import contextlib
import functools
import io
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import guided_diffusion_jax as gd
from guided_diffusion_jax.serve import app
from guided_diffusion_jax.serve.controls import controls
from guided_diffusion_jax.serve.texts import Called

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--no-sandbox", "--disable-gpu")
WEIGHTS = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0)
FRAME_MS = 900
WEIGHT = "input[aria-label='weight w'][type=number]"
PROMPT, NEGATIVE, OTHER = "one large red star on sand", "striped", "one large blue heart on sand"


@contextlib.contextmanager
def serving(pipe: gd.Pipeline, name: str, *, warm: bool = True) -> Iterator[str]:
    """Address of the page of a pipeline; `warm` compiles what the first visitor needs before."""
    page = app.app(pipe, controls(pipe, name), Called(name), hosts=app.LOOPBACK, warm=warm)
    server = uvicorn.Server(uvicorn.Config(page, log_level="error"))
    listening = app.listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)


def after(tab: Page, act: Callable[[], Any]) -> None:
    """Waits until what is shown has been replaced."""
    tab.evaluate("document.querySelector('#results').firstChild.dataset.old = 1")
    act()
    while tab.evaluate("document.querySelector('#results').firstChild?.dataset.old !== undefined"):
        tab.wait_for_timeout(50)
    tab.wait_for_timeout(300)


def visit(browser: Any, address: str, width: int, height: int, scheme: str = "light") -> Page:
    """The page with its first images, opened by a new visitor."""
    tab: Page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
    tab.set_default_timeout(600_000)
    tab.goto(address)
    tab.wait_for_selector("#results img")
    return tab


def write(tab: Page, field: str, text: str) -> None:
    """Types, and leaves the field."""
    tab.fill(field, text)
    tab.press(field, "Tab")


def paint(tab: Page, pad: str, strokes: Sequence[Sequence[tuple[float, float]]]) -> None:
    """Draws lines through these points, in shares of a drawing area's width and height."""
    area = tab.locator(pad)
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    for points in strokes:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        tab.mouse.move(*places[0])
        tab.mouse.down()
        for place in places[1:]:
            tab.mouse.move(*place, steps=12)
        tab.mouse.up()


def digits(browser: Any, address: str, out: Path) -> None:
    """The pictures of the digits."""
    tab = visit(browser, address, 1200, 900)
    frames = []
    for weight in (*WEIGHTS, *WEIGHTS[-2:0:-1]):
        after(tab, functools.partial(write, tab, WEIGHT, f"{weight:g}"))
        shot = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
        frames.append(shot.resize((800, 600), Image.Resampling.LANCZOS).quantize(48))
    frames[0].save(out / "serve.gif", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, optimize=True)
    write(tab, WEIGHT, "2")
    for _ in range(2):  # the second time without compiling
        after(tab, lambda: tab.click("#ways"))
        tab.wait_for_timeout(3000)
    tab.screenshot(path=out / "serve.png")
    phone = visit(browser, address, 360, 740, "dark")
    after(phone, lambda: phone.click("#generate"))
    phone.screenshot(path=out / "serve_phone.png")


def shapes(browser: Any, address: str, out: Path) -> None:
    """The pictures of a run on shapes."""
    tab = visit(browser, address, 1200, 1000)
    tab.select_option("#label", "")  # the prompt names the shape
    after(tab, lambda: write(tab, "#prompt", PROMPT))
    after(tab, lambda: write(tab, "#negative", NEGATIVE))
    again(tab)
    tab.screenshot(path=out / "serve_prompt.png")

    tab.click("#results button >> nth=1")  # takes it as the image
    tab.select_option("select[aria-label='what the brush paints']", "mask")
    write(tab, "input[aria-label='width of the brush of image']", "8")
    write(tab, "#negative", "")
    write(tab, "#prompt", OTHER)
    paint(tab, "#inpainting .stack", [[(0.5, 0.5), (0.5, 0.55)]])
    again(tab)
    tab.screenshot(path=out / "serve_mask.png")

    tab = visit(browser, address, 1200, 1000)
    tab.select_option("#label", "")
    after(tab, lambda: write(tab, "#prompt", "blue, on sand"))
    tab.click("summary:has-text('Control image')")
    write(tab, "input[aria-label='width of the brush of control image']", "3")
    paint(tab, "[data-pad=control_image] .stack", [[(0.3, 0.3), (0.3, 0.7)], [(0.3, 0.7), (0.7, 0.7)]])
    again(tab)
    tab.screenshot(path=out / "serve_control.png")


def again(tab: Page) -> None:
    """Waits for what follows the page's own changes, then generates once more."""
    tab.wait_for_timeout(3000)
    after(tab, lambda: tab.click("#generate"))
    after(tab, lambda: tab.click("#generate"))


def main(arguments: Sequence[str]) -> int:
    """Exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page_pictures", description="Pictures of the page.")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--workdir", default="", help="a run on shapes; its pictures alone")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        name, pictures = (given.workdir, shapes) if given.workdir else ("digits", digits)
        with serving(gd.load(name), name) as address:
            pictures(browser, address, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
