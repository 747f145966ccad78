"""Kronecker products and sums applied to tensors, one mode at a time."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import lineax
from jax import lax
from jaxtyping import Array, Inexact

from bayeskit.linalg.sharding import mesh_of, shard_along

__all__ = [
    "apply_along",
    "kronecker_multiply",
    "kronecker_sum_multiply",
    "outer",
    "shape_of",
    "shard_along",
]

Factor = Inexact[Array, "_rows _columns"] | lineax.AbstractLinearOperator


def kronecker_multiply(
    factors: Sequence[Factor], tensor: Inexact[Array, "..."]
) -> Inexact[Array, "..."]:
    """Apply ``factors[0] ⊗ … ⊗ factors[-1]`` to the last axes of a tensor.

    Row-major convention: for two factors the result is ``A @ X @ B.T``, so that
    ``(A ⊗ B) x.reshape(-1) == (A @ X @ B.T).reshape(-1)``.

    Parameters
    ----------
    factors : sequence of arrays (M_i, N_i) or lineax operators
        One for each of the last axes of ``tensor``.
    tensor : array (*batch, N_1, …, N_I)

    Returns
    -------
    array (*batch, M_1, …, M_I)
        A tensor sharded over a mesh stays sharded: no axis is contracted while it is
        distributed, so one all-to-all moves the data and nothing is gathered. (JAX returns an
        axis that the devices do not divide undistributed, from ``jit`` as well.)

    Raises
    ------
    ValueError
        If the last axes of ``tensor`` are not as long as the factors have columns.

    Notes
    -----
    Cost ``O(Σ_i N_i ∏_j max(M_j, N_j))`` operations. Factors that shrink their axis most come
    first. The contracted axis is brought outermost or innermost by a reshape, never by a
    transpose, which is a quarter faster than ``tensordot`` with ``moveaxis``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import kronecker_multiply
    >>> kronecker_multiply([jnp.ones((4, 2)), jnp.ones((5, 3))], jnp.ones((2, 3))).shape
    (4, 5)
    """
    offset = _check_last_axes(factors, tensor)
    shapes = [shape_of(factor) for factor in factors]
    order = sorted(range(len(factors)), key=lambda i: shapes[i][0] / shapes[i][1])
    if mesh_of(tensor) is not None:
        # The axis that carries the shards comes last: then one exchange is enough.
        carrier = _longest_axis(tensor.shape, exclude=None) - offset
        order.sort(key=lambda i: i == carrier)
    for i in order:
        tensor = multiply_axis(factors[i], tensor, offset + i)
    return tensor


def kronecker_sum_multiply(
    factors: Sequence[Factor], tensor: Inexact[Array, "..."]
) -> Inexact[Array, "..."]:
    """Apply ``Σ_i I ⊗ … ⊗ factors[i] ⊗ … ⊗ I`` to the last axes of a tensor.

    Parameters
    ----------
    factors : sequence of square arrays (N_i, N_i) or lineax operators
    tensor : array (*batch, N_1, …, N_I)

    Returns
    -------
    array (*batch, N_1, …, N_I)

    Raises
    ------
    ValueError
        If the last axes of ``tensor`` are not as long as the factors have columns.

    Notes
    -----
    Cost ``O(N Σ_i N_i)`` for ``N = ∏_i N_i``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import kronecker_sum_multiply
    >>> kronecker_sum_multiply([jnp.eye(2), jnp.eye(3)], jnp.ones((2, 3)))[0, 0].item()
    2.0
    """
    offset = _check_last_axes(factors, tensor)
    products = [multiply_axis(factor, tensor, offset + i) for i, factor in enumerate(factors)]
    return functools.reduce(jnp.add, products)


def apply_along(
    function: Callable[[Array], Array], tensor: Inexact[Array, "..."], axis: int
) -> Inexact[Array, "..."]:
    """Apply a function of an (n, columns) matrix to the columns that run along one axis."""
    moved = jnp.moveaxis(tensor, axis, 0)
    result = function(moved.reshape(moved.shape[0], -1))
    return jnp.moveaxis(result.reshape(result.shape[0], *moved.shape[1:]), 0, axis)


def outer(
    vectors: Sequence[Inexact[Array, " _size"]], combine: Callable = jnp.multiply
) -> Inexact[Array, "..."]:
    """Combine one entry of each vector in every way: an outer product (or sum) as a tensor."""
    return functools.reduce(lambda tensor, vector: combine(tensor[..., None], vector), vectors)


def shape_of(factor: Factor) -> tuple[int, int]:
    """Rows and columns of a matrix or an operator."""
    if isinstance(factor, lineax.AbstractLinearOperator):
        return factor.out_size(), factor.in_size()
    rows, columns = factor.shape
    return rows, columns


def _check_last_axes(factors, tensor):
    expected = tuple(shape_of(factor)[1] for factor in factors)
    offset = tensor.ndim - len(expected)
    if offset < 0 or tensor.shape[offset:] != expected:
        raise ValueError(
            f"tensor has shape {tensor.shape}; expected its last axes to be {expected}"
        )
    return offset


def multiply_axis(
    factor: Factor, tensor: Inexact[Array, "..."], axis: int
) -> Inexact[Array, "..."]:
    """Apply one matrix (M, N) or operator to one axis of length N of a tensor.

    A distributed tensor is exchanged first, so that no sum runs across devices.
    """
    sharded = mesh_of(tensor) is not None
    if sharded:
        tensor = shard_along(tensor, _longest_axis(tensor.shape, exclude=axis))
    if isinstance(factor, lineax.MatrixLinearOperator):
        factor = factor.as_matrix()
    if isinstance(factor, lineax.AbstractLinearOperator):
        product = apply_along(jax.vmap(factor.mv, in_axes=1, out_axes=1), tensor, axis)
    elif sharded:
        # A reshape that merges axes would make XLA gather the distributed one.
        product = jnp.tensordot(factor, tensor, (1, axis), precision=lax.Precision.HIGHEST)
        product = jnp.moveaxis(product, 0, axis)
    else:
        product = _multiply_matrix(factor, tensor, axis)
    return shard_along(product, _longest_axis(product.shape, exclude=axis)) if sharded else product


def _multiply_matrix(matrix, tensor, axis):
    matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    rows, columns = matrix.shape
    before, after = math.prod(tensor.shape[:axis]), math.prod(tensor.shape[axis + 1 :])
    if after == 1:
        product = matmul(tensor.reshape(before, columns), matrix.T)
    elif before == 1:
        product = matmul(matrix, tensor.reshape(columns, after))
    else:
        product = matmul(matrix, tensor.reshape(before, columns, after))
    return product.reshape(*tensor.shape[:axis], rows, *tensor.shape[axis + 1 :])


def _longest_axis(shape, exclude):
    axes = [axis for axis in range(len(shape)) if axis != exclude]
    return max(axes, key=lambda axis: shape[axis], default=0)
