"""Noise-aware classifiers: to name the class of noisy images, at every noise level (Dhariwal & Nichol 2021, sec. 4)."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.data.augmentation import random_crop
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.gaussian import q_sample, unit_scale
from guided_diffusion_jax.models import init_params
from guided_diffusion_jax.objectives.base import Losses, Objective, draw_noise, split_keys
from guided_diffusion_jax.objectives.partition import merge
from guided_diffusion_jax.objectives.timesteps import Steps
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.schedules import at
from guided_diffusion_jax.typing import Images, Keys, Level


def classifier(model: nn.Module, process: Process, image_shape: tuple[int, int, int], *, crop: int = 0) -> Objective:
    """Objective of a classifier: cross-entropy at every noise level of the diffusion model's process.

    Args:
        model: `models.Classifier`.
        process: of the model that it shall steer.
        image_shape: (h, w, c) of the images.
        crop: pixels by which training images are shifted at random.
    """
    require(0 <= crop < image_shape[0], f"classifier.crop={crop} must lie in 0 .. {image_shape[0] - 1}")

    def losses(params, ema, frozen, keys, batch, t=None) -> Losses:
        of_crop, of_network, of_loss = split_keys(keys, 3)
        variables, rngs = {"params": merge(params, frozen)}, {"dropout": of_network[0]}
        apply: Any = functools.partial(model.apply, variables, train=True, rngs=rngs)
        images = random_crop(of_crop, batch["image"], crop)
        return classification_losses(apply, of_loss, images, batch["label"], process.levels, t)

    return Objective(init=lambda key: init_params(model, key, image_shape), loss=losses)


def classification_losses(
    classifier: Callable[[Images, Array], Float[Array, "b n"]],
    keys: Keys,
    x0: Images,
    label: Int[Array, " b"],
    levels: Level,
    t: Steps | None = None,
) -> Losses:
    """Cross-entropy on x_t, in nats, with the figure "accuracy" (Dhariwal & Nichol 2021, section 4).

    Args:
        classifier: with its parameters bound: noisy images and time `[b]` to logits.
        keys: one per sample; they decide eps, and t where it is not given.
        x0: clean images in [-1, 1].
        label: of each.
        levels: all levels of the diffusion model's process.
        t: the step of each sample; None draws it uniformly.
    """
    drawn, eps = draw_noise(keys, x0, levels)
    t = drawn if t is None else t
    level = at(levels, t)
    logits = classifier(unit_scale(level) * q_sample(x0, eps, level), level.time)
    right = (jnp.argmax(logits, axis=1) == label).astype(jnp.float32)
    of_label = jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
    return Losses(jax.nn.logsumexp(logits, axis=-1) - of_label, t, {"accuracy": right})
