"""Where networks and the mathematics meet: what they put out becomes a `Prediction`, or a log-probability."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.errors import choose
from guided_diffusion_jax.guidance import LogProb
from guided_diffusion_jax.prediction import PREDICTIONS
from guided_diffusion_jax.typing import ConditionalDenoiser, Conditions, Images, Level, Network, Prediction


def conditional_denoiser(network: Network, prediction: str, learned_variance: bool = False) -> ConditionalDenoiser:
    """A denoiser that still asks for its conditions.

    Args:
        network: a module with its parameters bound, e.g. `functools.partial(unet.apply, {"params": params})`.
        prediction: what the network was trained to predict: "eps", "x0" or "v".
        learned_variance: the output's second half of channels, in [-1, 1], is the share of the learned variance.
    """
    to_prediction = choose(PREDICTIONS, prediction, "diffusion.prediction")

    def denoise(x: Images, level: Level, conditions: Conditions) -> Prediction:
        output = network(x, jnp.broadcast_to(level.time, x.shape[:1]), conditions)
        if not learned_variance:
            return to_prediction(x, output, level)
        output, variance = jnp.split(output, 2, axis=-1)
        return to_prediction(x, output, level)._replace(variance_fraction=(variance + 1) / 2)

    return denoise


def class_log_prob(classifier: Callable[[Images, Array], Float[Array, "b n"]], label: Int[Array, " b"]) -> LogProb:
    """The function that tells log p(label given x) of each sample, by a noise-aware classifier.

    Args:
        classifier: a module with its parameters bound: images and time `[b]` to logits.
        label: the class that each sample shall have.
    """

    def log_prob(x: Images, level: Level) -> Float[Array, " b"]:
        logits = classifier(x, jnp.broadcast_to(level.time, x.shape[:1]))
        return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]

    return log_prob
