"""A trajectory in parts that can be watched: the same images, by one program."""

import jax
import numpy as np
import pytest
from test_generation import EACH, PARAMS, B, Counted, request

from guided_diffusion_jax import samplers, sharding, stepwise
from guided_diffusion_jax.generation import as_data
from guided_diffusion_jax.stepwise import Stepwise

STEPS = 10


def made(program, advance=None, **asked):
    return np.asarray(program(PARAMS, as_data(request(steps=(STEPS,), **asked)), program.decode, advance))


@pytest.fixture
def program():
    counted = Counted()
    stepped = Stepwise(counted.generator, sharding.mesh())
    stepped.traces, stepped.images, stepped.decode = counted.traces, counted.images, counted.generator.codec.decode
    return stepped


@pytest.mark.parametrize("solver", EACH)
def test_a_trajectory_in_parts_is_the_trajectory_and_one_program(solver, program, monkeypatch):
    monkeypatch.setattr(stepwise, "PART_S", 0.0)
    moves = []
    in_parts = made(program, moves.append, solver=solver)
    assert moves == [1] * request(steps=(STEPS,), solver=solver).num_steps
    whole = made(program, solver=solver)
    np.testing.assert_array_equal(in_parts, whole)
    assert program.traces == [2 * B] * samplers.SAMPLERS[solver]().evaluations
    assert [one._cache_size() for one in program._programs.values()] == [1]
    if solver not in ("pndm", "ipndm"):  # at sigma / alpha = 2e4 they multiply the rounding, in which programs differ
        single = program.images(PARAMS, request(steps=(STEPS,), solver=solver))
        np.testing.assert_allclose(whole, single, rtol=1e-5, atol=1e-6)


def test_the_parts_of_a_quick_trajectory_are_few(program, monkeypatch):
    monkeypatch.setattr(stepwise, "PART_S", 1e6)
    moves = []
    made(program, moves.append)
    assert moves == [1, STEPS - 1]


def test_images_are_decoded_by_the_last_part_alone(program, monkeypatch):
    monkeypatch.setattr(stepwise, "PART_S", 0.0)
    decoded = []

    def decode(x):
        jax.debug.callback(lambda: decoded.append(1))
        return 2 * x

    decode = jax.tree_util.Partial(decode)
    batch = as_data(request(steps=(STEPS,)))
    images = program(PARAMS, batch, decode, [].append)
    jax.effects_barrier()
    assert len(decoded) == 1
    np.testing.assert_array_equal(images, 2 * made(program))


def test_without_steps_the_noise_is_decoded(program):
    batch = as_data(request(steps=(STEPS,)))
    clean = batch._replace(levels=jax.tree.map(lambda column: np.repeat(np.asarray(column)[-1:], 3), batch.levels))
    assert program(PARAMS, clean, program.decode).shape[0] == B
