"""Scaled dot-product attention, as `jax.nn.dot_product_attention` computes it, in the layout in which it is fast."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from jaxtyping import Array, Bool, Float

ALGORITHM = {
    np.dtype(jnp.bfloat16): jax.lax.DotAlgorithmPreset.BF16_BF16_F32,
    np.dtype(np.float16): jax.lax.DotAlgorithmPreset.F16_F16_F32,
}
"""How scores of a narrow type are summed in float32, also in the gradient, where one factor would be float32."""

UNSEEN = np.finfo(np.float32).min / 2
"""The score of what is not seen: its exponential is 0, and rows in which nothing is seen do not become NaN."""
FEW_SCORES = 2**18
"""Of a head and image, which are computed at once."""
BLOCK_SCORES, FEWEST_ROWS = 2**21, 16
"""Scores of all heads and images in a block, few enough for a CPU's cache; and the least positions that ask at once."""


def dot_product_attention(
    q: Float[Array, "b n heads c"],
    k: Float[Array, "b m heads c"],
    v: Float[Array, "b m heads d"],
    mask: Bool[Array, "b m"] | None = None,
    *,
    is_causal: bool = False,
) -> Float[Array, "b n heads d"]:
    """softmax(q k^T / sqrt(c)) v of each head (Vaswani et al. 2017, eq. 1), the softmax in float32.

    Nobody looks where the mask is False; if causal, a position looks at none after its own.

    Heads go before positions for the products, what is summed is divided afterwards, and many positions ask one block
    after the other, so that their scores stay small: on a CPU 1.2 to 2.3 times as fast as
    `jax.nn.dot_product_attention` (`benchmarks.attention`). In the gradient each block's scores are computed anew.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    n, m = q.shape[2], k.shape[2]
    rows = jnp.arange(n)

    def attend(q: Array, rows: Array) -> Array:
        scores = jnp.einsum(
            "bhnc,bhmc->bhnm", q, k, precision=ALGORITHM.get(q.dtype), preferred_element_type=jnp.float32
        )
        if mask is not None:
            scores = jnp.where(mask[:, None, None, :], scores, UNSEEN)
        if is_causal:
            scores = jnp.where(rows[:, None] >= jnp.arange(m), scores, UNSEEN)
        return softmax_mean(scores, v)

    images = 1 if is_symbolic_dim(q.shape[0]) else len(q)  # an exported program has a batch of any size
    at_once = max(FEWEST_ROWS, BLOCK_SCORES // (images * q.shape[1] * m))
    if n * m < FEW_SCORES or n <= at_once:
        return jnp.swapaxes(attend(q, rows), 1, 2)
    blocks = -(-n // at_once)
    missing = -n % blocks
    split = jnp.pad(q, ((0, 0), (0, 0), (0, missing), (0, 0))).reshape(*q.shape[:2], blocks, -1, q.shape[-1])
    each = (jnp.moveaxis(split, 2, 0), jnp.pad(rows, (0, missing)).reshape(blocks, -1))
    found = jax.lax.map(jax.checkpoint(lambda block: attend(*block)), each)
    return jnp.moveaxis(found, 2, 3).swapaxes(0, 1).reshape(q.shape[0], n + missing, *q.shape[1:2], -1)[:, :n]


@jax.custom_jvp
def softmax_mean(scores: Float[Array, "*b n m"], values: Float[Array, "*b m d"]) -> Float[Array, "*b n d"]:
    """softmax(scores) @ values, of the type of the values. The product is divided, which is smaller than the scores."""
    weights, total = softmax_parts(scores)
    return (product(weights, values) / total).astype(values.dtype)


@softmax_mean.defjvp
def _softmax_mean_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """The same with its tangent. Its transpose, the gradient, keeps the softmax and no other array of its size."""
    (scores, values), (d_scores, d_values) = primals, tangents
    weights, total = softmax_parts(scores)
    weights = weights / total
    changed = weights * d_scores
    d_weights = changed - weights * jnp.sum(changed, axis=-1, keepdims=True)
    mean, d_mean = product(weights, values), product(d_weights, values) + product(weights, d_values)
    return mean.astype(values.dtype), d_mean.astype(values.dtype)


def softmax_parts(scores: Float[Array, "*b n m"]) -> tuple[Float[Array, "*b n m"], Float[Array, "*b n 1"]]:
    """exp(scores - their maximum), and its sum over the last axis."""
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    return weights, jnp.sum(weights, axis=-1, keepdims=True)


def product(weights: Float[Array, "*b n m"], values: Float[Array, "*b m d"]) -> Float[Array, "*b n d"]:
    """The product of weights and values, of the type of the values, summed in float32."""
    return jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
