"""Dynamic thresholding (Saharia et al. 2022): the predicted clean image scaled back into its range."""

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import ArrayLike

from guided_diffusion_jax.guidance.rules import Adjuster, option
from guided_diffusion_jax.prediction import from_x0


def dynamic_threshold(quantile: ArrayLike = 0.995, limit: ArrayLike = 1.0) -> Adjuster:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): x0 = clip(x0, -s, s) limit / s.

    s is the quantile of |x0| in a sample, or `limit` where that is larger. The static threshold is `clip_x0`, which
    a pipeline applies by itself (`clip=True`) and which changes nothing after this.

    Args:
        quantile: 0 to 1; the paper's percentile is 99.5.
        limit: the largest value of clean images; 1 for pixels.
    """
    options = {
        "quantile": option("dynamic_threshold: quantile", quantile, 0, 1),
        "limit": option("dynamic_threshold: limit", limit, 1e-12),
    }
    adjust = Partial(_adjust, **options)
    return Adjuster(adjust, name="dynamic_threshold", place="limit", needs_conditions=False)


def _adjust(branches, prediction, x, level, memory, *, quantile, limit):
    values = jnp.abs(prediction.x0).reshape(x.shape[0], -1)
    s = jnp.maximum(jnp.quantile(values, quantile, axis=1), limit).reshape(-1, 1, 1, 1)
    return from_x0(x, jnp.clip(prediction.x0, -s, s) * (limit / s), level), memory
