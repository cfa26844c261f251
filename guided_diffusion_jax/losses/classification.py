"""What a noise-aware classifier is trained on: to name the class of noisy images, at every noise level."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.gaussian import q_sample
from guided_diffusion_jax.losses.objectives import Losses, draw_noise
from guided_diffusion_jax.schedules import at
from guided_diffusion_jax.typing import Images, Keys, Level


def classification(
    classifier: Callable[[Images, Array], Float[Array, "b n"]],
    keys: Keys,
    x0: Images,
    label: Int[Array, " b"],
    table: Level,
    t: Int[Array, " b"] | None = None,
) -> Losses:
    """Cross-entropy on x_t, in nats, with the figure "accuracy" (Dhariwal & Nichol 2021, section 4).

    Args:
        classifier: with its parameters bound: noisy images and time `[b]` to logits.
        keys: one per sample; they decide eps, and t where it is not given.
        x0: clean images in [-1, 1].
        label: of each.
        table: all levels of the model's own schedule.
        t: the step of each sample; None draws it uniformly.
    """
    drawn, eps = draw_noise(keys, x0, table)
    t = drawn if t is None else t
    level = at(table, t)
    logits = classifier(q_sample(x0, eps, level), level.time)
    right = (jnp.argmax(logits, axis=1) == label).astype(jnp.float32)
    return Losses(optax.softmax_cross_entropy_with_integer_labels(logits, label), t, {"accuracy": right})
