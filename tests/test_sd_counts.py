"""Stable Diffusion's published networks have as many parameters as published."""

import math
from pathlib import Path

import pytest

from guided_diffusion_jax.finetuning import LAYERS
from guided_diffusion_jax.interop.stable_diffusion import CONTROLNETS, PRESETS, names

COUNTS = {
    "sd15": (859_520_964, 83_653_863, (123_060_480,)),
    "sd21": (865_910_724, 83_653_863, (340_387_840,)),
    "sdxl": (2_567_463_684, 83_653_863, (123_060_480, 694_659_840)),
}


def count(module):
    _, shapes = names.table(module, "diffusers")
    return sum(math.prod(shape.shape) for shape in shapes.values())


@pytest.mark.parametrize("name", COUNTS)
def test_presets_have_the_published_numbers_of_parameters(name):
    preset = PRESETS[name]
    preset.unet.check((preset.sample_size, preset.sample_size, 4))
    assert (count(preset.unet), count(preset.autoencoder), tuple(map(count, preset.text_encoders))) == COUNTS[name]


@pytest.mark.parametrize(("name", "published"), [("sd15", 361_279_120), ("sdxl", 1_251_014_160)])
def test_controlnets_have_the_published_numbers_of_parameters(name, published):
    assert count(CONTROLNETS[name]) == published


def test_a_lora_of_rank_8_has_the_number_of_parameters_that_is_written():
    _, shapes = names.table(PRESETS["sd15"].unet, "diffusers")
    changed = [shape.shape for path, shape in shapes.items() if path[-1] == "kernel" and LAYERS["attention"](path)]
    total = sum(8 * (math.prod(shape[:-1]) + shape[-1]) for shape in changed)
    text = (Path(__file__).parent.parent / "docs/finetuning.md").read_text()
    assert f"{total:,} parameters" in text
