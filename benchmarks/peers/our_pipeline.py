"""Our side of `benchmarks.peers.pipelines`: a folder in diffusers' layout, sampled by `gd.load`'s pipeline."""

import jax.numpy as jnp
import numpy as np

import guided_diffusion_jax as gd
from benchmarks.peers.worker import CFG, GUIDANCE_SCALE, PROMPT, Built, Prepared, serve


def build(folder: str, images: int, steps: int, threads: int) -> Built:
    """Loads the pipeline; JAX uses all cores whatever the number of threads."""
    pipe = gd.load(folder, dtype=jnp.float32)

    def sample() -> np.ndarray:
        return pipe(prompt=[PROMPT] * images, guidance_scale=GUIDANCE_SCALE, sampler="ddim", steps=steps)

    return Built({}, {CFG: lambda: Prepared(sample, {})}, lambda _: None, dict)


if __name__ == "__main__":
    serve(build)
