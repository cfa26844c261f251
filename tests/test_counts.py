"""Numbers of parameters in documents and configurations are those of the networks, of which none is made."""

import functools
import re
from pathlib import Path

import jax
import pytest
from test_imagenet_configs import CLASSIFIERS, MODELS, UPSAMPLERS

from guided_diffusion_jax import models, profiling
from guided_diffusion_jax.commands.dry_run import NUM_CLASSES
from guided_diffusion_jax.data.dataset import DatasetInfo
from guided_diffusion_jax.data.shapes.scenes import ATTRIBUTES
from guided_diffusion_jax.experiment import build
from guided_diffusion_jax.experiment.config import preset

ROOT = Path(__file__).parent.parent


def info(config):
    """What the data set of a configuration tells a network; a folder has two classes."""
    name, size = config.data.name.partition("/")[0], config.data.image_size
    return DatasetInfo(
        name=name,
        length=0,
        image_shape=(size, size, 1 if name == "digits" else 3),
        class_names=tuple(map(str, range(NUM_CLASSES.get(name, 2)))),
        attributes=tuple((key, ATTRIBUTES[key]) for key in config.data.attributes),
        control_channels=3 if config.data.control_image else 0,
    )


@functools.cache
def count(name, part="model", **overrides):
    """Parameters of a preset's network: "model", "classifier" or "autoencoder"; of a ControlNet those of the branch.

    Those of ADM's networks are held to the published millions in test_imagenet_configs.py.
    """
    if name in MODELS | UPSAMPLERS:
        return 1_000_000 * (CLASSIFIERS if part == "classifier" else MODELS | UPSAMPLERS)[name]
    config = preset(name)
    config.update_from_flattened_dict(overrides)
    about = info(config)
    shape = about.image_shape
    if config.model.autoencoder and part == "model":
        coder = build.autoencoder_model(config, shape)
        shape = (shape[0] // coder.factor, shape[1] // coder.factor, coder.latent_channels)
    if part == "autoencoder":
        network = build.autoencoder_model(config, shape)
    elif part == "classifier":
        network = build.classifier_model(config, len(about.class_names), about.image_shape)
    elif config.model.name == "controlnet":
        config.model.name = "unet"
        network = build.with_branch(
            build.model(config, DatasetInfo(**vars(about) | {"control_channels": 0})), config, about
        )
    else:
        network = build.model(config, about, shape)
    shapes = jax.eval_shape(lambda key: models.init_params(network, key, shape), jax.random.key(0))
    return profiling.count(shapes.get("controlnet", shapes))


def agrees(said, number):
    """Whether a count as it is written ("44M", "0.76M", "1,422,819") is this number, rounded as far as it is written.

    >>> agrees("44M", 44_175_363), agrees("44.1M", 44_175_363), agrees("7", 7)
    (True, False, True)
    """
    digits = said.removesuffix("M").replace(",", "")
    if not said.endswith("M"):
        return int(digits) == number
    return f"{number / 1e6:.{len(digits.partition('.')[2])}f}" == digits


MILLIONS = r"([0-9.]+M)"
CLAIMS = [
    *(
        ("README.md", rf"`configs/{name}.py`\].* \| {MILLIONS} \|", name, {})
        for name in ("digits", "small", "cifar10", "default")
    ),
    ("README.md", rf"`--config=default`, with {MILLIONS} parameters", "default", {}),
    ("README.md", rf"`small` is a network of {MILLIONS} parameters", "small", {}),
    ("README.md", rf"`configs/text_to_image.py`\].* \| {MILLIONS} \|", "text_to_image", {"model.use_labels": False}),
    ("README.md", rf"shapes_class.py.* \| {MILLIONS} to ", "shapes_control", {}),
    ("README.md", rf"shapes_class.py.* to {MILLIONS} \|", "shapes_all", {}),
    ("README.md", rf"imagenet64.py.* \| {MILLIONS} to ", "imagenet64", {}),
    ("README.md", rf"imagenet64.py.* to {MILLIONS} \|", "imagenet512", {}),
    ("docs/results.md", rf"U-Net with {MILLIONS} parameters, trained for 1,000", "digits", {}),
    ("docs/results.md", rf"classifier has {MILLIONS} parameters", "digits", {"part": "classifier"}),
    ("docs/results.md", rf"U-Net with {MILLIONS} parameters was trained for 600", "digits_report", {}),
    ("docs/results.md", rf"class-conditional \|.*\| {MILLIONS} \|", "digits_report", {}),
    ("docs/results.md", rf"a branch with {MILLIONS} parameters", "shapes_control", {}),
    (
        "docs/results.md",
        rf"{MILLIONS} parameters, 200 steps",
        "cifar10",
        {"model.width": 32, "model.num_res_blocks": 1, "model.head_width": 32},
    ),
    ("docs/accelerator.md", rf"{MILLIONS} parameters, batch 128", "cifar10", {}),
    ("docs/performance.md", r"digits: ([0-9,]+) parameters", "digits", {}),
    (
        "docs/performance.md",
        r"cifar10-small: ([0-9,]+) parameters",
        "cifar10",
        {"model.width": 32, "model.channel_mult": (1, 2, 2), "model.num_res_blocks": 1},
    ),
    (
        "docs/performance.md", rf"`8m` has {MILLIONS} parameters", "cifar10",
        {"model.width": 64, "model.channel_mult": (1, 2, 2), "model.num_res_blocks": 2},
    ),
    ("docs/performance.md", r"digits: [0-9,]+ and ([0-9,]+) parameters", "digits", {}),
    (
        "docs/performance.md", r"8m: [0-9,]+ and ([0-9,]+) parameters", "cifar10",
        {"model.width": 64, "model.channel_mult": (1, 2, 2), "model.num_res_blocks": 2},
    ),
    ("docs/export.md", r"([0-9,]+) parameters, of training step", "digits", {}),
    ("docs/scaling.md", r"([0-9,]+) parameters: decoder", "digits", {}),
    ("docs/serve.md", r"in the package: ([0-9,]+) parameters", "digits", {"model.width": 16}),
    ("docs/latent_diffusion.md", rf"the preset has {MILLIONS} parameters", "shapes64_latent", {"part": "autoencoder"}),
    ("README.md", rf"latent_diffusion.md\)\) \| {MILLIONS} and", "shapes64_latent", {"part": "autoencoder"}),
    ("README.md", r"latent_diffusion.md\)\) \| [0-9.]+M and ([0-9.]+M)", "shapes64_latent", {}),
    ("README.md", rf"pictures256_latent.py\).* \| {MILLIONS} and", "pictures256_latent", {"part": "autoencoder"}),
    (
        "README.md", r"pictures256_latent.py\).* \| [0-9.]+M and ([0-9.]+M)", "pictures256_latent",
        {"model.use_labels": False},
    ),
    ("README.md", rf"cifar10_latent.py\).* \| {MILLIONS} and", "cifar10_latent", {"part": "autoencoder"}),
    ("README.md", r"cifar10_latent.py\).* \| [0-9.]+M and ([0-9.]+M)", "cifar10_latent", {}),
    ("docs/scaling.md", rf"imagenet64 \| {MILLIONS} \|", "imagenet64", {}),
    ("docs/scaling.md", rf"imagenet64, classifier \| {MILLIONS} \|", "imagenet64", {"part": "classifier"}),
    *(
        (f"configs/{name}.py", rf"{MILLIONS} parameters", name, {})
        for name in (
            "cifar10", "imagenet64", "imagenet128", "imagenet256", "imagenet512", "imagenet64_256", "imagenet128_512"
        )
    ),
    *(
        (f"configs/{name}.py", rf"the classifier {MILLIONS}", name, {"part": "classifier"})
        for name in ("imagenet64", "imagenet128", "imagenet256", "imagenet512")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("file", "pattern", "name", "settings"), CLAIMS, ids=lambda value: str(value)[:40])
def test_a_number_of_parameters_is_that_of_the_network(file, pattern, name, settings):
    said = re.findall(pattern, (ROOT / file).read_text())
    assert said, f"{file} no longer says {pattern}; mend CLAIMS"
    number = count(name, **settings)
    assert all(agrees(one, number) for one in said), f"{file} says {said}; {name} has {number:,}"


def test_every_number_of_parameters_is_checked():
    """A sentence or a table's cell with a new count needs a line in CLAIMS, or belongs to another test."""
    elsewhere = {"docs/interop.md", "docs/finetuning.md"}  # test_imagenet_configs.py, test_sd_counts.py
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*.py")]:
        file, text = str(path.relative_to(ROOT)), path.read_text()
        known = [match[1] for claim in CLAIMS if claim[0] == file for match in re.finditer(claim[1], text)]
        found = re.findall(r"([0-9.]+M|[0-9]+(?:,[0-9]{3})+) parameters", text)
        assert file in elsewhere or not set(found) - set(known), f"{file}: {found}"
