"""Class accuracy: how often a classifier recognises the class that an image was generated for."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Integer

from guided_diffusion_jax import sharding
from guided_diffusion_jax.data.dataset import Dataset
from guided_diffusion_jax.data.pipeline import numbered
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.objectives import classification_losses
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.random import sample_keys
from guided_diffusion_jax.runtime import notices
from guided_diffusion_jax.typing import Params


class ClassAccuracy(NamedTuple):
    """Share of correct images, 0 .. 1, among the images of one requested class."""

    name: str
    accuracy: float
    num_images: int


class Accuracy(NamedTuple):
    """Share of all images that show the requested class, 0 .. 1, and that of each requested class, in class order."""

    overall: float
    classes: list[ClassAccuracy]


def class_accuracy(
    predicted: Integer[Array | np.ndarray, " _n"],
    label: Integer[Array | np.ndarray, " _n"],
    names: Sequence[str] | None = None,
) -> Accuracy:
    """Class accuracy, overall and by class.

    Args:
        predicted: class of each image, from 0.
        label: class requested for it.
        names: class names; None: their numbers.

    Raises:
        InputError: the counts differ or are 0, or a label has no name.
    """
    predicted, label = np.asarray(predicted), np.asarray(label)
    require(
        len(predicted) == len(label) > 0,
        f"{len(predicted)} predictions for {len(label)} labels; give one for each of 1 image at least",
    )
    require(
        names is None or bool(0 <= label.min() <= label.max() < len(names)),
        f"labels {label.min()} .. {label.max()} for {len(names or ())} names; use 0 .. {len(names or ()) - 1}",
    )
    correct = predicted == label
    classes = []
    for number in np.unique(label).tolist():
        of_class = correct[label == number]
        name = str(number) if names is None else names[number]
        classes.append(ClassAccuracy(name, float(of_class.mean()), len(of_class)))
    return Accuracy(float(correct.mean()), classes)


POINTS = 20
"""Noise levels at which the accuracy of a noise-aware classifier is measured."""


def accuracy_by_time(
    model: nn.Module,
    params: Params,
    data: Dataset,
    process: Process,
    *,
    batch_size: int = 256,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> dict[str, list[float]]:
    """Accuracy of a noise-aware classifier on noisy images, at `POINTS` noise levels evenly spaced in t.

    Args:
        model: the classifier.
        params: its parameters.
        data: held-out images with labels.
        process: that noises them.
        batch_size: images at a time.
        seed: of the noise.
        mesh: devices; None is all of them.

    Returns:
        "time" and "accuracy", a value a noise level.
    """
    devices = sharding.mesh() if mesh is None else mesh
    times = np.linspace(0, process.num_steps - 1, POINTS).round().astype(np.int32)
    apply = sharding.gathering(devices)(lambda params, x, time: model.apply({"params": params}, x, time))

    @functools.partial(
        jax.jit, out_shardings=sharding.replicated(devices), compiler_options=sharding.compiler_options()
    )
    def right(params, batch, t):
        keys = sample_keys(jax.random.fold_in(jax.random.key(seed), t), batch["number"])
        at = jnp.full(len(batch["image"]), t)
        network = functools.partial(apply, params)
        found = classification_losses(network, keys, batch["image"], batch["label"], process.levels, at)
        return found.figures["accuracy"] @ batch["weight"]

    totals = np.zeros(POINTS)
    size = sharding.round_up(min(batch_size, len(data)), devices.size)
    with notices.progress(-(-len(data) // size), f"accuracy on {data.name}", " batches", leave=False) as bar:
        for batch in numbered(data, len(data), size, jax.process_index(), jax.process_count()):
            named = {key: batch[key] for key in ("image", "label", "number", "weight")}
            on_devices = sharding.put_batch(named, devices)
            with notices.compiling("the accuracy", params, on_devices):
                found = [right(params, on_devices, t) for t in times]
            totals += found
            bar.update()
    return {"time": times.astype(float).tolist(), "accuracy": (totals / len(data)).tolist()}
