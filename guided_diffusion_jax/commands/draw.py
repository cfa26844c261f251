"""Drawing pictures of a run: any number of them, in batches of one size, on all devices."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from guided_diffusion_jax import sharding
from guided_diffusion_jax.commands import build
from guided_diffusion_jax.commands.ask import Wanted
from guided_diffusion_jax.data.images import to_uint8
from guided_diffusion_jax.errors import require
from guided_diffusion_jax.generation import Known, Request, Steering
from guided_diffusion_jax.models.classifier import Classifier
from guided_diffusion_jax.runtime import distributed
from guided_diffusion_jax.typing import Params


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
    """A run's network with its sampler, compiled once for each number of branches that is asked for.

    Args:
        network: the run's.
        config: resolved; `config.sample` says how to draw.
        guides: the classifiers that steer.

    Raises:
        InputError: `config.sample` asks for what cannot be.
    """

    def __init__(self, network: nn.Module, config: ConfigDict, guides: Sequence[Guide] = ()):
        s = config.sample
        require(s.batch_size >= 1, f"sample.batch_size={s.batch_size} must be at least 1")
        require(s.eta >= 0, f"sample.eta={s.eta} must not be negative; 0 is the ODE, 1 as noisy as DDPM")
        require(s.frames >= 0, f"sample.frames={s.frames} must not be negative; 0 makes no picture of the denoising")
        build.labels(config)  # for its checks
        self.config = config
        self.guides = tuple(guides)
        self.levels = build.trajectory(config)
        self.mesh = build.mesh(config, "train")
        generator = build.generator(network, config, [guide.network for guide in self.guides])
        on_shards = sharding.gathering(self.mesh)
        generator = generator._replace(
            apply=on_shards(generator.apply), classifiers=tuple(map(on_shards, generator.classifiers))
        )
        # All pictures come to all processes, of which one may write them.
        everywhere = sharding.replicated(self.mesh)
        compile_ = functools.partial(jax.jit, out_shardings=everywhere, compiler_options=sharding.compiler_options())
        self._images = compile_(generator.images)
        self._film = compile_(functools.partial(generator.film, frames=max(1, s.frames)))

    def images(
        self, params: Params, wanted: Wanted, guide_weights: Sequence[float] | None = None
    ) -> UInt8[np.ndarray, "n h w c"]:
        """Pictures 0 .. n-1 of the set that `sample.seed` names.

        Args:
            params: averaged or not.
            wanted: what each shall show.
            guide_weights: instead of the guides' own.
        """
        return self._batches(self._images, params, wanted, guide_weights, axis=0)

    def compiled(
        self, params: Params, wanted: Wanted, guide_weights: Sequence[float] | None = None
    ) -> jax.stages.Compiled:
        """The program that `images` runs, which then does not have to be compiled any more."""
        numbers = np.arange(self._size(len(wanted.labels)), dtype=np.int32)
        mine = sharding.process_local(numbers)
        return self._images.lower(params, self._request(mine, wanted.take(mine), guide_weights)).compile()

    def film(self, params: Params, wanted: Wanted) -> UInt8[np.ndarray, "frames n h w c"]:
        """The same pictures on their way from noise, in `sample.frames` frames."""
        return self._batches(self._film, params, wanted, None, axis=1)

    def _batches(
        self,
        draw: Callable[[Params, Request], Array],
        params: Params,
        wanted: Wanted,
        guide_weights: Sequence[float] | None,
        axis: int,
    ) -> np.ndarray:
        count = len(wanted.labels)
        size, parts = self._size(count), []
        hidden = None if distributed.is_main_process() else True  # None: where there is no terminal
        with tqdm(total=count, desc="sampling", unit=" images", disable=hidden, leave=False) as bar:
            for start in range(0, count, size):
                numbers = np.arange(start, start + size, dtype=np.int32)
                mine = sharding.process_local(numbers)
                request = self._request(mine, wanted.take(mine), guide_weights)
                parts.append(to_uint8(np.asarray(draw(params, request))))
                bar.update(min(size, count - start))
        return np.concatenate(parts, axis).take(np.arange(count), axis)

    def _size(self, count: int) -> int:
        """Of a batch. The last one is filled up, so that all have one shape; at most one is drawn in vain."""
        return sharding.round_up(min(self.config.sample.batch_size, count), self.mesh.size)

    def _request(self, numbers: np.ndarray, wanted: Wanted, guide_weights: Sequence[float] | None) -> Request:
        s, put = self.config.sample, functools.partial(sharding.put_batch, mesh=self.mesh)
        return Request(
            key=jax.random.key(s.seed),
            numbers=put(numbers),
            conditions=put(wanted.branches),
            null=put(wanted.null),
            weights=tuple(put(w) if np.ndim(w) else jnp.float32(w) for w in wanted.weights),
            eta=jnp.float32(s.eta),
            levels=self.levels,
            steering=self._steering(wanted.labels, guide_weights),
            known=None if wanted.known is None else Known(put(wanted.known), put(wanted.mask)),
        )

    def _steering(self, wanted: np.ndarray, weights: Sequence[float] | None) -> tuple[Steering, ...]:
        weights = [guide.weight for guide in self.guides] if weights is None else weights
        return tuple(
            Steering(
                params=guide.params,
                label=sharding.put_batch(
                    wanted if guide.value is None else np.full_like(wanted, guide.value), self.mesh
                ),
                weight=jnp.float32(weight),
                interval=jnp.float32(self.config.sample.guidance.interval),
            )
            for guide, weight in zip(self.guides, weights, strict=True)
        )
