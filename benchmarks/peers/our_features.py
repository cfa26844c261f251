"""Our side of `benchmarks.peers.features`: the network that the scores use."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import small_numbers
from benchmarks.peers.worker import FEATURES, Built, Prepared, serve
from guided_diffusion_jax import profiling, sharding
from guided_diffusion_jax.evaluation.features import inception


def build(layers: list[Any], images: int, threads: int) -> Built:
    """Builds the network, which has the layers already; JAX uses all cores whatever the number of threads."""
    network, size = inception.InceptionV3(), inception.SIZE
    params = small_numbers(jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"])
    pixels = np.random.default_rng(0).integers(0, 256, (images, 32, 32, 3), np.uint8)

    @jax.jit(compiler_options=sharding.compiler_options())
    def features(params, pixels):
        return network.apply({"params": params}, inception.preprocess(pixels)).pool

    about = {"parameters": profiling.count(params) - profiling.count([params["fc"], params["fc_bias"]])}
    return Built(about, {FEATURES: lambda: Prepared(lambda: features(params, pixels), {})}, jax.block_until_ready, dict)


if __name__ == "__main__":
    serve(build)
