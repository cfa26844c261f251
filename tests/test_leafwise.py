"""Operations on the leaves of a tree are optax's, and a program's length hardly grows with the leaves of one shape."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from guided_diffusion_jax.training import leafwise, optimizers

RNG = np.random.default_rng(0)
SHAPES = {"a": {"kernel": (3, 4), "bias": (4,)}, "b": {"kernel": (3, 4), "scale": ()}, "c": (5,)}


def tree():
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: jnp.asarray(RNG.normal(size=shape), jnp.float32), SHAPES, is_leaf=is_shape)


def assert_equal(mine, theirs, rtol=1e-6):
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-9), mine, theirs)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_one_leaf_at_a_time_an_optimizer_does_the_same(name):
    plain = optimizers.OPTIMIZERS[name](lambda count: 0.1 / (1.0 + count), 0.01)
    mine, params = leafwise.elementwise(plain), tree()
    states = plain.init(params), mine.init(params)
    for _ in range(7):  # RAdam changes its rule after the fifth
        gradient = tree()
        (expected, theirs), (got, ours) = (
            jax.jit(optimizer.update)(gradient, state, params)
            for optimizer, state in zip((plain, mine), states, strict=True)
        )
        assert_equal(got, expected)
        assert_equal(ours, theirs)
        states, params = (theirs, ours), optax.apply_updates(params, got)


def test_a_single_array_is_a_tree_as_well():
    optimizer, params = optimizers.create(learning_rate=0.1, warmup_steps=2), jnp.float32(1)
    updates, state = optimizer.update(jnp.float32(2), optimizer.init(params), params)
    assert_equal(updates, jnp.float32(-0.05), rtol=1e-5)
    assert_equal(jax.tree.map(jnp.shape, state), jax.tree.map(jnp.shape, optimizer.init(params)))


def test_averages_and_norms_are_optaxs():
    new, old = tree(), tree()
    for share in (0.0, 1e-4, 1.0, jnp.float32(0.3)):
        assert_equal(leafwise.average(new, old, share), optax.incremental_update(new, old, share))
    assert_equal(leafwise.norm(new), optax.tree.norm(new))
    for limit in (0.5, 1.0, 100.0):
        clip, expected = leafwise.clip_by_norm(limit), optax.clip_by_global_norm(limit)
        assert_equal(clip.update(new, clip.init(new))[0], expected.update(new, expected.init(new))[0])
        assert clip.init(new) == expected.init(new)  # checkpoints hold it
    zero = jax.tree.map(jnp.zeros_like, new)
    assert_equal(leafwise.clip_by_norm(1.0).update(zero, optax.EmptyState())[0], zero)


def test_one_more_leaf_of_a_shape_is_a_few_lines_more():
    optimizer = optimizers.create(learning_rate=0.1, grad_clip=1.0, weight_decay=0.1)

    def lines(count):
        params = [jax.ShapeDtypeStruct((3, 4), jnp.float32)] * count
        arguments = params, jax.eval_shape(optimizer.init, params), params
        return jax.jit(optimizer.update).lower(*arguments).as_text().count("\n")

    assert (lines(30) - lines(10)) / 20 <= 3
