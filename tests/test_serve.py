"""The page without a browser: what it offers, how its values become images, and what it refuses."""

import base64
import functools
import io
import shlex
import struct
import time
import zlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from test_requests import EVERYTHING
from test_requests import pipeline as of_unet
from tiny import Network, pipeline

import guided_diffusion_jax as gd
from guided_diffusion_jax.commands import arguments
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment import runs
from guided_diffusion_jax.guides import GuidingClassifier
from guided_diffusion_jax.serve import forms, pictures, serve
from guided_diffusion_jax.serve.controls import ALL, LARGEST_SIDE, LIMITS, controls
from guided_diffusion_jax.serve.texts import Called

CALLED = Called("RUN")


def url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def file(image, kind="PNG"):
    written = io.BytesIO()
    Image.fromarray(np.asarray(image, np.uint8)).save(written, kind)
    return written.getvalue()


def header_of_png(width, height):
    """A PNG file that says that it is so large, and holds nothing of it."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
    return start + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def pixels(answer, row=0, cell=0):
    return decoded(answer["rows"][row]["cells"][cell])


def decoded(urls):
    images = [Image.open(io.BytesIO(base64.b64decode(one.split(",")[1]))) for one in urls]
    return np.stack([np.asarray(image) for image in images])[..., None]


def log_prob(label, x, level):
    return -((x.mean((1, 2, 3)) - label) ** 2)


@pytest.fixture(scope="module")
def pipe():
    """Knows classes, and has a classifier of them."""
    of = GuidingClassifier(jax.tree_util.Partial(log_prob), ("cat", "dog", "fish"))
    return pipeline(Network(num_classes=3), load_classifier=lambda attribute: of)


@pytest.fixture(scope="module")
def offered(pipe):
    return controls(pipe, "RUN")


@pytest.fixture(scope="module")
def ask(pipe, offered):
    return functools.partial(pictures.answer, pipe, offered, called=CALLED)


def test_it_offers_what_the_run_allows(offered):
    assert offered.classes == ("cat", "dog", "fish") and offered.free_guidance and offered.classifier
    assert not offered.prompt and not offered.attributes and offered.follow and offered.last_time == 19
    assert offered.images == {"image": (4, 4, 1), "inpaint_mask": (4, 4, 1)}
    assert offered.limits["steps"] == (1, 20) and offered.with_eta == ("ddim", "euler_ancestral")
    assert "classifier_weight" in offered.axes and "guidance_scale" not in offered.axes
    everything = controls(of_unet(**EVERYTHING))
    assert everything.prompt and not everything.classifier and len(everything.attributes) == 3
    assert everything.classes and everything.defaults["label"] == "", "beside a prompt no class"
    assert offered.defaults["label"] == ALL
    assert set(everything.images) == {"image", "inpaint_mask", "control_image", "reference_image"}
    untrained = controls(pipeline(Network(num_classes=3), null_trained=False))
    assert not untrained.free_guidance and "weight" not in untrained.axes and untrained.defaults["weight"] == 0
    nothing = controls(pipeline(Network()))
    assert nothing.classes == () and nothing.defaults["label"] == "" and not nothing.free_guidance


def test_sliders_compile_nothing(ask):
    ask("generate", {})
    ask("ways", {})
    ask("trajectory", {})
    counted = []
    listener = lambda event, seconds, **_: counted.append(event) if "backend_compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    for values in (
        {"weight": 0}, {"weight": -1}, {"weight": 7.5}, {"count": 1}, {"count": 16}, {"steps": 3}, {"seed": 99},
        {"interval": [3, 11]}, {"eta": 1}, {"label": "dog"}, {"count": 5, "label": ALL}, {"spacing": "karras"},
    ):  # fmt: skip
        assert len(pixels(ask("generate", values))) == values.get("count", 4)
    ask("ways", {"weight": 3, "classifier_weight": 0, "count": 7})
    ask("trajectory", {"weight": 3, "count": 2, "steps": 7})
    ask("sweep", {"sweep": {"weight": [0, 1, 2], "steps": [2, 4]}})
    jax.monitoring.unregister_event_duration_listener(listener)
    assert not counted


def test_images_are_those_of_the_pipeline_and_of_both_texts(pipe, ask, monkeypatch, offered):
    values = {"label": "dog", "weight": 2.5, "count": 3, "steps": 6, "seed": 4, "eta": 0.5, "interval": [2, 15]}
    answer = ask("generate", values)
    images = pixels(answer).astype(int)
    keywords = {"labels": "dog", "count": 3, "weight": 2.5, "steps": 6, "seed": 4, "eta": 0.5, "interval": (2, 15)}
    assert np.abs(images - pipe(**keywords)).max() <= 1
    monkeypatch.setattr(gd, "load", {"RUN": pipe}.get)
    made = {}
    exec(answer["python"], made)
    assert np.abs(images - made["images"]).max() <= 1
    assert np.abs(images - by_command(answer["command"], pipe)).max() <= 1


def by_command(text, pipe):
    program, *given = shlex.split(text)
    flags, rest = arguments.flags(given)
    assert (program, flags.workdir, flags.mode) == ("guided-diffusion-jax", "RUN", "sample")
    config = configs.get_config()
    arguments.override(config, rest)
    configs.check(config)
    return pipe.generate(runs.request(config, pipe))


def test_the_texts_say_everything(ask, pipe, monkeypatch):
    monkeypatch.setattr(gd, "load", {"RUN": pipe}.get)
    for action, values in (
        ("ways", {"label": "fish", "weight": 1, "count": 2}),
        ("generate", {"label": "", "count": 2}),  # unconditional
        ("generate", {"label": ALL, "rule": "apg", "sampler": "dpmpp_2m", "spacing": "logsnr", "steps": 4}),
        ("generate", {"classifier": True, "classifier_weight": 2.5, "weight": 1, "count": 1}),
    ):
        answer = ask(action, values)
        made = {}
        exec(answer["python"], made)
        variables = [name for name in made if isinstance(made[name], np.ndarray)]
        assert len(variables) == len(answer["rows"]) == len(answer["command"].splitlines())
        for row, (variable, line) in enumerate(zip(variables, answer["command"].splitlines(), strict=True)):
            assert np.abs(pixels(answer, row).astype(int) - made[variable]).max() <= 1
            assert np.abs(pixels(answer, row).astype(int) - by_command(line, pipe)).max() <= 1


def test_a_run_need_not_be_told_what_its_own_configuration_says(ask, pipe, offered):
    own = {"steps": 20, "sampler": "ddim", "spacing": "linspace", "seed": 0, "eta": 0.0, "guidance.rules": ("cfg",)}
    answer = pictures.answer(pipe, offered, "generate", {}, Called("my run", "python main.py", own))
    keys = [part.split("=")[0].removeprefix("--config.sample.") for part in shlex.split(answer["command"])[2:]]
    assert keys == ["--workdir", "--mode", "labels", "guidance.interval", "guidance.guidance_scale", "count"]
    assert answer["command"].startswith("python main.py '--workdir=my run' --mode=sample ")


def test_names_with_commas_and_quotes_reach_the_command(pipe):
    for label in ("a, b", "it's", '"q"', " x ", "(1)"):
        text = pictures.texts.command(CALLED, {"labels": [label], "count": 1})
        config = configs.get_config()
        arguments.override(config, arguments.flags(shlex.split(text)[1:])[1])
        assert tuple(config.sample.labels) == (label,)


def test_three_ways_begin_with_the_same_noise(ask, pipe):
    answer = ask("ways", {"weight": 2, "classifier_weight": 4, "count": 4, "label": "cat"})
    names = [row["name"] for row in answer["rows"]]
    assert names == ["conditional, w = 0", "classifier guidance, w = 4", "classifier-free guidance, w = 2"]
    for row, steered in enumerate(({"weight": 0.0}, {"weight": -1.0, "classifier_weight": 4.0}, {"weight": 2.0})):
        expected = pipe(labels="cat", count=4, steps=20, seed=0, **steered)
        assert np.abs(pixels(answer, row).astype(int) - expected).max() <= 1
    assert not answer["notes"]
    bare = pipeline(Network(num_classes=3))
    notes = pictures.answer(bare, controls(bare), "ways", {}, CALLED)["notes"]
    assert len(notes) == 1 and "--mode=classifier" in notes[0]
    with pytest.raises(InputError, match="choose a class"):
        ask("ways", {"label": ""})


def test_a_trajectory_ends_at_the_images(ask):
    parts = []
    ask("trajectory", {"count": 3, "frames": 5}, emit=parts.append)
    frames = [decoded(part["frame"]) for part in parts]
    assert [len(frame) for frame in frames] == [3] * 5 and not np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[4], pixels(ask("generate", {"count": 3})))


def test_a_sweep_has_a_row_and_a_column_for_each_value(ask, pipe):
    sweep = {"weight": [0, 2], "steps": [2, 3, 5]}
    answer = ask("sweep", {"count": 16, "sweep": sweep})
    assert [row["name"] for row in answer["rows"]] == ["w = 0", "w = 2"]
    assert answer["columns"] == ["2 steps", "3 steps", "5 steps"]
    expected = pipe.sweep(labels=["cat", "dog", "fish"], count=4, **sweep)
    found = [[pixels(answer, row, cell) for cell in range(3)] for row in range(2)]
    assert np.abs(np.array(found).astype(int) - expected).max() <= 1
    for wrong in ({}, {"weight": []}, {"weight": [0] * 7}, {"a": [1]}, {"weight": [99]}, {"weight": 3}, [1]):
        with pytest.raises(InputError):
            ask("sweep", {"sweep": wrong})


def test_what_is_not_masked_stays(ask):
    image = np.linspace(0, 255, 16).reshape(4, 4)
    mask = np.zeros((4, 4))
    mask[:, 2:] = 200
    given = {"image": url(file(image)), "inpaint_mask": url(file(mask)), "steps": 3}
    answer = ask("generate", given)
    assert (pixels(answer)[:, :, :2, 0] == np.uint8(image)[:, :2]).all()
    assert set(answer["inputs"]) == {"image", "inpaint_mask"} and "inpaint_mask='inpaint_mask.png'" in answer["python"]
    assert (
        "strength" not in answer["python"]
        and "strength=0.5" in ask("generate", {**given, "inpaint_mask": None, "strength": 0.5})["python"]
    )
    with pytest.raises(InputError, match="the mask needs an image"):
        ask("generate", {"inpaint_mask": url(file(mask))})


def test_uploads_become_what_the_model_sees():
    photo = np.random.default_rng(0).integers(0, 255, (30, 50, 3))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        assert forms.picture("image", url(file(photo, kind)), (8, 8, 3)).shape == (8, 8, 3)
        assert forms.picture("image", url(file(photo, kind), "application/octet-stream"), (8, 12, 1)).shape == (
            8,
            12,
            1,
        )
    exact = np.array([[0, 85], [170, 255]]).repeat(8, 0).repeat(8, 1)
    assert (forms.picture("control_image", url(file(exact)), (16, 16, 1), exact=True)[..., 0] == exact).all()


GOOD = file(np.zeros((8, 8, 3)))
NOISY = file(np.random.default_rng(0).integers(0, 255, (64, 64, 3)))
HOSTILE_UPLOADS = [
    "", "x", 5, None, [], "data:", "data:,abc", "data:image/png;base64,", "data:image/png;base64,!!!!", "/etc/passwd",
    "file:///etc/passwd", "http://127.0.0.1/a.png", url(b""), url(b"\x89PNG"), url(GOOD[:40]), url(NOISY[:2000]),
    url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), url(b"%PDF-1.4"), url(b"GIF89a" + b"\xff" * 9),
    url(header_of_png(65_535, 65_535)), url(header_of_png(2**31 - 1, 1)), url(header_of_png(LARGEST_SIDE + 1, 1)),
    url(header_of_png(0, 0)), url(file(np.zeros((4, 4)), "TIFF")), url(file(np.zeros((4, 4)), "PPM")),
    url(bytes(5 * 2**20)), "data:image/png;base64," + "A" * 10**7,
    *(url(bytes(np.random.default_rng(i).integers(0, 256, 300, np.uint8))) for i in range(20)),
    *(url(GOOD[:i] + bytes([GOOD[i] ^ 255]) + GOOD[i + 1 :]) for i in range(8, 36, 4)),
]  # fmt: skip


def test_hostile_uploads_get_a_message_at_once():
    begun = time.thread_time()
    for upload in HOSTILE_UPLOADS:
        with pytest.raises(InputError) as refused:
            forms.picture("image", upload, (8, 8, 3))
        assert str(refused.value).isprintable() and len(str(refused.value)) <= 300
    assert time.thread_time() - begun < 5


NUMBERS = (
    None,
    True,
    "1",
    "",
    "x",
    [],
    {},
    [1],
    float("nan"),
    float("inf"),
    -float("inf"),
    1e300,
    10**400,
    -(10**9),
    1j,
)
WRONG = {
    **{name: [*NUMBERS[1:], least - 1, most + 1] for name, (least, most) in LIMITS.items()},
    "label": [3, "bird", ["cat"], "x" * 10**6, "\ud800", "\0", {}],
    "prompt": ["a cat", 5, ["a"], "x" * 2000, "\udfff"],
    "attributes": [5, "colour", {"colour": "red"}, {"colour": 5}, [["colour", "red"]]],
    "interval": [5, [5], [1, 2, 3], [9, 1], [-1, 5], [0, 20], ["a", "b"], [float("nan"), 5], "05"],
    "sampler": ["native", "x", 5, None.__class__, "__class__", "ddim\0"],
    "spacing": ["x", ["linspace"], 0], "rule": ["reconstruction", "autoguidance", "x", 1],
    "classifier": ["yes", 1, []], "control_image": [url(GOOD)], "reference_image": [url(GOOD)],
    "image": HOSTILE_UPLOADS[1:3], "weights": [1], "autoguidance": ["/etc"], "__init__": [1], "": [1],
}  # fmt: skip


def test_hostile_values_get_a_message(ask):
    refused = 0
    for name, values in WRONG.items():
        for value in values:
            with pytest.raises(InputError) as error:
                ask("generate", {name: value})
            assert str(error.value).isprintable() and len(str(error.value)) <= 300
            refused += 1
    for given in (None, 5, "x", [], [1]):
        with pytest.raises(InputError):
            ask("generate", given)
    with pytest.raises(InputError, match="did you mean 'generate'"):
        ask("generat", {})
    assert refused > 150


def test_without_the_extra_the_message_says_how_to_install_it(pipe, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    monkeypatch.setitem(__import__("sys").modules, "starlette", ConfigDict)
    with pytest.raises(InputError, match=r"needs the package uvicorn: pip install guided-diffusion-jax\[serve\]"):
        serve(pipe)
