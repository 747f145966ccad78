"""Guarded factorisations: the only place of the package that calls LAPACK's through JAX.

LAPACK's singular value decomposition never returns for a matrix with an infinite entry, and a
sampler reaches such matrices at its first divergence. Each function here factorises a finite
stand-in instead and answers NaN, so that the caller's objective becomes NaN and the step is
rejected.

Eigenvectors and singular vectors have no derivative where values repeat, so differentiating
`eigh` or `svd` raises `TypeError` instead of answering NaN there. `eigvalsh`, `cholesky`,
`solve` and `slogdet` have derivatives.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact


def _finite_or_identity(
    matrix: Inexact[Array, "*batch m n"],
) -> tuple[Inexact[Array, "*batch m n"], Bool[Array, "*batch 1 1"]]:
    """Return the matrix, or an identity of its shape where an entry is not finite, and which."""
    finite = jnp.all(jnp.isfinite(matrix), axis=(-2, -1), keepdims=True)
    stand_in = jnp.eye(matrix.shape[-2], matrix.shape[-1], dtype=matrix.dtype)
    return jnp.where(finite, matrix, stand_in), finite


def _or_nan(finite, value):
    return jnp.where(finite, value, jnp.nan)


def _no_derivative(vectors):
    return TypeError(
        f"{vectors} have no derivative where values repeat: differentiate a function of the "
        "matrix instead, such as bayeskit.linalg.solve, logdet, diagonal_of_inverse or sample, "
        "whose first derivatives are exact there too"
    )


def svd(
    matrix: Inexact[Array, "*batch m n"], full_matrices: bool = False
) -> tuple[Inexact[Array, "*batch m _"], Float[Array, "*batch k"], Inexact[Array, "*batch _ n"]]:
    """Singular value decomposition ``u, s, vh`` that answers NaN for a non-finite matrix.

    Parameters
    ----------
    matrix : array (*batch, m, n)
        Real or complex.
    full_matrices : bool
        Whether ``u`` is (m, m) and ``vh`` (n, n) rather than their first ``min(m, n)`` columns
        and rows.

    Returns
    -------
    u, s, vh : arrays
        With ``s`` in descending order, all NaN where ``matrix`` holds a non-finite entry.

    Raises
    ------
    TypeError
        When it is differentiated.

    Notes
    -----
    Cost ``O(m n min(m, n))``.
    """
    return _svd(full_matrices, matrix)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _svd(full_matrices, matrix):
    matrix, finite = _finite_or_identity(matrix)
    u, s, vh = jnp.linalg.svd(matrix, full_matrices=full_matrices)
    return _or_nan(finite, u), _or_nan(finite[..., 0], s), _or_nan(finite, vh)


@_svd.defjvp
def _raise_svd(full_matrices, primals, tangents):
    raise _no_derivative("singular vectors")


def eigh(
    matrix: Inexact[Array, "*batch n n"],
) -> tuple[Float[Array, "*batch n"], Inexact[Array, "*batch n n"]]:
    """Eigenvalues in ascending order and eigenvectors of the Hermitian part of a matrix.

    Parameters
    ----------
    matrix : array (*batch, n, n)
        Real symmetric or complex Hermitian.

    Returns
    -------
    eigenvalues, eigenvectors : arrays (*batch, n) and (*batch, n, n)
        All NaN where ``matrix`` holds a non-finite entry.

    Raises
    ------
    TypeError
        When it is differentiated; `eigvalsh` has a derivative.

    Notes
    -----
    Cost ``O(n³)``.
    """
    return _eigh(matrix)


@jax.custom_jvp
def _eigh(matrix):
    matrix, finite = _finite_or_identity(matrix)
    eigenvalues, eigenvectors = jnp.linalg.eigh(matrix)
    return _or_nan(finite[..., 0], eigenvalues), _or_nan(finite, eigenvectors)


@_eigh.defjvp
def _raise_eigh(primals, tangents):
    raise _no_derivative("eigenvectors")


@jax.custom_jvp
def eigvalsh(matrix: Inexact[Array, "*batch n n"]) -> Float[Array, "*batch n"]:
    """Eigenvalues in ascending order of the Hermitian part of a matrix.

    Its derivative is that of every *symmetric* function of the eigenvalues (a log-determinant,
    a trace of powers), at repeated eigenvalues too; one eigenvalue alone has none there.

    Parameters
    ----------
    matrix : array (*batch, n, n)
        Real symmetric or complex Hermitian.

    Returns
    -------
    array (*batch, n)
        NaN where ``matrix`` holds a non-finite entry.

    Notes
    -----
    Cost ``O(n³)``. The first derivative only: a second one raises `TypeError`.
    """
    matrix, finite = _finite_or_identity(matrix)
    return _or_nan(finite[..., 0], jnp.linalg.eigvalsh(matrix))


@eigvalsh.defjvp
def _differentiate_eigvalsh(primals, tangents):
    eigenvalues, vectors = eigh(*primals)
    (change,) = tangents
    rotated = jnp.matmul(change, vectors, precision=lax.Precision.HIGHEST)
    return eigenvalues, jnp.real(jnp.sum(vectors.conj() * rotated, axis=-2))


def cholesky(matrix: Inexact[Array, "*batch n n"]) -> Inexact[Array, "*batch n n"]:
    """Lower triangular ``L`` with ``L L^H`` the Hermitian part of a matrix.

    Parameters
    ----------
    matrix : array (*batch, n, n)
        Real symmetric or complex Hermitian, positive definite.

    Returns
    -------
    array (*batch, n, n)
        NaN where ``matrix`` is not positive definite or holds a non-finite entry.

    Notes
    -----
    Cost ``O(n³)``.
    """
    matrix, finite = _finite_or_identity(matrix)
    return _or_nan(finite, jnp.linalg.cholesky(matrix))


def solve(
    matrix: Inexact[Array, "*batch n n"], columns: Inexact[Array, "*batch n k"]
) -> Inexact[Array, "*batch n k"]:
    """Solve ``matrix @ x = columns`` by an LU decomposition with partial pivoting.

    Parameters
    ----------
    matrix : array (*batch, n, n)
    columns : array (*batch, n, k)

    Returns
    -------
    array (*batch, n, k)
        NaN where ``matrix`` holds a non-finite entry.

    Notes
    -----
    Cost ``O(n³ + n² k)``.
    """
    matrix, finite = _finite_or_identity(matrix)
    return _or_nan(finite, jnp.linalg.solve(matrix, columns))


def slogdet(
    matrix: Inexact[Array, "*batch n n"],
) -> tuple[Inexact[Array, "*batch"], Float[Array, "*batch"]]:
    """Sign and logarithm of the absolute value of a determinant, by an LU decomposition.

    Parameters
    ----------
    matrix : array (*batch, n, n)

    Returns
    -------
    sign, logarithm : arrays (*batch,)
        NaN where ``matrix`` holds a non-finite entry.

    Notes
    -----
    Cost ``O(n³)``.
    """
    matrix, finite = _finite_or_identity(matrix)
    sign, logarithm = jnp.linalg.slogdet(matrix)
    return _or_nan(finite[..., 0, 0], sign), _or_nan(finite[..., 0, 0], logarithm)


def qr(matrix: Inexact[Array, "*batch m n"]):
    """Reduced QR decomposition ``q, r``, NaN for a non-finite matrix.

    Parameters
    ----------
    matrix : array (*batch, m, n)
        Real or complex.

    Returns
    -------
    q : array (*batch, m, min(m, n))
    r : array (*batch, min(m, n), n)

    Notes
    -----
    Cost ``O(m n min(m, n))``.
    """
    matrix, finite = _finite_or_identity(matrix)
    q, r = jnp.linalg.qr(matrix)
    return _or_nan(finite, q), _or_nan(finite, r)
