"""Guarded factorisations answer NaN where LAPACK would hang or return something else."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayeskit import linalg
from bayeskit.linalg import KroneckerProduct, KroneckerSum, ShiftedKronecker, SumOfKroneckers, safe

INFINITE_SVD = """
import jax.numpy as jnp
from bayeskit.linalg import safe
matrix = jnp.ones((50, 40)).at[3, 4].set(jnp.inf)
assert all(jnp.isnan(part).all() for part in safe.svd(matrix))
"""


def test_svd_of_a_matrix_with_an_infinite_entry_returns_nan_and_returns():
    # In a process of its own: an unguarded decomposition could not be interrupted.
    subprocess.run([sys.executable, "-c", INFINITE_SVD], check=True, timeout=60)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_matrix_of_a_batch_gives_nan_and_spoils_no_other(bad):
    batch = jnp.stack([2 * jnp.eye(3), jnp.eye(3).at[1, 2].set(bad)])
    functions = (safe.svd, safe.eigh, safe.eigvalsh, safe.cholesky, safe.slogdet)
    for parts in [function(batch) for function in functions] + [safe.solve(batch, batch)]:
        for part in jax.tree.leaves(parts):
            assert np.isfinite(part[0]).all()
            assert np.isnan(part[1]).all()


def test_cholesky_of_an_indefinite_matrix_is_nan():
    assert np.isnan(safe.cholesky(jnp.array([[1.0, 2.0], [2.0, 1.0]]))).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda bad, good: KroneckerProduct(bad, good),
        lambda bad, good: KroneckerSum(bad, good),
        lambda bad, good: ShiftedKronecker([bad, good], 1.0),
        lambda bad, good: SumOfKroneckers([[bad, good], [good, good]]),
        lambda bad, good: SumOfKroneckers([[good, good], [bad, good]]),
    ],
)
def test_non_finite_factors_give_nan_everywhere(make):
    operator = make(jnp.eye(2).at[0, 0].set(jnp.inf), jnp.eye(2))
    assert np.isnan(linalg.logdet(operator))
    assert np.isnan(linalg.solve(operator, jnp.ones(4))).all()
    assert np.isnan(linalg.diagonal_of_inverse(operator)).all()
    assert np.isnan(linalg.sample(operator, jax.random.key(0))).all()
