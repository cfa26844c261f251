"""From a configuration to the things it names, checked before anything expensive starts."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict

from guided_diffusion_jax import losses, schedules
from guided_diffusion_jax.commands import kinds, networks
from guided_diffusion_jax.conditions import check_rates, drop, null_like
from guided_diffusion_jax.data.augmentation import random_crop
from guided_diffusion_jax.data.dataset import Dataset as Source
from guided_diffusion_jax.data.sources import load
from guided_diffusion_jax.denoisers import conditional_denoiser
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.generation import SOLVERS, Generator
from guided_diffusion_jax.models.classifier import Classifier
from guided_diffusion_jax.prediction import PREDICTIONS
from guided_diffusion_jax.training import parallel, state
from guided_diffusion_jax.training.step import LossFunction, train_step
from guided_diffusion_jax.typing import Level


def source(config: ConfigDict, split: str = "train") -> Source:
    """The data set.

    Raises:
        InputError: there is none such, or it lacks what the config makes conditions of.
    """
    d = config.data
    return load(
        d.name,
        split=split,
        image_size=d.image_size,
        data_dir=d.data_dir,
        text_encoder=kinds.reader(config) if d.text else None,
        **kinds.columns(config)._asdict(),
    )


def resolve(config: ConfigDict, data: Source) -> ConfigDict:
    """The config with what it leaves to the data: channels, the names and numbers of classes and attributes' values.

    Raises:
        InputError: it asks for other numbers than the data has.
    """
    resolved = config.copy_and_resolve_references()
    channels, classes = data.image_shape[2], data.num_classes
    require(
        config.data.channels in (0, channels), f"data.channels={config.data.channels}, but {data.name} has {channels}"
    )
    maps = config.data.map_channels
    require(
        maps in (0, data.control_channels),
        f"data.map_channels={maps}, but the maps of {data.name} have {data.control_channels}",
    )
    asked = config.model.num_classes
    require(
        asked in (-1, 0, classes), f"model.num_classes={asked}, but {data.name} has {classes}; use that, or 0 for none"
    )
    resolved.data.channels = channels
    resolved.data.class_names = data.class_names
    resolved.data.attribute_values = tuple(values for _, values in data.attributes)
    resolved.data.map_channels = data.control_channels
    resolved.model.num_classes = classes if asked == -1 else asked
    return resolved


def classifier_loss(network: Classifier, config: ConfigDict) -> LossFunction:
    """Cross-entropy at every noise level of the model's schedule."""
    levels, crop = table(config), config.classifier.crop
    require(0 <= crop < config.data.image_size, f"classifier.crop={crop} must lie in 0 .. {config.data.image_size - 1}")

    def losses_of(params, keys, batch, t=None):
        of_crop, of_network, of_loss = jax.vmap(functools.partial(jax.random.split, num=3), out_axes=1)(keys)
        apply = functools.partial(network.apply, {"params": params}, train=True, rngs={"dropout": of_network[0]})
        images = random_crop(of_crop, batch["image"], crop)
        return losses.classification(apply, of_loss, images, batch["label"], levels, t)

    return losses_of


def mesh(config: ConfigDict, part: str) -> Mesh:
    """All devices, as `parallel` and `shards` of a part of the config, "train" or "classifier", group them.

    What is drawn and measured of a run lies as it is trained.

    Raises:
        InputError: groups that the devices do not make.
    """
    return parallel.mesh(shards(config, part, jax.device_count()))


def shards(config: ConfigDict, part: str, devices: int) -> int:
    """How many of so many devices hold a state together. Raises `InputError` as `mesh` does."""
    t = config[part]
    choose(parallel.SPREADS, t.parallel, f"{part}.parallel")
    number = 1 if t.parallel == "pmap" else t.shards or parallel.shards_of(devices)
    require(
        number >= 1 and devices % number == 0,
        f"{part}.shards={t.shards} must divide the {devices} devices; 0 is as many as divide them, up to 64",
    )
    return number


def table(config: ConfigDict) -> Level:
    """All T levels."""
    steps = config.diffusion.num_steps
    require(steps >= 1, f"diffusion.num_steps={steps} must be at least 1")
    return choose(schedules.SCHEDULES, config.diffusion.schedule, "diffusion.schedule")(steps)


def optimizer(config: ConfigDict, part: str) -> optax.GradientTransformation:
    """AdamW as a part of the config, "train" or "classifier", has it."""
    t = config[part]
    for key in ("learning_rate", "warmup_steps", "weight_decay", "grad_clip"):
        require(t[key] >= 0, f"{part}.{key}={t[key]} must not be negative")
    require(0 <= t.ema_decay < 1, f"{part}.ema_decay={t.ema_decay} must lie in [0, 1); 0 turns EMA off.")
    return state.adam(t.learning_rate, t.warmup_steps, t.weight_decay, t.grad_clip)


def loss_function(network: nn.Module, config: ConfigDict) -> LossFunction:
    """The loss of `train.loss`, with conditions dropped at random (Ho & Salimans 2022, algorithm 1).

    Where `diffusion.variance` is learned, the squared errors are the hybrid loss (see `losses.objective`).
    """
    rate, prediction, levels = config.train.condition_dropout, config.diffusion.prediction, table(config)
    loss, variance, steps = config.train.loss, config.diffusion.variance, config.diffusion.num_steps
    learned = variance == "learned_range"
    require(0 <= rate <= 1, f"train.condition_dropout={rate} must lie in [0, 1]; 0 never drops the condition.")
    choose(PREDICTIONS, prediction, "diffusion.prediction")
    choose(losses.LOSSES, loss, "train.loss")
    require(
        learned or loss != "rescaled_mse",
        f"train.loss='rescaled_mse' rescales what trains a learned variance, but diffusion.variance='{variance}' is "
        "fixed; use train.loss='mse', or diffusion.variance='learned_range'",
    )
    require(
        steps >= 2 or not (learned or loss in ("kl", "rescaled_kl")),
        f"diffusion.num_steps={steps}, but the variational bound (train.loss='{loss}', diffusion.variance="
        f"'{variance}') needs at least 2; raise it, or use train.loss='mse' and a fixed variance",
    )
    timesteps(config)
    rates = {kind: rate for kind, rate in config.train.drop.items() if rate}
    check_rates(rates, "train.drop")
    conditions_of, classes = kinds.of_batch(config), config.model.num_classes

    def losses_of(params, keys, batch, t=None):
        of_drop, of_network, of_loss = jax.vmap(functools.partial(jax.random.split, num=3), out_axes=1)(keys)
        given = conditions_of(batch, of_drop)
        conditions = drop(of_drop, given, null_like(given, classes), rate, rates)
        apply = functools.partial(network.apply, {"params": params}, train=True, rngs={"dropout": of_network[0]})
        denoise = conditional_denoiser(apply, prediction, learned)
        return losses.objective(
            denoise, of_loss, batch["image"], conditions, levels,
            loss=loss, prediction=prediction, variance=variance, t=t,
        )  # fmt: skip

    return losses_of


def step(
    config: ConfigDict,
    part: str,
    loss_function: LossFunction,
    optimizer: optax.GradientTransformation,
    timesteps: losses.Timesteps | None = None,
) -> parallel.Step:
    """`train_step` as a part of the config, "train" or "classifier", has it."""
    t = config[part]
    return functools.partial(
        train_step,
        loss_function=loss_function,
        optimizer=optimizer,
        ema_decay=t.ema_decay,
        num_steps=config.diffusion.num_steps,
        timesteps=timesteps,
        accumulate=t.accumulate,
        spike=t.spike,
    )


def timesteps(config: ConfigDict) -> losses.Timesteps | None:
    """How `train_step` draws t; None where it is uniform, which the loss does by itself."""
    chosen = choose(losses.TIMESTEPS, config.train.timesteps, "train.timesteps")
    return None if config.train.timesteps == "uniform" else chosen(config.diffusion.num_steps)


def generator(network: nn.Module, config: ConfigDict, classifiers: Sequence[Classifier] = ()) -> Generator:
    """How the run draws pictures, steered by these classifiers too."""
    choose(SOLVERS, config.sample.solver, "sample.solver")
    choose(PREDICTIONS, config.diffusion.prediction, "diffusion.prediction")
    return Generator(
        apply=networks.applied(network),
        shape=networks.image_shape(config),
        prediction=config.diffusion.prediction,
        variance=config.diffusion.variance,
        solver=config.sample.solver,
        clip=config.sample.clip,
        rematerialise=config.sample.guidance.rematerialise,
        classifiers=tuple(networks.applied(classifier) for classifier in classifiers),
    )


def labels(config: ConfigDict) -> Int[np.ndarray, " n"]:
    """The class of each of `sample.count` pictures: those of `sample.labels` in turn.

    Raises:
        InputError: a class that the model does not know.
    """
    # A classifier steers an unconditional model too, so its classes are those of the data.
    classes, asked = config.model.num_classes or len(config.data.class_names), config.sample.labels
    require(config.sample.count >= 1, f"sample.count={config.sample.count} must be at least 1")
    if asked == ("all",):
        asked = tuple(range(max(1, classes)))
    for label in asked:
        require(
            isinstance(label, int) and 0 <= label < max(1, classes),
            f"sample.labels: {label!r} is no class; use 0 to {classes - 1}, or all",
        )
    return np.resize(np.array(asked, np.int32), config.sample.count)


def trajectory(config: ConfigDict) -> Level:
    """The levels to visit, padded to T steps so that their number compiles nothing."""
    levels = table(config)
    return schedules.pad(schedules.trajectory(levels, config.sample.steps), len(levels.time) + 1)
