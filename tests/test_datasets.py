"""Simulators against dense algebra and against physics; the real image against its facts."""

import doctest
import functools
import importlib
import inspect
import math

import jax
import numpy as np
import pytest
import scipy.special
import sklearn.datasets

from bayeskit import datasets
from bayeskit.datasets import irs


def dense(dictionaries):
    return functools.reduce(np.kron, dictionaries)


@pytest.mark.parametrize(
    "module", ["sparse", "irs", "images", "flowers", "clusters", "shapes", "digits"]
)
def test_documented_examples_run(module):
    results = doctest.testmod(importlib.import_module(f"bayeskit.datasets.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


def test_digits_are_those_of_scikit_learn():
    found, expected = datasets.digits(), sklearn.datasets.load_digits()
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.target)


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("rank_one", [False, True])
def test_noiseless_measurements_equal_dense_kronecker_product(complex_valued, rank_one):
    problem = datasets.kronecker_sparse(
        3,
        shape=(4, 7, 2),
        atoms=(6, 5, 3),
        nonzeros=(2, 3, 1),
        snr_db=math.inf,
        rank_one=rank_one,
        complex=complex_valued,
    )
    expected = dense(problem.dictionaries) @ problem.coefficients.ravel()
    assert np.iscomplexobj(problem.measurements) == complex_valued
    assert problem.noise_variance == 0.0
    np.testing.assert_allclose(problem.measurements.ravel(), expected, rtol=0, atol=1e-12)


def test_nonzeros_are_the_product_of_the_supports():
    problem = datasets.kronecker_sparse(1, nonzeros=(2, 3, 4))
    indicator = np.zeros(problem.coefficients.shape, bool)
    indicator[np.ix_(*problem.support)] = True
    np.testing.assert_array_equal(problem.coefficients != 0, indicator)
    assert indicator.sum() == 24


@pytest.mark.parametrize(("rank_one", "rank"), [(True, 1), (False, 3)])
def test_rank_of_the_coefficients(rank_one, rank):
    coefficients = datasets.kronecker_sparse(0, rank_one=rank_one).coefficients
    for axis in range(3):
        unfolded = np.moveaxis(coefficients, axis, 0).reshape(15, -1)
        assert np.linalg.matrix_rank(unfolded) == rank


@pytest.mark.parametrize("complex_valued", [False, True])
def test_noise_has_the_stated_variance(complex_valued):
    arguments = {"shape": (40, 40), "atoms": (5, 5), "nonzeros": (2, 2), "complex": complex_valued}
    noisy = datasets.kronecker_sparse(5, snr_db=10.0, **arguments)
    clean = datasets.kronecker_sparse(5, snr_db=math.inf, **arguments)
    signal = np.mean(np.abs(clean.measurements) ** 2)
    assert noisy.noise_variance == pytest.approx(signal / 10)
    noise = noisy.measurements - clean.measurements
    ratio = np.mean(np.abs(noise) ** 2) / noisy.noise_variance
    assert ratio == pytest.approx(1, abs=5 * math.sqrt(2 / 1600))


@pytest.mark.parametrize("complex_valued", [False, True])
def test_oracle_equals_dense_least_squares_on_the_support(complex_valued):
    problem = datasets.kronecker_sparse(2, complex=complex_valued)
    flat = np.flatnonzero(problem.coefficients)
    columns = dense(problem.dictionaries)[:, flat]
    expected = np.zeros(problem.coefficients.size, columns.dtype)
    expected[flat] = np.linalg.lstsq(columns, problem.measurements.ravel(), rcond=None)[0]
    np.testing.assert_allclose(problem.oracle().ravel(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "simulate",
    [
        datasets.kronecker_sparse,
        datasets.irs_mimo,
        functools.partial(datasets.compressive_image, size=16),
    ],
)
def test_key_determines_the_data_whatever_its_kind_and_the_precision_flag(simulate):
    first = simulate(7)
    same = [simulate(7), simulate(jax.random.key(7)), simulate(jax.random.PRNGKey(7))]
    with jax.enable_x64(True):
        same.append(simulate(jax.random.key(7)))
    for other in same:
        np.testing.assert_array_equal(first.measurements, other.measurements)
    assert not np.allclose(first.measurements, simulate(8).measurements)
    assert first.measurements.dtype in (np.float64, np.complex128)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (None, TypeError),
        (True, TypeError),
        (0.5, TypeError),
        (-1, ValueError),
        (jax.random.split(jax.random.key(0), 2), ValueError),
    ],
)
def test_a_key_of_another_kind_is_refused(key, error):
    with pytest.raises(error, match="key: got"):
        datasets.kronecker_sparse(key)


SMALL_IRS = {
    "mobile_antennas": 3,
    "base_antennas": 5,
    "irs_elements": 16,
    "grid": 7,
    "pilots": 2,
    "patterns": 4,
    "spread": 2,
}


@pytest.mark.parametrize("arguments", [SMALL_IRS, SMALL_IRS | {"spread": 7}])
def test_irs_measurements_equal_dense_kronecker_product(arguments):
    problem = datasets.irs_mimo(4, snr_db=math.inf, **arguments)
    expected = dense(problem.dictionaries) @ problem.coefficients.ravel()
    error = np.abs(problem.measurements.ravel() - expected).max()
    assert error <= 1e-12 * np.abs(expected).max()


def test_irs_default_sizes_and_sparsity_are_the_papers():
    problem = datasets.irs_mimo(0, snr_db=math.inf)
    assert [d.shape for d in problem.dictionaries] == [(6, 18), (3, 18), (16, 18)]
    assert problem.measurements.shape == (6, 3, 16)
    nonzeros = [len(np.unique(index)) for index in np.nonzero(problem.coefficients)]
    assert nonzeros == [3, 1, 3]
    recovered = problem.channel_estimate(problem.coefficients)
    np.testing.assert_allclose(recovered, problem.channels, rtol=1e-11, atol=1e-12)


def test_irs_measurements_are_pilots_sent_through_the_true_channels():
    # With as many pilots as antennas the pilots follow from the dictionary: D = Xᵀ conj(A).
    problem = datasets.irs_mimo(1, snr_db=math.inf, pilots=6, offset=0.3)
    pilots = (problem.dictionaries[1] @ np.linalg.pinv(problem.channel_factors[1])).T
    np.testing.assert_allclose(np.abs(pilots), 1 / np.sqrt(6), rtol=1e-10)  # QPSK, unit power
    received = np.einsum("kbm,mp->kpb", problem.channels, pilots)
    np.testing.assert_allclose(problem.measurements, received, rtol=0, atol=1e-10)


def test_irs_channels_have_one_path_into_the_mobile_side():
    channels = datasets.irs_mimo(6).channels
    for channel in channels:
        values = np.linalg.svd(channel, compute_uv=False)
        assert values[1] <= 1e-12 * values[0]


def test_an_offset_of_one_bin_moves_the_coefficients_by_one():
    """Off-grid physics, checked where it comes back to the grid."""
    on_grid = datasets.irs_mimo(9, snr_db=math.inf)
    shifted = datasets.irs_mimo(9, snr_db=math.inf, offset=1.0)
    assert shifted.coefficients is None
    moved = np.roll(on_grid.coefficients, (1, 1, 1), axis=(0, 1, 2))
    np.testing.assert_allclose(
        shifted.channel_estimate(moved), shifted.channels, rtol=1e-10, atol=1e-11
    )


def test_half_a_bin_off_no_grid_angle_explains_the_channel():
    problem = datasets.irs_mimo(9, snr_db=math.inf, offset=0.5, spread=1)
    base = problem.channel_factors[2]
    response = np.linalg.svd(problem.channels[0])[0][:, 0]
    nearest = np.abs(base.conj().T @ response).max()
    antennas, grid = base.shape
    dirichlet = math.sin(math.pi * antennas / 2 / grid) / math.sin(math.pi / 2 / grid) / antennas
    assert nearest == pytest.approx(dirichlet, rel=1e-10)  # 0.706 at 16 antennas and 18 angles


def test_a_sounding_key_shares_dictionaries_between_channels():
    first, second = (datasets.irs_mimo(key, sounding_key=100) for key in (0, 1))
    for left, right in zip(first.dictionaries, second.dictionaries, strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.allclose(first.channels, second.channels)


@pytest.mark.parametrize("sounding_key", [None, 3])
def test_blocked_channels_are_drawn_again(monkeypatch, sounding_key):
    arguments = SMALL_IRS | {"snr_db": math.inf, "sounding_key": sounding_key}
    before = datasets.irs_mimo(0, **arguments)
    weakest = np.linalg.norm(before.channels, axis=(1, 2)).min()
    monkeypatch.setattr(irs, "_WEAKEST_CHANNEL", 1.1 * weakest)
    after = datasets.irs_mimo(0, **arguments)
    assert np.linalg.norm(after.channels, axis=(1, 2)).min() >= 1.1 * weakest
    np.testing.assert_allclose(after.channel_estimate(after.coefficients), after.channels)
    shared = np.array_equal(before.dictionaries[0], after.dictionaries[0])
    assert shared == (sounding_key is not None)


def test_channels_that_never_get_through_are_reported(monkeypatch):
    monkeypatch.setattr(irs, "_WEAKEST_CHANNEL", math.inf)
    monkeypatch.setattr(irs, "_MAX_REDRAWS", 3)
    with pytest.raises(ValueError, match="irs_elements: with 16 no channel was found in 3 draws"):
        datasets.irs_mimo(0, **SMALL_IRS)


def test_mri_slice_is_the_real_image():
    image = datasets.mri_slice()
    assert image.shape == (256, 256)
    assert image.dtype == np.float64
    assert image.min() == 0.0
    assert image.max() == 1.0
    assert len(np.unique(image)) > 100
    # Neighbouring pixels agree as they do in pictures; a wrong byte order or shape breaks this.
    assert np.corrcoef(image[:, 1:].ravel(), image[:, :-1].ravel())[0, 1] > 0.9
    assert np.corrcoef(image[1:].ravel(), image[:-1].ravel())[0, 1] > 0.9


def test_compressive_measurements_equal_dense_kronecker_product():
    problem = datasets.compressive_image(0, size=16, fraction=0.5, snr_db=math.inf)
    assert problem.measurements.shape == (11, 11)
    expected = dense(problem.dictionaries) @ problem.coefficients.ravel()
    np.testing.assert_allclose(problem.measurements.ravel(), expected, rtol=0, atol=1e-12)


def test_the_cosine_basis_is_orthonormal_and_reconstructs_batches():
    problem = datasets.compressive_image(0, size=16)
    for basis in problem.basis:
        np.testing.assert_allclose(basis.T @ basis, np.eye(16), atol=1e-14)
    batch = np.stack([problem.coefficients, 2 * problem.coefficients])[None]
    np.testing.assert_allclose(
        problem.reconstruct(batch), np.stack([problem.image, 2 * problem.image])[None], atol=1e-13
    )


def test_reduction_to_a_size_takes_block_means():
    image = np.arange(36.0).reshape(6, 6)
    reduced = datasets.compressive_image(0, image=image, size=3).image
    np.testing.assert_allclose(reduced[0, 0], np.mean([0, 1, 6, 7]))
    np.testing.assert_allclose(reduced.mean(), image.mean())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: datasets.kronecker_sparse(0, shape=()), "shape: got no axis"),
        (lambda: datasets.kronecker_sparse(0, shape=(8, 12)), "atoms: got 3 numbers"),
        (lambda: datasets.kronecker_sparse(0, atoms=(15, 0, 15)), r"atoms\[1\] must .* 0"),
        (lambda: datasets.kronecker_sparse(0, nonzeros=(3, 3, 16)), "at most atoms"),
        (lambda: datasets.kronecker_sparse(0, snr_db=math.nan), "snr_db must .* got nan"),
        (lambda: datasets.irs_mimo(0, snr_db=4000.0), "snr_db must .* got 4000"),
        (lambda: datasets.compressive_image(0, snr_db=-4000.0), "snr_db must .* got -4000"),
        (
            lambda: datasets.compressive_image(0, image=np.full((2, 2), 1e-160), size=2),
            "snr_db must give a positive finite noise variance, got 30.0",
        ),
        (lambda: datasets.irs_mimo(0, pilots=0), "pilots must be at least 1, got 0"),
        (lambda: datasets.irs_mimo(0, spread=19), "spread: got 19; expected at most grid=18"),
        (lambda: datasets.irs_mimo(0, offset=-math.inf), "offset must .* got -inf"),
        (
            lambda: datasets.irs_mimo(0).channel_estimate(np.zeros((18, 18))),
            r"coefficients: got shape \(18, 18\); expected \(..., 18, 18, 18\)",
        ),
        (lambda: datasets.compressive_image(0, fraction=1.5), "fraction must be in .* got 1.5"),
        (lambda: datasets.compressive_image(0, size=100), "size: got 100; expected a divisor"),
        (lambda: datasets.compressive_image(0, image=np.zeros((4, 8))), "expected a square"),
        (
            lambda: datasets.compressive_image(0, image=np.full((4, 4), np.nan), size=4),
            r"image has 16 non-finite values, the first at index \(0, 0\)",
        ),
        (
            lambda: datasets.compressive_image(0, image=np.ma.masked_less(np.eye(4), 1), size=4),
            r"image has 12 masked entries, the first at index \(0, 1\)",
        ),
        (
            lambda: datasets.compressive_image(0, size=16).reconstruct(np.zeros(16)),
            "coefficients: got shape",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("simulate", "arguments", "message"),
    [
        (datasets.irs_mimo, {"pilots": 2.5}, "pilots must be an integer, got 2.5"),
        (datasets.irs_mimo, {"spread": 2.5}, "spread must be an integer, got 2.5"),
        (datasets.irs_mimo, {"snr_db": "a"}, "snr_db must be a number, got 'a'"),
        (datasets.kronecker_sparse, {"shape": (4.5, 4)}, r"shape\[0\] must be an integer, got 4.5"),
        (datasets.kronecker_sparse, {"shape": 4}, "shape must be a sequence of integers"),
        (datasets.compressive_image, {"size": 64.0}, "size must be an integer, got 64.0"),
        (datasets.compressive_image, {"fraction": "a"}, "fraction must be a number, got 'a'"),
        (
            datasets.compressive_image,
            {"image": 1j * np.eye(4), "size": 4},
            "image: got dtype complex128; expected real numbers",
        ),
    ],
)
def test_other_kinds_are_refused(simulate, arguments, message):
    with pytest.raises(TypeError, match=message):
        inspect.unwrap(simulate)(0, **arguments)  # without the tests' own checks of annotations


def test_an_image_is_not_reconstructed_from_complex_coefficients():
    problem = datasets.compressive_image(0, size=16)
    with pytest.raises(TypeError, match="coefficients: got dtype complex128; expected real"):
        problem.reconstruct(1j * problem.coefficients)


def test_beijing_air_has_the_published_rows_and_splits():
    air = datasets.beijing_air()
    rounded = air.table.round(1)
    counts = [rounded[name].nunique() for name in ("temperature", "pressure", "day")]
    assert counts == [428, 501, 1461]
    assert sorted(air.table["station"].unique()) == list(range(12))
    for name in ("pm25", "pm10", "so2"):
        np.testing.assert_allclose(air.table[name].mean(), 0, atol=1e-10)
        np.testing.assert_allclose(air.table[name].std(), 1, rtol=1e-4)
        assert np.all(air.train[name].sum(axis=1) == 13572)
    # The day's mean over stations is the simplest predictor; its error on the first split is known.
    train, pm25 = air.train["pm25"][0], air.table["pm25"]
    means = pm25[train].groupby(air.table["day"][train]).mean()
    predicted = air.table["day"][~train].map(means).fillna(pm25[train].mean())
    error = np.sqrt(np.mean((predicted - pm25[~train]) ** 2))
    np.testing.assert_allclose(error, 0.2665, atol=5e-4)


def test_clusters_have_the_covariances_and_the_bayes_error_that_they_are_said_to_have():
    data = datasets.gaussian_clusters(
        3, components=3, features=5, rows=60_000, separation=2.0, condition=8.0, spread=0.5
    )
    between = data.locations[:, None] - data.locations
    away = np.linalg.norm(between, axis=-1)
    np.testing.assert_allclose(away[~np.eye(3, dtype=bool)], 2.0, rtol=1e-12)
    values = np.linalg.eigvalsh(data.covariances)
    assert np.all(values[:, -1] / values[:, 0] <= 8.0)
    np.testing.assert_allclose(np.mean(np.log(values), axis=1), [-0.5, 0.0, 0.5], atol=1e-12)
    for k in range(3):
        rows = data.rows[data.labels == k]
        white = np.linalg.solve(
            np.linalg.cholesky(data.covariances[k]), (rows - data.locations[k]).T
        )
        # Of 20 000 rows: entries of the covariance have standard deviations of at most 0.01.
        np.testing.assert_allclose(np.cov(white), np.eye(5), atol=0.05)
        np.testing.assert_allclose(white.mean(axis=1), 0.0, atol=0.04)

    round_ones = datasets.gaussian_clusters(
        4, components=2, features=3, rows=40_000, separation=3.0, condition=1.0
    )
    missed = np.mean(round_ones.oracle() != round_ones.labels)
    expected = 0.5 * math.erfc(1.5 / math.sqrt(2))  # Φ(-Δ/2)
    assert abs(missed - expected) < 5 * math.sqrt(expected / 40_000)


def test_clusters_that_cannot_be_are_refused_by_name():
    for wrong, named in (
        ({"components": 5, "features": 4}, "components"),
        ({"rows": 201}, "rows"),
        ({"separation": 0.0}, "separation"),
        ({"condition": 0.5}, "condition"),
        ({"spread": np.inf}, "spread"),
    ):
        with pytest.raises(ValueError, match=named):
            datasets.gaussian_clusters(0, **wrong)


# Shapes


SHAPES = ("circle", "sphere", "spiral", "swiss_roll", "moons", "torus")


def on_shape(name, points):
    """How far points in the shape's own axes are from satisfying its equation."""
    radius = np.linalg.norm(points, axis=1)
    if name in ("circle", "sphere"):
        return radius - 1.0
    if name in ("spiral", "swiss_roll"):
        plane = np.linalg.norm(points[:, :2], axis=1)
        angle = 4.5 * np.pi * plane
        return np.cos(angle) - points[:, 0] / plane
    if name == "moons":
        center = np.array([0.5, 0.25])
        upper, lower = (np.linalg.norm(points - c, axis=1) - 1.0 for c in (-center, center))
        return np.where(np.abs(upper) < np.abs(lower), upper, lower)
    return np.linalg.norm(points.reshape(-1, 2, 2), axis=2) - np.sqrt(0.5)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_satisfy_their_equations_after_an_isometry(name):
    sample = datasets.shape(3, name, rows=300, features=7)
    axes = sample.axes
    np.testing.assert_allclose(axes.T @ axes, np.eye(axes.shape[1]), atol=1e-12)
    for rows in (sample.observations, sample.draw(4, 50)):
        inner = rows @ axes
        np.testing.assert_allclose(inner @ axes.T, rows, atol=1e-12)
        np.testing.assert_allclose(on_shape(name, inner), 0.0, atol=1e-12)
    assert np.array_equal(
        sample.observations, datasets.shape(3, name, rows=300, features=7).observations
    )
    assert not np.isclose(sample.observations[:50], sample.draw(4, 50)).all(axis=1).any()
    # Where the dimension is that of the shape, small balls hold a power of their radius.
    dense = sample.draw(5, 20_000)
    distances = np.linalg.norm(dense[:40, None] - dense[None], axis=-1)
    counts = [np.count_nonzero(distances < r) - 40 for r in (0.05, 0.1)]
    dimension = np.log2(counts[1] / counts[0])
    assert dimension == pytest.approx(sample.dimension, abs=0.25)


def test_angles_on_the_circle_are_the_mixture_of_von_mises_distributions():
    sample = datasets.shape(0, "circle", rows=40_000, features=2)
    cosine = (sample.observations @ sample.axes)[:, 0]
    # Mean cosines of von Mises distributions are ratios of Bessel functions.
    expected = 0.7 * ratio(3.0) - 0.3 * ratio(1.0)
    assert cosine.mean() == pytest.approx(expected, abs=5 * cosine.std() / 200)


def ratio(concentration):
    return scipy.special.iv(1, concentration) / scipy.special.iv(0, concentration)


def test_noise_of_shapes_is_of_the_stated_size_in_all_features():
    clean = datasets.shape(0, "moons", rows=4000, features=6)
    noisy = datasets.shape(0, "moons", rows=4000, features=6, noise=0.1)
    difference = noisy.observations - clean.observations
    np.testing.assert_allclose(np.cov(difference.T), 0.01 * np.eye(6), atol=0.001)


def test_wrong_arguments_of_shapes_are_named():
    with pytest.raises(ValueError, match=r"name must be one of .*got 'cube'"):
        datasets.shape(0, "cube")
    with pytest.raises(ValueError, match="features must be at least 4, got 3"):
        datasets.shape(0, "torus", features=3)
    with pytest.raises(ValueError, match="noise must be in"):
        datasets.shape(0, noise=-0.1)
    with pytest.raises(ValueError, match="count must be at least 1"):
        datasets.shape(0).draw(0, 0)
