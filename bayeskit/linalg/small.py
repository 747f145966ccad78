"""Small matrices, one or many at once, without a call of a library for each."""

import jax.numpy as jnp
from jaxtyping import Array, Float

# Larger products are left to the library. Measured on two cores, in loops over thousands of points:
# three to four times faster at sizes of four, equal at sizes of sixteen.
_FEW = 12


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


def eliminate(
    matrix: Float[Array, "*batch n n"], right: Float[Array, "*batch n k"]
) -> tuple[Float[Array, "*batch n k"], Float[Array, "*batch"]]:
    """Solutions of linear systems, and the logarithms of the moduli of their determinants.

    Parameters
    ----------
    matrix : array (*batch, n, n)
        Invertible.
    right : array (*batch, n, k)

    Returns
    -------
    solution : array (*batch, n, k)
    log_determinant : array (*batch,)

    Notes
    -----
    Gauss and Jordan's elimination with the largest pivot of each column, unrolled over the columns:
    ``O(n² (n + k))`` operations on arrays of the batch, for ``n`` of a few.
    """
    size = matrix.shape[-1]
    work = jnp.concatenate([matrix, right], axis=-1)
    log_determinant = jnp.zeros(matrix.shape[:-2], matrix.dtype)
    for j in range(size):
        if j < size - 1:
            best = j + jnp.argmax(jnp.abs(work[..., j:, j]), axis=-1)
            chosen = (jnp.arange(size) == best[..., None])[..., None]
            row = jnp.sum(jnp.where(chosen, work, 0.0), axis=-2)
            work = jnp.where(chosen, work[..., j : j + 1, :], work)
        else:
            row = work[..., j, :]
        log_determinant = log_determinant + jnp.log(jnp.abs(row[..., j]))
        row = row / row[..., j : j + 1]
        others = jnp.where(jnp.arange(size) == j, 0.0, work[..., :, j])
        work = work - others[..., None] * row[..., None, :]
        work = jnp.where((jnp.arange(size) == j)[:, None], row[..., None, :], work)
    return work[..., size:], log_determinant


def product(
    first: Float[Array, "*batch _ _"], *others: Float[Array, "*batch _ _"]
) -> Float[Array, "*batch _ _"]:
    """Matrix products, from the left to the right.

    Small ones are sums of products, which a compiler fuses with what is around them: in a loop the
    call of a library costs more than the product.
    """
    for other in others:
        if max(*first.shape[-2:], *other.shape[-2:]) > _FEW:
            first = first @ other
        else:
            first = jnp.sum(first[..., :, :, None] * other[..., None, :, :], axis=-2)
    return first


def apply(
    matrix: Float[Array, "*batch m n"], vector: Float[Array, "*batch n"]
) -> Float[Array, "*batch m"]:
    """Products of matrices and vectors."""
    return jnp.sum(matrix * vector[..., None, :], axis=-1)
