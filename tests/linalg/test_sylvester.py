"""Kronecker sums of general matrices against dense linear algebra."""

import jax
import numpy as np
import pytest

from bayeskit.linalg.sylvester import schur_form, solve_kronecker_sum


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("sizes", [(5,), (4, 3), (3, 2, 4)])
def test_solution_equals_the_dense_one(sizes, symmetric):
    generator = np.random.default_rng(0)
    matrices = [generator.normal(size=(n, n)) for n in sizes]
    if symmetric:
        matrices = [matrix + matrix.T for matrix in matrices]
    right = generator.normal(size=sizes)
    dense = 0.3 * np.eye(right.size)
    for k, matrix in enumerate(matrices):
        before, after = np.eye(int(np.prod(sizes[:k]))), np.eye(int(np.prod(sizes[k + 1 :])))
        dense += np.kron(np.kron(before, matrix), after)
    with jax.enable_x64(True):
        forms = [schur_form(jax.numpy.asarray(matrix)) for matrix in matrices]
        assert all(bool(form.diagonal) == symmetric for form in forms)
        found = solve_kronecker_sum(forms, jax.numpy.asarray(right), 0.3)
    np.testing.assert_allclose(found.imag, 0.0, atol=1e-12)
    expected = np.linalg.solve(dense, right.reshape(-1)).reshape(sizes)
    np.testing.assert_allclose(found.real, expected, rtol=1e-10, atol=1e-12)
