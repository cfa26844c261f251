"""A new metric is a function and one line of the table; scores, the printed summary and sweeps follow."""

import numpy as np

from guided_diffusion_jax.data import from_arrays
from guided_diffusion_jax.evaluation.metrics import METRICS, Metric, summary
from guided_diffusion_jax.evaluation.scorer import Scorer


def energy_distance(comparison):
    """2 E|x - y| - E|x - x'| - E|y - y'| of features (Szekely & Rizzo 2013)."""
    x, y = comparison.features
    mean = lambda a, b: np.linalg.norm(a[:, None] - b, axis=-1).mean()  # noqa: E731
    return float(2 * mean(x, y) - mean(x, x) - mean(y, y))


def test_a_metric_from_outside_is_scored_and_printed(monkeypatch):
    monkeypatch.setitem(METRICS, "energy", Metric("energy", "energy distance", "lower", ("features",), energy_distance))
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
    scorer = Scorer(from_arrays(images[:10]), from_arrays(images), features="pixels")
    good, bad = scorer.scores(images), scorer.scores(images // 4)
    assert abs(good["energy"]) < 1e-6 < 0.1 < bad["energy"]
    assert "energy distance" in summary(bad)
