"""Scores against closed forms."""

import doctest
import inspect
import itertools
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bayeskit import metrics
from bayeskit.errors import ConvergenceWarning


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def complex_gaussian(rng, size):
    return rng.standard_normal(size) + 1j * rng.standard_normal(size)


def test_documented_examples_run():
    results = doctest.testmod(metrics)
    assert results.attempted > 0
    assert results.failed == 0


def test_nmse_of_a_scaled_truth_is_the_squared_relative_error(rng):
    truth = complex_gaussian(rng, (3, 4))
    assert metrics.nmse(truth, (1 + 0.1j) * truth) == pytest.approx(0.01)
    assert metrics.nmse(1e8 * truth, 0 * truth) == pytest.approx(1.0)
    assert metrics.nmse(jnp.ones(3, jnp.float32), np.ones(3)) == 0.0


@pytest.mark.parametrize("unit", [1e200, 1e-200, 1e-320, 1e200j])
def test_scores_do_not_depend_on_the_unit(unit):
    assert metrics.nmse([unit], [2 * unit]) == pytest.approx(1.0)
    pair = np.array([unit, 1.0]).reshape(2, 1, 1)
    assert metrics.channel_nmse(pair, 2 * pair) == pytest.approx(1.0)
    assert metrics.nmse([1e-300], [1e300]) == math.inf


def test_channel_nmse_weighs_patterns_equally(rng):
    channels = complex_gaussian(rng, (2, 4, 3)) * np.array([1.0, 1e6])[:, None, None]
    factors = np.array([1.2, 1.4])[:, None, None]
    assert metrics.channel_nmse(channels, factors * channels) == pytest.approx((0.04 + 0.16) / 2)


@pytest.mark.parametrize("snr_db", [3.0, 8.0])
def test_symbol_error_rate_of_the_true_channel_is_the_textbook_qpsk_rate(rng, snr_db):
    channels = complex_gaussian(rng, (4, 5, 3))
    q = scipy.stats.norm.sf(math.sqrt(10 ** (snr_db / 10)))
    expected = 2 * q - q**2
    rate = metrics.symbol_error_rate(channels, channels, snr_db, 1, num_symbols=50_000)
    assert rate == pytest.approx(expected, abs=4.5 * math.sqrt(expected / 200_000))
    assert rate == metrics.symbol_error_rate(channels, channels, snr_db, 1, num_symbols=50_000)


@pytest.mark.parametrize(
    ("degrees", "rate"), [(0, 0.0), (30, 0.0), (-30, 0.0), (60, 1.0), (90, 1.0), (180, 1.0)]
)
def test_without_noise_a_phase_error_matters_beyond_half_a_quadrant(rng, degrees, rate):
    channels = complex_gaussian(rng, (2, 4, 3))
    turned = 3.0 * np.exp(1j * np.radians(degrees)) * channels
    snr_db = math.inf
    assert metrics.symbol_error_rate(channels, turned, snr_db, 0, num_symbols=200) == rate


def test_an_estimate_of_zero_guesses_one_symbol_in_four(rng):
    channels = complex_gaussian(rng, (1, 4, 3))
    rate = metrics.symbol_error_rate(channels, 0 * channels, 20.0, 0, num_symbols=40_000)
    assert rate == pytest.approx(0.75, abs=0.01)


def test_psnr_of_a_constant_error(rng):
    image = rng.uniform(size=(5, 6))
    assert metrics.psnr(image, image + 0.01) == pytest.approx(40.0)
    assert metrics.psnr(255 * image, 255 * (image + 0.01), data_range=255.0) == pytest.approx(40.0)
    assert metrics.psnr(image, image) == math.inf


def test_support_recovery_rate_counts_intersection_over_union():
    truth = np.array([1.0, 1.0, 0.0, 0.0])
    assert metrics.support_recovery_rate(truth, np.array([2.0, 0.0, 2.0, 1e-6])) == 1 / 3
    assert metrics.support_recovery_rate(truth, truth.astype(bool)) == 1.0
    assert metrics.support_recovery_rate(truth, np.zeros(4)) == 0.0
    assert metrics.support_recovery_rate(np.zeros(4), np.zeros(4)) == 1.0
    near = np.array([1.0, 1.0, 0.4, 0.0])
    assert metrics.support_recovery_rate(truth, near, threshold=0.5) == 1.0


CHANNEL = np.ones((2, 4, 3), complex)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.nmse(np.ones(3), np.ones(4)), r"estimate: got shape \(4,\); expected \(3"),
        (lambda: metrics.nmse(np.zeros(3), np.ones(3)), "truth: got only zeros"),
        (
            lambda: metrics.nmse(np.ones(3), np.ma.array(np.ones(3), mask=[0, 1, 1])),
            r"estimate has 2 masked entries, the first at index \(1,\)",
        ),
        (lambda: metrics.nmse(np.ones(0), np.ones(0)), "truth: got no entries"),
        (
            lambda: metrics.nmse(np.ones(2), np.array([0.0, np.nan])),
            r"estimate has 1 non-finite values, the first at index \(1,\)",
        ),
        (lambda: metrics.channel_nmse(CHANNEL, CHANNEL[:1]), "channels_estimated: got shape"),
        (lambda: metrics.channel_nmse(CHANNEL[0], CHANNEL[0]), "channels_true: got shape"),
        (lambda: metrics.channel_nmse(0 * CHANNEL, CHANNEL), "pattern 0 is zero"),
        (
            lambda: metrics.symbol_error_rate(CHANNEL, CHANNEL, 0.0, 0, num_symbols=0),
            "num_symbols must be at least 1, got 0",
        ),
        (lambda: metrics.symbol_error_rate(CHANNEL, CHANNEL, math.nan, 0), "snr_db must .* nan"),
        (lambda: metrics.symbol_error_rate(CHANNEL, CHANNEL, -math.inf, 0), "snr_db must .* -inf"),
        (lambda: metrics.psnr(np.ones(2), np.ones(2), data_range=0.0), "data_range must .* 0.0"),
        (
            lambda: metrics.support_recovery_rate(np.ones(2), np.ones(2), threshold=1.0),
            "threshold must be in .* got 1.0",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("score", "arguments", "message"),
    [
        (metrics.nmse, (np.array(["a"]), np.ones(1)), "truth: got dtype <U1; expected numbers"),
        (metrics.nmse, (None, np.ones(1)), "truth must be real or complex numbers, got None"),
        (metrics.symbol_error_rate, (CHANNEL, CHANNEL, "a", 0), "snr_db must be a number, got 'a'"),
        (metrics.psnr, (np.ones(2), np.ones(2), "a"), "data_range must be a number, got 'a'"),
    ],
)
def test_other_kinds_are_refused(score, arguments, message):
    with pytest.raises(TypeError, match=message):
        inspect.unwrap(score)(*arguments)  # without the tests' own checks of annotations


def test_clustering_error_is_the_best_of_all_matchings():
    generator = np.random.default_rng(0)
    for classes, clusters in ((3, 3), (2, 4), (4, 2)):
        truth, labels = (generator.integers(0, k, 25) for k in (classes, clusters))
        size = max(classes, clusters)
        matchings = itertools.permutations(range(size))
        best = max(np.mean(np.array(each)[labels] == truth) for each in matchings)
        assert metrics.clustering_error(truth, labels) == pytest.approx(1 - best)
    for truth, labels, message in (
        ([1, 2], [1], "labels: got 1"),
        ([[1]], [1], "truth: got shape"),
        ([], [], "truth: got shape"),
        ([1.0, np.nan], [1, 2], "truth: got a missing"),
        (["a", None], [1, 2], "truth: got a missing"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.clustering_error(truth, labels)


# Distances of samples


def test_wasserstein_is_the_best_of_all_matchings(rng):
    truth, sample = rng.standard_normal((2, 6, 3))
    costs = [
        np.linalg.norm(truth - sample[list(order)], axis=1).mean()
        for order in itertools.permutations(range(6))
    ]
    assert metrics.wasserstein(truth, sample) == pytest.approx(min(costs), rel=1e-12)


def test_distances_of_a_moved_sample(rng):
    sample = rng.standard_normal((300, 3))
    shift = np.array([1.0, 2.0, 2.0])
    # No transport beats the move itself, whose length is three.
    assert metrics.wasserstein(sample, sample + shift) == pytest.approx(3.0, rel=1e-12)
    # The mean of |cosine| over the sphere is a half.
    found = metrics.sliced_wasserstein(sample, sample + shift, 0, num_directions=2000)
    assert found == pytest.approx(1.5, rel=0.05)
    assert metrics.sliced_wasserstein(sample, sample, 0) == 0.0
    assert metrics.energy_distance(sample, sample[::-1]) == pytest.approx(0.0, abs=1e-12)


def test_on_a_line_distances_are_integrals_of_distribution_functions(rng):
    first, second = rng.standard_normal(500), 0.5 + 2 * rng.standard_normal(500)
    ends = np.sort(np.concatenate([first, second]))
    widths = np.diff(ends)
    difference = np.mean(first[:, None] <= ends[:-1], axis=0)
    difference = difference - np.mean(second[:, None] <= ends[:-1], axis=0)
    pair = first[:, None], second[:, None]
    between = np.sum(widths * np.abs(difference))
    assert metrics.wasserstein(*pair) == pytest.approx(between, rel=1e-10)
    assert metrics.sliced_wasserstein(*pair, key=1) == pytest.approx(between, rel=1e-10)
    energy = 2 * np.sum(widths * difference**2)
    assert metrics.energy_distance(*pair) == pytest.approx(energy, rel=1e-10)


def test_sinkhorn_divergences_lie_between_wasserstein_and_half_the_energy_distance(rng):
    pair = rng.standard_normal((40, 3)), 0.5 + rng.standard_normal((40, 3))
    exact, energy = metrics.wasserstein(*pair), metrics.energy_distance(*pair)
    near = metrics.sinkhorn_divergence(*pair, regularization=0.02)
    assert near == pytest.approx(exact, rel=0.04)
    far = metrics.sinkhorn_divergence(*pair, regularization=1e4)
    assert far == pytest.approx(0.5 * energy, rel=1e-3)
    default = metrics.sinkhorn_divergence(*pair)
    assert far < default < near
    moved = [1e6 * sample[:, ::-1] - 3e6 for sample in pair]
    assert metrics.sinkhorn_divergence(*moved) == pytest.approx(1e6 * default, rel=1e-6)
    assert metrics.sinkhorn_divergence(pair[0], pair[0][::-1]) == pytest.approx(0.0, abs=1e-6)
    assert metrics.sinkhorn_divergence(pair[0][:1], pair[0][:1]) == 0.0


def test_sinkhorn_divergence_says_that_it_has_not_converged(rng):
    pair = rng.standard_normal((40, 3)), 0.5 + rng.standard_normal((40, 3))
    with pytest.warns(ConvergenceWarning, match=r"regularization=1e-05"):
        metrics.sinkhorn_divergence(*pair, regularization=1e-5)


def test_sinkhorn_divergence_names_what_to_install(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=r"bayeskit\[transport\]"):
        metrics.sinkhorn_divergence(np.zeros((2, 1)), np.ones((2, 1)))


def test_blocks_change_no_energy_distance(rng, monkeypatch):
    pair = rng.standard_normal((30, 2)), rng.standard_normal((20, 2)) + 1
    expected = metrics.energy_distance(*pair)
    monkeypatch.setattr(metrics, "_BLOCK_ROWS", 7)
    assert metrics.energy_distance(*pair) == pytest.approx(expected, rel=1e-12)


def test_distance_to_a_support_is_that_of_the_nearest_point():
    angle = np.linspace(0, 2 * np.pi, 20_000)
    support = np.column_stack([np.cos(angle), np.sin(angle)])
    inner = np.array([[0.5, 0.0], [0.0, -2.0]])
    assert metrics.distance_to_support(support, inner) == pytest.approx(0.75, abs=1e-6)


def test_the_floor_falls_with_the_size_of_samples_and_is_below_other_truths():
    def draw(key, count):
        return np.random.default_rng(key).standard_normal((count, 2))

    small, large = (metrics.sampling_floor(metrics.wasserstein, draw, n, 0) for n in (50, 400))
    assert 0 < large < 0.6 * small
    assert metrics.wasserstein(draw(1, 400), draw(2, 400) + 1.0) > 3 * large


def test_bad_samples_are_named(rng):
    rows = rng.standard_normal((4, 2))
    for call, kind, message in (
        (lambda: metrics.wasserstein(rows, rows[:3]), ValueError, "sample: got 3 rows; expected 4"),
        (lambda: metrics.wasserstein(rows[0], rows), ValueError, r"truth: got shape \(2,\)"),
        (
            lambda: metrics.energy_distance(rows, rows[:, :1]),
            ValueError,
            "got 1 features; expected",
        ),
        (
            lambda: metrics.energy_distance(1j * rows, rows),
            TypeError,
            "truth: got dtype complex128",
        ),
        (
            lambda: metrics.distance_to_support(rows[:0], rows),
            ValueError,
            r"support: got shape \(0, 2\)",
        ),
        (lambda: metrics.wasserstein(np.zeros((2001, 1)), np.zeros((2001, 1))), ValueError, "2000"),
        (
            lambda: metrics.sinkhorn_divergence(rows, rows, regularization=0.0),
            ValueError,
            "regularization must be",
        ),
        (
            lambda: metrics.sliced_wasserstein(rows, rows, 0, num_directions=0),
            ValueError,
            "num_directions must be at least 1",
        ),
    ):
        with pytest.raises(kind, match=message):
            call()
