"""Functions of Hermitian operators whose eigenvectors are a Kronecker product.

Both ``⊗_i A_i + c I`` and ``Σ_i I ⊗ A_i ⊗ I + c I`` are ``Q diag(a) Q^H`` with ``Q = ⊗_i Q_i``
from the factors' ``A_i = Q_i diag(λ_i) Q_i^H``; their eigenvalues ``a`` are the products, or the
sums, of one ``λ_i`` of each factor, plus ``c``. Tensors here have one axis a factor.

Eigenvectors have no derivative where eigenvalues repeat, but functions of the matrix do, and the
rules below are theirs (Daleckii and Krein 1965). In the basis ``Q`` a change ``dA_j`` of one factor
changes only entries ``(k, l)`` whose indices differ in axis ``j`` alone, by
``E_j[k_j, l_j] · slope``, where ``E_j = Q_j^H dA_j Q_j`` and ``slope`` is the product of the other
factors' eigenvalues (or one, for a sum). So no rule needs more memory than a tensor.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from bayeskit.linalg import safe
from bayeskit.linalg.contract import kronecker_multiply, kronecker_sum_multiply, outer

Matrices = Sequence[Inexact[Array, "_size _size"]]


class Structure(NamedTuple):
    """How an operator is made of its factors."""

    combine: Callable
    multiply: Callable
    slopes: Callable


def _product_slopes(factor_values, axis):
    others = [jnp.ones_like(v) if i == axis else v for i, v in enumerate(factor_values)]
    return outer(others)


def _sum_slopes(factor_values, axis):
    return jnp.ones([values.size for values in factor_values], factor_values[axis].dtype)


PRODUCT = Structure(jnp.multiply, kronecker_multiply, _product_slopes)
SUM = Structure(jnp.add, kronecker_sum_multiply, _sum_slopes)


def decompose(
    structure: Structure, matrices: Matrices, shift: Float[Array, ""]
) -> tuple[list[Float[Array, " _size"]], list[Inexact[Array, "_size _size"]], Float[Array, "..."]]:
    """Eigenvalues and eigenvectors of each factor, and the operator's eigenvalues as a tensor."""
    factor_values, vectors = zip(*map(safe.eigh, matrices), strict=True)
    values = outer(factor_values, structure.combine) + shift
    return list(factor_values), list(vectors), values


def solve(
    structure: Structure,
    matrices: Matrices,
    shift: Float[Array, ""],
    tensor: Inexact[Array, "..."],
) -> Inexact[Array, "..."]:
    """``A⁻¹ b``, differentiated through the equation ``A x = b`` and so any number of times."""
    _, vectors, values = decompose(structure, *lax.stop_gradient((matrices, shift)))
    adjoints = _adjoints(vectors)

    def apply_inverse(_, right):
        return kronecker_multiply(vectors, kronecker_multiply(adjoints, right) / values)

    def apply_transposed_inverse(_, right):
        return apply_inverse(_, right.conj()).conj()

    return lax.custom_linear_solve(
        lambda x: structure.multiply(matrices, x) + shift * x,
        tensor.astype(jnp.result_type(tensor, shift, *matrices)),
        apply_inverse,
        transpose_solve=apply_transposed_inverse,
    )


def logdet(structure: Structure, matrices: Matrices, shift: Float[Array, ""]) -> Float[Array, ""]:
    """``Σ log |a|``: symmetric in each factor's eigenvalues, so their derivative suffices."""
    factor_values = [safe.eigvalsh(matrix) for matrix in matrices]
    return jnp.sum(jnp.log(jnp.abs(outer(factor_values, structure.combine) + shift)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def multiply_root(
    structure: Structure,
    matrices: Matrices,
    shift: Float[Array, ""],
    tensor: Inexact[Array, "..."],
) -> Inexact[Array, "..."]:
    """``A^{1/2} z`` with the Hermitian root; NaN where an eigenvalue is negative."""
    _, vectors, values = decompose(structure, matrices, shift)
    return kronecker_multiply(
        vectors, _root(values) * kronecker_multiply(_adjoints(vectors), tensor)
    )


@multiply_root.defjvp
def _differentiate_multiply_root(structure, primals, tangents):
    """``d(A^{1/2}) = Q (E / (√a_k + √a_l)) Q^H``: nothing is divided by a difference."""
    (matrices, shift, tensor), (matrix_changes, shift_change, tensor_change) = primals, tangents
    factor_values, vectors, values = decompose(structure, matrices, shift)
    root, adjoints = _root(values), _adjoints(vectors)
    coefficients = kronecker_multiply(adjoints, tensor)
    change = root * kronecker_multiply(adjoints, tensor_change)
    change = change + shift_change * _reciprocal(2 * root) * coefficients
    for axis, matrix_change in enumerate(matrix_changes):
        rotated = _rotate(vectors[axis], matrix_change)
        weighted = _apply_rotated(rotated, root, coefficients, axis)
        change = change + weighted * structure.slopes(factor_values, axis)
    return (
        kronecker_multiply(vectors, root * coefficients),
        kronecker_multiply(vectors, change).astype(tensor.dtype),
    )


def _apply_rotated(rotated, root, coefficients, axis):
    """``Σ_l E[k, l] c[l, r] / (√a[k, r] + √a[l, r])``, one row ``k`` at a time to save memory."""
    root, restore = _columns(root, axis)
    coefficients, _ = _columns(coefficients, axis)

    def row(arguments):
        rotated_row, root_row = arguments
        return _matmul(rotated_row[None], coefficients * _reciprocal(root_row + root))[0]

    return restore(lax.map(row, (rotated, root)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def diagonal_of_inverse(
    structure: Structure,
    matrices: Matrices,
    shift: Float[Array, ""],
    lowers: Matrices,
) -> Float[Array, "..."]:
    """Diagonal of ``(L A L^H)⁻¹`` for ``L = ⊗_i L_i`` lower triangular, or of ``A⁻¹`` without."""
    _, vectors, values = decompose(structure, matrices, shift)
    return kronecker_multiply(_weights(_project(lowers, vectors)), 1 / values)


@diagonal_of_inverse.defjvp
def _differentiate_diagonal_of_inverse(structure, primals, tangents):
    """``d(A⁻¹) = -A⁻¹ dA A⁻¹``, of which the diagonal is a quadratic form for each row."""
    (matrices, shift, lowers), (matrix_changes, shift_change, lower_changes) = primals, tangents
    factor_values, vectors, values = decompose(structure, matrices, shift)
    inverse = 1 / values
    projected = _project(lowers, vectors)
    weights = _weights(projected)
    diagonal, change = jax.jvp(
        lambda lowers: kronecker_multiply(_weights(_project(lowers, vectors)), inverse),
        (lowers,),
        (lower_changes,),
    )
    change = change - shift_change * kronecker_multiply(weights, inverse**2)
    for axis, matrix_change in enumerate(matrix_changes):
        rotated = _rotate(vectors[axis], matrix_change)
        slopes = structure.slopes(factor_values, axis)
        forms = _quadratic_forms(projected[axis], rotated, inverse, inverse * slopes, axis)
        identity = jnp.eye(len(rotated), dtype=forms.dtype)
        others = [identity if i == axis else weight for i, weight in enumerate(weights)]
        change = change - kronecker_multiply(others, forms)
    return diagonal, change


def _quadratic_forms(projected, rotated, left, right, axis):
    """``Σ_kl v[n, k] left[k, r] E[k, l] right[l, r] v[n, l]^*``, one row ``n`` at a time."""
    left, restore = _columns(left, axis)
    right, _ = _columns(right, axis)

    def row(vector):
        form = jnp.real(vector[:, None] * rotated * vector.conj())
        return jnp.sum(left * _matmul(form, right), axis=0)

    return restore(lax.map(row, projected))


def _columns(tensor, axis):
    """A tensor as a matrix with one of its axes for rows, and the way back."""
    moved = jnp.moveaxis(tensor, axis, 0)

    def restore(matrix):
        return jnp.moveaxis(matrix.reshape(moved.shape), 0, axis)

    return moved.reshape(moved.shape[0], -1), restore


def _project(lowers, vectors):
    if not lowers:
        return vectors
    return [
        safe.solve_triangular(lower, q, adjoint=True)
        for lower, q in zip(lowers, vectors, strict=True)
    ]


def _weights(projected):
    return [jnp.real(vectors * vectors.conj()) for vectors in projected]


def _rotate(vectors, matrix):
    return _matmul(vectors.conj().T, _matmul(matrix, vectors))


def _adjoints(vectors):
    return [q.conj().T for q in vectors]


def _matmul(left, right):
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)


def _root(values):
    """Square roots, where negative values that rounding explains count as zero."""
    rounding = values.size * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    return jnp.sqrt(jnp.where(values < -rounding, jnp.nan, jnp.maximum(values, 0)))


def _reciprocal(values):
    """``1 / values``, and 0 in the null space, where a root of a singular matrix has no slope."""
    return jnp.where(values == 0, 0, 1 / jnp.where(values == 0, 1, values))
