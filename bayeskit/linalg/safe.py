"""Guarded factorisations: the only place of the package that calls LAPACK's through JAX.

LAPACK's singular value decomposition never returns for a matrix with an infinite entry, and a
sampler reaches such matrices at its first divergence. Each function here factorises a finite
stand-in instead and answers NaN, so that the caller's objective becomes NaN and the step is
rejected.
"""

import jax.numpy as jnp
from jaxtyping import Array, Inexact


def _finite_or_identity(matrix):
    """The matrix, or an identity of its shape where any entry is not finite, and which of the two."""
    finite = jnp.all(jnp.isfinite(matrix), axis=(-2, -1), keepdims=True)
    stand_in = jnp.eye(matrix.shape[-2], matrix.shape[-1], dtype=matrix.dtype)
    return jnp.where(finite, matrix, stand_in), finite


def svd(matrix: Inexact[Array, "*batch m n"], full_matrices: bool = False):
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

    Notes
    -----
    Cost ``O(m n min(m, n))``. Singular vectors have no derivative at repeated singular values;
    differentiate spectral functions through their own rules instead.
    """
    matrix, finite = _finite_or_identity(matrix)
    u, s, vh = jnp.linalg.svd(matrix, full_matrices=full_matrices)
    return jnp.where(finite, u, jnp.nan), jnp.where(finite[..., 0], s, jnp.nan), jnp.where(finite, vh, jnp.nan)
