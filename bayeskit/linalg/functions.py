"""Decompositions, solves, determinants, diagonals and draws in factor space.

Throughout, ``N = ∏_i N_i`` is the size of an operator with factors of sizes ``N_i``, and no
function forms an array of ``N²`` entries. Vectors are flat and row-major. Batches go through
``jax.vmap``, over operators too.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Inexact, Key, UInt32

from bayeskit.linalg import safe, spectral, toeplitz
from bayeskit.linalg.contract import apply_along, kronecker_multiply, outer
from bayeskit.linalg.operators import (
    KroneckerProduct,
    KroneckerSum,
    Operator,
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


def eigh(operator: Operator) -> EigenDecomposition:
    """Eigendecomposition of a Hermitian operator, factor by factor.

    Parameters
    ----------
    operator : KroneckerProduct, KroneckerSum, ShiftedKronecker or SymmetricToeplitz
        With Hermitian factors.

    Returns
    -------
    EigenDecomposition
        ``eigenvalues`` (N,) and ``eigenvectors``, a `KroneckerProduct` of unitary factors whose
        columns are in the same order. Eigenvalues ascend within each factor, not over all.

    Raises
    ------
    TypeError
        If the eigenvectors of the operator are no Kronecker product, or when the result is
        differentiated: eigenvectors have no derivative where eigenvalues repeat.
    ValueError
        If a factor is not square, or known and not Hermitian.

    Notes
    -----
    Cost ``O(Σ_i N_i³ + N)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import KroneckerProduct, eigh
    >>> eigh(KroneckerProduct(jnp.diag(jnp.array([1.0, 2.0])), jnp.eye(2))).eigenvalues.tolist()
    [1.0, 1.0, 2.0, 2.0]
    """
    return _eigh(operator)


def svd(operator: Operator) -> SingularValueDecomposition:
    """Singular value decomposition, factor by factor.

    Parameters
    ----------
    operator : KroneckerProduct or SymmetricToeplitz
        Rectangular factors are welcome.

    Returns
    -------
    SingularValueDecomposition
        ``u`` and ``vh``, `KroneckerProduct`s, and ``s`` (K,) with ``K = ∏_i min(M_i, N_i)``, in the
        order of the columns of ``u``: descending within each factor, not over all.

    Raises
    ------
    TypeError
        If the singular vectors of the operator are no Kronecker product, or when the result is
        differentiated: singular vectors have no derivative where singular values repeat.

    Notes
    -----
    Cost ``O(Σ_i M_i N_i min(M_i, N_i) + K)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import KroneckerProduct, svd
    >>> svd(KroneckerProduct(3.0 * jnp.eye(2), jnp.eye(1, 2))).s.tolist()
    [3.0, 3.0]
    """
    return _svd(operator)


def cholesky(operator: Operator) -> KroneckerProduct:
    """Lower triangular ``L`` with ``A = L L^H``, factor by factor.

    Parameters
    ----------
    operator : KroneckerProduct or SymmetricToeplitz
        With Hermitian positive definite factors.

    Returns
    -------
    KroneckerProduct
        Of lower triangular factors, NaN where a factor is not positive definite.

    Raises
    ------
    TypeError
        If the Cholesky factor of the operator is no Kronecker product.
    ValueError
        If a factor is not square, or known and not Hermitian.

    Notes
    -----
    Cost ``O(Σ_i N_i³)``; a Toeplitz factor costs ``O(N_i²)`` (Schur's algorithm).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import KroneckerProduct, cholesky
    >>> cholesky(KroneckerProduct(4.0 * jnp.eye(1), 9.0 * jnp.eye(1))).as_matrix().tolist()
    [[6.0]]
    """
    return _cholesky(operator)


def solve(operator: Operator, vector: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """Solve ``A x = b``.

    Parameters
    ----------
    operator : any operator of this module
        A `KroneckerProduct` of square factors; a `KroneckerSum` or `ShiftedKronecker` of Hermitian
        ones; a `SumOfKroneckers` of one term, or of two, the first with Hermitian factors and the
        second with Hermitian positive definite ones; a positive definite `SymmetricToeplitz`.
    vector : array (N,) or (N_1, …, N_I)

    Returns
    -------
    array of the shape of ``vector``
        Differentiable any number of times.

    Raises
    ------
    TypeError
        If the inverse has no factor-space form, as for three terms or more.
    ValueError
        If ``vector`` has another shape, a factor is not square, or a factor is known and not
        Hermitian where it must be.

    Notes
    -----
    Cost ``O(Σ_i N_i³ + N Σ_i N_i)``; a Toeplitz matrix of size ``n`` costs ``O(n²)`` and then
    ``O(n log n)`` a vector.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import KroneckerProduct, solve
    >>> solve(KroneckerProduct(2.0 * jnp.eye(2), 4.0 * jnp.eye(1)), jnp.ones(2)).tolist()
    [0.125, 0.125]
    """
    flat = (operator.out_size(),)
    sizes = operator.row_sizes() if isinstance(operator, StructuredOperator) else flat
    if vector.shape not in (flat, sizes):
        raise ValueError(f"vector has shape {vector.shape}; expected {flat} or {sizes}")
    return _solve(operator, vector.reshape(-1)).reshape(vector.shape)


def logdet(operator: Operator) -> Float[Array, ""]:
    """Natural logarithm of the absolute value of the determinant.

    Parameters
    ----------
    operator : any operator of this module
        As for `solve`.

    Returns
    -------
    array ()
        With finite first derivatives at repeated eigenvalues. A second derivative raises, save for
        `KroneckerProduct` and `SymmetricToeplitz`.

    Raises
    ------
    TypeError
        If the determinant has no factor-space form, as for three terms or more.
    ValueError
        If a factor is not square, or is known and not Hermitian where it must be.

    Notes
    -----
    Cost ``O(Σ_i N_i³ + N)``; a Toeplitz matrix of size ``n`` costs ``O(n²)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import ShiftedKronecker, logdet
    >>> logdet(ShiftedKronecker([jnp.eye(2), jnp.eye(3)], shift=0.0)).item()
    0.0
    """
    return _logdet(operator)


def trace(operator: Operator) -> Inexact[Array, ""]:
    """Sum of the diagonal, for any number of terms.

    Parameters
    ----------
    operator : any operator of this module
        With square factors.

    Returns
    -------
    array ()

    Raises
    ------
    ValueError
        If a factor is not square.

    Notes
    -----
    Cost ``O(Σ_i N_i)`` a term.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import KroneckerProduct, trace
    >>> trace(KroneckerProduct(jnp.eye(2), jnp.eye(3))).item()
    6.0
    """
    return _trace(operator)


def diagonal(operator: Operator) -> Inexact[Array, " size"]:
    """Diagonal entries, for any number of terms; the same as ``lineax.diagonal``.

    Parameters
    ----------
    operator : any operator of this module
        With square factors.

    Returns
    -------
    array (N,)

    Raises
    ------
    ValueError
        If a factor is not square.

    Notes
    -----
    Cost ``O(N)`` a term.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import KroneckerSum, diagonal
    >>> diagonal(KroneckerSum(jnp.eye(1), jnp.eye(2))).tolist()
    [2.0, 2.0]
    """
    return lineax.diagonal(operator)


def diagonal_of_inverse(operator: Operator) -> Inexact[Array, " size"]:
    """Diagonal entries of ``A⁻¹``, such as posterior variances from a precision matrix.

    Parameters
    ----------
    operator : any operator of this module
        As for `solve`.

    Returns
    -------
    array (N,)
        With finite first derivatives at repeated eigenvalues. A second derivative raises, save for
        `KroneckerProduct` and `SymmetricToeplitz`.

    Raises
    ------
    TypeError
        If the inverse has no factor-space form, as for three terms or more.
    ValueError
        If a factor is not square, or is known and not Hermitian where it must be.

    Notes
    -----
    Cost ``O(Σ_i N_i³ + N Σ_i N_i)``, and ``O(N Σ_i N_i²)`` for a derivative; a Toeplitz matrix of
    size ``n`` costs ``O(n²)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import ShiftedKronecker, diagonal_of_inverse
    >>> diagonal_of_inverse(ShiftedKronecker([jnp.eye(1), jnp.eye(2)], shift=1.0)).tolist()
    [0.5, 0.5]
    """
    return _diagonal_of_inverse(operator)


def sample(operator: Operator, key: Key[Array, ""] | UInt32[Array, "2"]) -> Inexact[Array, " size"]:
    """Draw from the normal distribution with mean zero and this covariance.

    Parameters
    ----------
    operator : any operator of this module
        Hermitian positive definite. A `KroneckerSum`, `ShiftedKronecker` or sum of two terms may be
        singular as a whole; more terms must each be positive definite.
    key : JAX random key
        Map over keys with ``jax.vmap`` for many draws.

    Returns
    -------
    array (N,)
        From N(0, A), or from the circular CN(0, A) with ``E x x^H = A`` for a complex operator;
        NaN where the operator is not positive definite. First derivatives with respect to the
        operator are finite at repeated eigenvalues.

    Raises
    ------
    TypeError
        If no root of the operator has a factor-space form.
    ValueError
        If a factor is not square, or known and not Hermitian.

    Notes
    -----
    Cost ``O(Σ_i N_i³ + N Σ_i N_i)`` a term; a Toeplitz matrix of size ``n`` costs ``O(n²)``. By
    Cholesky factors where these are a Kronecker product, else by the Hermitian root.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from bayeskit.linalg import KroneckerProduct, sample
    >>> sample(KroneckerProduct(jnp.eye(2), jnp.eye(3)), jax.random.key(0)).shape
    (6,)
    """
    return _sample(operator, key)


def _unsupported(name: str) -> Callable[..., Any]:
    """Base case of a function: says what there is instead."""

    def raise_type_error(operator, *_):
        raise TypeError(
            f"{name} of a {type(operator).__name__} has no form in factor space; products (mv), "
            "trace and diagonal remain, and lineax.linear_solve(operator, vector, lineax.CG(...)) "
            "for solves"
        )

    return raise_type_error


_eigh = functools.singledispatch(_unsupported("eigh"))
_svd = functools.singledispatch(_unsupported("svd"))
_cholesky = functools.singledispatch(_unsupported("cholesky"))
_solve = functools.singledispatch(_unsupported("solve"))
_logdet = functools.singledispatch(_unsupported("logdet"))
_diagonal_of_inverse = functools.singledispatch(_unsupported("diagonal_of_inverse"))
_sample = functools.singledispatch(_unsupported("sample"))


@functools.singledispatch
def _trace(operator) -> Any:
    return jnp.sum(lineax.diagonal(operator))


for _function in (_eigh, _svd, _cholesky, _solve, _logdet, _diagonal_of_inverse, _sample, _trace):

    @_function.register(lineax.TaggedLinearOperator)
    def _(operator, *arguments, function=_function):
        return function(operator.operator, *arguments)


# A dense matrix, alone or as a factor.


@_eigh.register(lineax.MatrixLinearOperator)
def _(operator):
    eigenvalues, eigenvectors = safe.eigh(_hermitian(operator, "eigh"))
    return EigenDecomposition(eigenvalues, KroneckerProduct(eigenvectors))


@_svd.register(lineax.MatrixLinearOperator)
def _(operator):
    u, s, vh = safe.svd(operator.as_matrix())
    return SingularValueDecomposition(KroneckerProduct(u), s, KroneckerProduct(vh))


@_cholesky.register(lineax.MatrixLinearOperator)
def _(operator):
    return _lower(safe.cholesky(_hermitian(operator, "cholesky")))


@_solve.register(lineax.MatrixLinearOperator)
def _(operator, vector):
    return _solve_columns(operator, vector[:, None])[:, 0]


@_logdet.register(lineax.MatrixLinearOperator)
def _(operator):
    return safe.slogdet(_square(operator, "logdet"))[1]


@_diagonal_of_inverse.register(lineax.MatrixLinearOperator)
def _(operator):
    matrix = _square(operator, "diagonal_of_inverse")
    return jnp.diagonal(safe.solve(matrix, jnp.eye(len(matrix), dtype=matrix.dtype)))


@_sample.register(lineax.MatrixLinearOperator)
def _(operator, key):
    return _sample(KroneckerProduct(operator), key)


# Kronecker products.


@_eigh.register(KroneckerProduct)
def _(operator):
    parts = [_eigh(factor) for factor in _leaves(operator)]
    vectors = KroneckerProduct(*(part.eigenvectors for part in parts))
    return EigenDecomposition(outer([part.eigenvalues for part in parts]).reshape(-1), vectors)


@_svd.register(KroneckerProduct)
def _(operator):
    u, s, vh = zip(*map(_svd, _leaves(operator)), strict=True)
    return SingularValueDecomposition(
        KroneckerProduct(*u), outer(s).reshape(-1), KroneckerProduct(*vh)
    )


@_cholesky.register(KroneckerProduct)
def _(operator):
    return KroneckerProduct(*map(_cholesky, _leaves(operator)))


@_solve.register(KroneckerProduct)
def _(operator, vector):
    tensor = vector.reshape(operator.row_sizes())
    for axis, factor in enumerate(_leaves(operator)):
        tensor = apply_along(functools.partial(_solve_columns, factor), tensor, axis)
    return tensor.reshape(-1)


def _solve_columns(operator, columns):
    if isinstance(operator, lineax.MatrixLinearOperator):
        return safe.solve(_square(operator, "solve"), columns)
    return jax.vmap(functools.partial(_solve, operator), in_axes=1, out_axes=1)(columns)


@_logdet.register(KroneckerProduct)
def _(operator):
    size = operator.out_size()
    return sum(size // leaf.out_size() * _logdet(leaf) for leaf in _leaves(operator))


@_trace.register(KroneckerProduct)
def _(operator):
    return math.prod(jnp.sum(lineax.diagonal(factor)) for factor in _square_factors(operator))


@lineax.diagonal.register(KroneckerProduct)
def _(operator):
    return outer([lineax.diagonal(factor) for factor in _square_factors(operator)]).reshape(-1)


@_diagonal_of_inverse.register(KroneckerProduct)
def _(operator):
    return outer([_diagonal_of_inverse(leaf) for leaf in _leaves(operator)]).reshape(-1)


@_sample.register(KroneckerProduct)
def _(operator, key):
    return _cholesky(operator).mv(_white_noise(operator, key).reshape(-1))


# Operators with a Kronecker product of eigenvectors.


def _diagonalised(operator, name):
    """Arguments that the functions of `spectral` take."""
    if isinstance(operator, ShiftedKronecker):
        return spectral.PRODUCT, operator.matrices, operator.shift
    matrices = tuple(_hermitian(factor, name) for factor in operator.factors)
    return spectral.SUM, matrices, jnp.zeros((), jnp.finfo(operator.dtype()).dtype)


@_eigh.register(KroneckerSum)
@_eigh.register(ShiftedKronecker)
def _(operator):
    _, vectors, values = spectral.decompose(*_diagonalised(operator, "eigh"))
    return EigenDecomposition(values.reshape(-1), KroneckerProduct(*vectors))


@_solve.register(KroneckerSum)
@_solve.register(ShiftedKronecker)
def _(operator, vector):
    tensor = vector.reshape(operator.row_sizes())
    return spectral.solve(*_diagonalised(operator, "solve"), tensor).reshape(-1)


@_logdet.register(KroneckerSum)
@_logdet.register(ShiftedKronecker)
def _(operator):
    return spectral.logdet(*_diagonalised(operator, "logdet"))


@_diagonal_of_inverse.register(KroneckerSum)
@_diagonal_of_inverse.register(ShiftedKronecker)
def _(operator):
    arguments = _diagonalised(operator, "diagonal_of_inverse")
    return spectral.diagonal_of_inverse(*arguments, ()).reshape(-1)


@_sample.register(KroneckerSum)
@_sample.register(ShiftedKronecker)
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


@_trace.register(KroneckerSum)
def _(operator):
    size = operator.out_size()
    return sum(
        size // factor.out_size() * jnp.sum(lineax.diagonal(factor)) for factor in operator.factors
    )


@_trace.register(ShiftedKronecker)
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
        half = solve_triangular(lower, _hermitian(factor, name), lower=True)
        inner.append(hermitian_part(solve_triangular(lower, half.conj().T, lower=True)))
    one = jnp.ones((), jnp.finfo(operator.dtype()).dtype)
    return lowers, (spectral.PRODUCT, tuple(inner), one)


def _solve_triangular(lowers, tensor, adjoint=False):
    """Solve with ``⊗_i L_i``, or with its conjugate transpose."""
    for axis, lower in enumerate(lowers):
        solve_columns = functools.partial(
            solve_triangular, lower, trans="C" if adjoint else "N", lower=True
        )
        tensor = apply_along(solve_columns, tensor, axis)
    return tensor


@_solve.register(SumOfKroneckers)
def _(operator, vector):
    if len(operator.terms) == 1:
        return _solve(operator.terms[0], vector)
    _require_at_most_two_terms(operator, "solve")
    lowers, diagonalised = _congruence(operator, "solve")
    tensor = _solve_triangular(lowers, vector.reshape(operator.row_sizes()))
    tensor = spectral.solve(*diagonalised, tensor)
    return _solve_triangular(lowers, tensor, adjoint=True).reshape(-1)


@_logdet.register(SumOfKroneckers)
def _(operator):
    if len(operator.terms) == 1:
        return _logdet(operator.terms[0])
    _require_at_most_two_terms(operator, "logdet")
    lowers, diagonalised = _congruence(operator, "logdet")
    size = operator.out_size()
    halves = [
        size // len(lower) * jnp.sum(jnp.log(jnp.real(jnp.diagonal(lower)))) for lower in lowers
    ]
    return 2 * sum(halves) + spectral.logdet(*diagonalised)


@_diagonal_of_inverse.register(SumOfKroneckers)
def _(operator):
    if len(operator.terms) == 1:
        return _diagonal_of_inverse(operator.terms[0])
    _require_at_most_two_terms(operator, "diagonal_of_inverse")
    lowers, diagonalised = _congruence(operator, "diagonal_of_inverse")
    return spectral.diagonal_of_inverse(*diagonalised, lowers).reshape(-1)


@_sample.register(SumOfKroneckers)
def _(operator, key):
    if len(operator.terms) != 2:
        keys = jax.random.split(key, len(operator.terms))
        return sum(_sample(term, k) for term, k in zip(operator.terms, keys, strict=True))
    lowers, diagonalised = _congruence(operator, "sample")
    inner = spectral.multiply_root(*diagonalised, _white_noise(operator, key))
    return kronecker_multiply(lowers, inner).reshape(-1)


@lineax.diagonal.register(SumOfKroneckers)
def _(operator):
    return functools.reduce(jnp.add, map(lineax.diagonal, operator.terms))


@_trace.register(SumOfKroneckers)
def _(operator):
    return sum(_trace(term) for term in operator.terms)


def _require_at_most_two_terms(operator, name):
    if len(operator.terms) > 2:
        raise TypeError(
            f"{name} of a sum of {len(operator.terms)} Kronecker products has no form in factor "
            "space (at most two terms can be diagonalised together); products (mv), trace and "
            "diagonal remain, and lineax.linear_solve(operator, vector, lineax.CG(...)) for solves"
        )


# Toeplitz matrices.


for _function in (_eigh, _svd):

    @_function.register(SymmetricToeplitz)
    def _(operator, function=_function):
        return function(lineax.MatrixLinearOperator(operator.as_matrix()))


@_cholesky.register(SymmetricToeplitz)
def _(operator):
    return _lower(toeplitz.cholesky(operator.first_column))


@_solve.register(SymmetricToeplitz)
def _(operator, vector):
    return toeplitz.solve(operator.first_column, vector)


@_logdet.register(SymmetricToeplitz)
def _(operator):
    return toeplitz.logdet(operator.first_column)


@_diagonal_of_inverse.register(SymmetricToeplitz)
def _(operator):
    return toeplitz.diagonal_of_inverse(operator.first_column)


@_sample.register(SymmetricToeplitz)
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
