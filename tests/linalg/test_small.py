"""Small matrices against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayeskit.linalg.small import (
    apply,
    cholesky,
    divide,
    product,
    semidefinite_root,
    solve_lower,
    solve_upper,
)


@pytest.mark.parametrize("size", [1, 4, 9])
def test_triangular_systems_equal_numpys(size):
    generator = np.random.default_rng(size)
    roots = generator.normal(size=(50, size, size)) * 10.0 ** generator.integers(-3, 3, (50, 1, 1))
    matrices = np.eye(size) + roots @ np.swapaxes(roots, 1, 2)
    right = generator.normal(size=(50, size, 3))
    with jax.enable_x64(True):
        lower = cholesky(jnp.asarray(matrices), smallest=1.0)
        forth = solve_lower(lower, jnp.asarray(right))
        back = solve_upper(lower, forth)
    expected = np.linalg.cholesky(matrices)
    np.testing.assert_allclose(lower, expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(expected @ np.asarray(forth), right, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(matrices @ np.asarray(back), right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [3, 9])
def test_a_matrix_without_digits_for_its_smallest_eigenvalues_is_factored(size):
    generator = np.random.default_rng(size)
    roots = 1e10 * generator.normal(size=(200, size, 1))
    matrices = np.eye(size) + roots @ np.swapaxes(roots, 1, 2)
    failed = 0
    for matrix in matrices:
        try:
            np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            failed += 1
    assert failed > 0, "the example is too easy"
    with jax.enable_x64(True):
        lower = np.asarray(cholesky(jnp.asarray(matrices), smallest=1.0))
    error = np.abs(lower @ np.swapaxes(lower, 1, 2) - matrices).max(axis=(1, 2))
    assert np.all(error <= 4 * size**2 * np.finfo(float).eps * np.abs(matrices).max(axis=(1, 2)))


@pytest.mark.parametrize("size", [3, 9])
def test_a_matrix_that_rounding_made_indefinite_is_factored(size):
    matrices = np.eye(size) - 3.0 * np.ones((5, size, size))
    with jax.enable_x64(True):
        lower = np.asarray(cholesky(jnp.asarray(matrices), smallest=1.0))
    assert np.all(np.isfinite(lower))
    assert np.all(np.diagonal(lower, axis1=1, axis2=2) >= 1.0)


def test_division_by_a_singular_root_leaves_the_rest():
    generator = np.random.default_rng(0)
    roots = generator.normal(size=(50, 4, 2))
    matrices = roots @ np.swapaxes(roots, 1, 2)
    matrices[::3] = 0.0
    inside = np.einsum("nij,nj->ni", matrices, generator.normal(size=(50, 4)))
    outside = generator.normal(size=(50, 4))
    with jax.enable_x64(True):
        root = semidefinite_root(jnp.asarray(matrices))
        nothing = np.asarray(divide(root, jnp.asarray(inside))[1])
        quotient, remainder = map(np.asarray, divide(root, jnp.asarray(outside)))
    np.testing.assert_allclose(nothing, 0.0, atol=1e-10)
    whole = np.einsum("nij,nj->ni", root, quotient) + remainder
    np.testing.assert_allclose(whole, outside, rtol=1e-10, atol=1e-10)
    regular = np.diagonal(root, axis1=1, axis2=2) > 0
    assert np.all(remainder[regular] == 0.0)
    assert np.all(quotient[~regular] == 0.0)


@pytest.mark.parametrize("size", [3, 20])
def test_products_equal_numpys_small_and_large(size):
    generator = np.random.default_rng(size)
    one, other = generator.normal(size=(2, 5, size, size))
    vector = generator.normal(size=(5, size))
    with jax.enable_x64(True):
        found = product(jnp.asarray(one), jnp.asarray(other), jnp.asarray(one))
        moved = apply(jnp.asarray(one), jnp.asarray(vector))
    np.testing.assert_allclose(found, one @ other @ one, atol=1e-12 * size**2)
    np.testing.assert_allclose(moved, np.einsum("nij,nj->ni", one, vector), atol=1e-12)
