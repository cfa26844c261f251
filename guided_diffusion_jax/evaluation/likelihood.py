"""The variational bound on the likelihood of pictures, in bits per dimension, term by term."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from guided_diffusion_jax.data.dataset import Dataset as Source
from guided_diffusion_jax.data.pipeline import as_inputs
from guided_diffusion_jax.losses import noised, prior_term, vlb_term
from guided_diffusion_jax.samplers import noise
from guided_diffusion_jax.typing import Denoiser, Images, Keys, Level


class Bound(NamedTuple):
    """Of each image; column t is step t of the process, 0 the least noisy. Of many images, their mean: `[]` and `[s]`.

    Attributes:
        total: bits per dimension: the prior's and all of `vb`.
        prior: of the noisiest level, which no network can change.
        vb: the bound's term of each step.
        x0_mse: mean squared error of the predicted clean image.
        eps_mse: the same of the predicted noise.
    """

    total: Float[Array, "..."]
    prior: Float[Array, "..."]
    vb: Float[Array, "... s"]
    x0_mse: Float[Array, "... s"]
    eps_mse: Float[Array, "... s"]


def bits_per_dimension(denoise: Denoiser, keys: Keys, x0: Images, table: Level, variance: str) -> Bound:
    """The bound of each image, one draw of the noise a step, all steps in one scan (Ho et al. 2020, eq. 5).

    Args:
        denoise: the model, conditions chosen; `guidance.clip_x0` of it is what guided-diffusion evaluates.
        keys: one per image; step t draws from `fold(keys, t)`.
        x0: clean images on the 256 grey levels of [-1, 1].
        table: the levels of the process, least noisy first, S rows.
        variance: "fixed_small", "fixed_large" or "learned_range".
    """

    def step(_: None, t: Array) -> tuple[None, tuple[Array, Array, Array]]:
        eps = noise.standard_normal(noise.fold(keys, t), x0.shape[1:])
        noisy = noised(x0, eps, t, table)
        prediction = denoise(noisy.x, noisy.now)
        square = lambda a, b: jnp.mean((a - b) ** 2, axis=(1, 2, 3))  # noqa: E731
        return None, (
            vlb_term(prediction, noisy, variance),
            square(prediction.x0, x0),
            square(prediction.eps, eps),
        )

    _, by_step = jax.lax.scan(step, None, jnp.arange(len(table.time)))
    vb, x0_mse, eps_mse = (column.T for column in by_step)
    prior = prior_term(x0, Level(*(jnp.asarray(column)[-1] for column in table)))
    return Bound(prior + vb.sum(axis=1), prior, vb, x0_mse, eps_mse)


def weighted_sum(bound: Bound, weight: Float[Array, " b"]) -> Bound:
    """The sum over the images of a batch, those that only fill it up having the weight 0."""
    return jax.tree.map(lambda a: jnp.tensordot(weight, a, axes=1), bound)


def mean_over(measure: Callable[[dict[str, Any]], Bound], batches: Iterator[dict[str, Any]], count: int) -> Bound:
    """The mean of `count` images, in float64; nothing but the sums is kept.

    Args:
        measure: a batch to the `weighted_sum` of its images' bounds.
        batches: as `numbered` makes them.
        count: how many images there are in all batches.
    """
    total = None
    for batch in batches:
        part = jax.tree.map(lambda a: np.asarray(a, np.float64), measure(batch))
        total = part if total is None else jax.tree.map(np.add, total, part)
    return jax.tree.map(lambda a: a / count, total)


def numbered(
    data: Source, count: int, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Images 0 .. count-1 in order, in batches of one size, of which each process gets its part.

    Yields:
        What `pipeline.batches` does, and `number` int32 `[b]` of the image, which decides
        its noise, and `weight` float32 `[b]`, 0 for those that fill up the last batch.
    """
    size = batch_size // process_count
    for start in range(0, count, batch_size):
        number = start + process_index * size + np.arange(size, dtype=np.int32)
        batch = as_inputs(data.read(np.minimum(number, count - 1)))
        yield batch | {"number": number, "weight": (number < count).astype(np.float32)}


def by_quarter(terms: Float[np.ndarray, " s"]) -> list[float]:
    """The sums over the four quarters of the steps, the least noisy first; fewer than 4 steps leave some at 0."""
    quarter = np.arange(len(terms)) * 4 // len(terms)
    return np.bincount(quarter, terms, minlength=4).tolist()
