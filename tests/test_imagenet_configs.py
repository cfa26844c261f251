"""The configs with ADM's published settings build its networks: the parameters are counted, none is made."""

import functools
import math

import pytest

from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.experiment import build, trainers
from guided_diffusion_jax.experiment.config import preset
from guided_diffusion_jax.interop import adm, infer

# Millions, as published: Dhariwal & Nichol 2021, tables 11 (models), 12 (classifiers) and 13 (upsamplers).
MODELS = {"imagenet64": 296, "imagenet128": 422, "imagenet256": 554, "imagenet512": 559}
UPSAMPLERS = {"imagenet64_256": 312, "imagenet128_512": 309}
CLASSIFIERS = {"imagenet64": 65, "imagenet128": 43, "imagenet256": 54, "imagenet512": 54}


def section(config, part):
    """Settings of the network."""
    return config.model if part == "model" else config.classifier.model


def network(config, part="model"):
    """The config's network."""
    size = config.data.image_size
    if part == "classifier":
        return build.classifier_model(config, 1000, (size, size, 3))
    info = DatasetInfo(name="imagenet", length=0, image_shape=(size, size, 3), class_names=tuple(map(str, range(1000))))
    return build.model(config, info)


def shapes(config, part="model"):
    """Of its tensors in guided-diffusion, which have no null class."""
    order = section(config, part).attention_order
    return adm.adm_shapes(network(config, part), image_size=config.data.image_size, attention_order=order)


@functools.cache
def shapes_of(name, part="model"):
    """The same of a preset, traced once."""
    return shapes(preset(name), part)


def count(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize(("name", "millions"), (MODELS | UPSAMPLERS).items())
def test_model_has_the_published_number_of_parameters_and_the_tensors_tell_its_settings(name, millions):
    config = preset(name)
    tensors = shapes_of(name)
    assert round(count(tensors) / 1e6) == millions
    for key, value in infer.settings(tensors, config.data.image_size).items():
        assert value == (6 if key == "out_channels" else 1000 if key == "num_classes" else config.model[key]), key


@pytest.mark.parametrize(("name", "millions"), CLASSIFIERS.items())
def test_classifier_has_the_published_number_of_parameters_and_the_tensors_tell_its_settings(name, millions):
    config = preset(name)
    tensors = shapes_of(name, "classifier")
    assert round(count(tensors) / 1e6) == millions
    for key, value in infer.settings(tensors, config.data.image_size, config.classifier.model.num_res_blocks).items():
        assert value == (1000 if key == "num_classes" else config.classifier.model[key]), key


def test_the_unconditional_model_has_as_many_parameters_as_openais_file():
    # 256x256_diffusion_uncond.pt has 2,211,383,297 bytes, which leaves 126,953 for its names and shapes.
    config = preset("imagenet256")
    config.model.use_labels = False
    assert count(shapes(config)) == 552_814_086


@pytest.mark.parametrize("name", MODELS | UPSAMPLERS)
def test_the_rest_of_the_config_is_sound(name):
    config = preset(name)
    assert trainers.optimizer(config.train, "train")
    assert build.process(config).num_steps == 1000
    assert build.process(config).trajectory(config.sample.steps)
    assert config.diffusion.schedule == ("cosine" if name == "imagenet64" else "linear")


@pytest.mark.parametrize(
    ("name", "part"),
    [*((name, "model") for name in MODELS | UPSAMPLERS), *((name, "classifier") for name in CLASSIFIERS)],
)
def test_published_networks_are_recognised_with_what_the_tensors_do_not_tell(name, part):
    config = preset(name)
    known = infer.published(shapes_of(name, part), infer.kind(shapes_of(name, part)))
    assert known.image_size == config.data.image_size and known.schedule == config.diffusion.schedule
    assert known.attention_order == section(config, part).attention_order
    heads = {"head_width": known.head_width, **({} if known.head_width else {"num_heads": known.num_heads})}
    assert heads == {key: section(config, part)[key] for key in heads}
    assert known.kind == {"classifier": "classifier"}.get(part, "super_resolution" if "_" in name else "unet")
