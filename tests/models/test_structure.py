"""Structured computations equal their dense twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayeskit.models.kronecker_sbl import structure
from tests.models.dense import DenseModel, kron, random_problem

CASES = {
    "one factor, more rows": ((9,), (5,), False),
    "two factors, fewer rows": ((4, 3), (6, 7), False),
    "two factors, mixed, complex": ((7, 3), (4, 6), True),
    "three factors, mixed": ((5, 3, 4), (4, 5, 4), False),
    "three factors, fewer rows, complex": ((3, 2, 3), (4, 3, 5), True),
}


@pytest.fixture(params=CASES, scope="module")
def case(request):
    rows, columns, complex_data = CASES[request.param]
    dictionaries, scales, noise, measurements = random_problem(3, rows, columns, complex_data)
    dense = DenseModel(kron(dictionaries), kron(scales), noise, measurements)
    with jax.enable_x64(True):
        factors = [jnp.asarray(d) for d in dictionaries]
        tensor = jnp.asarray(measurements.reshape(1, *rows))
        rotations, reduced = structure.reduce_factors(factors)
        compressed = structure.compress(rotations, tensor)
        arguments = (reduced, tuple(map(jnp.asarray, scales)), jnp.asarray(noise))
        yield dense, factors, arguments, compressed, rotations, tensor


def close(structured, dense, tolerance=1e-10):
    dense = np.asarray(dense)
    error = np.max(np.abs(np.asarray(structured).reshape(dense.shape) - dense))
    assert error <= tolerance * np.max(np.abs(dense))


def test_mean_equals_dense_solve(case):
    dense, _, arguments, measurements, _, _ = case
    close(structure.posterior_mean(*arguments, measurements), dense.mean)


def test_every_variance_equals_dense_diagonal_to_its_own_size(case):
    dense, _, arguments, measurements, _, _ = case
    variance = np.asarray(structure.posterior_variance(*arguments, measurements)).ravel()
    # The dense difference Γ - … cancels; the precision form does not.
    precision = dense.dictionary.conj().T @ dense.dictionary / dense.noise_variance
    root = np.sqrt(dense.scales)
    whitened = np.eye(root.size) + root[:, None] * precision * root
    expected = dense.scales * np.diag(np.linalg.inv(whitened)).real
    np.testing.assert_allclose(variance, expected, rtol=1e-10)


def test_evidence_and_leave_one_out_equal_brute_force(case):
    dense, factors, arguments, measurements, _, tensor = case
    stats = structure.statistics(
        structure.spectra(*arguments[:2]), arguments[2], measurements, axes=()
    )
    assert abs(stats.log_evidence - dense.log_evidence) <= 1e-10 * abs(dense.log_evidence)
    mean, variance = structure.leave_one_out(factors, *arguments[1:], tensor)
    inverse = np.linalg.inv(dense.covariance)
    close(variance, 1 / np.diag(inverse).real)
    close(mean, dense.measurements - inverse @ dense.measurements / np.diag(inverse))


def test_fitted_and_predicted_measurements_equal_dense_ones(case):
    dense, factors, arguments, measurements, rotations, _ = case
    expected = (dense.dictionary @ dense.mean, None)
    covariance = dense.dictionary @ dense.posterior_covariance @ dense.dictionary.conj().T
    for mean, variance in (
        structure.fitted(*arguments, measurements, rotations),
        structure.predicted(*arguments, measurements, factors),
    ):
        close(mean, expected[0])
        close(variance, np.diag(covariance).real, 1e-9)


def test_gradient_of_evidence_equals_finite_differences(case):
    _, _, (reduced, scales, noise), measurements, _, _ = case
    logs, log_noise = tuple(jnp.log(s) for s in scales), jnp.log(noise)
    value = jax.jit(lambda t, n: structure.log_evidence(t, n, reduced, measurements))
    gradients, noise_gradient = jax.grad(value, (0, 1))(logs, log_noise)
    step = 1e-5
    for i, j in ((0, 0), (len(logs) - 1, 1)):
        moved = [
            tuple(t.at[j].add(sign * step) if k == i else t for k, t in enumerate(logs))
            for sign in (1, -1)
        ]
        slope = (value(moved[0], log_noise) - value(moved[1], log_noise)) / (2 * step)
        assert abs(slope - gradients[i][j]) < 1e-6 * max(1, abs(slope))
    slope = (value(logs, log_noise + step) - value(logs, log_noise - step)) / (2 * step)
    assert abs(slope - noise_gradient) < 1e-6 * max(1, abs(slope))


def test_draws_have_the_posterior_moments():
    dictionaries, scales, noise, measurements = random_problem(5, (3, 2), (2, 4), True, decades=1)
    dense = DenseModel(kron(dictionaries), kron(scales), noise, measurements)
    with jax.enable_x64(True):
        rotations, reduced = structure.reduce_factors([jnp.asarray(d) for d in dictionaries])
        compressed = structure.compress(rotations, jnp.asarray(measurements.reshape(1, 3, 2)))
        arguments = (reduced, tuple(map(jnp.asarray, scales)), jnp.asarray(noise), compressed)
        keys = jax.random.split(jax.random.key(0), 40_000)
        draws = jax.vmap(lambda key: structure.posterior_sample(key, *arguments))(keys)
    draws = np.asarray(draws).reshape(len(keys), -1)
    centred = draws - dense.mean
    covariance = centred.T @ centred.conj() / len(keys)
    spread = np.sqrt(np.outer(*(np.diag(dense.posterior_covariance).real,) * 2))
    # A covariance entry of N draws has standard error at most sqrt(2 / N) of the spread; 5 of them.
    assert np.max(np.abs(covariance - dense.posterior_covariance) / spread) < 5 * np.sqrt(2 / 4e4)
    standard_error = np.sqrt(np.diag(dense.posterior_covariance).real / len(keys))
    assert np.max(np.abs(draws.mean(0) - dense.mean) / standard_error) < 5


def test_gradient_is_finite_at_repeated_singular_values():
    with jax.enable_x64(True):
        identity = (jnp.eye(4), jnp.eye(4))
        tensor = structure.Measurements(jnp.ones((1, 4, 4)), jnp.zeros(()), jnp.zeros(()))
        gradient = jax.grad(structure.log_evidence)(
            (jnp.zeros(4), jnp.zeros(4)), jnp.zeros(()), identity, tensor
        )
        # Each of 16 measurements has variance 2: d/dlog γ of -½(log 2 + 1/2) a coefficient is -⅛.
        np.testing.assert_allclose(np.asarray(gradient[0]), -0.5, rtol=1e-12)


def test_float32_is_accurate_at_sixty_decibels():
    dictionaries, scales, noise, measurements = random_problem(
        1, (6, 5), (8, 7), decades=4, noise_variance=1e-6
    )
    with jax.enable_x64(True):
        results = []
        for dtype in (jnp.float32, jnp.float64):
            factors = tuple(jnp.asarray(d, dtype) for d in dictionaries)
            # Both precisions get the numbers that float32 can hold.
            factors = tuple(f.astype(jnp.float32).astype(dtype) for f in factors)
            single = [np.float32(s).astype(np.float64) for s in scales]
            tensor = jnp.asarray(np.float32(measurements), dtype).reshape(1, 6, 5)
            tensor = structure.Measurements(tensor, jnp.zeros((), dtype), jnp.zeros((), dtype))
            arguments = (factors, tuple(jnp.asarray(s, dtype) for s in single))
            arguments = (*arguments, jnp.asarray(np.float32(noise), dtype), tensor)
            results.append(
                [
                    (
                        structure.posterior_mean(*arguments),
                        structure.posterior_variance(*arguments),
                    ),
                    structure.fitted(*arguments, (None, None)),
                    structure.predicted(*arguments, factors),
                ]
            )
    for single, double in zip(*jax.tree.map(np.asarray, results), strict=True):
        (mean, variance), (exact_mean, exact_variance) = single, double
        assert mean.dtype == np.float32
        assert np.linalg.norm(mean - exact_mean) <= 1e-5 * np.linalg.norm(exact_mean)
        assert np.max(np.abs(variance / exact_variance - 1)) <= 1e-5
    # Predictions where the measurements are, by the way for any others.
    np.testing.assert_allclose(results[1][2][1], results[1][1][1], rtol=1e-9)
