"""Optimizers and learning-rate schedules by name, for configurations. Users of Python pass any optax optimizer."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from etils import epy

from guided_diffusion_jax.errors import choose, require
from guided_diffusion_jax.training import leafwise

with epy.lazy_imports():  # a fifth of a second; sampling knows optimizers by name alone
    import optax

Schedule = Callable[[Any], Any]

LR_SCHEDULES: dict[str, Callable[[float, int], Schedule]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, max(1, steps)),
    "inverse_sqrt": lambda rate, steps: lambda count: rate * jnp.minimum(1.0, jnp.sqrt(steps / jnp.maximum(1, count))),
}
"""Learning rate after warm-up: `(rate, steps)`, where `steps` is the decay's length ("cosine": to zero; "inverse_sqrt":
the step from which it decays as 1 / sqrt(step), Karras et al. 2024)."""

OPTIMIZERS: dict[str, Callable[[Schedule, float], "optax.GradientTransformation"]] = {
    "adamw": lambda rate, decay: optax.adamw(rate, weight_decay=decay),
    "radam": lambda rate, decay: optax.chain(optax.add_decayed_weights(decay), optax.radam(rate)),
    "lion": lambda rate, decay: optax.lion(rate, weight_decay=decay),
    "sgd": lambda rate, decay: optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, momentum=0.9)),
}
"""Choices of `train.optimizer`: `(learning rate, weight decay)`. All are elementwise."""


def create(
    name: str = "adamw",
    *,
    learning_rate: float,
    lr_schedule: str = "constant",
    decay_steps: int = 0,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    grad_clip: float = 0.0,
    part: str = "train",
) -> "optax.GradientTransformation":
    """Optimizer with a linear warm-up, a schedule and, for `grad_clip` > 0, the gradient's global norm clipped to it.

    The state has the same structure for all numbers, so that a run may go on with others.

    Args:
        name: a key of `OPTIMIZERS`.
        learning_rate: the largest.
        lr_schedule: a key of `LR_SCHEDULES`.
        decay_steps: the schedule's length, counted with the warm-up.
        warmup_steps: of the linear warm-up.
        weight_decay: 0 is none.
        grad_clip: 0 is none.
        part: section of the configuration that errors name.

    Raises:
        InputError: an unknown name or a negative value.
    """
    values = dict(
        learning_rate=learning_rate, warmup_steps=warmup_steps, weight_decay=weight_decay, grad_clip=grad_clip
    )
    for key, value in values.items():
        require(value >= 0, f"{part}.{key}={value} must not be negative")
    make = choose(OPTIMIZERS, name, f"{part}.optimizer")
    decayed = choose(LR_SCHEDULES, lr_schedule, f"{part}.lr_schedule")(learning_rate, max(1, decay_steps))

    def rate(count: Any) -> Any:
        return decayed(count) * jnp.minimum(1.0, (count + 1) / max(1, warmup_steps))

    clip = leafwise.clip_by_norm(grad_clip) if grad_clip else optax.identity()
    return optax.chain(clip, leafwise.elementwise(make(rate, weight_decay)))
