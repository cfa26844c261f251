"""Inception score: how sure a classifier is of each image and how varied its answers are."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from guided_diffusion_jax.errors import require


class Score(NamedTuple):
    """Mean and standard deviation (over n) of the splits."""

    mean: float
    std: float


def probabilities(logits: Float[Array | np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Softmax of each row, in float64."""
    exp = np.exp(np.asarray(logits, np.float64) - np.max(np.asarray(logits), axis=1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def inception_score(probability: Float[Array | np.ndarray, "n c"], splits: int = 10, seed: int | None = 2020) -> Score:
    """Exponential of the mean KL divergence of p(y given x) from p(y) (Salimans et al. 2016, section 4).

    Args:
        probability: of each class for each image (see `probabilities`), Inception's 1000 for published values.
        splits: the score depends on the number of images per split: 5000 in most papers.
        seed: of the shuffle before splitting, without which images ordered by class score too low; the default shuffles
            as torch-fidelity does. None: no shuffle, as in guided-diffusion's evaluator.

    Raises:
        InputError: rows do not sum to 1, or there are fewer images than splits.
    """
    p = np.asarray(probability, np.float64)
    n = len(p)
    require(1 <= splits <= n, f"splits={splits} of {n} images; use 1 to {n}")
    total = p.sum(1)
    require(
        bool((p >= 0).all() and (abs(total - 1) < 1e-3).all()),
        f"rows sum to {total.min():.4g} .. {total.max():.4g}, the smallest entry is {p.min():.4g}; probabilities "
        "must be 0 at least and sum to 1: use probabilities(logits)",
    )
    p = p if seed is None else p[np.random.RandomState(seed).permutation(n)]
    edges = [i * n // splits for i in range(splits + 1)]
    values = [_score(p[start:end]) for start, end in itertools.pairwise(edges)]
    return Score(float(np.mean(values)), float(np.std(values)))


def _score(p: Float[np.ndarray, "n c"]) -> float:
    # 0 log 0 is 0; where the mean is 0, so is every p.
    ratio = np.divide(p, p.mean(0), out=np.ones_like(p), where=p > 0)
    return float(np.exp((p * np.log(ratio)).sum(1).mean()))
