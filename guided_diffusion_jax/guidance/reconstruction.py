"""Guidance by a user's loss on the predicted clean image (Chung et al. 2023, Bansal et al. 2023)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from guided_diffusion_jax.guidance.rules import LossGradient, as_partial, option
from guided_diffusion_jax.guidance.weights import Interval, Weight, weight_at
from guided_diffusion_jax.prediction import from_eps
from guided_diffusion_jax.typing import Images, Level, Prediction

Predict = Callable[[Images], tuple[Prediction, object]]
"""Noisy images to their prediction and to what the rule remembers."""


def reconstruction(loss: Callable[[Images], Float[Array, " b"]], weight: Weight = 1.0) -> LossGradient:
    """Guidance by a loss L of the predicted x0: eps = eps + w sigma grad_x L(x0(x)) (Bansal et al. 2023, eq. 6).

    The gradient goes through the model, its guidance included. A loss that is the norm |y - A x0|, not its square, has
    the normalised step of diffusion posterior sampling (Chung et al. 2023, section 3.3). The evaluations of the network
    are as many as without, each with a backward pass.

    Args:
        loss: `loss(x0) -> [b]`, differentiable; a `jax.tree_util.Partial` for one with data inside. x0 is in the
            model's space, `[b h w c]`.
        weight: w; 0 is the plain model.
    """
    return LossGradient(as_partial(loss), option("reconstruction: weight", weight))


def lower_loss(
    rule: LossGradient, interval: Interval | None, predict: Predict, x: Images, level: Level
) -> tuple[Prediction, object]:
    """The prediction of `predict`, shifted against the gradient of the rule's loss; and the memory."""

    def of_x(x):
        prediction, memory = predict(x)
        return jnp.sum(rule.loss(prediction.x0)), (prediction, memory)

    gradient, (prediction, memory) = jax.grad(of_x, has_aux=True)(x)
    eps = prediction.eps + weight_at(rule.weight, level, interval) * level.sigma * gradient
    return from_eps(x, eps, level)._replace(variance_fraction=prediction.variance_fraction), memory
