"""A batch of images in parts that can be watched: some steps of the trajectory at a time, by one compiled program.

A callback from within the compiled loop would show the steps as well, but JAX keeps no program with a callback in its
compilation cache, and a step would wait for Python. Here the numbers of the first and the last step are data, so that
the whole trajectory and a part of it are the same program, on any number of devices.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from guided_diffusion_jax import sharding
from guided_diffusion_jax.generation import Generator, Request
from guided_diffusion_jax.runtime.compilation_cache import shapes
from guided_diffusion_jax.runtime.notices import compiling
from guided_diffusion_jax.samplers.base import frame_steps
from guided_diffusion_jax.typing import Images, Params

PART_S = 1.0
"""Seconds of work between two movements of a progress bar, at least where a step takes less."""

Decode = Callable[[Images], Images]


class Stepwise:
    """Images of requests, batch by batch; somebody may count the steps of each.

    Args:
        generator: of the images.
        mesh: devices of the batches. All images come to all processes, of which one may write them.
    """

    def __init__(self, generator: Generator, mesh: Mesh):
        self._generator, self._mesh = generator, mesh
        self._programs: dict[Any, jax.stages.Wrapped] = {}
        self._compiled: set[Any] = set()
        self._decoded = jax.jit(lambda decode, x: decode(x), out_shardings=sharding.replicated(mesh))

    def compile(self, params: Params, batch: Request, decode: Decode) -> jax.stages.Compiled:
        """The program for such batches, which then need not be compiled again."""
        program, carry = self._program(params, batch)
        arguments = (params, batch, carry, np.int32(0), np.int32(0), decode)
        with self._notice(params, batch):
            return program.lower(*arguments).compile()

    def __call__(
        self, params: Params, batch: Request, decode: Decode, advance: Callable[[int], Any] | None = None
    ) -> Array:
        """Images `[b h w c]`, about in [-1, 1], of one batch on the devices.

        Args:
            params: of the network.
            batch: its requests.
            decode: of the codec.
            advance: called with the number of further steps after each part. The whole is one part without it, and on
                several processes, which must all do the same.
        """
        program, carry = self._program(params, batch)
        steps, done = batch.num_steps, 0
        in_parts = advance is not None and jax.process_count() == 1
        size = 1 if in_parts else steps  # the first step shows how long one takes
        images = None
        while images is None or done < steps:
            last, begun = min(steps, done + size), time.monotonic()
            with self._notice(params, batch):
                images, carry = program(params, batch, carry, np.int32(done), np.int32(last), decode)
            if in_parts:
                jax.block_until_ready(carry)
                size = max(1, int(PART_S * (last - done) / (time.monotonic() - begun)))
            if advance is not None:
                advance(last - done)
            done = last
        return images

    def frames(self, params: Params, batch: Request, decode: Decode, count: int) -> Iterator[Array]:
        """States of one batch on its way from noise, decoded, each as soon as it is there; the last one is the result.

        `samplers.base.frame_steps` says after which steps, as in `sample_trajectory`.
        """
        program, carry = self._program(params, batch)
        done = 0
        for k, last in enumerate(frame_steps(batch.num_steps, count)):
            if k == 0 or last > done:
                with self._notice(params, batch):
                    _, carry = program(params, batch, carry, np.int32(done), np.int32(last), decode)
                state, done = self._decoded(decode, carry[0]), last
            yield state

    def _program(self, params: Params, batch: Request) -> tuple[jax.stages.Wrapped, Any]:
        """The jitted program and something of the shapes of what it carries."""
        carry, size = jax.eval_shape(self._generator.start, params, batch), batch.size

        def sharding_of(leaf: jax.ShapeDtypeStruct) -> jax.sharding.NamedSharding:
            each = leaf.shape[:1] == (size,)
            return sharding.data_sharding(self._mesh) if each else sharding.replicated(self._mesh)

        shardings = jax.tree.map(sharding_of, carry)
        key = (jax.tree.structure(shardings), *jax.tree.leaves(shardings))
        if key not in self._programs:
            self._programs[key] = jax.jit(
                self._generator.part,
                out_shardings=(sharding.replicated(self._mesh), shardings),
                compiler_options=sharding.compiler_options(),
            )
        return self._programs[key], jax.tree.map(_blank, carry, shardings)

    @contextlib.contextmanager
    def _notice(self, params: Params, batch: Request) -> Iterator[None]:
        """Says that it compiles, the first time that it sees such a batch."""
        key = (jax.tree.structure(batch), shapes(batch))
        with contextlib.nullcontext() if key in self._compiled else compiling("the sampler", params, batch):
            yield
        self._compiled.add(key)


def _blank(shape: jax.ShapeDtypeStruct, where: jax.sharding.NamedSharding) -> Array:
    """An array of this shape on the devices, for which nothing is compiled."""
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.device_put(jnp.broadcast_to(jax.random.key(0), shape.shape), where)
    blank = np.zeros(shape.shape, shape.dtype)
    return jax.make_array_from_callback(shape.shape, where, lambda index: blank[index])
