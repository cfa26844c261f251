"""Standard errors of metrics against the spread of many independent sets."""

import numpy as np
import pytest

from guided_diffusion_jax.evaluation.fid import frechet_distance
from guided_diffusion_jax.evaluation.metrics import METRICS, Comparison
from guided_diffusion_jax.evaluation.moments import gaussian, moments
from guided_diffusion_jax.evaluation.statistics import Statistics
from guided_diffusion_jax.evaluation.uncertainty import half_sample_error, share_error

COUNT, WIDTH = 400, 6


def features(seed, scale=0.8, shift=0.2):
    return (scale * np.random.default_rng(seed).normal(size=(COUNT, WIDTH)) + shift).astype(np.float32)


REAL = features(1000, scale=1.0, shift=0.0)


@pytest.mark.parametrize(
    "metric",
    [lambda x: float(x.mean()), lambda x: float(x.var()), lambda x: frechet_distance(x, REAL)],
    ids=["mean", "variance", "frechet distance"],
)
def test_the_error_of_one_set_is_the_spread_of_many(metric):
    spread = np.std([metric(features(seed)) for seed in range(200)])
    errors = [half_sample_error(metric, features(seed), seed=seed) for seed in range(10)]
    assert np.mean(errors) == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_error_of_a_share_is_that_of_the_binomial_distribution(share):
    spread = np.random.default_rng(0).binomial(300, share, size=20_000).std() / 300
    assert share_error(share, 300) == pytest.approx(spread, rel=0.02, abs=1e-12)


def test_scores_have_the_error_of_the_frechet_distance():
    def statistics(rows, count=COUNT):
        return Statistics(count, gaussian(moments(rows)), features=rows)

    def error(generated):
        return METRICS["fd"].details["fd_error"](Comparison(generated, statistics(REAL)))

    distance = frechet_distance(features(0), REAL)
    assert 0.02 * distance < error(statistics(features(0))) < 0.3 * distance
    # Of more images than whose features are kept the error is smaller.
    assert error(statistics(features(0), 4 * COUNT)) == pytest.approx(error(statistics(features(0))) / 2)
    assert error(Statistics(COUNT, gaussian(moments(features(0))))) is None
