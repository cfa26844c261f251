"""Where a network and the mathematics meet: what it puts out becomes a `Prediction`."""

import jax.numpy as jnp

from guided_diffusion_jax.errors import choose
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
