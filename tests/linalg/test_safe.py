"""Guarded factorisations answer NaN where LAPACK would hang or return something else."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayeskit import linalg
from bayeskit.linalg import KroneckerProduct, KroneckerSum, ShiftedKronecker, SumOfKroneckers, safe
from bayeskit.linalg.small import semidefinite_root

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


MANY_BATCHES = """
import os
import jax, jax.numpy as jnp
from bayeskit.linalg import safe
batches = [
    jax.random.normal(jax.random.key(i), (400, 20, 20)) for i in range(2 * os.cpu_count() + 1)
]
batches = [batch @ batch.mT + jnp.eye(20) for batch in batches]
for function in (
    safe.svd, safe.eigh, safe.eigvalsh, safe.cholesky, safe.slogdet,
    lambda batch: safe.solve(batch, batch), lambda batch: safe.solve_triangular(batch, batch),
):
    program = jax.jit(lambda batches: [jax.vmap(function)(batch) for batch in batches])
    for _ in range(5):
        jax.block_until_ready(program(batches))
"""


def test_several_large_batches_in_one_program_do_not_wait_for_each_other():
    # jax.vmap of JAX's own functions hangs here on two cores, with a probability near one.
    subprocess.run([sys.executable, "-c", MANY_BATCHES], check=True, timeout=240)


def definite(key, *shape, dtype=jnp.float64):
    root = jax.random.normal(jax.random.key(key), shape, dtype)
    return root @ root.conj().mT + shape[-1] * jnp.eye(shape[-1])


SAME_AS_JAX = {
    "eigvalsh": (safe.eigvalsh, jnp.linalg.eigvalsh),
    "singular values": (
        lambda a: safe.svd(a)[1],
        lambda a: jnp.linalg.svd(a, compute_uv=False),
    ),
    "cholesky": (safe.cholesky, jnp.linalg.cholesky),
    "slogdet": (lambda a: safe.slogdet(-a), lambda a: tuple(jnp.linalg.slogdet(-a))),
    "solve": (lambda a: safe.solve(a, a[..., :1]), lambda a: jnp.linalg.solve(a, a[..., :1])),
    "triangular": (
        lambda a: safe.solve_triangular(a, a[..., :2]),
        lambda a: jax.scipy.linalg.solve_triangular(jnp.tril(a), a[..., :2], lower=True),
    ),
    "adjoint": (
        lambda a: safe.solve_triangular(a, a[..., :2], adjoint=True),
        lambda a: jax.scipy.linalg.solve_triangular(a, a[..., :2], trans="C", lower=True),
    ),
}


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.complex128])
@pytest.mark.parametrize("name", SAME_AS_JAX)
def test_batches_in_turns_equal_jax_by_value_and_derivative(name, dtype):
    ours, jax_own = SAME_AS_JAX[name]
    # 3 × 80 matrices of side 16: more than one turn of every function, explicit and mapped.
    matrices = definite(0, 3, 80, 16, 16, dtype=dtype)
    expected = jax.jit(jax_own)(matrices[0])
    for batch in (jax.vmap(ours)(matrices[0]), jax.tree.map(lambda part: part[0], ours(matrices))):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), batch, expected)

    if name == "singular values":
        return  # no derivative

    def total(function):
        def value(a):
            a = a + a.conj().mT  # what Hermitian functions read of it
            return sum(jnp.sum(jnp.real(leaf) ** 2) for leaf in jax.tree.leaves(function(a)))

        return value

    ours_gradient = jax.vmap(jax.grad(total(ours)))(matrices[0, :70])
    np.testing.assert_allclose(
        ours_gradient, jax.grad(total(jax_own))(matrices[0, :70]), rtol=1e-8, atol=1e-10
    )


def test_one_system_for_a_batch_of_columns_is_decomposed_once():
    matrix, columns = definite(1, 30, 30), jax.random.normal(jax.random.key(2), (500, 30, 1))
    program = jax.jit(jax.vmap(lambda c: safe.solve(matrix, c)))
    np.testing.assert_allclose(program(columns), jnp.linalg.solve(matrix, columns), rtol=1e-10)
    assert "f64[30,500]" in program.lower(columns).compile().as_text()


@pytest.mark.parametrize("rank", [0, 1, 3, 4])
def test_semidefinite_root_of_any_rank(rank):
    factor = jax.random.normal(jax.random.key(rank), (7, 4, rank))
    factor = factor * jnp.array([1.0, 1e-3, 1e4, 1.0])[:, None]
    matrix = factor @ factor.mT
    lower = semidefinite_root(matrix)
    assert np.isfinite(lower).all()
    scale = jnp.sqrt(jnp.diagonal(matrix, axis1=-2, axis2=-1))
    error = jnp.abs(lower @ lower.mT - matrix) / (scale[:, :, None] * scale[:, None] + 1e-300)
    assert float(error.max()) < 1e-13
    assert jnp.all(jnp.triu(lower, 1) == 0)
    if rank == 4:
        np.testing.assert_allclose(lower, jnp.linalg.cholesky(matrix), rtol=1e-7)
    slope = jax.grad(lambda m: jnp.sum(semidefinite_root(m) ** 2))(matrix)
    assert np.isfinite(slope).all()
