"""What `sample.*` asks for becomes conditions, branches and weights; what does not fit is said or refused."""

import numpy as np
import pytest
from PIL import Image

from configs.shapes_all import get_config
from guided_diffusion_jax.commands import ask
from guided_diffusion_jax.data import ByteTextEncoder
from guided_diffusion_jax.errors import InputError

SIZE, CLASSES, COUNT = 16, 8, 3
GREY = 127 / 127.5 - 1


@pytest.fixture
def config():
    """As a trained run of `shapes_all` keeps it."""
    c = get_config()
    c.data.update(channels=3, map_channels=1, class_names=tuple("abcdefgh"))
    c.data.attribute_values = (("red", "green"), ("small", "large"), ("left", "right"))
    c.model.num_classes = CLASSES
    c.sample.count = COUNT
    c.sample.guidance.weight = 1.0
    return c


@pytest.fixture
def png(tmp_path):
    """`png(name, pixels)` writes a picture and gives its path."""

    def write(name, pixels):
        Image.fromarray(np.asarray(pixels, np.uint8)).save(tmp_path / f"{name}.png")
        return str(tmp_path / f"{name}.png")

    return write


def sentence(branch):
    return ByteTextEncoder(1).decode(branch.text)[0]


def test_without_anything_asked_for_classes_come_in_turn(config):
    wanted = ask.from_config(config)
    np.testing.assert_array_equal(wanted.branches[0].label, [0, 1, 2])
    assert sentence(wanted.branches[0]) == "" and not wanted.branches[0].map.any()
    assert wanted.weights == (1.0,) and (wanted.null.label == CLASSES).all()


def test_what_is_asked_for_is_one_branch_and_the_rest_is_absent(config, png):
    style = png("style", np.full((SIZE, SIZE, 3), 127))
    config.sample.update(prompt="a red circle", attributes="size=large,colour=green", style=style)
    (branch,) = ask.from_config(config).branches
    assert sentence(branch) == "a red circle"
    np.testing.assert_array_equal(branch.attributes, [[2, 2, 0]] * COUNT)
    np.testing.assert_allclose(branch.style, GREY, atol=1e-6)
    assert (branch.label == CLASSES).all() and not branch.map.any()


def test_an_empty_prompt_is_the_null_and_all_bytes_are_known(config):
    config.sample.labels = (2,)
    np.testing.assert_array_equal(ask.from_config(config).branches[0].text, ask.from_config(config).null.text)
    config.sample.prompt = "\x01 \x7f é 🙂"
    assert sentence(ask.from_config(config).branches[0]) == config.sample.prompt


def test_a_prompt_is_composed_of_its_parts_and_not_negates(config):
    config.sample.prompt = "NOT striped AND a circle AND red"
    wanted = ask.from_config(config)
    assert [sentence(branch) for branch in wanted.branches] == ["a circle", "red", "striped"]
    assert wanted.weights == (1.0, 1.0, -3.0)  # 1 + w' = -(1 + w)


def test_kinds_with_their_own_weights_are_branches_of_their_own(config, png):
    style = png("style", np.zeros((SIZE, SIZE, 3)))
    config.sample.update(prompt="a circle", style=style, labels=(4,))
    config.sample.guidance.weights = "style=2.5"
    together, alone = ask.from_config(config).branches
    assert sentence(together) == "a circle" and not together.style.any() and (together.label == 4).all()
    assert sentence(alone) == "" and (alone.style == -1).all() and (alone.label == CLASSES).all()
    assert ask.from_config(config).weights == (1.0, 2.5)


def test_regions_say_where_each_part_of_the_prompt_holds(config, png):
    left = np.zeros((SIZE, SIZE))
    left[:, : SIZE // 2] = 255
    config.sample.update(prompt="red AND NOT blue", regions=f"{png('left', left)},{png('right', 255 - left)}")
    first, second = ask.from_config(config).weights
    assert first.shape == (COUNT, SIZE, SIZE, 1)
    assert (first[:, :, :8] == 1).all() and (first[:, :, 8:] == -1).all()
    assert (second[:, :, :8] == -1).all() and (second[:, :, 8:] == -3).all()


def test_a_negative_prompt_stands_in_the_place_of_none(config):
    config.sample.update(prompt="a circle", negative="striped")
    wanted = ask.from_config(config)
    assert sentence(wanted.null) == "striped" and (wanted.null.label == CLASSES).all()


def test_a_picture_to_change_stays_where_the_mask_is_black(config, png):
    mask = np.zeros((SIZE, SIZE))
    mask[:4] = 255
    config.sample.update(image=png("image", np.full((SIZE, SIZE, 3), 255)), inpaint=png("mask", mask))
    wanted = ask.from_config(config)
    assert (wanted.known == 1).all() and (wanted.mask[:, :4] == 0).all() and (wanted.mask[:, 4:] == 1).all()
    config.model.known = True  # a network that was trained to complete pictures is told, too
    (branch,) = ask.from_config(config).branches
    assert (branch.known[:, :4] == 0).all() and (branch.known[:, 4:] == 1).all()


def test_branches_without_influence_are_spared(config):
    for weight, branches in ((0.0, 0), (-1.0, 0), (1.0, 1)):
        config.sample.guidance.weight = weight
        spared = ask.from_config(config).spared()
        assert len(spared.branches) == branches
        assert (spared.null.label == CLASSES).all() == (weight != 0)


def test_what_does_not_fit_but_can_be_used_is_said(config, png, capsys):
    config.sample.update(prompt="x" * 70, map=png("map", np.zeros((20, 30))))
    (branch,) = ask.from_config(config).branches
    said = capsys.readouterr().out
    assert "sample.prompt has 70 bytes of UTF-8, the model reads 64: the last 6 were cut" in said
    assert "30x20 pixels, made 16x16" in said
    assert branch.map.shape == (COUNT, SIZE, SIZE, 1) and (branch.map == -1).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"attributes": "hue=red"}, "sample.attributes='hue' is not one of colour, size, place"),
        ({"attributes": "colour=rod"}, "sample.attributes: colour='rod' is not one of red, green; did you mean 'red'?"),
        ({"map": "COLOUR"}, r"has 3 channels \(RGB\), the run's maps have 1 \(grey\)"),
        ({"map": "nowhere.png"}, "sample.map=nowhere.png is no file"),
        ({"style": "nowhere.png"}, "sample.style=nowhere.png is no file"),
        ({"image": "COLOUR"}, "sample.image and sample.inpaint belong together"),
        ({"prompt": "a AND b", "regions": "COLOUR"}, "sample.regions has 1 pictures for 2 parts of the prompt"),
        ({"labels": (9,)}, "sample.labels: 9 is no class; use 0 to 7"),
        ({"guidance.weights": "map=1"}, "'map' is not one of label"),
        ({"guidance.weights": "label=much"}, "sample.guidance.weights: 'label=much' must be like label=1.5"),
    ],
)
def test_what_cannot_be_is_refused(config, png, asked, message):
    colour = png("colour", np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3)))
    files = {"COLOUR": colour}
    config.sample.update_from_flattened_dict({key: files.get(value, value) for key, value in asked.items()})
    with pytest.raises(InputError, match=message):
        ask.from_config(config)


@pytest.mark.parametrize("key", ["prompt", "style", "map", "attributes", "negative"])
def test_a_condition_that_the_run_does_not_have_is_named_with_those_that_it_has(config, key):
    config.data.update(attributes=(), attribute_values=(), text="", style="", map="")
    config.sample[key] = "x"
    with pytest.raises(InputError, match=f"sample.{key}='x' .*not trained with; it has label"):
        ask.from_config(config)
