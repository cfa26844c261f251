"""Schedules, the choice of their rows, and trajectories."""

import jax.numpy as jnp
import numpy as np
import pytest

from guided_diffusion_jax import schedules
from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.schedules import SCHEDULES, pad, section_rows, stride_rows, trajectory
from guided_diffusion_jax.typing import Level

pytestmark = pytest.mark.usefixtures("strict_ranks")

NAMES = [name for name in SCHEDULES if name not in ("rectified_flow", "edm")]
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
    ("steps", "spacing", "rows"),
    [
        (1, "linspace", [0]),
        (1, "stride", [0]),
        (2, "linspace", [0, 99]),
        (2, "stride", [0, 50]),
        (5, "stride", [0, 20, 40, 60, 80]),
        (100, "linspace", range(100)),
        (100, "stride", range(100)),
        ((1, 1), "linspace", [0, 50]),
        ((50, 50), "linspace", range(100)),
        ((2, 3, 1), "linspace", [0, 33, 34, 50, 66, 67]),
    ],
)
def test_selection_of_100(steps, spacing, rows):
    levels = trajectory(schedules.cosine(100), steps, spacing)
    np.testing.assert_array_equal(levels.time[:-1][::-1], list(rows))


@pytest.mark.parametrize("length", [1, 7, 100, 1000])
def test_a_plain_number_gives_that_many_rising_rows_with_both_ends(length):
    for count in range(2, min(length, 120) + 1):
        rows = section_rows((count,), length)
        assert len(rows) == count and rows[0] == 0 and rows[-1] == length - 1 and (np.diff(rows) > 0).all()


@pytest.mark.parametrize("steps", [0, -3, (), (10, 0)])
def test_nonsense_is_refused_by_name(steps):
    with pytest.raises(InputError, match="must be a whole number of at least 1") as error:
        trajectory(schedules.cosine(100), steps)
    assert f"steps={steps!r}" in str(error.value)


def test_an_unknown_spacing_and_sections_of_another_are_refused():
    with pytest.raises(InputError, match=r"^spacing='logsnrs' is not one of .*did you mean 'logsnr'"):
        trajectory(schedules.cosine(100), 10, "logsnrs")
    for spacing in ("stride", "logsnr"):
        with pytest.raises(InputError, match="has sections"):
            trajectory(schedules.cosine(100), (10, 5), spacing)


@pytest.mark.parametrize(("steps", "limit"), [(101, 100), ((51, 2), 50), ((34, 34, 1), 33)])
def test_more_steps_than_there_are_is_refused(steps, limit):
    with pytest.raises(InputError, match=rf"too many; use at most {limit}") as error:
        trajectory(schedules.cosine(100), steps)
    assert "\n" not in str(error.value)


def test_a_refused_stride_suggests_one_that_exists():
    for length in range(1, 40):
        for count in range(1, 50):
            try:
                assert len(stride_rows(count, length)) == count
            except InputError as error:
                stride_rows(int(str(error).split("use ")[1]), length)


# --- trajectories


@pytest.mark.parametrize("steps", [(1,), (10,), (25, "stride"), ((3, 7),), (100,), (1, "logsnr"), (10, "logsnr")])
@pytest.mark.parametrize("name", NAMES)
def test_a_trajectory_falls_from_noise_to_the_clean_level(name, steps):
    table = SCHEDULES[name](100)
    levels = trajectory(table, *steps)
    count = len(levels.time) - 1
    assert [float(column[-1]) for column in levels] == [1, 0, 0]
    assert all(column.dtype == np.float32 for column in levels)
    assert (np.diff(levels.sigma) < 0).all() and (np.diff(levels.alpha) > 0).all()
    np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1, atol=2e-7)
    assert int(schedules.num_steps(levels)) == count
    if steps[-1] != "logsnr":
        rows = levels.time[:-1].astype(int)
        np.testing.assert_array_equal(levels.alpha[:-1], table.alpha[rows])


@pytest.mark.parametrize("count", [2, 10, 333])
@pytest.mark.parametrize("name", NAMES)
def test_logsnr_trajectories_are_even_and_lie_on_the_table(name, count):
    table = SCHEDULES[name](1000)
    levels = Level(*(column[:-1] for column in trajectory(table, count, "logsnr")))
    rows, mine = logsnr64(table), logsnr64(levels)
    np.testing.assert_allclose(mine, np.linspace(rows[-1], rows[0], count), atol=2e-4)  # float32 near alpha = 1
    assert levels.time.min() >= 0 and levels.time.max() <= 999 and (np.diff(levels.time) < 0).all()
    assert levels.time[0] == 999 and levels.time[-1] == 0
    np.testing.assert_allclose(np.interp(levels.time, table.time, rows), mine, atol=2e-3)
    below = np.floor(levels.time).astype(int)
    above = np.ceil(levels.time).astype(int)
    assert (rows[above] <= mine + 2e-4).all() and (mine <= rows[below] + 2e-4).all()


def test_padding_adds_no_step_and_refuses_what_does_not_fit():
    levels = trajectory(schedules.cosine(100), 10, "stride")
    for length in (11, 12, 101):
        padded = pad(levels, length)
        assert all(column.shape == (length,) for column in padded)
        assert int(schedules.num_steps(padded)) == 10
        for mine, column in zip(padded, levels, strict=True):
            np.testing.assert_array_equal(mine[:11], column)
            assert (mine[11:] == column[-1]).all()
    with pytest.raises(InputError, match="steps=10 is more than the 9 training steps"):
        pad(levels, 10)


# --- levels that are not variance preserving


@pytest.mark.parametrize("count", [2, 10, 333])
def test_logsnr_trajectories_of_straight_paths_lie_on_them(count):
    """Rectified flow: alpha = 1 - sigma; variance exploding: alpha = 1. Even in logsnr between the finite ends."""
    flow = trajectory(schedules.rectified_flow(1000, dtype=np.float64), count, "logsnr")
    np.testing.assert_allclose(flow.alpha + flow.sigma, 1, atol=1e-12)
    assert flow.alpha[0] == 0 and len(flow.time) == count + 1  # the first level has no signal at all
    sigma = np.geomspace(0.01, 80, 500)
    exploding = trajectory(schedules.table(np.ones(500), sigma, np.float64), count, "logsnr")
    np.testing.assert_allclose(exploding.alpha, 1, atol=1e-12)
    np.testing.assert_allclose(exploding.sigma[:-1], np.geomspace(80, 0.01, count), rtol=1e-9)
    for levels in (flow, exploding):
        logsnr = logsnr64(Level(*(column[1:-1] for column in levels)))
        np.testing.assert_allclose(np.diff(logsnr, n=2), 0, atol=1e-8)


def test_tables_that_are_none_are_refused():
    for alpha, sigma, word in [
        ([1.0, 0.5], [0.1], "shapes"),
        ([0.9, 0.5], [0.1, 0.0], "sigma > 0"),
        ([0.5, 0.9], [0.5, 0.1], "must fall"),
        ([np.nan], [1.0], "finite"),
    ]:
        with pytest.raises(InputError, match=word):
            schedules.table(np.array(alpha), np.array(sigma))
