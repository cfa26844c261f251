"""The interface of samplers, and the one loop that runs them all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from guided_diffusion_jax.random import fold
from guided_diffusion_jax.trajectories import num_steps
from guided_diffusion_jax.typing import Denoiser, Gradient, Images, Keys, Level

Memory = Any


class Sampler(NamedTuple):
    """Pair of pure functions, as an optax transformation is.

    A sampler whose functions are `jax.tree_util.Partial`s of module-level functions is data: its options (eta) are
    leaves, and another value of them compiles nothing.

    Attributes:
        init: `init(x, levels) -> memory`: what the sampler computes once from the trajectory, or keeps between steps.
        step: `step(denoise, keys, x, now, nxt, memory) -> (x, memory)`: from `now` to the less noisy `nxt`;
            `now == nxt` leaves x as it is. `keys` are this step's, one per sample.
        evaluations: calls of `denoise` in a step.
        order: order of convergence of the deterministic solver; 0 for a stochastic one.
        with_gradient: `with_gradient(gradient) -> Sampler`, the same sampler steered by a classifier's gradient in a
            way of its own; None: the gradient shifts eps (Dhariwal & Nichol 2021, algorithm 2).
        visits: `visits(levels) -> levels`: the rows that the loop goes through, where they are not the trajectory's own
            (PNDM sees the second one twice); None: they are.
    """

    init: Callable[[Images, Level], Memory]
    step: Callable[[Denoiser, Keys, Images, Level, Level, Memory], tuple[Images, Memory]]
    evaluations: int = 1
    order: int = 1
    with_gradient: Callable[[Gradient], "Sampler"] | None = None
    visits: Callable[[Level], Level] | None = None


def no_memory(x: Images, levels: Level | None = None) -> tuple[()]:
    """The `init` of a sampler, or of a guidance rule, that remembers nothing."""
    return ()


def sample(sampler: Sampler, denoise: Denoiser, keys: Keys, x: Images, levels: Level) -> Images:
    """Samples along the whole trajectory. Under `jit` this is one XLA loop, whose number of steps is data.

    Args:
        sampler: e.g. `ddim(eta=0.0)`.
        denoise: the network; for a sampler of `guidance.guided`, all its branches.
        keys: one per sample, see `random.sample_keys`.
        x: `[b h w c]` at the first level, e.g. `random.prior(keys, (h, w, c))`.
        levels: `trajectories.trajectory`, padded or not.

    Returns:
        `[b h w c]` at the last level: clean images, not clipped.
    """
    levels = visited(sampler, levels)
    x, _ = advance(sampler, denoise, keys, (x, sampler.init(x, levels)), levels, 0, num_steps(levels))
    return x


def visited(sampler: Sampler, levels: Level) -> Level:
    """The rows that the loop goes through: the trajectory's, or what `Sampler.visits` makes of them."""
    return levels if sampler.visits is None else sampler.visits(levels)


def advance(
    sampler: Sampler,
    denoise: Denoiser,
    keys: Keys,
    carry: tuple[Images, Memory],
    levels: Level,
    first: Int[ArrayLike, ""],
    last: Int[ArrayLike, ""],
) -> tuple[Images, Memory]:
    """Steps `first` to `last` - 1 of `visited` levels, from and to `(x, memory)`; `sample` takes them all."""

    def one(i, carry):
        return _step(sampler, denoise, keys, levels, i, *carry)

    return jax.lax.fori_loop(first, last, one, carry)


def frame_steps(count: Int[ArrayLike, ""], frames: int) -> Int[Any, " frames"]:
    """Of a trajectory of `count` steps, how many are done at each frame: ceil((k + 1) count / frames) at frame k."""
    number: Any = np.arange(frames) + 1
    return -(-number * count // frames)


def sample_trajectory(
    sampler: Sampler, denoise: Denoiser, keys: Keys, x: Images, levels: Level, frames: int
) -> Float[Array, "frames b h w c"]:
    """Samples as `sample` does, and returns `frames` states evenly spaced over the steps; the last one is the result.

    `frame_steps` says after which steps; fewer steps than frames repeat some states.
    """
    levels = visited(sampler, levels)
    count = num_steps(levels)
    slot_of = lambda i: i * frames // count  # noqa: E731

    def advance(i, carry):
        x, memory, states = carry
        x, memory = _step(sampler, denoise, keys, levels, i, x, memory)
        return x, memory, states.at[slot_of(i)].set(x)

    start = (x, sampler.init(x, levels), jnp.zeros((frames, *x.shape), x.dtype))
    _, _, states = jax.lax.fori_loop(0, count, advance, start)
    return states[slot_of(frame_steps(count, frames) - 1)]


def _step(sampler: Sampler, denoise: Denoiser, keys: Keys, levels: Level, i, x: Images, memory: Memory):
    """Step i of the trajectory, with its own noise."""
    return sampler.step(denoise, fold(keys, i + 1), x, _row(levels, i), _row(levels, i + 1), memory)


def _row(levels: Level, i) -> Level:
    return jax.tree.map(lambda column: jnp.asarray(column)[i], levels)
