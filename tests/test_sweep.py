"""Sweeps over one or two settings: the images of single requests, one program a solver, and one labelled picture."""

import numpy as np
import pytest
import tiny

import guided_diffusion_jax as gd
from guided_diffusion_jax import grids, lettering
from guided_diffusion_jax.experiment import default, runs, sampling, sheets
from guided_diffusion_jax.guidance import WeightSchedule
from guided_diffusion_jax.sweeps import AXES, axes_of


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


@pytest.fixture
def config():
    c = default.get_config()
    c.sample.steps = 3
    return c


def programs(pipe):
    """Number of programs that were compiled for sampling."""
    return sum(one._cache_size() for made in pipe._programs.values() for one in made._programs.values())


def log_prob(x, level):
    return -((x - 0.5) ** 2).sum((1, 2, 3))


def test_every_setting_is_swept_by_one_program_for_each_solver(pipe):
    """A grid holds the images of single requests, with labels and noise that are its own in no cell."""
    asked = {"labels": [2, 0], "steps": 3, "weight": 2.0}
    made = pipe.sweep(weight=[0.5, 3.0], steps=(2, 4), labels=[2, 0])
    assert made.shape == (2, 2, 2, 4, 4, 1) and programs(pipe) == 1
    for i, weight in enumerate([0.5, 3.0]):
        for j, steps in enumerate([2, 4]):
            np.testing.assert_array_equal(made[i, j], pipe(labels=[2, 0], weight=weight, steps=steps))
    for axes in (
        {"eta": [0.0, 0.9], "seed": [1, 2, 3]},
        {"interval": [(0, 12), (5.0, 20.0), None], "guidance_scale": [0.0, 3.0]},
        {"sampler": ["ddim"], "weight": np.array([-1.0, 0.0])},
    ):
        others = {name: wish for name, wish in asked.items() if name not in axes}
        others |= {"weight": None} if "guidance_scale" in axes else {}
        made = pipe.sweep(**axes, **others)
        first, second = map(len, axes.values())
        assert made.shape == (first, second, 2, 4, 4, 1) and programs(pipe) == 1, axes
        assert (made[0] != made[-1]).any() or first == 1, axes
        assert (made[:, 0] != made[:, -1]).any(), axes
        corner = pipe.request(**others | {name: values[-1] for name, values in axes.items()})
        np.testing.assert_array_equal(made[-1, -1], pipe.generate(corner))
    made = pipe.sweep(sampler=["ddim", gd.samplers.dpmpp_2m()], seed=[0, 1], **asked)
    assert programs(pipe) == 2 and (made[0] != made[1]).any() and (made[:, 0] != made[:, 1]).any()
    np.testing.assert_array_equal(made[1, 1], pipe(sampler="dpmpp_2m", seed=1, **asked))


def test_a_classifiers_weight_is_swept_with_it_at_zero(pipe):
    made = pipe.sweep(labels=[1], steps=3, log_prob=log_prob, classifier_weight=[0.0, 5.0])
    np.testing.assert_array_equal(made[0], pipe(labels=[1], steps=3))
    assert made.shape == (2, 1, 4, 4, 1) and (made[0] != made[1]).any()


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"weight": [1], "steps": [1], "seed": [1]}, "sweep needs a list for one or two of weight, guidance_scale"),
        ({"weight": [1], "steps": [1], "seed": [1]}, "and has steps, weight, seed"),
        ({"weight": 1.0}, "and has none"),
        ({"weight": WeightSchedule([0, 19], [1, 2]), "sampler": gd.samplers.ddim()}, "and has none"),
        ({"interval": (0, 5)}, "and has none"),
        ({"weight": []}, "weight is an empty list; give the values that are to be swept"),
        ({"weight": np.zeros(0)}, "weight is an empty list"),
        ({"wieght": [1, 2]}, "wieght is no keyword of a sweep; did you mean 'weight'?"),
        ({"weight": [1, 2], "guidance_scale": [2, 3]}, "weight and guidance_scale are both given"),
        ({"sampler": ["ddim", "dimm"]}, "did you mean 'ddim'?"),
        ({"steps": [5, 0]}, "steps=0 must be"),
        ({"interval": [(0, 5), (5, 1)]}, "interval=(5, 1) is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused_before_anything_is_compiled(wishes, message, pipe):
    before = programs(pipe)
    with pytest.raises(gd.InputError) as refused:
        pipe.sweep(**{"labels": [1], "steps": 3, **wishes})
    assert message in str(refused.value) and programs(pipe) == before


def test_every_axis_has_a_key_and_words(config):
    assert set(AXES) == set(config.sample.sweep) - {"count"}
    words = {"weight": 0.25, "guidance_scale": 7.5, "classifier_weight": -1, "steps": 1, "sampler": "ddim", "eta": 1.0}
    assert [AXES[name](value) for name, value in words.items()] == [
        "w = 0.25", "guidance scale 7.5", "classifier w = -1", "1 step", "ddim", "eta = 1",
    ]  # fmt: skip
    assert AXES["interval"]((0.0, 500.0)) == "t in 0 .. 500" and AXES["interval"](None) == "t anywhere"
    assert (AXES["seed"](3), AXES["steps"](10)) == ("seed 3", "10 steps")


def test_the_keys_of_the_configuration_are_the_keywords(pipe, config):
    config.sample.sweep.interval, config.sample.sweep.steps = (5.0, 8.0), (2, 3)
    config.sample.sweep.count = 2
    axes, request, images = runs.sweep(config, pipe)
    assert axes == {"steps": [2, 3], "interval": [(5.0, 8.0)]} and images.shape == (2, 1, 2, 4, 4, 1)
    expected = pipe.sweep(labels=[0, 1], steps=[2, 3], interval=[(5.0, 8.0)])
    np.testing.assert_array_equal(images, expected)
    assert sheets.class_names(pipe, request) == ["cat", "dog"]
    assert sheets.title(config, pipe, request, axes) == "w = 1, ddim"
    config.sample.guidance.guidance_scale = 3.0
    config.sample.sweep.update(steps=(), interval=(), weight=(0.0,), sampler=("ddim",))
    axes, request, _ = runs.sweep(config, pipe)
    assert sheets.title(config, pipe, request, axes) == "3 steps" and axes_of(axes) == axes
    config.sample.sweep.seed = (1, 2)
    with pytest.raises(gd.InputError, match="has weight, sampler, seed"):
        runs.sweep(config, pipe)
    assert sampling.sweep_axes(default.get_config()) == {}


def test_the_picture_has_a_row_and_a_column_for_each_value(monkeypatch):
    """Every image of a cell is there, enlarged by a whole factor, and every value is written once."""
    drawn = []
    draw = lettering.wrap
    monkeypatch.setattr(lettering, "wrap", lambda text, *size: drawn.append(text) or draw(text, *size))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 8, 8, 1)).astype(np.uint8)
    axes = {"weight": [0.0, 2.0], "steps": [1, 5, 50]}
    page = sheets.sweep_page(axes, images, ["cat", "dog", "cat", ""], "ddim")
    assert drawn == ["w = 0", "w = 2", "ddim, in each cell: cat, dog, cat", "1 step", "5 steps", "50 steps"]
    for row in images:
        for cell in row:
            block = grids.block(cell, 2)
            assert block.shape == (2 * 64 + 1, 2 * 64 + 1, 3)
            np.testing.assert_array_equal(block[:64:8, :64:8, :1], cell[0])
            np.testing.assert_array_equal(block[65::8, 65::8, :1], cell[3])
            windows = np.lib.stride_tricks.sliding_window_view(page, block.shape)[:, :, 0]
            starts = np.argwhere((windows[:, :, 0, 0] == block[0, 0]).all(-1))
            assert any((windows[y, x] == block).all() for y, x in starts)
    one = sheets.sweep_page({"seed": [1, 2]}, images[:, 0], ["cat", "dog", "cat", ""], "")
    assert "seed 2" in drawn and one.shape[0] < page.shape[0]
    wide = np.zeros((1, 20, 4, 256, 256, 3), np.uint8)
    assert sheets.sweep_page({"eta": [0], "seed": range(20)}, wide, [""] * 4, "").shape[1] < 2 * grids.HIGHEST
