"""What functions of operators are in factor space, one class of operators after the other."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax
from jaxtyping import Array, Float

from bayeskit.linalg import safe, spectral, toeplitz
from bayeskit.linalg.contract import apply_along, kronecker_multiply, outer
from bayeskit.linalg.operators import (
    KroneckerProduct,
    KroneckerSum,
    ShiftedKronecker,
    StructuredOperator,
    SumOfKroneckers,
    hermitian_part,
    require_hermitian,
)
from bayeskit.linalg.toeplitz import SymmetricToeplitz


class EigenDecomposition(NamedTuple):
    """Eigenvalues (N,) in the order of the columns of the operator of eigenvectors, unsorted."""

    eigenvalues: Float[Array, " size"]
    eigenvectors: KroneckerProduct


class SingularValueDecomposition(NamedTuple):
    """Operators of singular vectors, and singular values (K,) in their order, unsorted."""

    u: KroneckerProduct
    s: Float[Array, " rank"]
    vh: KroneckerProduct


def _unsupported(name: str) -> Callable[..., Any]:
    """Base case of a function: says what there is instead."""

    def raise_type_error(operator, *_):
        raise TypeError(
            f"{name} of a {type(operator).__name__} has no form in factor space; products (mv), "
            "trace and diagonal remain, and lineax.linear_solve(operator, vector, lineax.CG(...)) "
            "for solves"
        )

    return raise_type_error


eigh = functools.singledispatch(_unsupported("eigh"))
svd = functools.singledispatch(_unsupported("svd"))
cholesky = functools.singledispatch(_unsupported("cholesky"))
solve = functools.singledispatch(_unsupported("solve"))
logdet = functools.singledispatch(_unsupported("logdet"))
diagonal_of_inverse = functools.singledispatch(_unsupported("diagonal_of_inverse"))
sample = functools.singledispatch(_unsupported("sample"))


@functools.singledispatch
def trace(operator) -> Any:
    """Sum of the diagonal, where there is no shorter way."""
    return jnp.sum(lineax.diagonal(operator))


for _function in (eigh, svd, cholesky, solve, logdet, diagonal_of_inverse, sample, trace):

    @_function.register(lineax.TaggedLinearOperator)
    def _(operator, *arguments, function=_function):
        return function(operator.operator, *arguments)


# A dense matrix, alone or as a factor.


@eigh.register(lineax.MatrixLinearOperator)
def _(operator):
    eigenvalues, eigenvectors = safe.eigh(_hermitian(operator, "eigh"))
    return EigenDecomposition(eigenvalues, KroneckerProduct(eigenvectors))


@svd.register(lineax.MatrixLinearOperator)
def _(operator):
    u, s, vh = safe.svd(operator.as_matrix())
    return SingularValueDecomposition(KroneckerProduct(u), s, KroneckerProduct(vh))


@cholesky.register(lineax.MatrixLinearOperator)
def _(operator):
    return _lower(safe.cholesky(_hermitian(operator, "cholesky")))


@solve.register(lineax.MatrixLinearOperator)
def _(operator, vector):
    return _solve_columns(operator, vector[:, None])[:, 0]


@logdet.register(lineax.MatrixLinearOperator)
def _(operator):
    return safe.slogdet(_square(operator, "logdet"))[1]


@diagonal_of_inverse.register(lineax.MatrixLinearOperator)
def _(operator):
    matrix = _square(operator, "diagonal_of_inverse")
    return jnp.diagonal(safe.solve(matrix, jnp.eye(len(matrix), dtype=matrix.dtype)))


@sample.register(lineax.MatrixLinearOperator)
def _(operator, key):
    return sample(KroneckerProduct(operator), key)


# Kronecker products.


@eigh.register(KroneckerProduct)
def _(operator):
    parts = [eigh(factor) for factor in _leaves(operator)]
    vectors = KroneckerProduct(*(part.eigenvectors for part in parts))
    return EigenDecomposition(outer([part.eigenvalues for part in parts]).reshape(-1), vectors)


@svd.register(KroneckerProduct)
def _(operator):
    u, s, vh = zip(*map(svd, _leaves(operator)), strict=True)
    return SingularValueDecomposition(
        KroneckerProduct(*u), outer(s).reshape(-1), KroneckerProduct(*vh)
    )


@cholesky.register(KroneckerProduct)
def _(operator):
    return KroneckerProduct(*map(cholesky, _leaves(operator)))


@solve.register(KroneckerProduct)
def _(operator, vector):
    tensor = vector.reshape(operator.row_sizes())
    for axis, factor in enumerate(_leaves(operator)):
        tensor = apply_along(functools.partial(_solve_columns, factor), tensor, axis)
    return tensor.reshape(-1)


def _solve_columns(operator, columns):
    if isinstance(operator, lineax.MatrixLinearOperator):
        return safe.solve(_square(operator, "solve"), columns)
    return jax.vmap(functools.partial(solve, operator), in_axes=1, out_axes=1)(columns)


@logdet.register(KroneckerProduct)
def _(operator):
    size = operator.out_size()
    return sum(size // leaf.out_size() * logdet(leaf) for leaf in _leaves(operator))


@trace.register(KroneckerProduct)
def _(operator):
    return math.prod(jnp.sum(lineax.diagonal(factor)) for factor in _square_factors(operator))


@lineax.diagonal.register(KroneckerProduct)
def _(operator):
    return outer([lineax.diagonal(factor) for factor in _square_factors(operator)]).reshape(-1)


@diagonal_of_inverse.register(KroneckerProduct)
def _(operator):
    return outer([diagonal_of_inverse(leaf) for leaf in _leaves(operator)]).reshape(-1)


@sample.register(KroneckerProduct)
def _(operator, key):
    return cholesky(operator).mv(_white_noise(operator, key).reshape(-1))


# Operators with a Kronecker product of eigenvectors.


def _diagonalised(operator, name):
    """Arguments that the functions of `spectral` take."""
    if isinstance(operator, ShiftedKronecker):
        return spectral.PRODUCT, operator.matrices, operator.shift
    matrices = tuple(_hermitian(factor, name) for factor in operator.factors)
    return spectral.SUM, matrices, jnp.zeros((), jnp.finfo(operator.dtype()).dtype)


@eigh.register(KroneckerSum)
@eigh.register(ShiftedKronecker)
def _(operator):
    _, vectors, values = spectral.decompose(*_diagonalised(operator, "eigh"))
    return EigenDecomposition(values.reshape(-1), KroneckerProduct(*vectors))


@solve.register(KroneckerSum)
@solve.register(ShiftedKronecker)
def _(operator, vector):
    tensor = vector.reshape(operator.row_sizes())
    return spectral.solve(*_diagonalised(operator, "solve"), tensor).reshape(-1)


@logdet.register(KroneckerSum)
@logdet.register(ShiftedKronecker)
def _(operator):
    return spectral.logdet(*_diagonalised(operator, "logdet"))


@diagonal_of_inverse.register(KroneckerSum)
@diagonal_of_inverse.register(ShiftedKronecker)
def _(operator):
    arguments = _diagonalised(operator, "diagonal_of_inverse")
    return spectral.diagonal_of_inverse(*arguments, ()).reshape(-1)


@sample.register(KroneckerSum)
@sample.register(ShiftedKronecker)
def _(operator, key):
    arguments = _diagonalised(operator, "sample")
    return spectral.multiply_root(*arguments, _white_noise(operator, key)).reshape(-1)


@lineax.diagonal.register(KroneckerSum)
def _(operator):
    return outer([lineax.diagonal(factor) for factor in operator.factors], jnp.add).reshape(-1)


@lineax.diagonal.register(ShiftedKronecker)
def _(operator):
    product = outer([lineax.diagonal(factor) for factor in operator.factors])
    return product.reshape(-1) + operator.shift


@trace.register(KroneckerSum)
def _(operator):
    size = operator.out_size()
    return sum(
        size // factor.out_size() * jnp.sum(lineax.diagonal(factor)) for factor in operator.factors
    )


@trace.register(ShiftedKronecker)
def _(operator):
    product = math.prod(jnp.sum(lineax.diagonal(factor)) for factor in operator.factors)
    return product + operator.out_size() * operator.shift


# Sums of Kronecker products. Two terms have a form through L = ⊗_i L_i, the Cholesky factor of the
# second: ⊗ A_i + ⊗ B_i = L (⊗ C_i + I) L^H with C_i = L_i⁻¹ A_i L_i⁻ᴴ.


def _congruence(operator, name):
    """Cholesky factors ``L_i``, and the arguments of `spectral` for ``⊗ C_i + I``."""
    first, second = operator.terms
    lowers = tuple(safe.cholesky(_hermitian(factor, name)) for factor in second.factors)
    inner = []
    for factor, lower in zip(first.factors, lowers, strict=True):
        half = safe.solve_triangular(lower, _hermitian(factor, name))
        inner.append(hermitian_part(safe.solve_triangular(lower, half.conj().T)))
    one = jnp.ones((), jnp.finfo(operator.dtype()).dtype)
    return lowers, (spectral.PRODUCT, tuple(inner), one)


def _solve_triangular(lowers, tensor, adjoint=False):
    """Solve with ``⊗_i L_i``, or with its conjugate transpose."""
    for axis, lower in enumerate(lowers):
        solve_columns = functools.partial(safe.solve_triangular, lower, adjoint=adjoint)
        tensor = apply_along(solve_columns, tensor, axis)
    return tensor


@solve.register(SumOfKroneckers)
def _(operator, vector):
    if len(operator.terms) == 1:
        return solve(operator.terms[0], vector)
    _require_at_most_two_terms(operator, "solve")
    lowers, diagonalised = _congruence(operator, "solve")
    tensor = _solve_triangular(lowers, vector.reshape(operator.row_sizes()))
    tensor = spectral.solve(*diagonalised, tensor)
    return _solve_triangular(lowers, tensor, adjoint=True).reshape(-1)


@logdet.register(SumOfKroneckers)
def _(operator):
    if len(operator.terms) == 1:
        return logdet(operator.terms[0])
    _require_at_most_two_terms(operator, "logdet")
    lowers, diagonalised = _congruence(operator, "logdet")
    size = operator.out_size()
    halves = [
        size // len(lower) * jnp.sum(jnp.log(jnp.real(jnp.diagonal(lower)))) for lower in lowers
    ]
    return 2 * sum(halves) + spectral.logdet(*diagonalised)


@diagonal_of_inverse.register(SumOfKroneckers)
def _(operator):
    if len(operator.terms) == 1:
        return diagonal_of_inverse(operator.terms[0])
    _require_at_most_two_terms(operator, "diagonal_of_inverse")
    lowers, diagonalised = _congruence(operator, "diagonal_of_inverse")
    return spectral.diagonal_of_inverse(*diagonalised, lowers).reshape(-1)


@sample.register(SumOfKroneckers)
def _(operator, key):
    if len(operator.terms) != 2:
        keys = jax.random.split(key, len(operator.terms))
        return sum(sample(term, k) for term, k in zip(operator.terms, keys, strict=True))
    lowers, diagonalised = _congruence(operator, "sample")
    inner = spectral.multiply_root(*diagonalised, _white_noise(operator, key))
    return kronecker_multiply(lowers, inner).reshape(-1)


@lineax.diagonal.register(SumOfKroneckers)
def _(operator):
    return functools.reduce(jnp.add, map(lineax.diagonal, operator.terms))


@trace.register(SumOfKroneckers)
def _(operator):
    return sum(trace(term) for term in operator.terms)


def _require_at_most_two_terms(operator, name):
    if len(operator.terms) > 2:
        raise TypeError(
            f"{name} of a sum of {len(operator.terms)} Kronecker products has no form in factor "
            "space (at most two terms can be diagonalised together); products (mv), trace and "
            "diagonal remain, and lineax.linear_solve(operator, vector, lineax.CG(...)) for solves"
        )


# Toeplitz matrices.


for _function in (eigh, svd):

    @_function.register(SymmetricToeplitz)
    def _(operator, function=_function):
        return function(lineax.MatrixLinearOperator(operator.as_matrix()))


@cholesky.register(SymmetricToeplitz)
def _(operator):
    return _lower(toeplitz.cholesky(operator.first_column))


@solve.register(SymmetricToeplitz)
def _(operator, vector):
    return toeplitz.solve(operator.first_column, vector)


@logdet.register(SymmetricToeplitz)
def _(operator):
    return toeplitz.logdet(operator.first_column)


@diagonal_of_inverse.register(SymmetricToeplitz)
def _(operator):
    return toeplitz.diagonal_of_inverse(operator.first_column)


@sample.register(SymmetricToeplitz)
def _(operator, key):
    return toeplitz.multiply_root(operator.first_column, _white_noise(operator, key))


@lineax.diagonal.register(SymmetricToeplitz)
def _(operator):
    return jnp.full_like(operator.first_column, operator.first_column[0])


# Shared pieces.


def _leaves(operator):
    """The factors, each as an operator that the functions here know."""
    return [
        factor
        if isinstance(factor, StructuredOperator | lineax.MatrixLinearOperator)
        else lineax.MatrixLinearOperator(factor.as_matrix())
        for factor in operator.factors
    ]


def _square_factors(operator):
    for i, factor in enumerate(operator.factors):
        if factor.out_size() != factor.in_size():
            raise ValueError(
                f"factors[{i}] has shape {(factor.out_size(), factor.in_size())}; expected square "
                "factors for a diagonal or a trace"
            )
    return operator.factors


def _square(operator, name):
    matrix = operator.as_matrix()
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"{name} met a factor of shape {matrix.shape}; expected square factors (for "
            "rectangular ones use svd, which gives least squares and pseudo-determinants)"
        )
    return matrix


def _hermitian(operator, name):
    matrix = _square(operator, name)
    require_hermitian(matrix, f"a factor in {name}")
    return hermitian_part(matrix)


def _lower(matrix):
    return KroneckerProduct(lineax.MatrixLinearOperator(matrix, lineax.lower_triangular_tag))


def _white_noise(operator, key):
    return jax.random.normal(key, operator.row_sizes(), operator.dtype())
