"""The metrics of evaluation/ against closed forms, scipy, prdc and what torch-fidelity says."""

import contextlib
import importlib.util
import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from prdc import compute_prdc

from guided_diffusion_jax.errors import InputError
from guided_diffusion_jax.evaluation import metrics, sweep
from guided_diffusion_jax.evaluation.accuracy import class_accuracy
from guided_diffusion_jax.evaluation.fid import biased, frechet_distance
from guided_diffusion_jax.evaluation.inception_score import inception_score, probabilities
from guided_diffusion_jax.evaluation.kid import kid, mmd2
from guided_diffusion_jax.evaluation.moments import Gaussian, MomentAccumulator, gaussian, merge, moments
from guided_diffusion_jax.evaluation.precision_recall import nearest, prdc

MAKE = Path(__file__).parent / "golden" / "metrics" / "make.py"


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def recorded(golden):
    return golden("metrics/torch_fidelity")


def of(features):
    return gaussian(moments(features))


def of_batches(batches):
    accumulator = MomentAccumulator()
    for batch in batches:
        accumulator.add(batch)
    return accumulator.gaussian()


def features(random, n, d, offset=0.0):
    """Float32 features with correlations."""
    return (random.normal(size=(n, d)) @ random.normal(size=(d, d)) / np.sqrt(d) + offset).astype(np.float32)


# Moments


def test_moments_of_batches_are_those_of_all_rows(random):
    x = features(random, 100, 7, offset=1000)
    batches = [jnp.asarray(x[:1]), x[1:40], x[40:97], x[97:]]
    together, reference = of_batches(batches), x.astype(np.float64)
    np.testing.assert_allclose(together.mean, reference.mean(0), rtol=1e-14)
    np.testing.assert_allclose(together.covariance, np.cov(reference, rowvar=False), rtol=1e-9, atol=1e-12)
    assert together.covariance.dtype == np.float64


def test_a_large_mean_costs_no_digits(random):
    """The sum of x x^T less n m m^T would have lost all of them: 1e16 against 1."""
    x = random.integers(-4, 5, (60, 3)).astype(np.float64)
    shifted = of_batches([x[:20] + 1e8, x[20:] + 1e8])
    np.testing.assert_allclose(shifted.covariance, np.cov(x, rowvar=False), rtol=1e-7, atol=1e-7)


def test_merging_does_not_depend_on_the_order(random):
    a, b, c = (moments(random.normal(size=(n, 4))) for n in (5, 1, 9))
    for left, right in zip(merge(merge(a, b), c), merge(c, merge(b, a)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: moments(np.zeros((0, 3))), "0 features; give 1"),
        (lambda: of_batches([]), "0 batches"),
        (lambda: moments(np.array([[1.0, np.nan]])), "1 of 2 features are NaN"),
        (lambda: gaussian(moments(np.ones((1, 3)))), "1 image is undefined; give 2"),
        (
            lambda: merge(moments(np.ones((2, 3))), moments(np.ones((2, 4)))),
            "widths 3 and 4 cannot be compared; use one extractor",
        ),
        (lambda: frechet_distance(of(np.ones((2, 3))), of(np.ones((2, 4)))), "widths 3 and 4"),
        (lambda: mmd2(np.ones((1, 3)), np.ones((2, 3))), "1 images is undefined; give 2"),
        (lambda: kid(np.ones((2, 3)), np.ones((2, 4))), "widths 3 and 4"),
        (lambda: kid(np.ones((2, 3)), np.ones((2, 3)), subsets=0), "subsets=0"),
        (lambda: prdc(np.ones((5, 3)), np.ones((9, 3)), k=5), "k=5 neighbours among 5 generated.*use 1 to 4"),
        (lambda: nearest(np.ones((9, 3)), np.ones((5, 3)), k=6), "k=6 nearest of 5 images"),
        (lambda: nearest(np.ones((9, 3)), np.ones((5, 4)), k=1), "widths 3 and 4"),
        (lambda: prdc(np.full((5, 3), np.nan), np.ones((9, 3))), "15 of 15 features are NaN"),
        (lambda: mmd2(np.ones((9, 3)), np.full((5, 3), np.inf)), "15 of 15 features are NaN or infinite"),
        (lambda: inception_score(np.full((5, 2), 0.5)), "splits=10 of 5 images; use 1 to 5"),
        (lambda: inception_score(np.ones((20, 2))), "use probabilities\\(logits"),
        (lambda: class_accuracy(np.zeros(2, int), np.zeros(3, int)), "2 predictions for 3 labels"),
        (lambda: class_accuracy(np.zeros(2, int), np.array([0, 2]), ["a", "b"]), "labels 0 .. 2 for 2 names"),
    ],
)
def test_wrong_input_is_named_with_its_remedy(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()


# Frechet distance


def test_frechet_distance_of_gaussians_in_closed_form(random):
    """Of commuting covariances it is |m1 - m2|^2 + sum (s1 - s2)^2, s being the standard deviations."""
    basis = np.linalg.qr(random.normal(size=(6, 6)))[0]
    s1, s2 = random.uniform(0.1, 3, (2, 6))
    a = Gaussian(np.arange(6.0), basis * s1**2 @ basis.T)
    b = Gaussian(np.ones(6), basis * s2**2 @ basis.T)
    expected = ((np.arange(6) - 1) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_to_a_point_is_the_mean_squared_distance(random):
    x = random.normal(size=(50, 5))
    point = Gaussian(np.full(5, 2.0), np.zeros((5, 5)))
    expected = ((x - 2) ** 2).sum(1).mean() + np.trace(of(x).covariance) / 50
    assert frechet_distance(of(x), point) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("d", [10, 60])
def test_frechet_distance_is_that_of_the_matrix_square_root(random, d):
    a, b = of(features(random, 300, d)), of(1.3 * features(random, 200, d, 0.2))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_with_fewer_pictures_than_features(random):
    """The Gram matrix of the centred rows has the same singular values as the roots of 40 x 40 covariances."""
    x, y = features(random, 12, 40), features(random, 9, 40)
    a, b = of(x), of(y)
    cross = (x - a.mean) @ (y - b.mean).T / np.sqrt(11 * 8)
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance)
    expected -= 2 * np.linalg.norm(cross, "nuc")
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert biased(12, 40) and biased(40, 40) and not biased(41, 40)


def test_halves_of_one_data_set_differ_by_the_known_bias(random):
    """Two samples of N(0, diag(l)) of n each: 2 tr / n of the means, and of the covariances what Wishart's say.

    Near S the covariances' part is 1/2 sum D_ij^2 / (l_i + l_j) of their difference D, whose entries have the variance
    2 l_i l_j (1 + [i = j]) / (n - 1).
    """
    variance, n, repeats = np.array([0.5, 1.0, 2.0, 4.0]), 1000, 100
    draws = random.normal(size=(repeats, 2, n, 4)) * np.sqrt(variance)
    measured = np.mean([frechet_distance(of(x), of(y)) for x, y in draws])
    wishart = (np.outer(variance, variance) * (1 + np.eye(4)) / np.add.outer(variance, variance)).sum() / (n - 1)
    expected = 2 * variance.sum() / n + wishart
    print(measured, expected)
    assert measured == pytest.approx(expected, rel=0.1)


def test_samples_of_a_known_gaussian_come_near_it_as_one_over_n(random):
    known = Gaussian(np.zeros(3), np.diag([1.0, 2.0, 3.0]))

    def mean_distance(n):
        draws = random.normal(size=(40, n, 3)) * np.sqrt([1, 2, 3])
        return np.mean([frechet_distance(of(x), known) for x in draws])

    counts = np.array([100, 400, 1600])
    slope = np.polyfit(np.log(counts), np.log([mean_distance(n) for n in counts]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.15)


# KID


def test_mmd2_is_the_mean_over_all_pairs_of_different_rows(random):
    x, y = features(random, 23, 5, 0.5), features(random, 17, 5)
    kernel = lambda a, b: (a.astype(np.float64) @ b.T.astype(np.float64) / 5 + 1) ** 3  # noqa: E731
    within = [kernel(a, a)[~np.eye(len(a), dtype=bool)].mean() for a in (x, y)]
    expected = sum(within) - 2 * kernel(x, y).mean()
    for block in (4, 8, 1024):
        assert mmd2(x, y, block) == pytest.approx(expected, rel=1e-5)
    assert mmd2(jnp.asarray(x), jnp.asarray(y)) == pytest.approx(expected, rel=1e-5)


def test_the_same_distribution_has_mmd2_of_mean_zero(random):
    """However few pictures there are; unlike the Frechet distance."""
    values = [mmd2(*random.normal(size=(2, 20, 8)).astype(np.float32)) for _ in range(300)]
    assert min(values) < 0
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)
    assert mmd2(*random.normal([[[0.0]], [[1.0]]], 1, (2, 20, 8)).astype(np.float32)) > 3 * np.std(values)


def test_subsets_are_no_larger_than_the_smaller_set(random):
    x, y = features(random, 30, 5), features(random, 20, 5)
    assert kid(x, y, subsets=2).size == 20
    assert kid(x, y, subsets=2, subset_size=7).size == 7
    assert kid(x, y, 3, 7, seed=1) == kid(x, y, 3, 7, seed=1)
    assert kid(x, y, 3, 7, seed=1) != kid(x, y, 3, 7, seed=2)


# Precision, recall, density, coverage, neighbours


def published(real, generated, k):
    with contextlib.redirect_stdout(io.StringIO()):
        return compute_prdc(real.astype(np.float64), generated.astype(np.float64), nearest_k=k)


@pytest.mark.parametrize(("k", "block"), [(3, 64), (5, 1000)])
def test_precision_and_the_others_are_what_prdc_says(random, k, block):
    real, generated = features(random, 211, 8), 0.8 * features(random, 180, 8, 0.3)
    expected = published(real, generated, k)
    assert 0.05 < expected["recall"] < 0.95 and 0.05 < expected["coverage"] < 0.95
    found = prdc(generated, jnp.asarray(real), k, block)._asdict()
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-4)


def test_what_all_features_have_in_common_costs_no_digits(random):
    """|x|^2 is 1e8 times the distances here: float32 has nothing left of them."""
    real, generated = features(random, 150, 8, 3000), features(random, 120, 8, 3000)
    squared = (real**2).sum(1)[:, None] + (real**2).sum(1) - 2 * real @ real.T
    exact = ((real[:, None].astype(np.float64) - real) ** 2).sum(-1)
    assert abs(squared - exact).max() > exact.mean()
    expected = {name: float(value) for name, value in published(real, generated, 3).items()}
    assert prdc(generated, real)._asdict() == pytest.approx(expected, abs=1e-4)


def test_a_collapsed_generator_is_precise_and_covers_nothing(random):
    real = features(random, 100, 4)
    collapsed = real[:1] + 1e-4 * random.normal(size=(100, 4)).astype(np.float32)
    found = prdc(collapsed, real)
    assert found.precision == 1 and found.recall < 0.05 and found.coverage < 0.2
    assert prdc(real + 1000, real) == (0, 0, 0, 0)


def test_nearest_finds_copies_and_their_distances(random):
    data = features(random, 97, 6, 100)
    queries = np.concatenate([data[[5, 96]], features(random, 40, 6, 100)])
    distance = np.linalg.norm(queries[:, None].astype(np.float64) - data, axis=-1)
    order = np.argsort(distance, axis=1)[:, :3]
    for block, span in ((16, 65536), (256, 20)):
        found = nearest(queries, jnp.asarray(data), 3, block, span)
        np.testing.assert_array_equal(found.row, order)
        np.testing.assert_allclose(found.distance, np.take_along_axis(distance, order, 1), rtol=1e-4, atol=1e-12)
    assert found.row[:2, 0].tolist() == [5, 96] and (found.distance[:2, 0] == 0).all()
    assert nearest(queries, data[:3], 3, span=2).row.shape == (42, 3)


# Scores


def test_inception_score_of_sure_and_of_unsure_classifiers():
    """Sure of c classes, equally often: c. The same for all pictures: 1."""
    assert inception_score(np.eye(5)[np.arange(100) % 5], splits=5, seed=None) == pytest.approx((5, 0))
    assert inception_score(np.tile([[0.2, 0.5, 0.3]], (50, 1))) == pytest.approx((1, 0))


def test_pictures_ordered_by_class_are_shuffled_before_splitting():
    p = np.eye(5)[np.repeat(np.arange(5), 200)]
    assert inception_score(p, splits=5, seed=None).mean == pytest.approx(1)
    assert inception_score(p, splits=5).mean == pytest.approx(5, rel=0.02)


def test_class_accuracy_of_each_class_that_was_asked_for():
    found = class_accuracy(jnp.array([0, 0, 3, 3, 1]), np.array([0, 0, 0, 3, 3]), ["crane", "b", "c", "crane"])
    assert found.overall == pytest.approx(0.6)
    assert found.classes == [("crane", pytest.approx(2 / 3), 3), ("crane", 0.5, 2)]
    assert [figures.name for figures in class_accuracy(np.array([2]), np.array([2])).classes] == ["2"]


# torch-fidelity


def test_torch_fidelity_says_the_same(recorded):
    theirs, config = recorded.config["results"], recorded.config
    one, two = recorded["features_1"], recorded["features_2"]
    distance = kid(one, two, config["kid_subsets"], config["kid_subset_size"], config["rng_seed"])
    found = prdc(generated=one, reference=two, k=config["neighbours"])
    score = inception_score(probabilities(recorded["logits"]), config["splits"])
    mine = {
        "frechet_inception_distance": frechet_distance(of(one), of(two)),
        "kernel_inception_distance_mean": distance.mean,
        "kernel_inception_distance_std": distance.std,
        "precision": found.precision,
        "recall": found.recall,
        "f_score": 2 * found.precision * found.recall / (found.precision + found.recall),
        "inception_score_mean": score.mean,
        "inception_score_std": score.std,
    }
    print({name: (mine[name], theirs[name]) for name in theirs})
    assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_the_recorded_results_are_torch_fidelitys(recorded):
    pytest.importorskip("torch_fidelity")
    spec = importlib.util.spec_from_file_location("make", MAKE)
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    arrays = make.inputs()
    assert all((recorded[name] == array).all() for name, array in arrays.items())
    assert make.results(arrays) == pytest.approx(recorded.config["results"], rel=1e-6)


# Functions on arrays, for notebooks


def test_fid_of_images_is_the_frechet_distance_of_their_features(random):
    images, reference = random.integers(0, 256, (2, 150, 6, 6, 3), np.uint8)
    mean = lambda x: x.mean((1, 2))  # noqa: E731
    in_batches = metrics.fid(images, reference, features=mean, batch_size=40)
    assert in_batches == pytest.approx(frechet_distance(mean(images), mean(reference)), rel=1e-4)
    pixels = [x.reshape(150, -1) / 127.5 - 1 for x in (images, reference)]
    assert metrics.fid(images, reference, features="pixels") == pytest.approx(frechet_distance(*pixels), rel=1e-4)
    np.testing.assert_allclose(metrics.extract(images, "pixels"), pixels[0], atol=1e-6)
    assert metrics.extract(random.integers(0, 256, (3, 64, 64, 3), np.uint8), "pixels").shape == (3, 16 * 16 * 3)
    assert metrics.precision_recall(*pixels) == prdc(*pixels, k=3)[:2]
    assert metrics.density_coverage(*pixels) == prdc(*pixels, k=5)[2:]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "features=inception needs feature_weights.*pixels"),
        ({"features": "incepton"}, "did you mean 'inception'"),
        ({"features": "own"}, "use Scorer"),
        ({"features": "pixels", "feature_weights": "a.pth"}, "features=pixels has none"),
        ({"features": "dinov2", "feature_weights": "missing.safetensors"}, "is no file"),
    ],
)
def test_wrong_features_are_named_with_their_remedy(wrong, message):
    images = np.zeros((4, 8, 8, 1), np.uint8)
    with pytest.raises(InputError, match=message):
        metrics.fid(images, images, **wrong)


def test_points_of_a_sweep_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="no point"):
        sweep.points()
    with pytest.raises(InputError, match="finite"):
        sweep.points([0, float("nan")])
