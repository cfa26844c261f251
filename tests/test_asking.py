"""What is asked of a model: labels by name or number, weights that have something to act on, numbers that are numbers.

The same checks and words for the keys of `config.sample` and for the keywords of a pipeline.
"""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from test_requests import CLASSES, EVERYTHING, INFO, SIZE, pipeline

from configs.shapes_all import get_config
from guided_diffusion_jax import loading, models
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.experiment import config as configs
from guided_diffusion_jax.experiment import runs
from guided_diffusion_jax.guidance import WeightSchedule


@pytest.fixture(scope="module")
def of_classes():
    return pipeline(num_classes=CLASSES)


@pytest.fixture(scope="module")
def unconditional():
    return pipeline()


@pytest.fixture
def config():
    c = get_config()
    c.sample.count = 3
    return c


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [("c", [2]), (["c", 3, "0"], [2, 3, 0]), (np.array([1, 7]), [1, 7]), (np.int64(4), [4]), (("h",), [7]), ("5", [5])],
)
def test_labels_are_names_or_numbers(labels, numbers, of_classes):
    np.testing.assert_array_equal(of_classes.request(labels=labels).labels, numbers)


def test_a_name_that_is_a_number_is_the_name_where_it_is_a_text(config):
    numbered = pipeline(dataclasses.replace(INFO, class_names=("3", "5", "7")), num_classes=3)
    assert numbered.request(labels=["3", 2, "1", "7"]).labels.tolist() == [0, 2, 1, 2]
    config.sample.labels = (5, "7", 1)  # --config.sample.labels=5,7,1
    assert runs.request(config, numbered).labels.tolist() == [1, 2, 1]
    with pytest.raises(InputError, match="labels: 9 is no class; use 0 to 2 or a name: 0 3, 1 5, 2 7"):
        numbered.request(labels=9)


@pytest.mark.parametrize("label", ["goldfisch", "-3", 1000, -1, True])
def test_a_class_that_there_is_not_is_refused_with_names_and_numbers(label):
    names = ("tench", "goldfish", *(f"animal {i}" for i in range(998)))
    many = pipeline(dataclasses.replace(INFO, class_names=names), num_classes=1000)
    with pytest.raises(InputError) as refused:
        many.request(labels=[label])
    message = str(refused.value)
    assert f"labels: {label} is no class; use 0 to 999 or a name: 0 tench, 1 goldfish, 2 animal 0" in message
    assert message.endswith("did you mean 'goldfish'?") == (label == "goldfisch") and len(message) < 300


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], ["a", "b", "c", "d"], np.arange(8)])
def test_more_labels_than_images_are_refused(labels, of_classes, config):
    with pytest.raises(InputError, match=f"labels has {len(labels)} classes for 3 images; give count={len(labels)} or"):
        of_classes.request(labels=labels, count=3)
    config.sample.labels = tuple(map(str, labels))
    with pytest.raises(InputError, match=f"sample.labels has {len(labels)} classes for 3 images"):
        runs.request(config, of_classes)


SCHEDULE = WeightSchedule(np.float32([0, 999]), np.float32([1, 4]))


@pytest.mark.parametrize("asked", [{"weight": 2.0}, {"weight": 1}, {"guidance_scale": 7.5}, {"weight": SCHEDULE}])
def test_guidance_without_a_condition_is_refused(asked, unconditional, of_classes):
    (name,) = asked
    with pytest.raises(InputError, match=f"{name}=.* none is given: this run has no classes"):
        unconditional.request(**asked)
    with pytest.raises(InputError, match=f"{name}=.* none is given: give some of labels"):
        of_classes.request(**asked)


def test_without_conditions_the_plain_model_can_be_asked_for(unconditional, of_classes, config):
    for weight in (None, 0, -1.0):
        assert unconditional.request(weight=weight).branches == of_classes.request(weight=weight).branches == ()
    assert runs.request(config, unconditional).branches == ()
    config.sample.guidance.weight = 2.0
    with pytest.raises(InputError, match=r"sample.guidance.weight=2.0 .* this run has no classes"):
        runs.request(config, unconditional)


@pytest.fixture(scope="module")
def without_null():
    """As it comes from a run that was trained with `cfg_dropout` 0."""
    made = pipeline(num_classes=CLASSES)
    made.null_trained = False
    return made


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"weight": 1.0}, "weight=1.0 needs a null .*train.cfg_dropout=0.*; use weight=0"),
        ({"guidance_scale": 3.0}, "guidance_scale=3.0 needs a null .*; use weight=0"),
        ({"weight": -1.0}, "weight=-1.0 needs a null .*; use weight=0"),
        ({"weight": SCHEDULE}, "needs a null .*; use weight=0"),
        ({"labels": None}, "labels is missing: an image without conditions needs a null"),
    ],
)
def test_a_network_that_was_trained_without_a_null_is_not_guided(asked, message, without_null):
    with pytest.raises(InputError, match=message):
        without_null.request(**{"labels": 1, **asked})


def test_without_a_null_the_plain_conditional_model_is_the_default(without_null, config):
    assert without_null.request(labels=1).weights == without_null.request(labels=1, weight=0).weights == (0.0,)
    assert runs.request(config, without_null).weights == (0.0,)
    assert "weight=0, the plain conditional model" in runs.unusual(config, without_null)
    config.sample.guidance.weight = 2.0
    with pytest.raises(InputError, match=r"sample.guidance.weight=2.0 needs a null"):
        runs.request(config, without_null)


def test_a_null_that_was_not_trained_concerns_models_without_classes_too():
    made = pipeline(attribute_sizes=(2, 2, 2))
    made.null_trained = False
    assert made.request(attributes={"colour": "red"}, weight=0).prune_branches().branches == ()
    with pytest.raises(InputError, match=r"weight=2.0 needs a null"):
        made.request(attributes={"colour": "red"}, weight=2.0)


def test_a_run_without_conditions_says_so(unconditional, of_classes, config):
    assert "the images are unconditional" in runs.unusual(config, unconditional)
    assert runs.unusual(config, of_classes) == ""


@pytest.mark.parametrize(
    ("rate", "rates", "model", "trained"),
    [
        (0.1, {}, "unet", True),
        (0.0, {}, "unet", False),
        (0.0, {"label": 0.0}, "unet", False),
        (0.0, {"label": 0.1}, "unet", True),
        (0.0, {}, "controlnet", True),
    ],
)
def test_a_run_knows_whether_its_null_was_trained(rate, rates, model, trained):
    objective = {"name": "denoising", "condition_dropout": rate, "per_condition_dropout": rates}
    assert loading.null_trained({"objective": objective, "model": {"name": model}}) == trained
    assert loading.null_trained({"model": {"name": model}})  # imported


NAN = float("nan")
HUGE = 10**30


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"weight": NAN}, "weight=nan must be a finite number"),
        ({"weight": np.array([1.0, np.inf])}, "weight=.* must be finite, in every place"),
        ({"weight": WeightSchedule([0, 999], [1.0, NAN])}, "weight=.* must be a finite number|in every place"),
        ({"guidance_scale": -float("inf")}, "guidance_scale=-inf must be a finite number"),
        ({"weights": {"label": NAN}}, "weights: label=nan must be a finite number"),
        ({"eta": NAN}, "eta=nan must be a finite number"),
        ({"interval": (0.0, NAN)}, "interval=nan must be a finite number"),
        ({"steps": HUGE}, "steps=1000000000000000000000000000000 is too many"),
        ({"steps": HUGE, "spacing": "logsnr"}, "steps=1000000000000000000000000000000 is too many"),
        ({"steps": HUGE, "spacing": "stride"}, "steps=1000000000000000000000000000000 is too many"),
        ({"steps": True}, "steps=True must be a whole number"),
        ({"seed": -1}, "seed=-1 must be a whole number in 0"),
        ({"seed": 2**63}, "seed=9223372036854775808 must be a whole number in 0"),
        ({"seed": True}, "seed=True must be a whole number in 0"),
        ({"count": 0}, "count=0 must be at least 1"),
        ({"count": HUGE}, "count=1000000000000000000000000000000 must be a whole number of at most 64 bits"),
        ({"count": True}, "count=True must be a whole number"),
        ({"sampler": "dimm"}, "^sampler='dimm' is not one of ddim"),
        ({"spacing": "even"}, "^spacing='even' is not one of linspace"),
    ],
)
def test_keywords_are_refused_by_their_own_names(keywords, message, of_classes):
    with pytest.raises(InputError, match=message):
        of_classes.request(labels=1, **keywords)


def test_wrong_types_are_refused_in_one_line_in_a_users_own_process():
    """Without the checks of types that these tests switch on."""
    code = f"""
import numpy as np, guided_diffusion_jax as gd, sys
sys.path[:0] = ["tests", "."]
from test_requests import EVERYTHING, pipeline
pipe = pipeline(**EVERYTHING)
picture = np.zeros(({SIZE}, {SIZE}, 3), np.uint8)
for keywords in (
    dict(seed=1.5), dict(seed="0"), dict(count=2.0), dict(count="2"), dict(labels=3.7), dict(labels=np.ones((2, 2))),
    dict(labels=1, weight="2"), dict(labels=1, eta="0"), dict(labels=1, interval=(1, 2, 3)), dict(labels=1, interval=5),
    dict(reference_image=picture.tolist()), dict(reference_image=picture.astype(np.int64)), dict(labels=1, steps=2.5),
    dict(reference_image=picture[:8]), dict(control_image=picture), dict(reference_image=5), dict(labels={{}}),
):
    try:
        pipe.request(**keywords)
        print("taken", keywords.keys())
    except gd.InputError as error:
        print("refused", error)
for argument in (5, None, "no/such/folder", "tests", ["a"]):
    try:
        gd.load(argument)
    except gd.InputError as error:
        print("refused", error)
for keywords in (dict(batch_size=0), dict(batch_size=2.5), dict(batch_size=True)):
    try:
        pipe(labels=1, **keywords)
    except gd.InputError as error:
        print("refused", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 25 and all(line.startswith("refused") for line in lines), done.stdout
    assert "sample." not in done.stdout


def test_numbers_of_the_configuration_are_refused_by_the_names_of_keys(config):
    for key, value, message in (
        ("train.learning_rate", NAN, "train.learning_rate=nan must be a finite number"),
        ("sample.seed", -1, "sample.seed=-1 must be a whole number in 0"),
        ("seed", HUGE, "seed=1000000000000000000000000000000 must be a whole number in 0"),
        ("evaluate.sweep.weight", (1.0, NAN), "evaluate.sweep.weight=nan must be a finite number"),
        ("sample.guidance.weight_schedule", ((0, NAN),), "sample.guidance.weight_schedule=nan must be a finite"),
        ("model.channel_mult", (1, "x"), "model.channel_mult='x' must be a number"),
    ):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({key: value})
        with pytest.raises(InputError, match=message):
            configs.check(changed)
    configs.check(config)
    config.model.widht = 8
    with pytest.raises(InputError, match=r"model.widht is no key of the config; did you mean 'model.width'\?"):
        configs.check(config)


def test_everything_conditional_still_needs_only_one_of_its_conditions():
    pipe = pipeline(**EVERYTHING)
    assert pipe.request(prompt="a star", weight=2.0).weights == (2.0,)
    assert models.num_classes(pipe.model) == CLASSES
