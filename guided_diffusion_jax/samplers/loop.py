"""What a sampler is, and the one loop that runs them all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from guided_diffusion_jax.samplers.noise import fold
from guided_diffusion_jax.schedules import num_steps
from guided_diffusion_jax.typing import Denoiser, Images, Keys, Level

Memory = Any


class Sampler(NamedTuple):
    """A pair of functions, as an optax transformation is.

    Attributes:
        init: `init(x, levels) -> memory`: what the sampler computes once from the trajectory, or keeps between steps.
        step: `step(denoise, keys, x, now, nxt, memory) -> (x, memory)`: from `now` to the less noisy `nxt`;
            `now == nxt` leaves x as it is. `keys` are this step's, one per sample.
    """

    init: Callable[[Images, Level], Memory]
    step: Callable[[Denoiser, Keys, Images, Level, Level, Memory], tuple[Images, Memory]]


def sample(sampler: Sampler, denoise: Denoiser, keys: Keys, x: Images, levels: Level) -> Images:
    """Walks x along the whole trajectory. Under `jit` this is one XLA loop, whose number of steps is data.

    Args:
        sampler: e.g. `ddim(eta=0.0)`.
        denoise: the guided network.
        keys: one per sample, see `noise.sample_keys`.
        x: `[b h w c]` at the first level, e.g. `noise.prior(keys, (h, w, c))`.
        levels: `schedules.trajectory`, padded or not.

    Returns:
        `[b h w c]` at the last level: clean images, not clipped.
    """

    def advance(i, carry):
        return _step(sampler, denoise, keys, levels, i, *carry)

    x, _ = jax.lax.fori_loop(0, num_steps(levels), advance, (x, sampler.init(x, levels)))
    return x


def film(
    sampler: Sampler, denoise: Denoiser, keys: Keys, x: Images, levels: Level, frames: int
) -> Float[Array, "frames b h w c"]:
    """`sample`, with pictures of the way: `frames` states evenly spaced over the steps, the last one the result.

    Frame k is the state after step ceil((k + 1) n / frames) of n; fewer steps than frames show some states twice.
    """
    count = num_steps(levels)
    slot_of = lambda i: i * frames // count  # noqa: E731

    def advance(i, carry):
        x, memory, pictures = carry
        x, memory = _step(sampler, denoise, keys, levels, i, x, memory)
        return x, memory, pictures.at[slot_of(i)].set(x)

    start = (x, sampler.init(x, levels), jnp.zeros((frames, *x.shape), x.dtype))
    _, _, pictures = jax.lax.fori_loop(0, count, advance, start)
    last_step = -(-(jnp.arange(frames) + 1) * count // frames) - 1
    return pictures[slot_of(last_step)]


def _step(sampler: Sampler, denoise: Denoiser, keys: Keys, levels: Level, i, x: Images, memory: Memory):
    """Step i of the trajectory, with the noise that is its own."""
    return sampler.step(denoise, fold(keys, i + 1), x, _row(levels, i), _row(levels, i + 1), memory)


def _row(levels: Level, i) -> Level:
    return jax.tree.map(lambda column: jnp.asarray(column)[i], levels)
