"""Attention against its formula in float64, and its derivatives against JAX's attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from guided_diffusion_jax import dot_product
from guided_diffusion_jax.dot_product import dot_product_attention

RNG = np.random.default_rng(0)
MASK = jnp.array([[True, True, False, True, False], [False, False, False, False, True]])


def arrays(dtype=np.float32, n=5, scale=1.0):
    q, k, v = (RNG.normal(size=(2, size, 3, 4)) * scale for size in (n, 5, 5))
    return [jnp.asarray(x, dtype) for x in (q, k, v)]


def formula(q, k, v, seen):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bnhc,bmhc->bhnm", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhnm,bmhc->bnhc", weights / weights.sum(-1, keepdims=True), v)


CASES = {"all": {}, "mask": {"mask": MASK}, "causal": {"is_causal": True}}
SEEN = {"all": True, "mask": MASK[:, None, None], "causal": np.tri(5, dtype=bool)}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_formula(case):
    q, k, v = arrays(scale=3.0)
    ours = dot_product_attention(q, k, v, **CASES[case])
    np.testing.assert_allclose(ours, formula(q, k, v, SEEN[case]), atol=2e-6)
    if case != "causal":
        assert dot_product_attention(q[:, :2], k, v, **CASES[case]).shape == (2, 2, 3, 4)


def test_where_all_is_masked_the_mean_is_returned_and_scores_of_any_size_are_safe():
    q, k, v = arrays()
    nothing = dot_product_attention(q, k, v, jnp.zeros((2, 5), bool))
    np.testing.assert_allclose(nothing, np.broadcast_to(np.mean(v, 1, keepdims=True), v.shape), atol=1e-6)
    huge = dot_product_attention(1e15 * q, 1e15 * k, v)
    np.testing.assert_allclose(huge, formula(1e15 * q, 1e15 * k, v, True), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_those_of_jax(case):
    q, k, v = arrays()
    mask = CASES[case].get("mask")
    options = CASES[case] if mask is None else {"mask": mask[:, None, None]}
    tangents = arrays()
    ours = jax.jvp(lambda *x: dot_product_attention(*x, **CASES[case]), (q, k, v), tuple(tangents))
    theirs = jax.jvp(lambda *x: jax.nn.dot_product_attention(*x, **options), (q, k, v), tuple(tangents))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)
    (weights,) = arrays()[:1]
    ours = jax.grad(lambda x: jnp.sum(weights * dot_product_attention(*x, **CASES[case])))([q, k, v])
    theirs = jax.grad(lambda x: jnp.sum(weights * jax.nn.dot_product_attention(*x, **options)))([q, k, v])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_second_derivatives_exist():
    q, k, v = (x[:1, :3, :1] for x in arrays())
    check_grads(lambda *x: dot_product_attention(*map(jnp.asarray, x)), (q, k, v), order=2, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("is_causal", [False, True])
def test_many_positions_in_blocks_are_the_same(is_causal, monkeypatch):
    monkeypatch.setattr(dot_product, "BLOCK_SCORES", 2 * 601 * 128)
    n, m = 601, 601 if is_causal else 450  # a prime: the last block is padded
    q, k, v, weights = (jnp.asarray(RNG.normal(size=(1, size, 2, 4)), jnp.float32) for size in (n, m, m, n))
    mask = jnp.asarray(RNG.uniform(size=(1, m)) < 0.7).at[:, 0].set(True)
    seen = mask[:, None, None] & (np.tri(n, dtype=bool) if is_causal else True)
    blocks = jax.make_jaxpr(lambda *x: dot_product_attention(*x, mask, is_causal=is_causal))(q, k, v)
    assert f"length={5 if is_causal else 4}" in str(blocks)
    ours = dot_product_attention(q, k, v, mask, is_causal=is_causal)
    np.testing.assert_allclose(ours, formula(q, k, v, seen), atol=2e-6)

    def gradient(attend, **options):
        return jax.grad(lambda x: jnp.sum(weights * attend(*x, is_causal=is_causal, **options)))([q, k, v])

    expected = gradient(jax.nn.dot_product_attention, mask=mask[:, None, None])
    found = gradient(dot_product_attention, mask=mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


@pytest.mark.parametrize("positions", [5, 601])
def test_a_batch_of_any_size_is_exported(positions, monkeypatch):
    monkeypatch.setattr(dot_product, "BLOCK_SCORES", 2 * 601 * 128)
    (batch,) = jax.export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, positions, 2, 4), jnp.float32)
    program = jax.export.export(jax.jit(dot_product_attention))(shape, shape, shape)
    q, k, v = RNG.normal(size=(3, 3, positions, 2, 4)).astype(np.float32)
    np.testing.assert_allclose(program.call(q, k, v), formula(q, k, v, True), atol=2e-6)


def test_bfloat16_is_summed_in_float32():
    q, k, v = arrays(jnp.bfloat16, scale=2.0)
    ours = dot_product_attention(q, k, v)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(ours, np.float32), formula(q, k, v, True), atol=0.03)
    ours = jax.grad(lambda x: jnp.sum(dot_product_attention(*x).astype(jnp.float32) ** 2))([q, k, v])
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    exact = jax.grad(lambda x: jnp.sum(jax.nn.dot_product_attention(*x) ** 2))(wide)
    for narrow, right in zip(ours, exact, strict=True):
        assert narrow.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.asarray(narrow, np.float32), right, atol=0.02 * float(jnp.abs(right).max()) + 0.02
        )
