"""The configs with ADM's published settings build its networks: the parameters are counted, none is made."""

import importlib
import math

import pytest

from guided_diffusion_jax.commands import build, networks
from guided_diffusion_jax.interop import adm, infer
from guided_diffusion_jax.models import classifier as classifiers
from guided_diffusion_jax.models.classifier import Classifier

# Millions, as published: Dhariwal & Nichol 2021, tables 11 (models), 12 (classifiers) and 13 (upsamplers).
MODELS = {"imagenet64": 296, "imagenet128": 422, "imagenet256": 554, "imagenet512": 559}
UPSAMPLERS = {"imagenet64_256": 312, "imagenet128_512": 309}
CLASSIFIERS = {"imagenet64": 65, "imagenet128": 43, "imagenet256": 54, "imagenet512": 54}


def get_config(name):
    return importlib.import_module(f"configs.{name}").get_config()


def network(config, part="model"):
    """The config's network."""
    if part == "model":
        return networks.network(config)
    fields = {key: value for key, value in config.classifier.items() if key in Classifier.__dataclass_fields__}
    classifier = Classifier(**fields, num_classes=config.model.num_classes)
    classifiers.check(classifier, config.data.image_size)
    return classifier


def shapes(config, part="model"):
    """Of its tensors in guided-diffusion, which have no null class."""
    order = config[part].attention_order
    return adm.adm_shapes(network(config, part), image_size=config.data.image_size, attention_order=order)


def count(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize(("name", "millions"), (MODELS | UPSAMPLERS).items())
def test_model_has_the_published_number_of_parameters_and_the_tensors_tell_its_settings(name, millions):
    config = get_config(name)
    tensors = shapes(config)
    assert round(count(tensors) / 1e6) == millions
    for key, value in infer.settings(tensors, config.data.image_size).items():
        assert value == (6 if key == "out_channels" else config.model[key]), key


@pytest.mark.parametrize(("name", "millions"), CLASSIFIERS.items())
def test_classifier_has_the_published_number_of_parameters_and_the_tensors_tell_its_settings(name, millions):
    config = get_config(name)
    tensors = shapes(config, "classifier")
    assert round(count(tensors) / 1e6) == millions
    for key, value in infer.settings(tensors, config.data.image_size, config.classifier.num_res_blocks).items():
        assert value == (1000 if key == "num_classes" else config.classifier[key]), key


def test_the_unconditional_model_has_as_many_parameters_as_openais_file():
    # 256x256_diffusion_uncond.pt has 2,211,383,297 bytes, which leaves 126,953 for its names and shapes.
    config = get_config("imagenet256")
    config.model.num_classes = 0
    assert count(shapes(config)) == 552_814_086


@pytest.mark.parametrize("name", MODELS | UPSAMPLERS)
def test_the_rest_of_the_config_is_sound(name):
    config = get_config(name)
    assert build.optimizer(config, "train")
    assert len(build.table(config).time) == 1000
    assert build.trajectory(config)
    assert config.diffusion.schedule == ("cosine" if name == "imagenet64" else "linear")


@pytest.mark.parametrize(
    ("name", "part"),
    [*((name, "model") for name in MODELS | UPSAMPLERS), *((name, "classifier") for name in CLASSIFIERS)],
)
def test_published_networks_are_recognised_with_what_the_tensors_do_not_tell(name, part):
    config = get_config(name)
    known = infer.published(shapes(config, part), infer.kind(shapes(config, part)))
    assert known.image_size == config.data.image_size and known.schedule == config.diffusion.schedule
    assert known.attention_order == config[part].attention_order
    heads = {"head_width": known.head_width, **({} if known.head_width else {"num_heads": known.num_heads})}
    assert heads == {key: config[part][key] for key in heads}
    assert known.kind == {"classifier": "classifier"}.get(part, "super_resolution" if "_" in name else "unet")
