"""The configs with ADM's published settings build its networks: the parameters are counted, none is made."""

import importlib

import jax
import jax.numpy as jnp
import pytest

from guided_diffusion_jax.commands import build
from guided_diffusion_jax.models import classifier as classifiers
from guided_diffusion_jax.models.classifier import Classifier
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.typing import Conditions

# Millions, as published: Dhariwal & Nichol 2021, tables 11 (models), 12 (classifiers) and 13 (upsamplers).
MODELS = {"imagenet64": 296, "imagenet128": 422, "imagenet256": 554, "imagenet512": 559}
UPSAMPLERS = {"imagenet64_256": 312, "imagenet128_512": 309}
CLASSIFIERS = {"imagenet64": 65, "imagenet128": 43, "imagenet256": 54, "imagenet512": 54}


def get_config(name):
    return importlib.import_module(f"configs.{name}").get_config()


def count(module, *inputs):
    tree = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def images(size):
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


def count_model(config):
    """As guided-diffusion's network has them, without our null class."""
    unet = build.unet(config)
    small = config.data.low_res_size
    module = SuperResolution(unet) if small else unet
    conditions = Conditions(low_res=images(small) if small else None)
    null = 4 * unet.width if unet.num_classes else 0
    return count(module, images(config.data.image_size), jnp.zeros(1), conditions) - null


@pytest.mark.parametrize(("name", "millions"), (MODELS | UPSAMPLERS).items())
def test_model_has_the_published_number_of_parameters(name, millions):
    assert round(count_model(get_config(name)) / 1e6) == millions


def test_the_unconditional_model_has_as_many_parameters_as_openais_file():
    # 256x256_diffusion_uncond.pt has 2,211,383,297 bytes, which leaves 126,953 for its names and shapes.
    config = get_config("imagenet256")
    config.model.num_classes = 0
    assert count_model(config) == 552_814_086


@pytest.mark.parametrize(("name", "millions"), CLASSIFIERS.items())
def test_classifier_has_the_published_number_of_parameters(name, millions):
    config = get_config(name)
    fields = {key: value for key, value in config.classifier.items() if key in Classifier.__dataclass_fields__}
    classifier = Classifier(**fields, num_classes=config.model.num_classes)
    classifiers.check(classifier, config.data.image_size)
    assert round(count(classifier, images(config.data.image_size), jnp.zeros(1)) / 1e6) == millions


@pytest.mark.parametrize("name", MODELS | UPSAMPLERS)
def test_the_rest_of_the_config_is_sound(name):
    config = get_config(name)
    assert build.optimizer(config)
    assert len(build.table(config).time) == 1000
    assert build.trajectory(config)
    assert config.diffusion.schedule == ("cosine" if name == "imagenet64" else "linear")
