"""From a configuration to the things it names, checked before anything expensive starts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int
from ml_collections import ConfigDict

from guided_diffusion_jax import losses, schedules
from guided_diffusion_jax.conditions import drop, null_like
from guided_diffusion_jax.data.source import Source
from guided_diffusion_jax.data.sources import open_source
from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.gaussian import VARIANCES
from guided_diffusion_jax.generation import SOLVERS, Generator
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.models.unet import check as check_unet
from guided_diffusion_jax.prediction import PREDICTIONS
from guided_diffusion_jax.training import state
from guided_diffusion_jax.training.step import LossFunction
from guided_diffusion_jax.typing import Conditions, Level, Params

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def source(config: ConfigDict, split: str = "train") -> Source:
    """The data set."""
    return open_source(config.data.name, split=split, image_size=config.data.image_size, data_dir=config.data.data_dir)


def resolve(config: ConfigDict, data: Source) -> ConfigDict:
    """The config with what it leaves to the data: channels, class names and the number of classes.

    Raises:
        InputError: it asks for other numbers than the data has.
    """
    resolved = config.copy_and_resolve_references()
    channels, classes = data.image_shape[2], data.num_classes
    require(
        config.data.channels in (0, channels), f"data.channels={config.data.channels}, but {data.name} has {channels}"
    )
    asked = config.model.num_classes
    require(
        asked in (-1, 0, classes), f"model.num_classes={asked}, but {data.name} has {classes}; use that, or 0 for none"
    )
    resolved.data.channels = channels
    resolved.data.class_names = data.class_names
    resolved.model.num_classes = classes if asked == -1 else asked
    return resolved


def unet(config: ConfigDict) -> UNet:
    """The network of a resolved config, checked against the size of the images."""
    m, d = config.model, config.diffusion
    choose(VARIANCES, d.variance, "diffusion.variance")
    network = UNet(
        width=m.width,
        channel_mult=m.channel_mult,
        num_res_blocks=m.num_res_blocks,
        attention_resolutions=m.attention_resolutions,
        head_width=m.head_width,
        num_heads=m.num_heads,
        dropout=m.dropout,
        num_classes=m.num_classes,
        fusion=m.fusion,
        injection=m.injection,
        resample=m.resample,
        out_channels=config.data.channels * (2 if d.variance == "learned_range" else 1),
        dtype=choose(DTYPES, m.dtype, "model.dtype"),
        remat=m.remat,
    )
    check_unet(network, config.data.image_size)
    return network


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """(h, w, c) of the pictures."""
    return config.data.image_size, config.data.image_size, config.data.channels


def init(network: UNet, config: ConfigDict) -> Params:
    """Fresh parameters from the config's seed; under `jax.eval_shape` their shapes alone."""
    example = jnp.zeros((1, *image_shape(config)))
    conditions = Conditions(label=jnp.zeros(1, jnp.int32))
    return network.init(jax.random.key(config.seed), example, jnp.zeros(1), conditions)["params"]


def table(config: ConfigDict) -> Level:
    """All T levels."""
    steps = config.diffusion.num_steps
    require(steps >= 1, f"diffusion.num_steps={steps} must be at least 1")
    return choose(schedules.SCHEDULES, config.diffusion.schedule, "diffusion.schedule")(steps)


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW as the config has it."""
    t = config.train
    for key in ("learning_rate", "warmup_steps", "weight_decay", "grad_clip"):
        require(t[key] >= 0, f"train.{key}={t[key]} must not be negative")
    require(0 <= t.ema_decay < 1, f"train.ema_decay={t.ema_decay} must lie in [0, 1); 0 turns EMA off.")
    return state.adam(t.learning_rate, t.warmup_steps, t.weight_decay, t.grad_clip)


def loss_function(network: UNet, config: ConfigDict) -> LossFunction:
    """The denoising loss with conditions dropped at random (Ho & Salimans 2022, algorithm 1)."""
    rate, prediction, levels = config.train.condition_dropout, config.diffusion.prediction, table(config)
    require(0 <= rate <= 1, f"train.condition_dropout={rate} must lie in [0, 1]; 0 never drops the condition.")
    choose(PREDICTIONS, prediction, "diffusion.prediction")
    trainable = config.diffusion.variance != "learned_range"
    require(trainable, "diffusion.variance='learned_range' can be sampled but not trained yet; use 'fixed_small'.")

    def losses_of(params, keys, batch):
        of_drop, of_network, of_loss = jax.vmap(functools.partial(jax.random.split, num=3), out_axes=1)(keys)
        given = Conditions(label=batch["label"])
        conditions = drop(of_drop, given, null_like(given, network.num_classes), rate)
        apply = functools.partial(network.apply, {"params": params}, train=True, rngs={"dropout": of_network[0]})
        return losses.denoising(apply, of_loss, batch["image"], conditions, levels, prediction)

    return losses_of


def generator(network: UNet, config: ConfigDict) -> Generator:
    """How the run draws pictures."""
    choose(SOLVERS, config.sample.solver, "sample.solver")
    choose(PREDICTIONS, config.diffusion.prediction, "diffusion.prediction")

    def apply(params, x, time, conditions):
        return network.apply({"params": params}, x, time, conditions)

    return Generator(
        apply=apply,
        shape=image_shape(config),
        num_classes=network.num_classes,
        prediction=config.diffusion.prediction,
        variance=config.diffusion.variance,
        solver=config.sample.solver,
        clip=config.sample.clip,
        free=network.num_classes > 0 and config.sample.guidance.weight != 0,
    )


def labels(config: ConfigDict) -> Int[np.ndarray, " n"]:
    """The class of each of `sample.count` pictures: those of `sample.labels` in turn.

    Raises:
        InputError: a class that the model does not know.
    """
    classes, asked = config.model.num_classes, config.sample.labels
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
