"""Where networks and the mathematics meet: a network's output becomes a `Prediction`, or a log-probability."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from guided_diffusion_jax.gaussian import unit_scale
from guided_diffusion_jax.models.attention import replaced_attention
from guided_diffusion_jax.process import Process
from guided_diffusion_jax.typing import ConditionalDenoiser, Conditions, Images, Level, Network, Params, Prediction


def conditional_denoiser(network: Network, process: Process) -> ConditionalDenoiser:
    """Denoiser `(x, level, conditions) -> Prediction` of a network.

    Args:
        network: a module with its parameters bound, e.g. `functools.partial(unet.apply, {"params": params})`.
        process: what the network predicts, and how its input is scaled.

    The denoiser also takes `attention=`, another self-attention (see `models.attention.replaced_attention`).
    """
    parametrization = process.parametrization

    def denoise(x: Images, level: Level, conditions: Conditions, attention: Any = None) -> Prediction:
        scaled = x if parametrization.input_scale is None else x * parametrization.input_scale(level)
        time = jnp.asarray(level.time)
        if parametrization.input_time is not None:
            time = parametrization.input_time(level).reshape(time.shape)
        with replaced_attention(attention):
            output = network(scaled, jnp.broadcast_to(time, x.shape[:1]), conditions)
        if not process.learned_variance:
            return parametrization.prediction(x, output, level)
        output, variance = jnp.split(output, 2, axis=-1)
        return parametrization.prediction(x, output, level)._replace(variance_fraction=(variance + 1) / 2)

    return denoise


ClassifierApply = Callable[[Params, Images, Array], Float[Array, "b n"]]
"""`(params, x, time)` to logits."""


def class_log_prob(
    apply: ClassifierApply, params: Params, label: Int[Array, " b"], x: Images, level: Level
) -> Float[Array, " b"]:
    """Log p(label given x) of each sample, by a noise-aware classifier."""
    logits = apply(params, unit_scale(level) * x, jnp.broadcast_to(level.time, x.shape[:1]))
    return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]
