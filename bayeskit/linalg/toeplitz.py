"""Symmetric Toeplitz matrices: products by the fast Fourier transform, solves by recursion.

References: G. H. Golub and C. F. Van Loan, *Matrix Computations*, 4th edition, section 4.7
(Durbin's recursion); I. Gohberg and A. Semencul (1972), "On the inversion of finite Toeplitz
matrices and their continuous analogues"; T. Kailath and A. H. Sayed (1995), "Displacement
structure: theory and applications" (Schur's algorithm).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Inexact, Num

from bayeskit.linalg.operators import StructuredOperator, as_inexact, as_tags


class SymmetricToeplitz(StructuredOperator):
    """The real symmetric matrix with entries ``t[|i - j|]``.

    Covariances of stationary processes on a regular grid are of this kind.

    Parameters
    ----------
    first_column : array (N,)
        Real. `solve`, `logdet`, `diagonal_of_inverse`, `cholesky` and `sample` answer NaN unless
        the matrix is positive definite.
    tags : lineax tag or iterable of lineax tags
        Properties of the matrix, such as ``lineax.positive_semidefinite_tag``.

    Raises
    ------
    TypeError
        If ``first_column`` is complex or no array of numbers.
    ValueError
        If ``first_column`` is not a vector, or is empty.

    Notes
    -----
    Stores ``N`` numbers. A product costs ``O(N log N)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import SymmetricToeplitz
    >>> SymmetricToeplitz(jnp.array([2.0, 1.0, 0.0])).as_matrix().tolist()
    [[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]]
    """

    first_column: Float[Array, " size"]
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(self, first_column: ArrayLike, tags: Any = ()):
        column = as_inexact(first_column, "first_column of SymmetricToeplitz")
        if column.ndim != 1 or not column.size:
            raise ValueError(
                f"first_column of SymmetricToeplitz has shape {column.shape}; expected (size,)"
            )
        if jnp.iscomplexobj(column):
            raise TypeError(
                f"first_column of SymmetricToeplitz has type {column.dtype}; expected real numbers"
            )
        self.first_column = column
        self.tags = as_tags(tags)

    def dtype(self) -> jnp.dtype:
        """Type of the entries."""
        return self.first_column.dtype

    def row_sizes(self) -> tuple[int, ...]:
        """One axis of N entries."""
        return self.first_column.shape

    def mv(self, vector: Inexact[Array, " size"]) -> Inexact[Array, " size"]:
        """Multiply a vector, in ``O(N log N)``."""
        return multiply(self.first_column, self._as_tensor(vector))

    def as_matrix(self) -> Float[Array, "size size"]:
        """Return the dense matrix of N² entries."""
        return matrix(self.first_column)

    def transpose(self) -> "SymmetricToeplitz":
        """Return the operator itself."""
        return self

    def conj(self) -> "SymmetricToeplitz":
        """Return the operator itself."""
        return self


def matrix(first_column: Float[Array, " size"], odd: bool = False) -> Float[Array, "size size"]:
    """Dense matrix of a first column; antisymmetric with ``odd``, the column's first entry zero.

    By copies of a row that is one longer than the row's length, so that the derivative is a sum of
    rows, where one of an index would be a slow scatter.
    """
    size = first_column.size
    right = -first_column if odd else first_column
    row = jnp.concatenate([right, jnp.zeros_like(right[:1]), first_column[:0:-1]])
    copies = jnp.broadcast_to(row, (size, row.size)).reshape(-1)
    return copies[: size * (row.size - 1)].reshape(size, row.size - 1)[:, :size]


def multiply(
    first_column: Float[Array, " size"], vector: Inexact[Array, " size"]
) -> Inexact[Array, " size"]:
    """Multiply by the Toeplitz matrix, as a corner of a circulant one of twice its size."""
    size = first_column.size
    middle = jnp.zeros_like(first_column[:1])
    circulant = jnp.concatenate([first_column, middle, first_column[:0:-1]])
    return _circular_convolution(circulant, vector)[:size]


def _circular_convolution(signal, vector):
    length = signal.size
    if jnp.iscomplexobj(vector):
        product = jnp.fft.fft(signal) * jnp.fft.fft(vector, length)
        return jnp.fft.ifft(product).astype(jnp.result_type(signal, vector))
    return jnp.fft.irfft(jnp.fft.rfft(signal) * jnp.fft.rfft(vector, length), length)


def durbin(
    first_column: Float[Array, " size"],
) -> tuple[Float[Array, " size"], Float[Array, " size"]]:
    """First column of the inverse, and the prediction variances, whose product is ``det A``.

    Durbin's recursion over the order ``k`` of the best linear prediction with coefficients ``a``
    and variance ``β``, in ``O(N²)`` operations and ``O(N)`` memory. NaN from the first order on
    whose variance is not positive.
    """

    def extend(state, order):
        coefficients, variance = state
        backward = jnp.roll(coefficients[::-1], order + 1)  # a[k - j] at j
        reflection = -jnp.dot(backward, first_column, precision=lax.Precision.HIGHEST) / variance
        variance = _positive_or_nan(variance * (1 - reflection**2))
        return (coefficients + reflection * backward, variance), variance

    start = jnp.zeros_like(first_column).at[0].set(1), _positive_or_nan(first_column[0])
    (coefficients, variance), variances = lax.scan(extend, start, jnp.arange(1, first_column.size))
    return coefficients / variance, jnp.concatenate([start[1][None], variances])


def _positive_or_nan(value):
    return jnp.where(value > 0, value, jnp.nan)


def solve(
    first_column: Float[Array, " size"], vector: Inexact[Array, " size"]
) -> Inexact[Array, " size"]:
    """Solve by the Gohberg–Semencul formula, with a step of refinement.

    ``A⁻¹ = (L(x) L(x)ᵀ - L(y) L(y)ᵀ) / x[0]``, where ``x`` is the first column of the inverse,
    ``y`` is ``x`` reversed and moved down by one, and ``L(·)`` the lower triangular Toeplitz matrix
    of a first column: four products by the Fourier transform after one recursion. The derivative
    is that of the implicit equation.
    """
    inverse_column, _ = durbin(lax.stop_gradient(first_column))
    moved = jnp.concatenate([jnp.zeros_like(inverse_column[:1]), inverse_column[:0:-1]])

    def root_products(column, right):
        padded = jnp.concatenate([column, jnp.zeros_like(column)])
        transposed = _circular_convolution(padded, right[::-1])[: column.size][::-1]
        return _circular_convolution(padded, transposed)[: column.size]

    def apply_inverse(right):
        positive, negative = (root_products(column, right) for column in (inverse_column, moved))
        return (positive - negative) / inverse_column[0]

    def refined(matvec, right):
        solution = apply_inverse(right)
        return solution + apply_inverse(right - matvec(solution))

    vector = vector.astype(jnp.result_type(vector, first_column))
    return lax.custom_linear_solve(
        lambda right: multiply(first_column, right), vector, refined, symmetric=True
    )


@jax.custom_jvp
def logdet(first_column: Float[Array, " size"]) -> Float[Array, ""]:
    """Logarithm of the determinant: the sum of the logarithms of the prediction variances."""
    return jnp.sum(jnp.log(durbin(first_column)[1]))


@logdet.defjvp
def _differentiate_logdet(primals, tangents):
    """``tr(A⁻¹ dA)``."""
    (first_column,), (change,) = primals, tangents
    inverse_column, variances = durbin(first_column)
    sums = diagonal_sums_of_inverse(inverse_column)
    return jnp.sum(jnp.log(variances)), jnp.sum(sums * change)


def diagonal_sums_of_inverse(inverse_column: Float[Array, " size"]) -> Float[Array, " size"]:
    """Sums ``s_k`` of both k-th diagonals of ``A⁻¹``, from its first column.

    The gradient of ``log det A`` by the first column of ``A``. By the Gohberg–Semencul formula one
    of the diagonals sums to ``Σ_j (N - k - 2j) x_j x_{j+k} / x_0``: a correlation, so that no
    matrix is needed.
    """
    size = inverse_column.size
    index = jnp.arange(size)

    def correlate(left):
        padded = jnp.concatenate([inverse_column, jnp.zeros_like(inverse_column)])
        return _circular_convolution(padded, left[::-1])[size - 1 : 2 * size - 1]

    sums = (size - index) * correlate(inverse_column) - 2 * correlate(index * inverse_column)
    return sums / inverse_column[0] * jnp.where(index == 0, 1, 2)


def diagonal_of_inverse(first_column: Float[Array, " size"]) -> Float[Array, " size"]:
    """Diagonal of the Gohberg–Semencul formula."""
    inverse_column, _ = durbin(first_column)
    moved = jnp.concatenate([jnp.zeros_like(inverse_column[:1]), inverse_column[:0:-1]])
    return jnp.cumsum(inverse_column**2 - moved**2) / inverse_column[0]


def cholesky(first_column: Float[Array, " size"]) -> Float[Array, "size size"]:
    """Lower triangular Cholesky factor by Schur's algorithm, in ``O(N²)``."""
    _, columns = lax.scan(_schur_step, _schur_start(first_column), jnp.arange(first_column.size))
    return columns.T


def multiply_root(
    first_column: Float[Array, " size"], vector: Num[Array, " size"]
) -> Float[Array, " size"]:
    """Multiply by the Cholesky factor without storing it, in ``O(N²)`` and ``O(N)`` memory."""

    def accumulate(state, step):
        generators, total = state
        generators, column = _schur_step(generators, step[0])
        return (generators, total + step[1] * column), None

    start = _schur_start(first_column), jnp.zeros_like(first_column)
    (_, product), _ = lax.scan(accumulate, start, (jnp.arange(first_column.size), vector))
    return product


def _schur_start(first_column):
    column = first_column / jnp.sqrt(_positive_or_nan(first_column[0]))
    return column, column.at[0].set(0)


def _schur_step(generators, order):
    """Emit one column, move it down by one, and rotate the pair so that its next entry vanishes."""
    column, other = generators
    moved = jnp.roll(column, 1).at[0].set(0)
    following = order + 1
    last = following >= column.size  # nothing is left to eliminate after the last column
    pivot = jnp.where(last, 1, moved[following])
    reflection = jnp.where(last, 0, other[following]) / pivot
    scale = jnp.sqrt(_positive_or_nan(1 - reflection**2))
    return ((moved - reflection * other) / scale, (other - reflection * moved) / scale), column
