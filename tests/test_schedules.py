"""Schedules, the choice of their rows, and trajectories."""

import jax.numpy as jnp
import numpy as np
import pytest

from guided_diffusion_jax import schedules
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.schedules import SCHEDULES, pad, select, trajectory
from guided_diffusion_jax.typing import Level

pytestmark = pytest.mark.usefixtures("strict_ranks")

NAMES = list(SCHEDULES)
LENGTHS = [50, 1000, 4000]


def logsnr64(levels):
    return 2 * (np.log(levels.alpha.astype(np.float64)) - np.log(levels.sigma.astype(np.float64)))


# --- tables


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", NAMES)
def test_tables_are_variance_preserving_and_monotone(name, length):
    table = SCHEDULES[name](length)
    assert all(column.shape == (length,) and column.dtype == np.float32 for column in table)
    exact = SCHEDULES[name](length, dtype=np.float64)
    np.testing.assert_allclose(exact.alpha**2 + exact.sigma**2, 1, atol=1e-15)
    np.testing.assert_allclose(table.alpha**2 + table.sigma**2, 1, atol=2e-7)
    np.testing.assert_array_equal(table.time, np.arange(length))
    for levels in (exact, table):
        assert (np.diff(levels.alpha) <= 0).all() and (np.diff(levels.sigma) >= 0).all()
        assert (np.diff(logsnr64(levels)) < 0).all()
    np.testing.assert_allclose(schedules.logsnr(Level(*map(jnp.asarray, table))), logsnr64(exact), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_endpoints_are_the_papers(length):
    """Independent of T to first order: the sum of betas is; near data the noise is small, at the end the signal."""
    alpha_bar = {name: SCHEDULES[name](length, dtype=np.float64).alpha ** 2 for name in NAMES}
    first = {"linear": 0.1 / length, "scaled_linear": 0.85 / length}
    for name, beta in first.items():
        assert alpha_bar[name][0] == pytest.approx(1 - beta, abs=1e-12)
    # The integral of -log(1 - beta): 10.05 of linear betas (Ho et al. 2020), 5.0 of the others' mean square root.
    assert -np.log(alpha_bar["linear"][-1]) == pytest.approx(10.05, rel=3 / length**0.5)
    roots = np.sqrt([0.85, 12.0])
    integral = (roots[0] ** 2 + roots[0] * roots[1] + roots[1] ** 2) / 3
    assert -np.log(alpha_bar["scaled_linear"][-1]) == pytest.approx(integral, rel=3 / length**0.5)
    half = length // 2 - 1  # t + 1 = T / 2
    f0, f_half = (np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 for t in (0, 0.5))
    assert alpha_bar["cosine"][half] == pytest.approx(f_half / f0, rel=1e-9)
    assert alpha_bar["sigmoid"][half] == pytest.approx(0.5, rel=1e-9)
    assert all(values[-1] < 0.01 for values in alpha_bar.values())


@pytest.mark.parametrize(("name", "least"), [("linear", 21), ("scaled_linear", 13), ("cosine", 1), ("sigmoid", 1)])
def test_the_least_number_of_steps_is_refused_below_and_works(name, least):
    table = SCHEDULES[name](least)
    assert np.isfinite(np.concatenate(table)).all() and (table.alpha > 0).all()
    for length in range(2, least):
        with pytest.raises(InputError, match=rf"num_steps={length} .* at least {least} steps"):
            SCHEDULES[name](length)


def test_at_gives_scalars_for_one_row_and_image_shapes_for_one_per_sample():
    table = schedules.linear(50)
    one, many = schedules.at(table, jnp.int32(7)), schedules.at(table, jnp.array([7, 0, 49]))
    assert one.alpha.shape == one.sigma.shape == one.time.shape == ()
    assert many.alpha.shape == many.sigma.shape == (3, 1, 1, 1) and many.time.shape == (3,)
    np.testing.assert_array_equal(many.alpha.ravel(), table.alpha[[7, 0, 49]])
    np.testing.assert_array_equal(many.time, [7, 0, 49])


# --- selections


@pytest.mark.parametrize(
    ("steps", "rows"),
    [
        ("1", [0]),
        ("ddim1", [0]),
        ("2", [0, 99]),
        ("ddim2", [0, 50]),
        ("ddim5", [0, 20, 40, 60, 80]),
        ("100", range(100)),
        ("ddim100", range(100)),
        ("1,1", [0, 50]),
        ("50,50", range(100)),
        ("2,3,1", [0, 33, 34, 50, 66, 67]),
    ],
)
def test_selection_of_100(steps, rows):
    np.testing.assert_array_equal(select(steps, 100), list(rows))


@pytest.mark.parametrize("length", [1, 7, 100, 1000])
def test_a_plain_number_gives_that_many_rising_rows_with_both_ends(length):
    for count in range(2, min(length, 120) + 1):
        rows = select(str(count), length)
        assert len(rows) == count and rows[0] == 0 and rows[-1] == length - 1 and (np.diff(rows) > 0).all()


NONSENSE = ["abc", "", "0", "-3", "1.5", "10,,3", "10,", ",", "10,0", "ddim", "ddim0", "ddimx", "ddim2,3", "DDIM5", "²"]


@pytest.mark.parametrize("steps", [*NONSENSE, "logsnr", "logsnr0", "logsnrx"])
def test_nonsense_is_refused_by_name(steps):
    with pytest.raises(InputError, match="is no step selection") as error:
        trajectory(schedules.cosine(100), steps)
    assert f"steps='{steps}'" in str(error.value)


@pytest.mark.parametrize(("steps", "limit"), [("101", 100), ("51,2", 50), ("34,34,1", 33)])
def test_more_steps_than_there_are_is_refused(steps, limit):
    with pytest.raises(InputError, match=rf"steps='{steps}'.* at most {limit}") as error:
        select(steps, 100)
    assert "\n" not in str(error.value)


def test_a_refused_stride_suggests_one_that_exists():
    for length in range(1, 40):
        for count in range(1, 50):
            try:
                assert len(select(f"ddim{count}", length)) == count
            except InputError as error:
                select(str(error).split("use '")[1].rstrip("'"), length)


# --- trajectories


@pytest.mark.parametrize("steps", ["1", "10", "ddim25", "3,7", "100", "logsnr1", "logsnr10"])
@pytest.mark.parametrize("name", NAMES)
def test_a_trajectory_falls_from_noise_to_the_clean_level(name, steps):
    table = SCHEDULES[name](100)
    levels = trajectory(table, steps)
    count = len(levels.time) - 1
    assert [float(column[-1]) for column in levels] == [1, 0, 0]
    assert all(column.dtype == np.float32 for column in levels)
    assert (np.diff(levels.sigma) < 0).all() and (np.diff(levels.alpha) > 0).all()
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1, atol=2e-7)
    assert int(schedules.num_steps(levels)) == count
    if not steps.startswith("logsnr"):
        rows = select(steps, 100)[::-1]
        np.testing.assert_array_equal(levels.alpha[:-1], table.alpha[rows])
        np.testing.assert_array_equal(levels.time[:-1], rows)


@pytest.mark.parametrize("count", [2, 10, 333])
@pytest.mark.parametrize("name", NAMES)
def test_logsnr_trajectories_are_even_and_lie_on_the_table(name, count):
    table = SCHEDULES[name](1000)
    levels = Level(*(column[:-1] for column in trajectory(table, f"logsnr{count}")))
    rows, mine = logsnr64(table), logsnr64(levels)
    np.testing.assert_allclose(mine, np.linspace(rows[-1], rows[0], count), atol=2e-4)  # float32 near alpha = 1
    assert levels.time.min() >= 0 and levels.time.max() <= 999 and (np.diff(levels.time) < 0).all()
    assert levels.time[0] == 999 and levels.time[-1] == 0
    np.testing.assert_allclose(np.interp(levels.time, table.time, rows), mine, atol=2e-3)
    below = np.floor(levels.time).astype(int)
    above = np.ceil(levels.time).astype(int)
    assert (rows[above] <= mine + 2e-4).all() and (mine <= rows[below] + 2e-4).all()


def test_padding_adds_no_step_and_refuses_what_does_not_fit():
    levels = trajectory(schedules.cosine(100), "ddim10")
    for length in (11, 12, 101):
        padded = pad(levels, length)
        assert all(column.shape == (length,) for column in padded)
        assert int(schedules.num_steps(padded)) == 10
        for mine, column in zip(padded, levels, strict=True):
            np.testing.assert_array_equal(mine[:11], column)
            assert (mine[11:] == column[-1]).all()
    with pytest.raises(InputError, match="10 steps does not fit in 9"):
        pad(levels, 10)
