"""Perturbed-attention (Ahn et al. 2024) and smoothed-energy guidance (Hong 2024): away from worse attention."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float

from guided_diffusion_jax.dot_product import dot_product_attention
from guided_diffusion_jax.guidance.rules import Contrast, option
from guided_diffusion_jax.guidance.weights import Weight

Heads = Float[Array, "b n heads c"]


def pag(weight: Weight = 3.0, layers: str = "middle") -> Contrast:
    """Perturbed-attention guidance (Ahn et al. 2024, eq. 14): self-attention is the identity in the worse branch.

    Args:
        weight: w; 0 is the plain model.
        layers: part of the names of the attention layers, such as "middle" or "up_2"; "" is all of them.
    """
    return _contrast("pag", weight, layers, Partial(identity_attention))


def seg(weight: Weight = 3.0, blur: ArrayLike = jnp.inf, layers: str = "middle") -> Contrast:
    """Smoothed-energy guidance (Hong 2024, algorithm 1): the queries of self-attention are blurred in the worse branch.

    Args:
        weight: w; 0 is the plain model.
        blur: standard deviation of the Gaussian, in positions of the layer's map; 0 is none, inf the mean of all.
        layers: as in `pag`.
    """
    return _contrast("seg", weight, layers, Partial(blurred_attention, blur=option("seg: blur", blur, 0)))


def _contrast(name: str, weight: Weight, layers: str, attend: Partial) -> Contrast:
    # The name of the layers is static: it is in the structure of the data, as the key of a dict.
    return Contrast(Partial(_perturbed, attend={(name, layers): attend}), option(f"{name}: weight", weight), name)


def _perturbed(denoise, *, attend):
    ((rule, layers), function), *_ = attend.items()

    def worse(x, level, conditions):
        return denoise(x, level, conditions, attention=(rule, layers, function))

    return worse


def identity_attention(q: Heads, k: Heads, v: Heads, size: tuple[int, int]) -> Heads:
    """Attention whose weights are the identity matrix: v itself."""
    return v


def blurred_attention(q: Heads, k: Heads, v: Heads, size: tuple[int, int], *, blur: ArrayLike) -> Heads:
    """Attention with the queries blurred over the map `(h, w)` by a Gaussian, whose weights sum to 1 everywhere."""
    h, w = size
    b, _, heads, c = q.shape
    maps = q.reshape(b, h, w, heads, c)
    maps = jnp.einsum("ij,bjwhc->biwhc", _gaussian(h, blur), maps)
    maps = jnp.einsum("ij,bajhc->baihc", _gaussian(w, blur), maps)
    return dot_product_attention(maps.reshape(q.shape).astype(q.dtype), k, v)


def _gaussian(size: int, std: ArrayLike) -> Float[Array, "n n"]:
    """Rows of weights exp(-(i - j)**2 / (2 std**2)) that sum to 1; the identity at std = 0."""
    square = (jnp.arange(size)[:, None] - jnp.arange(size)) ** 2.0
    precision = 1 / (2 * jnp.maximum(jnp.asarray(std, jnp.float32), 1e-6) ** 2)
    return jax.nn.softmax(-square * precision, axis=1)
