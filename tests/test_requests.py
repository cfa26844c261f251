"""From what a user gives to a request: conditions, branches and weights; what does not fit is printed or refused.

Through `Pipeline.request`, and through the keys of `config.sample`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs.shapes_all import get_config
from guided_diffusion_jax import models, schedules
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.data.text import ByteTextEncoder
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.experiment import runs, sampling
from guided_diffusion_jax.guidance import WeightSchedule
from guided_diffusion_jax.guides import GuidingClassifier
from guided_diffusion_jax.pipeline import Pipeline
from guided_diffusion_jax.process import Process

SIZE, CLASSES, COUNT = 16, 8, 3
GREY = 127 / 127.5 - 1
INFO = DatasetInfo(
    name="arrays",
    length=0,
    image_shape=(SIZE, SIZE, 3),
    class_names=tuple("abcdefgh"),
    attributes=(("colour", ("red", "green")), ("size", ("small", "large")), ("place", ("left", "right"))),
    control_channels=1,
)


def pipeline(info=INFO, load_classifier=None, **settings):
    """Pipeline of a tiny U-Net, without numbers in its parameters."""
    unet = models.UNet(width=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), head_width=8, **settings)
    params = jax.eval_shape(lambda: models.init_params(unet, jax.random.key(0), info.image_shape))
    encoder = ByteTextEncoder(64) if unet.text else None
    process = Process(schedules.cosine(1000))
    return Pipeline(
        unet, params, process, info=info, text_encoder=encoder, load_classifier=load_classifier, place=False
    )


EVERYTHING = {
    "num_classes": CLASSES,
    "attribute_sizes": (2, 2, 2),
    "text": models.ByteEncoder(width=8, depth=1, length=64),
    "reference": models.ImageEncoder(channels=3, width=8, depth=2),
    "control_channels": 1,
}


@pytest.fixture(scope="module")
def pipe():
    return pipeline(**EVERYTHING)


@pytest.fixture(scope="module")
def of_classes():
    """Knows classes, and nothing else."""
    return pipeline(num_classes=CLASSES)


@pytest.fixture
def config():
    """As a run of `shapes_all` stores it."""
    c = get_config()
    c.sample.count = COUNT
    return c


@pytest.fixture
def png(tmp_path):
    """`png(name, pixels)` writes an image and returns its path."""

    def write(name, pixels):
        Image.fromarray(np.asarray(pixels, np.uint8)).save(tmp_path / f"{name}.png")
        return str(tmp_path / f"{name}.png")

    return write


def caption(branch):
    return ByteTextEncoder(1).decode(np.asarray(branch["text"]))[0]


def test_without_any_wish_classes_come_in_turn(config, pipe):
    request = runs.request(config, pipe)
    np.testing.assert_array_equal(request.branches[0]["label"], [0, 1, 2])
    assert caption(request.branches[0]) == "" and not request.branches[0]["control_image"].any()
    assert request.weights == (1.0,) and (request.null["label"] == CLASSES).all()
    np.testing.assert_array_equal(request.labels, [0, 1, 2])


def test_what_is_given_is_one_branch_and_the_rest_is_absent(config, pipe, png):
    style = png("style", np.full((SIZE, SIZE, 3), 127))
    config.sample.update(
        prompt="a red circle", attributes=(("size", "large"), ("colour", "green")), reference_image=style
    )
    (branch,) = runs.request(config, pipe).branches
    assert caption(branch) == "a red circle"
    np.testing.assert_array_equal(branch["attributes"], [[2, 2, 0]] * COUNT)
    np.testing.assert_allclose(branch["reference_image"], GREY, atol=1e-6)
    assert (branch["label"] == CLASSES).all() and not branch["control_image"].any()


def test_one_attribute_needs_no_outer_tuple(config, pipe):
    config.sample.attributes = ("size", "large")
    np.testing.assert_array_equal(runs.request(config, pipe).branches[0]["attributes"], [[0, 2, 0]] * COUNT)


def test_keywords_and_keys_of_the_config_make_the_same_request(config, pipe):
    config.sample.update(prompt="red AND NOT blue", labels=(4,), seed=5, steps=7, eta=0.5, sampler="ddim")
    config.sample.guidance.update(weights=(("label", 2.5),), interval=(100.0, 700.0))
    given = pipe.request(
        prompt="red AND NOT blue", labels="e", count=COUNT, seed=5, steps=7, eta=0.5, sampler="ddim",
        weights={"label": 2.5}, interval=(100.0, 700.0),
    )  # fmt: skip
    plain = [
        (jax.tree.structure(request), [np.asarray(leaf) for leaf in jax.tree.leaves(request._replace(key=0))])
        for request in (runs.request(config, pipe), given)
    ]
    assert plain[0][0] == plain[1][0]
    for mine, theirs in zip(plain[0][1], plain[1][1], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_arrays_stand_for_all_images_or_for_one_each(pipe):
    ones = np.full((SIZE, SIZE, 3), 255, np.uint8)
    each = np.linspace(-1, 1, 2 * SIZE * SIZE, dtype=np.float32).reshape(2, SIZE, SIZE, 1)
    (branch,) = pipe.request(reference_image=ones, control_image=each, count=2).branches
    assert branch["reference_image"].shape == (2, SIZE, SIZE, 3) and (branch["reference_image"] == 1).all()
    np.testing.assert_array_equal(branch["control_image"], each)
    assert caption(pipe.request(prompt=["a", "b"]).branches[0]) == "a"
    assert pipe.request(labels=["b", 3, "0"]).labels.tolist() == [1, 3, 0]
    assert pipe.request(labels=np.array([2, 4])).size == 2


def test_an_empty_prompt_is_the_null_and_all_bytes_are_known(config, pipe):
    config.sample.labels = (2,)
    request = runs.request(config, pipe)
    np.testing.assert_array_equal(request.branches[0]["text"], request.null["text"])
    config.sample.prompt = "\x01 \x7f é 🙂"
    assert caption(runs.request(config, pipe).branches[0]) == config.sample.prompt


def test_a_prompt_is_composed_of_its_parts_and_not_negates(config, pipe):
    config.sample.prompt = "NOT striped AND a circle AND red"
    request = runs.request(config, pipe)
    assert [caption(branch) for branch in request.branches] == ["a circle", "red", "striped"]
    assert request.weights == (1.0, 1.0, -3.0)  # 1 + w' = -(1 + w)


def test_conditions_with_their_own_weights_are_branches_of_their_own(config, pipe, png):
    style = png("style", np.zeros((SIZE, SIZE, 3)))
    config.sample.update(prompt="a circle", reference_image=style, labels=(4,))
    config.sample.guidance.weights = (("reference_image", 2.5),)
    request = runs.request(config, pipe)
    together, alone = request.branches
    assert caption(together) == "a circle" and not together["reference_image"].any() and (together["label"] == 4).all()
    assert caption(alone) == "" and (alone["reference_image"] == -1).all() and (alone["label"] == CLASSES).all()
    assert request.weights == (1.0, 2.5)


def test_regions_are_where_each_part_of_the_prompt_holds(config, pipe, png):
    left = np.zeros((SIZE, SIZE))
    left[:, : SIZE // 2] = 255
    config.sample.update(prompt="red AND NOT blue", regions=(png("left", left), png("right", 255 - left)))
    first, second = runs.request(config, pipe).weights
    assert first.shape == (COUNT, SIZE, SIZE, 1)
    assert (first[:, :, :8] == 1).all() and (first[:, :, 8:] == -1).all()
    assert (second[:, :, :8] == -1).all() and (second[:, :, 8:] == -3).all()


def test_a_negative_prompt_takes_the_place_of_the_null(config, pipe):
    config.sample.update(prompt="a circle", negative="striped")
    request = runs.request(config, pipe)
    assert caption(request.null) == "striped" and (request.null["label"] == CLASSES).all()


def test_an_image_to_complete_stays_where_the_mask_is_black(config, pipe, png):
    mask = np.zeros((SIZE, SIZE))
    mask[:4] = 255
    white = png("image", np.full((SIZE, SIZE, 3), 255))
    config.sample.update(image=white, inpaint_mask=png("mask", mask))
    inpaint = runs.request(config, pipe).inpaint
    assert (inpaint.images == 1).all() and (inpaint.mask[:, :4] == 0).all() and (inpaint.mask[:, 4:] == 1).all()
    # A network that was trained to complete images sees them, too.
    (branch,) = runs.request(config, pipeline(**EVERYTHING, masked_channels=3)).branches
    assert (branch["masked_image"][:, :4] == 0).all() and (branch["masked_image"][:, 4:] == 1).all()


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_a_mask_may_be_an_array_of_any_type(pipe, dtype):
    redrawn = np.zeros((SIZE, SIZE), bool)
    redrawn[:4] = True
    mask = redrawn.astype(dtype) * (dtype(255) if dtype is np.uint8 else dtype(1))
    inpaint = pipe.request(image=np.zeros((SIZE, SIZE, 3), np.uint8), inpaint_mask=mask).inpaint
    np.testing.assert_allclose(inpaint.mask[0, ..., 0], ~redrawn, atol=1e-6)


def test_a_mask_with_greys_is_made_black_and_white_unless_it_shall_be_soft(config, pipe, png, capsys):
    grey = png("mask", np.linspace(0, 255, SIZE * SIZE).reshape(SIZE, SIZE))
    config.sample.update(image=png("image", np.full((SIZE, SIZE, 3), 255)), inpaint_mask=grey)
    assert set(np.unique(runs.request(config, pipe).inpaint.mask)) == {0, 1}
    assert "were grey are made black or white" in capsys.readouterr().out
    config.sample.soft_mask = True
    assert len(np.unique(runs.request(config, pipe).inpaint.mask)) > 100
    config.sample.update(image=png("image", np.full((SIZE, 2 * SIZE, 3), 255)))
    with pytest.raises(InputError, match=r"sample.inpaint_mask=.* has 16x16 pixels and image=.* has 32x16"):
        runs.request(config, pipe)


def test_branches_without_influence_are_pruned(config, pipe):
    for weight, branches in ((0.0, 0), (-1.0, 0), (1.0, 1)):
        config.sample.guidance.weight = weight
        pruned = runs.request(config, pipe).prune_branches()
        assert len(pruned.branches) == branches
        assert (pruned.null["label"] == CLASSES).all() == (weight != 0)


def test_a_guidance_scale_is_one_more_than_the_weight(config, pipe):
    config.sample.guidance.guidance_scale = 3.5
    assert runs.request(config, pipe).weights == (2.5,)
    schedule = WeightSchedule(np.float32([0, 999]), np.float32([1, 4]))
    np.testing.assert_array_equal(pipe.request(labels=0, guidance_scale=schedule).weights[0].weights, [0, 3])
    config.sample.guidance.update(guidance_scale=None, weight_schedule=((0, 0.5), (999, 4.0)))
    (weight,) = runs.request(config, pipe).weights
    np.testing.assert_array_equal(weight, [[0, 999], [0.5, 4]])


def test_what_does_not_fit_but_can_be_used_is_printed(config, pipe, png, capsys):
    config.sample.update(prompt="x" * 70, control_image=png("map", np.zeros((20, 30))))
    (branch,) = runs.request(config, pipe).branches
    printed = capsys.readouterr().out
    assert "the prompt has 70 bytes of UTF-8, the model reads 64: the last 6 were cut" in printed
    assert "30x20 pixels, made 16x16" in printed
    assert branch["control_image"].shape == (COUNT, SIZE, SIZE, 1) and (branch["control_image"] == -1).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attributes": ("hue", "red")}, "sample.attributes='hue' is not one of colour, size, place"),
        (
            {"attributes": (("colour", "rod"),)},
            "sample.attributes: colour='rod' is not one of red, green; did you mean 'red'?",
        ),
        ({"attributes": (("colour", "red", "x"),)}, "sample.attributes: .* must have 2 values"),
        ({"control_image": "COLOUR"}, r"sample.control_image=.*has 3 channels \(RGB\), the model's have 1 \(grey\)"),
        ({"control_image": "nowhere.png"}, "sample.control_image=nowhere.png is no file"),
        ({"reference_image": "nowhere.png"}, "sample.reference_image=nowhere.png is no file"),
        ({"image": "COLOUR"}, "sample.image is given without inpaint_mask and strength"),
        ({"inpaint_mask": "COLOUR"}, "sample.image and inpaint_mask belong together"),
        ({"prompt": "a AND b", "regions": ("COLOUR",)}, "sample.regions has 1 masks for 2 parts of the prompt"),
        ({"labels": (9,)}, "sample.labels: 9 is no class; use 0 to 7"),
        ({"labels": ("z",)}, "sample.labels: z is no class; use 0 to 7 or a name: 0 a, 1 b"),
        ({"labels": ()}, "sample.labels is empty"),
        ({"count": 0}, "sample.count=0 must be at least 1"),
        (
            {"guidance.weights": ("control_image", 1.0)},
            "sample.guidance.weights: 'control_image' is none of the conditions that are given: label",
        ),
        ({"guidance.weights": ("label", "much")}, "sample.guidance.weights: label='much' must be a number"),
        ({"guidance.interval": (9.0, 3.0)}, r"sample.guidance.interval=\(9.0, 3.0\) is empty"),
        ({"eta": -1.0}, "sample.eta=-1.0 must not be negative"),
        ({"seed": -1}, "sample.seed=-1 must be a whole number"),
        ({"steps": 2000}, "sample.steps=2000 of 1000 training steps is too many; use at most 1000"),
        ({"sections": (400, 2, 0)}, r"sample.steps=\(400, 2, 0\) must be a whole number"),
        ({"low_res": "small.npz"}, "sample.low_res=small.npz is for super-resolution models"),
    ],
)
def test_what_cannot_be_is_refused(config, pipe, png, given, message):
    files = {"COLOUR": png("colour", np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3)))}
    for key, value in given.items():
        path = (
            files.get(value, value)
            if isinstance(value, str)
            else tuple(files.get(v, v) for v in value)
            if isinstance(value, tuple)
            else value
        )
        config.sample.update_from_flattened_dict({key: path})
    with pytest.raises(InputError, match=message):
        runs.request(config, pipe)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": True}, "labels: True is no class"),
        ({"labels": []}, "labels is empty"),
        ({"weight": 1.0, "guidance_scale": 2.0}, "weight and guidance_scale are both given"),
        (
            {"reference_image": np.zeros((8, 8, 3), np.uint8)},
            r"reference_image has shape .*8, 8, 3\); it must be \(16,",
        ),
        ({"reference_image": np.full((SIZE, SIZE, 3), 7.0)}, "reference_image goes from 0 to 7; floats must lie in"),
        ({"control_image": np.zeros((2, SIZE, SIZE, 1)), "count": 3}, "control_image has 2 images for 3 samples"),
        ({"low_res": np.zeros((1, 4, 4, 3), np.uint8)}, "low_res is given, but the model was not trained with it"),
        ({"conditions": {"hue": 1}}, "hue is given, but the model was not trained with it"),
        ({"conditions": {"label": np.zeros((3,), int)}, "count": 2}, r"label has shape \(3,\)"),
        ({"classifiers": {"ink": (1, 2.0)}}, "no classifier of ink"),
    ],
)
def test_keywords_that_cannot_be_are_refused(pipe, given, message):
    with pytest.raises(InputError, match=message):
        pipe.request(**given)


KEYS = ("prompt", "reference_image", "control_image", "negative")


@pytest.mark.parametrize("key", [*KEYS, "attributes"])
def test_a_condition_that_the_model_does_not_take_is_named_with_those_that_it_takes(config, of_classes, key):
    config.sample[key] = "x" if key in KEYS else ("colour", "red")
    with pytest.raises(InputError, match=f"sample.{key}=.* not trained with it; it has label"):
        runs.request(config, of_classes)


def test_labels_are_refused_where_there_are_no_classes(config):
    pipe = pipeline(text=EVERYTHING["text"])
    config.sample.prompt = "a star"
    assert runs.request(config, pipe).branches[0].keys() == {"text"}
    config.sample.labels = (1,)
    with pytest.raises(InputError, match=r"sample.labels=\(1,\), but this run has no classes"):
        runs.request(config, pipe)


def test_a_classifier_steers_to_the_labels_and_needs_them(config):
    asked = []

    def load(attribute):
        asked.append(attribute)
        return GuidingClassifier(jax.tree_util.Partial(lambda label, x, level: jnp.zeros(len(x))), tuple("abcdefgh"))

    pipe = pipeline(**EVERYTHING, load_classifier=load)
    config.sample.guidance.update(classifier_weight=2.0, classifiers=("ink", 1, 0.5))
    guides = runs.request(config, pipe).guides
    assert asked == ["label", "ink"] and [guide.weight for guide in guides] == [2.0, 0.5]
    assert guides[0].label.tolist() == [0, 1, 2] and guides[1].label.tolist() == [1, 1, 1]
    config.sample.prompt = "a star"  # and so no class
    with pytest.raises(
        InputError, match=r"sample.guidance.classifier_weight steers to a class, but no labels are given"
    ):
        runs.request(config, pipe)
    config.sample.update(prompt="", labels=(1,))
    config.sample.guidance.classifiers = ("ink", 9, 0.5)
    with pytest.raises(InputError, match=r"sample.guidance.classifiers: 9 is no value of ink; use 0 to 7"):
        runs.request(config, pipe)


def test_small_images_are_needed_by_a_super_resolution_model():
    unet = models.UNet(width=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), head_width=8)
    model = models.SuperResolution(unet, low_res_size=4)
    pipe = Pipeline(model, {}, Process(schedules.cosine(1000)), (SIZE, SIZE, 3), place=False)
    with pytest.raises(InputError, match="low_res is missing"):
        pipe.request()
    small = np.full((2, 4, 4, 3), 255, np.uint8)
    request = pipe.request(low_res=small)
    assert request.size == 2 and (request.null["low_res"] == 1).all() and request.branches == ()


def test_the_wishes_of_a_config_are_keywords_of_a_request(config, pipe):
    wishes = sampling.wishes(config, CLASSES)
    assert wishes["labels"] == tuple(range(CLASSES)) and wishes["count"] == COUNT and wishes["steps"] == 25
    config.sample.sections = (10, 20)
    assert sampling.wishes(config, CLASSES)["steps"] == (10, 20)
