"""Stable Diffusion's pipeline beside diffusers': `python -m benchmarks.peers.pipelines`.

One folder with random weights of Stable Diffusion 1's shape, written by our pipeline, is loaded by both. Each call goes
from a prompt to images: text encoder, DDIM with classifier-free guidance, decoder. The two processes take turns, as in
the suite of peers, and need the environment of `make peers`.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from benchmarks.cases import small_numbers
from benchmarks.peers.pair import parse, two_sides
from benchmarks.peers.suite import timed
from benchmarks.peers.worker import CFG, OURS, THEIRS
from benchmarks.report import markdown
from benchmarks.timing import Spread
from guided_diffusion_jax import models, profiling
from guided_diffusion_jax.interop import stable_diffusion
from guided_diffusion_jax.stable_diffusion import StableDiffusion

PARTS = Path("tests/golden_sd/sd1")
"""Tokenizer, text encoder and autoencoder, all tiny: the U-Net is what takes time."""


class Size(NamedTuple):
    """A U-Net's width and channel multipliers, and the latents along a side."""

    width: int
    channel_mult: tuple[int, ...]
    latents: int


SIZES = {"small": Size(64, (1, 2, 4), 32), "sd15": Size(320, (1, 2, 4, 4), 64)}
"""The second is Stable Diffusion 1.5's, for accelerators."""


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.pipelines", description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--images", default="1,4", help="of a call")
    parser.add_argument("--steps", type=int, default=20, help="of DDIM")
    if (given := parse(parser, arguments)) is None:
        return 2
    with tempfile.TemporaryDirectory() as folder, two_sides("pipeline", given.python) as workers:
        parameters = write(SIZES[given.size], folder)
        rows = []
        for images in map(int, given.images.split(",")):
            options: dict[str, Any] = {"folder": folder, "images": images, "steps": given.steps}
            for worker in workers.values():
                worker.ask("build", **options, threads=machine.cores())
                worker.ask("prepare", program=CFG)
            seconds = timed({side: (worker, CFG, 1) for side, worker in workers.items()}, given.budget)
            ratio = Spread.of(seconds[THEIRS] / seconds[OURS])
            rows.append(
                [given.size, f"{parameters:,}", str(images), *(f"{np.median(seconds[side]):.2f}" for side in workers),
                 str(ratio)]
            )  # fmt: skip
    print(markdown(("size", "parameters", "images", "ours, s", "diffusers, s", "diffusers / ours"), rows))
    return 0


def write(size: Size, folder: str) -> int:
    """Writes a pipeline with random weights in diffusers' layout and returns the U-Net's number of parameters."""
    parts = stable_diffusion.load(PARTS, dtype=jnp.float32)
    levels = len(size.channel_mult)
    unet = parts.unet.model.clone(
        width=size.width, channel_mult=size.channel_mult, num_heads=(8,) * levels, norm_groups=32,
        transformer_depth=(1,) * (levels - 1) + (0,),
    )  # fmt: skip
    shape = (size.latents, size.latents, unet.out_channels)
    params = small_numbers(jax.eval_shape(lambda: models.init_params(unet, jax.random.key(0), shape)))
    made = parts._replace(unet=parts.unet._replace(model=unet, params=params), sample_size=size.latents)
    StableDiffusion(made).save(folder)
    return profiling.count(params)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
