"""Drawing pictures of a run: any number of them, in batches of one size, on all devices."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from guided_diffusion_jax.commands import build, pictures
from guided_diffusion_jax.data.images import to_uint8
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.generation import Request
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.training import parallel
from guided_diffusion_jax.typing import Conditions, Params


class Artist:
    """A run's network with its sampler, compiled once for each method that is used.

    Args:
        network: the run's.
        config: resolved; `config.sample` says how to draw.

    Raises:
        InputError: `config.sample` asks for what cannot be.
    """

    def __init__(self, network: UNet, config: ConfigDict):
        s = config.sample
        require(s.batch_size >= 1, f"sample.batch_size={s.batch_size} must be at least 1")
        require(s.eta >= 0, f"sample.eta={s.eta} must not be negative; 0 is the ODE, 1 as noisy as DDPM")
        require(s.frames >= 0, f"sample.frames={s.frames} must not be negative; 0 makes no picture of the denoising")
        self.config = config
        self.labels = build.labels(config)
        self.levels = build.trajectory(config)
        generator = build.generator(network, config)
        compile_ = functools.partial(jax.jit, compiler_options=parallel.compiler_options())
        self._images = compile_(generator.images)
        self._film = compile_(functools.partial(generator.film, frames=max(1, s.frames)))

    def images(
        self, params: Params, labels: Int[np.ndarray, " n"], weight: ArrayLike | None = None
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Pictures 0 .. n-1 of the set that `sample.seed` names.

        Args:
            params: averaged or not.
            labels: the class of each.
            weight: instead of `sample.guidance.weight`; scalar.
        """
        return self._batches(self._images, params, labels, weight, axis=0)

    def film(self, params: Params, labels: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "frames n h w c"]:
        """The same pictures on their way from noise, in `sample.frames` frames."""
        return self._batches(self._film, params, labels, None, axis=1)

    def grid(self, params: Params) -> UInt8[np.ndarray, "height width 3"]:
        """A small labelled grid: up to ten classes, up to eight pictures of each."""
        classes = max(1, self.config.model.num_classes)
        shown = np.linspace(0, classes - 1, min(10, classes)).round().astype(np.int32)
        labels = np.repeat(shown, 8)
        return pictures.by_class(self.images(params, labels), labels, self.config.data.class_names)

    def _batches(
        self,
        draw: Callable[[Params, Request], Array],
        params: Params,
        labels: np.ndarray,
        weight: ArrayLike | None,
        axis: int,
    ) -> np.ndarray:
        s, mesh = self.config.sample, parallel.data_mesh()
        devices = jax.device_count()
        # The last batch is filled up, so that all have one shape; at most one batch's worth is drawn in vain.
        size = -(-min(s.batch_size, len(labels)) // devices) * devices
        parts = []
        with tqdm(total=len(labels), desc="sampling", unit=" images", disable=None, leave=False) as bar:
            for start in range(0, len(labels), size):
                numbers = np.arange(start, start + size, dtype=np.int32)
                request = Request(
                    key=jax.random.key(s.seed),
                    numbers=parallel.put_batch(numbers, mesh),
                    conditions=Conditions(label=parallel.put_batch(np.take(labels, numbers, mode="clip"), mesh)),
                    weight=jnp.float32(s.guidance.weight if weight is None else weight),
                    eta=jnp.float32(s.eta),
                    levels=self.levels,
                )
                parts.append(to_uint8(np.asarray(draw(params, request))))
                bar.update(min(size, len(labels) - start))
        return np.concatenate(parts, axis).take(np.arange(len(labels)), axis)
