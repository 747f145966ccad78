"""Fast Toeplitz algorithms against the dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayeskit import linalg
from bayeskit.linalg import SymmetricToeplitz

EPSILON = np.finfo(np.float64).eps
GRID = np.arange(40.0)
COLUMNS = {
    "oscillating": np.exp(-0.1 * GRID) * np.cos(GRID) + 0.1 * (GRID == 0),
    "ill-conditioned": np.exp(-0.5 * (GRID / 1.5) ** 2) + 1e-5 * (GRID == 0),
    "one entry": np.array([2.0]),
}


@pytest.fixture(params=COLUMNS)
def column(request):
    return COLUMNS[request.param]


def dense_twin(column):
    index = np.arange(len(column))
    return column[abs(index[:, None] - index)]


def test_toeplitz_equals_dense_twin(column):
    operator, dense = SymmetricToeplitz(column), dense_twin(column)
    vector = jnp.asarray(np.random.default_rng(0).normal(size=len(column)))
    tolerance = 100 * EPSILON * np.linalg.cond(dense)

    def assert_close(actual, expected, tolerance=tolerance):
        error = np.linalg.norm(np.asarray(actual) - expected)
        assert error <= tolerance * np.linalg.norm(expected)

    np.testing.assert_array_equal(operator.as_matrix(), dense)
    assert operator.T is operator
    assert_close(operator.mv(vector), dense @ vector, 100 * EPSILON)
    assert_close(operator.mv(vector + 2j), dense @ (vector + 2j), 100 * EPSILON)
    assert_close(linalg.solve(operator, vector), np.linalg.solve(dense, vector))
    assert_close(linalg.solve(operator, vector + 2j), np.linalg.solve(dense, vector + 2j))
    assert_close(linalg.diagonal_of_inverse(operator), np.diagonal(np.linalg.inv(dense)))
    assert_close(linalg.cholesky(operator).as_matrix(), np.linalg.cholesky(dense))
    logdet = np.linalg.slogdet(dense)[1]
    assert abs(linalg.logdet(operator) - logdet) <= tolerance * max(abs(logdet), 1.0)
    eigenvalues, basis = linalg.eigh(operator)
    assert_close((basis.as_matrix() * eigenvalues) @ basis.as_matrix().T, dense, 100 * EPSILON)
    assert_close(linalg.diagonal(operator), np.diagonal(dense), EPSILON)


def test_draw_is_the_cholesky_factor_times_white_noise():
    operator = SymmetricToeplitz(COLUMNS["oscillating"])
    key = jax.random.key(0)
    noise = linalg.sample(SymmetricToeplitz(np.eye(40)[0]), key)
    expected = linalg.cholesky(operator).mv(noise)
    np.testing.assert_allclose(linalg.sample(operator, key), expected, rtol=1e-11)


def test_gradient_of_logdet_sums_the_diagonals_of_the_inverse():
    column = COLUMNS["oscillating"]
    gradient = jax.grad(lambda c: linalg.logdet(SymmetricToeplitz(c)))(jnp.asarray(column))
    inverse = np.linalg.inv(dense_twin(column))
    sums = [np.trace(inverse)] + [2 * np.trace(inverse, k) for k in range(1, 40)]
    np.testing.assert_allclose(gradient, sums, rtol=1e-9, atol=1e-9)


def test_matrix_that_is_not_positive_definite_gives_nan():
    operator = SymmetricToeplitz(jnp.array([1.0, 2.0, 0.0]))
    assert np.isnan(linalg.solve(operator, jnp.ones(3))).all()
    assert np.isnan(linalg.logdet(operator))
    assert np.isnan(linalg.diagonal_of_inverse(operator)).all()
    assert np.isnan(linalg.sample(operator, jax.random.key(0))).any()
    assert np.isnan(linalg.cholesky(operator).as_matrix()).any()


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (np.ones((2, 2)), ValueError, r"\(2, 2\); expected \(size,\)"),
        (np.ones(0), ValueError, r"\(0,\); expected"),
        (np.ones(2) * 1j, TypeError, "complex128; expected real"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(column, error, message):
    with pytest.raises(error, match=message):
        SymmetricToeplitz(column)
