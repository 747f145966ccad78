"""Small matrices, one or many at once, without a call of a library for each."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from bayeskit.linalg import safe

# Larger products are left to the library. Measured on two cores, in loops over thousands of points:
# three to four times faster at sizes of four, equal at sizes of sixteen.
_FEW = 12
# Larger triangular systems are solved by the library: faster from eight columns on, and compiled
# in less time.
_FEW_COLUMNS = 6


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
        positive = ~(pivot <= jnp.maximum(smallest[..., j], 0.0))  # NaN is none, and stays
        root = jnp.sqrt(jnp.where(positive, pivot, 1.0))[..., None]
        below = (jnp.arange(size) >= j) & positive[..., None]
        column = jnp.where(below, rest[..., :, j] / root, 0.0)
        rest = rest - column[..., :, None] * column[..., None, :]
        columns.append(column)
    return jnp.stack(columns, axis=-1)


def cholesky(matrix: Float[Array, "*batch n n"], smallest) -> Float[Array, "*batch n n"]:
    """Lower triangular ``L`` with ``L Lᵀ`` a positive definite matrix.

    Parameters
    ----------
    matrix : array (*batch, n, n)
        Symmetric, positive definite.
    smallest : float
        A lower bound of the eigenvalues, and so of the pivots. Where rounding has taken it away,
        because the condition number is about one over the type's precision or the matrix was
        computed from inaccurate ones, a multiple of the diagonal of the order of ``n² ε`` is added,
        and pivots below the bound are raised to it: there is always a result.

    Returns
    -------
    array (*batch, n, n)

    Notes
    -----
    Unrolled over the columns, ``O(n³)`` operations on arrays of the batch. What suffices to be
    added: J. Demmel, "On floating point errors in Cholesky", 1989.
    """
    size = matrix.shape[-1]
    diagonal = jnp.diagonal(matrix, axis1=-2, axis2=-1)
    shift = 2 * size**2 * jnp.finfo(matrix.dtype).eps * diagonal
    doubtful = jnp.max(shift, axis=-1, keepdims=True) > smallest
    shift = jnp.where(doubtful, shift, 0.0)
    columns, rest = [], matrix + shift[..., None] * jnp.eye(size, dtype=matrix.dtype)
    for j in range(size):
        root = jnp.sqrt(jnp.maximum(rest[..., j, j], smallest))[..., None]
        column = jnp.where(jnp.arange(size) > j, rest[..., :, j] / root, 0.0)
        rest = rest - column[..., :, None] * column[..., None, :]
        columns.append(jnp.where(jnp.arange(size) == j, root, column))
    return jnp.stack(columns, axis=-1)


def solve_lower(
    lower: Float[Array, "*batch n n"], right: Float[Array, "*batch n k"]
) -> Float[Array, "*batch n k"]:
    """Solution of ``L x = b`` with a lower triangular ``L`` of positive diagonal."""
    size = lower.shape[-1]
    if size > _FEW_COLUMNS:
        return safe.solve_triangular(lower, right)
    rows, rest = [], right
    for j in range(size):
        rows.append(rest[..., j, :] / lower[..., j, j][..., None])
        rest = rest - lower[..., :, j, None] * rows[j][..., None, :]
    return jnp.stack(rows, axis=-2)


def solve_upper(
    lower: Float[Array, "*batch n n"], right: Float[Array, "*batch n k"]
) -> Float[Array, "*batch n k"]:
    """Solution of ``Lᵀ x = b`` with a lower triangular ``L`` of positive diagonal."""
    size = lower.shape[-1]
    if size > _FEW_COLUMNS:
        return safe.solve_triangular(lower, right, adjoint=True)
    rows, rest = [], right
    for j in reversed(range(size)):
        rows.append(rest[..., j, :] / lower[..., j, j][..., None])
        rest = rest - lower[..., j, :, None] * rows[-1][..., None, :]
    return jnp.stack(rows[::-1], axis=-2)


def divide(
    root: Float[Array, "*batch n n"], right: Float[Array, "*batch n"]
) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch n"]]:
    """``x`` and ``r`` with ``L x + r = b``, ``L`` from :func:`semidefinite_root`.

    Parameters
    ----------
    root : array (*batch, n, n)
        A zero on its diagonal is the head of a column of zeros.
    right : array (*batch, n)
        ``b``.

    Returns
    -------
    quotient, remainder : arrays (*batch, n)
        Of the remainder only entries at zero pivots are not zero, and none that rounding of ``b``
        explains.

    Notes
    -----
    Unrolled over the columns, ``O(n²)`` operations on arrays of the batch.
    """
    size = root.shape[-1]
    entries, rest, reach = [], right, jnp.abs(right)
    for j in range(size):
        pivot = root[..., j, j]
        regular = pivot != 0
        entry = jnp.where(regular, rest[..., j] / jnp.where(regular, pivot, 1.0), 0.0)
        taken = root[..., :, j] * entry[..., None]
        rest, reach = rest - taken, reach + jnp.abs(taken)
        rest = jnp.where((jnp.arange(size) == j) & regular[..., None], 0.0, rest)
        entries.append(entry)
    rounding = 4 * size * jnp.finfo(root.dtype).eps * reach
    return jnp.stack(entries, axis=-1), jnp.where(jnp.abs(rest) <= rounding, 0.0, rest)


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
