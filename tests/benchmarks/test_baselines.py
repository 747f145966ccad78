"""Baselines must be what they claim to be, or a comparison with them is worth nothing."""

import functools

import numpy as np
import pytest

from bayeskit.datasets import kronecker_sparse
from benchmarks.baselines import (
    best_fista,
    classic_sbl,
    fista,
    kronecker_omp,
    omp,
    oracle_least_squares,
)
from benchmarks.baselines.classic_sbl import _in_atom_space, _in_measurement_space

both_fields = pytest.mark.parametrize("complex_valued", [False, True])


def dense(dictionaries):
    return functools.reduce(np.kron, dictionaries)


def small_problem(complex_valued=False, **arguments):
    sizes = {"shape": (6, 7), "atoms": (8, 9), "nonzeros": (2, 2), "complex": complex_valued}
    return kronecker_sparse(11, **(sizes | arguments))


def posterior_by_inverses(dictionary, scales, measurements, noise_variance):
    """Mean, variance and log evidence from the definitions."""
    covariance = dictionary * scales @ dictionary.conj().T
    covariance = covariance + noise_variance * np.eye(len(measurements))
    gain = (dictionary * scales).conj().T @ np.linalg.inv(covariance)
    posterior = np.diag(scales) - gain @ (dictionary * scales)
    quadratic = np.vdot(measurements, np.linalg.inv(covariance) @ measurements).real
    log_determinant = np.linalg.slogdet(covariance)[1]
    half, base = (1.0, np.pi) if np.iscomplexobj(measurements) else (0.5, 2 * np.pi)
    log_evidence = -half * (len(measurements) * np.log(base) + log_determinant + quadratic)
    return gain @ measurements, posterior.diagonal().real, log_evidence


@both_fields
@pytest.mark.parametrize("shape", [(6, 7), (3, 4), (9, 10)])
def test_both_forms_of_the_sbl_posterior_equal_the_definitions(complex_valued, shape):
    problem = small_problem(complex_valued, shape=shape)
    dictionary, measurements = dense(problem.dictionaries), problem.measurements.ravel()
    scales = np.random.default_rng(0).uniform(0.01, 2.0, dictionary.shape[1])
    expected = posterior_by_inverses(dictionary, scales, measurements, 0.3)
    gram = dictionary.conj().T @ dictionary
    for mean, ratio, log_evidence in (
        _in_measurement_space(dictionary, scales, measurements, 0.3),
        _in_atom_space(dictionary, gram, scales, measurements, 0.3),
    ):
        np.testing.assert_allclose(mean, expected[0], rtol=0, atol=1e-11)
        np.testing.assert_allclose(scales * ratio, expected[1], rtol=1e-9)
        assert log_evidence == pytest.approx(expected[2], rel=1e-11)


@both_fields
@pytest.mark.parametrize("noise_known", [True, False])
def test_sbl_evidence_never_falls_without_pruning(complex_valued, noise_known):
    problem = small_problem(complex_valued)
    noise_variance = problem.noise_variance if noise_known else None
    result = classic_sbl(
        dense(problem.dictionaries),
        problem.measurements.ravel(),
        noise_variance=noise_variance,
        prune=0.0,
        max_iterations=60,
        tolerance=0.0,
    )
    assert result.iterations == 60
    assert not result.converged
    assert np.diff(result.objective).min() >= -1e-9 * np.abs(result.objective).max()


@both_fields
def test_sbl_finds_the_support_and_prunes_the_rest(complex_valued):
    problem = small_problem(complex_valued, shape=(7, 8), snr_db=40.0)
    result = classic_sbl(
        dense(problem.dictionaries),
        problem.measurements.ravel(),
        noise_variance=problem.noise_variance,
        max_iterations=1000,
    )
    assert result.converged
    truth = problem.coefficients.ravel()
    assert np.linalg.norm(result.coefficients - truth) ** 2 < 1e-3 * np.linalg.norm(truth) ** 2
    assert (result.scales == 0).sum() > truth.size / 2
    np.testing.assert_array_equal(result.variance[result.scales == 0], 0.0)


@both_fields
def test_omp_fit_is_least_squares_on_its_support(complex_valued):
    problem = small_problem(complex_valued, snr_db=15.0)
    result = omp(problem.dictionaries, problem.measurements, noise_variance=problem.noise_variance)
    mask = np.zeros(problem.coefficients.shape, bool)
    mask[tuple(result.support.T)] = True
    expected = oracle_least_squares(problem.dictionaries, problem.measurements, mask)
    np.testing.assert_allclose(result.coefficients, expected, atol=1e-10)
    fit = dense(problem.dictionaries) @ result.coefficients.ravel()
    residual = np.linalg.norm(problem.measurements.ravel() - fit)
    assert residual == pytest.approx(result.residual_norm, rel=1e-8)
    assert result.converged == (residual**2 <= problem.noise_variance * problem.measurements.size)
    assert result.iterations == mask.sum()


def test_omp_recovers_exactly_over_an_orthonormal_dictionary():
    rng = np.random.default_rng(0)
    dictionaries = [np.linalg.qr(rng.standard_normal((6, 6)))[0] * 3 for _ in range(2)]
    truth = np.zeros((6, 6))
    truth[[0, 2, 5], [1, 1, 4]] = [3.0, -2.0, 1.0]
    measurements = dictionaries[0] @ truth @ dictionaries[1].T
    result = omp(dictionaries, measurements, noise_variance=1e-20)
    np.testing.assert_allclose(result.coefficients, truth, atol=1e-12)
    np.testing.assert_array_equal(result.support, [[0, 1], [2, 1], [5, 4]])  # by size


def test_omp_of_zero_measurements_is_zero():
    problem = small_problem()
    result = omp(problem.dictionaries, 0 * problem.measurements, noise_variance=1.0)
    assert result.iterations == 0
    assert not result.coefficients.any()


@both_fields
def test_kronecker_omp_that_knows_the_sizes_recovers_exactly(complex_valued):
    problem = small_problem(complex_valued, snr_db=np.inf)
    result = kronecker_omp(
        problem.dictionaries, problem.measurements, max_atoms=(2, 2), tolerance=0.0
    )
    np.testing.assert_allclose(result.coefficients, problem.coefficients, atol=1e-10)
    for found, true in zip(result.support, problem.support, strict=True):
        np.testing.assert_array_equal(np.sort(found), true)


def test_kronecker_omp_stops_at_its_limits():
    problem = small_problem(snr_db=0.0)
    result = kronecker_omp(problem.dictionaries, problem.measurements, max_atoms=3)
    assert max(len(s) for s in result.support) <= 3
    loose = kronecker_omp(problem.dictionaries, problem.measurements, tolerance=0.99)
    assert loose.iterations == 1


@both_fields
def test_fista_satisfies_the_optimality_conditions(complex_valued):
    problem = small_problem(complex_valued, shape=(7, 8))
    result = fista(problem.dictionaries, problem.measurements, 0.1, tolerance=1e-9)
    assert result.converged
    dictionary, measurements = dense(problem.dictionaries), problem.measurements.ravel()
    x = result.coefficients.ravel()
    penalty = 0.1 * np.abs(dictionary.conj().T @ measurements).max()
    correlation = dictionary.conj().T @ (measurements - dictionary @ x)
    active = x != 0
    assert 0 < active.sum() < x.size
    np.testing.assert_allclose(
        correlation[active], penalty * x[active] / np.abs(x[active]), atol=1e-5 * penalty
    )
    assert np.abs(correlation[~active]).max() <= penalty * (1 + 1e-5)
    assert result.optimality <= 1e-5
    residual = measurements - dictionary @ x
    objective = 0.5 * np.vdot(residual, residual).real + penalty * np.abs(x).sum()
    assert result.objective == pytest.approx(objective, rel=1e-10)


@both_fields
def test_fista_over_an_orthonormal_dictionary_is_soft_thresholding(complex_valued):
    problem = small_problem(complex_valued)
    values = problem.measurements
    identities = [np.eye(n) for n in values.shape]
    penalty = 0.3 * np.abs(values).max()
    result = fista(identities, values, 0.3)
    modulus = np.abs(values)
    np.testing.assert_allclose(
        result.coefficients, values / modulus * np.maximum(modulus - penalty, 0), atol=1e-12
    )


def test_fista_with_the_largest_weight_is_zero():
    problem = small_problem()
    result = fista(problem.dictionaries, problem.measurements, 1.0)
    assert result.converged
    assert not result.coefficients.any()


def test_fista_says_when_its_budget_ran_out():
    problem = small_problem()
    result = fista(problem.dictionaries, problem.measurements, 1e-4, max_iterations=5)
    assert (result.iterations, result.converged) == (5, False)
    assert result.relative_change > 1e-6


def test_best_fista_is_nearest_to_the_truth():
    problem = small_problem(snr_db=15.0)
    best, everything = best_fista(
        problem.dictionaries, problem.measurements, problem.coefficients, (1e-3, 1e-2, 1e-1)
    )
    errors = [np.linalg.norm(r.coefficients - problem.coefficients) for r in everything]
    assert best is everything[int(np.argmin(errors))]
    assert [r.weight for r in everything] == [1e-3, 1e-2, 1e-1]


@both_fields
def test_oracle_equals_the_factor_wise_oracle_of_the_simulator(complex_valued):
    problem = small_problem(complex_valued)
    estimate = oracle_least_squares(
        problem.dictionaries, problem.measurements, problem.coefficients != 0
    )
    np.testing.assert_allclose(estimate, problem.oracle(), atol=1e-11)
