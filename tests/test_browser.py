"""The page in a real browser, Chromium driven by playwright.

Its main paths on the digits of the package, and on shapes with text, a control image and a mask.
"""

import re
import shutil
import time

import numpy as np
import optax
import pytest
from PIL import Image

import guided_diffusion_jax as gd

pytestmark = pytest.mark.slow
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
sync = pytest.importorskip("playwright.sync_api")
page_pictures = pytest.importorskip("benchmarks.page_pictures")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
MINUTES = 600_000


@pytest.fixture(scope="module")
def address():
    with page_pictures.serving(gd.load("digits"), "digits", warm=False) as found:
        yield found


@pytest.fixture(scope="module")
def shapes_address(tmp_path_factory):
    """A few steps of training on classes, sentences and maps."""
    columns = {"text": "caption", "control_image": "segmentation"}
    data = gd.data.load("shapes/small", image_size=16, data_dir=str(tmp_path_factory.mktemp("data")), **columns)
    network = gd.models.UNet(
        width=16, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,), head_width=16, norm_groups=4,
        num_classes=data.num_classes, control_channels=data.info.control_channels,
        text=gd.models.ByteEncoder(width=16, depth=1, length=64),
    )  # fmt: skip
    process = gd.Process(gd.schedules.cosine(1000))
    workdir = tmp_path_factory.mktemp("shapes")
    gd.Trainer(network, process, data, optimizer=optax.adam(1e-3), workdir=workdir).fit(steps=20, batch_size=16)
    with page_pictures.serving(gd.load(workdir), "shapes", warm=False) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page as a new visitor; whatever it asks of other hosts, and errors in it, fail the test."""
    contexts, wrong = [], []

    def visit(address=address, **how):
        context = browser.new_context(viewport={"width": 1200, "height": 1000}, **how)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(MINUTES)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda one: None if one.url.startswith((address, "data:")) else wrong.append(one.url))
        tab.goto(address)
        tab.wait_for_selector("#results img")
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert not [text for text in wrong if "status of 400" not in text]


def shown(tab):
    return tab.eval_on_selector_all("#results img", "images => images.map(image => image.src)")


def until(tab, expression):
    """Waits; `wait_for_function` would need a page that lets text become a program, which this one does not."""
    end = time.monotonic() + MINUTES / 1000
    while not tab.evaluate(expression):
        assert time.monotonic() < end, expression
        tab.wait_for_timeout(50)


def after(tab, act):
    """The images once those that stand there have been replaced."""
    tab.evaluate("document.querySelector('#results').firstChild.dataset.old = 1")
    act()
    until(tab, "document.querySelector('#results').firstChild?.dataset.old === undefined")
    return shown(tab)


def draw(tab, pad, across):
    """Paints a vertical line, so many parts of the width from the left."""
    area = tab.locator(pad)
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    x = box["x"] + across * box["width"]
    tab.mouse.move(x, box["y"] + 2)
    tab.mouse.down()
    tab.mouse.move(x, box["y"] + box["height"] - 2, steps=8)
    tab.mouse.up()


def write(tab, field, text):
    """Types, and leaves the field."""
    tab.fill(field, text)
    tab.press(field, "Tab")


def test_a_class_a_weight_and_a_seed(visit):
    tab = visit()
    assert tab.title() == "digits" and len(shown(tab)) == 10 and len(set(shown(tab))) == 10
    seven = after(tab, lambda: tab.select_option("#label", "7"))
    assert "labels=['7']" in tab.inner_text("#python")
    strong = after(tab, lambda: tab.fill("input[aria-label='weight w'][type=number]", "4"))
    assert tab.inner_text("#scale") == "guidance_scale = 1 + w = 5" and strong != seven
    assert "weight=4.0" in tab.inner_text("#python") and "guidance.weight=4" in tab.inner_text("#command")
    assert after(tab, lambda: tab.fill("input[aria-label='weight w'][type=number]", "1")) == seven
    assert after(tab, lambda: tab.click("#dice")) != seven
    assert re.match(r"[\d.]+ s", tab.inner_text("#status"))


def test_three_ways_trajectory_and_sweep(visit):
    tab = visit(reduced_motion="reduce")
    first = shown(tab)
    ways = after(tab, lambda: tab.click("#ways"))
    names = tab.eval_on_selector_all("#results .named", "all => all.map(one => one.textContent)")
    assert [name.split(",")[0] for name in names] == ["conditional", "classifier guidance", "classifier-free guidance"]
    assert len(ways) == 30 and ways[20:] == first
    after(tab, lambda: tab.click("#trajectory"))
    until(tab, "document.getElementById('moment').max === '9'")
    end = shown(tab)
    assert len(end) == 10
    tab.evaluate("document.getElementById('moment').focus()")
    tab.keyboard.press("Home")
    assert shown(tab) != end
    cells = after(tab, lambda: tab.click("#sweep"))
    assert len(cells) == 4 * 4 and tab.inner_text("#results th >> nth=0") == "w = 0"


def test_inpainting_with_a_painted_mask(visit):
    tab = visit()
    tab.click("#results button >> nth=3")  # takes it as the image
    until(tab, "document.getElementById('python').textContent.includes('strength')")
    tab.select_option("select[aria-label='what the brush paints']", "mask")
    after(tab, lambda: draw(tab, "#inpainting .stack", 0.8))
    text = tab.inner_text("#python")
    assert "image='image.png'" in text and "inpaint_mask='inpaint_mask.png'" in text and "strength" not in text
    assert tab.locator("#inputs a").count() == 2


def test_what_is_no_image_gets_a_message(visit, tmp_path):
    tab = visit()
    tab.click("#inpainting summary")
    (tmp_path / "a.png").write_bytes(b"no image")
    tab.set_input_files("input[aria-label='upload image']", tmp_path / "a.png")
    until(tab, "document.getElementById('status').textContent.includes('is not an image')")
    Image.fromarray(np.full((40, 30), 200, np.uint8)).save(tmp_path / "b.png")
    after(tab, lambda: tab.set_input_files("input[aria-label='upload image']", tmp_path / "b.png"))


def test_by_the_keyboard_alone(visit):
    """Every control is reached by Tab; a mask is painted by arrows and space."""
    tab = visit()
    before = shown(tab)
    reached = [""]
    while reached[-1] != "command" and len(reached) < 80:
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.id || document.activeElement.className"))
        if reached[-1] == "label":
            changed = after(tab, lambda: tab.keyboard.press("End"))  # the last class
        if reached[-1] == "weight":
            after(tab, lambda: tab.keyboard.press("ArrowRight"))
    wanted = {"label", "weight", "classifier", "rule", "steps", "sampler", "spacing", "count", "seed", "dice", "axis0"}
    wanted |= {"generate", "ways", "trajectory", "sweep", "follow", "python", "command"}
    assert wanted <= set(reached), wanted - set(reached)
    assert (
        changed != before and "labels=['9']" in tab.inner_text("#python") and "weight=1.1" in tab.inner_text("#python")
    )
    tab.click("#inpainting summary")
    tab.focus("#inpainting .stack")
    after(tab, lambda: [tab.keyboard.press(key) for key in ("ArrowLeft", "Space")])
    assert "image='image.png'" in tab.inner_text("#python")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(visit, scheme):
    tab = visit(color_scheme=scheme)
    tab.set_viewport_size({"width": 360, "height": 740})
    after(tab, lambda: tab.click("#ways"))
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) > 400) == (scheme == "light")


def test_visitors_do_not_see_each_others_pictures(visit):
    one, other = visit(), visit()
    mine = after(one, lambda: one.select_option("#label", "3"))
    theirs = after(other, lambda: other.select_option("#label", "8"))
    assert shown(one) == mine and shown(other) == theirs and not set(mine) & set(theirs)


def test_shapes_by_text_control_image_and_mask(visit, shapes_address):
    tab = visit(shapes_address)
    first = shown(tab)
    worded = after(tab, lambda: write(tab, "#prompt", "a red circle, top left"))
    assert worded != first and "prompt='a red circle, top left'" in tab.inner_text("#python")
    negative = after(tab, lambda: write(tab, "#negative", "striped"))
    assert negative != worded and "negative='striped'" in tab.inner_text("#python")
    tab.click("summary:has-text('Control image')")
    drawn = after(tab, lambda: draw(tab, "[data-pad=control_image] .stack", 0.3))
    assert drawn != negative and "control_image='control_image.png'" in tab.inner_text("#python")
    tab.click("#results button >> nth=1")  # takes it as the image
    until(tab, "document.getElementById('python').textContent.includes('strength')")
    tab.select_option("select[aria-label='what the brush paints']", "mask")
    completed = after(tab, lambda: draw(tab, "#inpainting .stack", 0.7))
    text = tab.inner_text("#python")
    assert completed != drawn and "inpaint_mask='inpaint_mask.png'" in text and "control_image=" in text
    assert tab.locator("#inputs a").count() == 3
