"""Drawing pictures of a run: any number of them, in batches of one size, on all devices."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from guided_diffusion_jax.commands import build, pictures, small
from guided_diffusion_jax.data.images import to_float, to_uint8
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.generation import Request, Steering
from guided_diffusion_jax.models.classifier import Classifier
from guided_diffusion_jax.models.super_resolution import SuperResolution
from guided_diffusion_jax.models.unet import UNet
from guided_diffusion_jax.training import parallel
from guided_diffusion_jax.typing import Conditions, Params


class Guide(NamedTuple):
    """A trained classifier, and what it shall steer towards.

    Attributes:
        network: the classifier.
        params: its parameters.
        value: the value that all pictures shall have; None is each picture's own class.
        weight: w.
    """

    network: Classifier
    params: Params
    value: int | None
    weight: float


class Artist:
    """A run's network with its sampler, compiled once for each method that is used.

    Args:
        network: the run's.
        config: resolved; `config.sample` says how to draw.
        guides: the classifiers that steer.

    Raises:
        InputError: `config.sample` asks for what cannot be.
    """

    def __init__(self, network: UNet | SuperResolution, config: ConfigDict, guides: Sequence[Guide] = ()):
        s = config.sample
        require(s.batch_size >= 1, f"sample.batch_size={s.batch_size} must be at least 1")
        require(s.eta >= 0, f"sample.eta={s.eta} must not be negative; 0 is the ODE, 1 as noisy as DDPM")
        require(s.frames >= 0, f"sample.frames={s.frames} must not be negative; 0 makes no picture of the denoising")
        self.config = config
        self.guides = tuple(guides)
        self.low_res, labels = small.load(config)
        self.labels = build.labels(config) if labels is None else labels
        self.levels = build.trajectory(config)
        generator = build.generator(network, config, [guide.network for guide in self.guides])
        compile_ = functools.partial(jax.jit, compiler_options=parallel.compiler_options())
        self._images = compile_(generator.images)
        self._film = compile_(functools.partial(generator.film, frames=max(1, s.frames)))

    def images(
        self,
        params: Params,
        labels: Int[np.ndarray, " n"],
        weight: float | None = None,
        guide_weights: Sequence[float] | None = None,
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Pictures 0 .. n-1 of the set that `sample.seed` names.

        Args:
            params: averaged or not.
            labels: the class of each.
            weight: instead of `sample.guidance.weight`.
            guide_weights: instead of the guides' own.
        """
        return self._batches(self._images, params, labels, weight, guide_weights, axis=0)

    def film(self, params: Params, labels: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "frames n h w c"]:
        """The same pictures on their way from noise, in `sample.frames` frames."""
        return self._batches(self._film, params, labels, None, None, axis=1)

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
        weight: float | None,
        guide_weights: Sequence[float] | None,
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
                wanted = np.take(labels, numbers, mode="clip")
                request = Request(
                    key=jax.random.key(s.seed),
                    numbers=parallel.put_batch(numbers, mesh),
                    conditions=self._conditions(wanted, numbers),
                    weight=jnp.float32(s.guidance.weight if weight is None else weight),
                    eta=jnp.float32(s.eta),
                    levels=self.levels,
                    steering=self._steering(wanted, guide_weights),
                )
                parts.append(to_uint8(np.asarray(draw(params, request))))
                bar.update(min(size, len(labels) - start))
        return np.concatenate(parts, axis).take(np.arange(len(labels)), axis)

    def _conditions(self, wanted: np.ndarray, numbers: np.ndarray) -> Conditions:
        """The labels, and for an upsampler the small picture of each number."""
        mesh, low_res = parallel.data_mesh(), None
        if self.low_res is not None:
            low_res = parallel.put_batch(to_float(self.low_res.take(numbers, axis=0, mode="clip")), mesh)
        return Conditions(label=parallel.put_batch(wanted, mesh), low_res=low_res)

    def _steering(self, wanted: np.ndarray, weights: Sequence[float] | None) -> tuple[Steering, ...]:
        weights = [guide.weight for guide in self.guides] if weights is None else weights
        mesh = parallel.data_mesh()
        return tuple(
            Steering(
                params=guide.params,
                label=parallel.put_batch(wanted if guide.value is None else np.full_like(wanted, guide.value), mesh),
                weight=jnp.float32(weight),
                interval=jnp.float32(self.config.sample.guidance.interval),
            )
            for guide, weight in zip(self.guides, weights, strict=True)
        )
