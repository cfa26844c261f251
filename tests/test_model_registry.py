"""Models as descriptions, and their parameters."""

import json

import jax
import jax.numpy as jnp
import pytest

from guided_diffusion_jax import models
from guided_diffusion_jax.errors import InputError

UNET = models.UNet(
    width=8, channel_mult=(1, 1.5), head_width=4, num_classes=3, text=models.ByteEncoder(width=8), masked_channels=3,
    reference=models.ImageEncoder(width=8), dtype=jnp.bfloat16, condition_resolutions=(("text", (16,)),),
    extra=(("hue", True),),
)  # fmt: skip
MODELS = [
    UNET,
    UNET.clone(text=models.FeatureEncoder(features=4, width=8), dtype=jnp.float32),
    models.SuperResolution(UNET, low_res_size=8),
    models.ControlNet(UNET, control_channels=2),
    models.Classifier(width=8, head_width=4, pool="spatial"),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_a_description_survives_json_and_makes_the_same_model(model):
    description = json.loads(json.dumps(models.describe(model)))
    assert description == models.describe(model)
    assert models.create(description) == model
    models.check(model, (32, 32, 3))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"name": "unett"}, "model.name='unett' is not one of unet, .*did you mean 'unet'"),
        ({"name": "unet", "widht": 8}, "unet='widht' is not one of width, .*did you mean 'width'"),
        ({"name": "unet", "dtype": "float31"}, "dtype='float31' is not one of float32"),
    ],
)
def test_wrong_descriptions_are_refused(description, message):
    with pytest.raises(InputError, match=message):
        models.create(description)


def test_settings_that_are_left_out_have_their_defaults():
    assert models.create({"name": "unet"}) == models.UNet()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_fresh_parameters_fit_every_model(model):
    params = jax.eval_shape(lambda key: models.init_params(model, key, (32, 32, 3)), jax.random.key(0))
    expected = {"SuperResolution": {"unet"}, "ControlNet": {"unet", "controlnet"}}
    assert params.keys() >= expected.get(type(model).__name__, {"embedding", "encoder"})


def test_the_names_of_the_package_are_those_that_it_lists():
    assert all(hasattr(models, name) for name in models.__all__) and dir(models) == sorted(models.__all__)
