"""Small matrices against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayeskit.linalg.small import apply, eliminate, product


@pytest.mark.parametrize("size", [1, 2, 4])
def test_elimination_equals_lapack_whatever_the_pivots(size):
    generator = np.random.default_rng(size)
    matrices = generator.normal(size=(50, size, size))
    if size > 1:
        matrices[::2, 0, 0] = 0.0  # no pivot in place
        matrices[1::2, :, 0] *= 1e-12
    right = generator.normal(size=(50, size, 3))
    with jax.enable_x64(True):
        found, log_determinants = eliminate(jnp.asarray(matrices), jnp.asarray(right))
        one, log_determinant = eliminate(jnp.asarray(matrices[0]), jnp.asarray(right[0]))
    residual = np.abs(matrices @ np.asarray(found) - right)
    scale = np.abs(matrices) @ np.abs(np.asarray(found)) + np.abs(right)
    assert np.all(residual <= 1e3 * np.finfo(float).eps * scale)
    np.testing.assert_allclose(log_determinants, np.linalg.slogdet(matrices)[1], rtol=1e-10)
    np.testing.assert_allclose(one, found[0], rtol=1e-12)
    np.testing.assert_allclose(log_determinant, log_determinants[0], rtol=1e-12)


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
