"""Factorisation of many small matrices at once, without LAPACK."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def semidefinite_root(matrix: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """Lower triangular ``L`` with ``L Lᵀ`` a positive semi-definite matrix.

    Parameters
    ----------
    matrix : array (*batch, n, n)
        Symmetric, positive semi-definite to rounding.

    Returns
    -------
    array (*batch, n, n)
        Zero in the columns of pivots that are zero to rounding.

    Notes
    -----
    Cholesky's algorithm, unrolled over the columns: ``O(n³)`` operations on arrays of the batch,
    for ``n`` of a few and batches of thousands. ``‖L Lᵀ − A‖`` is of the order of ``n ε ‖A‖``.
    The derivative is that of a positive definite matrix; by zero pivots it is zero.
    """
    size = matrix.shape[-1]
    smallest = size * jnp.finfo(matrix.dtype).eps * jnp.diagonal(matrix, axis1=-2, axis2=-1)
    columns, rest = [], matrix
    for j in range(size):
        pivot = rest[..., j, j]
        positive = pivot > jnp.maximum(smallest[..., j], 0.0)
        root = jnp.sqrt(jnp.where(positive, pivot, 1.0))[..., None]
        below = (jnp.arange(size) >= j) & positive[..., None]
        column = jnp.where(below, rest[..., :, j] / root, 0.0)
        rest = rest - column[..., :, None] * column[..., None, :]
        columns.append(column)
    return jnp.stack(columns, axis=-1)
