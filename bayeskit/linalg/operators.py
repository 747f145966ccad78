"""Linear operators that are stored by their Kronecker factors, for lineax and for this package.

Vectors are flat and row-major: ``(A ⊗ B) x.reshape(-1) == (A @ X @ B.T).reshape(-1)``.
"""

import abc
import math
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Inexact

from bayeskit.linalg.contract import kronecker_multiply, kronecker_sum_multiply, outer, shape_of

Operator = lineax.AbstractLinearOperator


class StructuredOperator(Operator):
    """Base of the operators of this package: matrices that are known by a few small arrays.

    Attributes
    ----------
    tags : frozenset of lineax tags
        Properties of the whole operator that the caller vouches for, as for
        ``lineax.MatrixLinearOperator``; properties that follow from the parts are found without.
    """

    tags: eqx.AbstractVar[frozenset[object]]

    @abc.abstractmethod
    def dtype(self) -> jnp.dtype:
        """Type of the entries."""

    @abc.abstractmethod
    def row_sizes(self) -> tuple[int, ...]:
        """Lengths of the axes of the tensor that a product, flattened, stands for."""

    def column_sizes(self) -> tuple[int, ...]:
        """Lengths of the axes of the tensor that a vector stands for."""
        return self.row_sizes()

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape (N,) and type of the vectors that the operator takes."""
        return jax.ShapeDtypeStruct((math.prod(self.column_sizes()),), self.dtype())

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Shape (M,) and type of the vectors that the operator returns."""
        return jax.ShapeDtypeStruct((math.prod(self.row_sizes()),), self.dtype())

    @abc.abstractmethod
    def conj(self) -> "StructuredOperator":
        """Return the operator with conjugated entries."""

    def _as_tensor(self, vector):
        size = math.prod(self.column_sizes())
        if vector.shape != (size,):
            raise ValueError(f"vector has shape {vector.shape}; expected ({size},)")
        return vector.reshape(self.column_sizes())


class KroneckerProduct(StructuredOperator):
    """The Kronecker product ``A_1 ⊗ … ⊗ A_I``.

    Parameters
    ----------
    *factors : arrays (M_i, N_i) or lineax operators
        Real or complex, rectangular or square. Kronecker products among them are flattened.
    tags : lineax tag or iterable of lineax tags
        Properties of the whole product, such as ``lineax.positive_semidefinite_tag``.
        Those that follow from the factors' own tags need not be repeated.

    Raises
    ------
    TypeError
        If a factor is neither an array of numbers nor a lineax operator between vectors.
    ValueError
        If there is no factor, or one is not a matrix, or is empty.

    Notes
    -----
    Stores ``Σ_i M_i N_i`` numbers. A product costs ``O(Σ_i N_i ∏_j max(M_j, N_j))``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import KroneckerProduct
    >>> operator = KroneckerProduct(2.0 * jnp.eye(2), jnp.ones((3, 4)))
    >>> operator.mv(jnp.ones(8)).tolist()
    [8.0, 8.0, 8.0, 8.0, 8.0, 8.0]
    """

    factors: tuple[Operator, ...]
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(self, *factors: ArrayLike | Operator, tags: Any = ()):
        self.factors = tuple(
            part
            for factor in as_factors("KroneckerProduct", factors)
            for part in (factor.factors if isinstance(factor, KroneckerProduct) else (factor,))
        )
        self.tags = as_tags(tags)

    @property
    def matrices(self) -> tuple[Inexact[Array, "_rows _columns"], ...]:
        """The factors as arrays (M_i, N_i)."""
        return tuple(factor.as_matrix() for factor in self.factors)

    def dtype(self) -> jnp.dtype:
        """Type of the entries."""
        return common_dtype(self.factors)

    def row_sizes(self) -> tuple[int, ...]:
        """The factors' numbers of rows."""
        return tuple(factor.out_size() for factor in self.factors)

    def column_sizes(self) -> tuple[int, ...]:
        """The factors' numbers of columns."""
        return tuple(factor.in_size() for factor in self.factors)

    def mv(self, vector: Inexact[Array, " columns"]) -> Inexact[Array, " rows"]:
        """Multiply a flat vector, in ``O(Σ_i N_i ∏_j max(M_j, N_j))``."""
        return kronecker_multiply(self.factors, self._as_tensor(vector)).reshape(-1)

    def as_matrix(self) -> Inexact[Array, "rows columns"]:
        """Return the dense matrix, of ``∏_i M_i N_i`` entries: for small sizes only."""
        return dense_kronecker(self.matrices)

    def transpose(self) -> "KroneckerProduct":
        """Return ``A_1ᵀ ⊗ … ⊗ A_Iᵀ``."""
        return KroneckerProduct(*(f.T for f in self.factors), tags=transpose_tags(self.tags))

    def conj(self) -> "KroneckerProduct":
        """Return the operator with conjugated entries."""
        return KroneckerProduct(*map(lineax.conj, self.factors), tags=self.tags)


class KroneckerSum(StructuredOperator):
    """The Kronecker sum ``Σ_i I ⊗ … ⊗ A_i ⊗ … ⊗ I``.

    Parameters
    ----------
    *factors : square arrays (N_i, N_i) or lineax operators
        Real or complex. Products, traces and diagonals take any; `solve`, `logdet`,
        `diagonal_of_inverse`, `sample` and `eigh` expect Hermitian ones.
    tags : lineax tag or iterable of lineax tags
        Properties of the whole sum.

    Raises
    ------
    TypeError
        If a factor is neither an array of numbers nor a lineax operator between vectors.
    ValueError
        If there is no factor, or one is not a square matrix, or is empty.

    Notes
    -----
    Stores ``Σ_i N_i²`` numbers. A product costs ``O(N Σ_i N_i)`` for ``N = ∏_i N_i``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import KroneckerSum
    >>> KroneckerSum(2.0 * jnp.eye(2), jnp.eye(3)).mv(jnp.ones(6)).tolist()
    [3.0, 3.0, 3.0, 3.0, 3.0, 3.0]
    """

    factors: tuple[Operator, ...]
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(self, *factors: ArrayLike | Operator, tags: Any = ()):
        self.factors = as_factors("KroneckerSum", factors, square=True)
        self.tags = as_tags(tags)

    @property
    def matrices(self) -> tuple[Inexact[Array, "_size _size"], ...]:
        """The factors as arrays (N_i, N_i)."""
        return tuple(factor.as_matrix() for factor in self.factors)

    def dtype(self) -> jnp.dtype:
        """Type of the entries."""
        return common_dtype(self.factors)

    def row_sizes(self) -> tuple[int, ...]:
        """The factors' sizes."""
        return tuple(factor.out_size() for factor in self.factors)

    def mv(self, vector: Inexact[Array, " size"]) -> Inexact[Array, " size"]:
        """Multiply a flat vector, in ``O(N Σ_i N_i)``."""
        return kronecker_sum_multiply(self.factors, self._as_tensor(vector)).reshape(-1)

    def as_matrix(self) -> Inexact[Array, "size size"]:
        """Return the dense matrix, of ``∏_i N_i²`` entries: for small sizes only."""
        identities = [jnp.eye(size, dtype=self.dtype()) for size in self.row_sizes()]
        terms = [
            dense_kronecker([*identities[:i], matrix, *identities[i + 1 :]])
            for i, matrix in enumerate(self.matrices)
        ]
        return sum(terms[1:], start=terms[0])

    def transpose(self) -> "KroneckerSum":
        """Return the Kronecker sum of the transposed factors."""
        return KroneckerSum(*(f.T for f in self.factors), tags=transpose_tags(self.tags))

    def conj(self) -> "KroneckerSum":
        """Return the operator with conjugated entries."""
        return KroneckerSum(*map(lineax.conj, self.factors), tags=self.tags)


class SumOfKroneckers(StructuredOperator):
    """A sum of Kronecker products ``Σ_t A_t1 ⊗ … ⊗ A_tI``.

    Products, traces and diagonals cost the sum of the terms'. One or two terms also have `solve`,
    `logdet` and `diagonal_of_inverse` in factor space, if the second has Hermitian positive
    definite factors and the first Hermitian ones; more terms have none.

    Parameters
    ----------
    terms : sequence of KroneckerProduct, or of sequences of factors
        With factors of the same shapes (M_i, N_i) in every term.
    tags : lineax tag or iterable of lineax tags
        Properties of the whole sum.

    Raises
    ------
    TypeError
        If a factor is neither an array of numbers nor a lineax operator between vectors.
    ValueError
        If there is no term, or the terms' factors differ in shape.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import SumOfKroneckers
    >>> identities = (jnp.eye(2), jnp.eye(3))
    >>> SumOfKroneckers([identities, identities]).mv(jnp.ones(6)).tolist()
    [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    """

    terms: tuple[KroneckerProduct, ...]
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(
        self,
        terms: Sequence[KroneckerProduct | Sequence[ArrayLike | Operator]],
        tags: Any = (),
    ):
        if not terms:
            raise ValueError("terms of SumOfKroneckers is empty; expected at least one")
        self.terms = tuple(
            term if isinstance(term, KroneckerProduct) else KroneckerProduct(*term)
            for term in terms
        )
        self.tags = as_tags(tags)
        expected = [shape_of(factor) for factor in self.terms[0].factors]
        for i, term in enumerate(self.terms):
            shapes = [shape_of(factor) for factor in term.factors]
            if shapes != expected:
                raise ValueError(
                    f"terms[{i}] of SumOfKroneckers has factors of shapes {shapes}; expected "
                    f"{expected} as in terms[0]"
                )

    def dtype(self) -> jnp.dtype:
        """Type of the entries."""
        return common_dtype(self.terms)

    def row_sizes(self) -> tuple[int, ...]:
        """The factors' numbers of rows."""
        return self.terms[0].row_sizes()

    def column_sizes(self) -> tuple[int, ...]:
        """The factors' numbers of columns."""
        return self.terms[0].column_sizes()

    def mv(self, vector: Inexact[Array, " columns"]) -> Inexact[Array, " rows"]:
        """Multiply a flat vector, at the sum of the terms' costs."""
        products = [term.mv(vector) for term in self.terms]
        return sum(products[1:], start=products[0])

    def as_matrix(self) -> Inexact[Array, "rows columns"]:
        """Return the dense matrix, of ``∏_i M_i N_i`` entries: for small sizes only."""
        return sum((t.as_matrix() for t in self.terms[1:]), start=self.terms[0].as_matrix())

    def transpose(self) -> "SumOfKroneckers":
        """Return the sum of the transposed terms."""
        return SumOfKroneckers(
            [term.transpose() for term in self.terms], tags=transpose_tags(self.tags)
        )

    def conj(self) -> "SumOfKroneckers":
        """Return the operator with conjugated entries."""
        return SumOfKroneckers([term.conj() for term in self.terms], tags=self.tags)


class ShiftedKronecker(StructuredOperator):
    """A Kronecker product of Hermitian factors plus a multiple of the identity, ``⊗_i A_i + c I``.

    Parameters
    ----------
    factors : sequence of Hermitian arrays (N_i, N_i) or lineax operators
        The Hermitian part is taken where they are traced and cannot be checked.
    shift : real scalar
        The number ``c``, such as a noise variance.
    tags : lineax tag or iterable of lineax tags
        Properties of the whole operator.

    Raises
    ------
    TypeError
        If a factor is neither an array of numbers nor a lineax operator between vectors, or
        ``shift`` is complex.
    ValueError
        If there is no factor, or one is not a Hermitian matrix, or ``shift`` is no scalar.

    Notes
    -----
    Stores ``Σ_i N_i² + 1`` numbers. A product costs ``O(N Σ_i N_i)`` for ``N = ∏_i N_i``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import ShiftedKronecker
    >>> ShiftedKronecker([2.0 * jnp.eye(2), jnp.eye(3)], shift=0.5).mv(jnp.ones(6)).tolist()
    [2.5, 2.5, 2.5, 2.5, 2.5, 2.5]
    """

    factors: tuple[Operator, ...]
    shift: Float[Array, ""]
    tags: frozenset[object] = eqx.field(static=True)

    def __init__(
        self,
        factors: Sequence[ArrayLike | Operator],
        shift: ArrayLike,
        tags: Any = (),
    ):
        self.factors = as_factors("ShiftedKronecker", factors, square=True)
        for i, factor in enumerate(self.factors):
            require_hermitian(factor.as_matrix(), f"factors[{i}] of ShiftedKronecker")
        self.tags = as_tags(tags)
        if jnp.shape(shift) != ():
            raise ValueError(f"shift has shape {jnp.shape(shift)}; expected a scalar")
        if jnp.iscomplexobj(shift):
            raise TypeError(f"shift has type {jnp.result_type(shift)}; expected a real number")
        dtype = jnp.finfo(jnp.result_type(common_dtype(self.factors), shift)).dtype
        self.shift = jnp.asarray(shift, dtype)

    @property
    def matrices(self) -> tuple[Inexact[Array, "_size _size"], ...]:
        """The Hermitian parts of the factors as arrays (N_i, N_i)."""
        return tuple(hermitian_part(factor.as_matrix()) for factor in self.factors)

    def dtype(self) -> jnp.dtype:
        """Type of the entries."""
        return jnp.result_type(common_dtype(self.factors), self.shift)

    def row_sizes(self) -> tuple[int, ...]:
        """The factors' sizes."""
        return tuple(factor.out_size() for factor in self.factors)

    def mv(self, vector: Inexact[Array, " size"]) -> Inexact[Array, " size"]:
        """Multiply a flat vector, in ``O(N Σ_i N_i)``."""
        product = kronecker_multiply(self.factors, self._as_tensor(vector)).reshape(-1)
        return product + self.shift * vector

    def as_matrix(self) -> Inexact[Array, "size size"]:
        """Return the dense matrix, of ``∏_i N_i²`` entries: for small sizes only."""
        product = dense_kronecker([factor.as_matrix() for factor in self.factors])
        return product + self.shift * jnp.eye(len(product), dtype=self.dtype())

    def transpose(self) -> "ShiftedKronecker":
        """Return the operator of the transposed factors with the same shift."""
        factors = [factor.T for factor in self.factors]
        return ShiftedKronecker(factors, self.shift, tags=transpose_tags(self.tags))

    def conj(self) -> "ShiftedKronecker":
        """Return the operator with conjugated entries."""
        return ShiftedKronecker(list(map(lineax.conj, self.factors)), self.shift, tags=self.tags)


def as_factors(
    owner: str, factors: Iterable[ArrayLike | Operator], square: bool = False
) -> tuple[Operator, ...]:
    """Check the factors of an operator and wrap the arrays among them."""
    checked = tuple(
        _as_factor(factor, f"factors[{i}] of {owner}", square) for i, factor in enumerate(factors)
    )
    if not checked:
        raise ValueError(f"factors of {owner} is empty; expected at least one")
    return checked


def _as_factor(factor, name, square):
    if isinstance(factor, Operator):
        structures = (factor.out_structure(), factor.in_structure())
        if any(len(getattr(structure, "shape", ())) != 1 for structure in structures):
            raise TypeError(f"{name} acts on {structures[1]}; expected flat vectors")
        shape = shape_of(factor)
    else:
        factor = as_inexact(factor, name)
        shape = factor.shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; expected a matrix (rows, columns)")
    if square and shape[0] != shape[1]:
        raise ValueError(f"{name} has shape {shape}; expected a square matrix")
    return factor if isinstance(factor, Operator) else lineax.MatrixLinearOperator(factor)


def as_inexact(value: Any, name: str) -> Inexact[Array, "..."]:
    """Convert to a floating-point array, or say what came instead."""
    try:
        array = jnp.asarray(value)
    except TypeError as error:
        raise TypeError(
            f"{name} is a {type(value).__name__}; expected an array of numbers or a lineax operator"
        ) from error
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)


def as_tags(tags: Any) -> frozenset[object]:
    """One tag or several, as lineax takes them."""
    return frozenset(tags) if isinstance(tags, Iterable) else frozenset([tags])


def transpose_tags(tags: frozenset[object]) -> frozenset[object]:
    """Tags of the transpose, by lineax's rules."""
    return frozenset(lineax.transpose_tags(tags))


def common_dtype(operators: Sequence[Operator]) -> jnp.dtype:
    """Type that holds the entries of all operators."""
    return jnp.result_type(*(operator.out_structure().dtype for operator in operators))


def dense_kronecker(matrices: Sequence[Inexact[Array, "_m _n"]]) -> Inexact[Array, "rows columns"]:
    """Return the dense Kronecker product of matrices: for small sizes only."""
    grid = outer([matrix.reshape(-1) for matrix in matrices])
    shapes = [matrix.shape for matrix in matrices]
    grid = grid.reshape([size for shape in shapes for size in shape])
    rows_first = [*range(0, grid.ndim, 2), *range(1, grid.ndim, 2)]
    return grid.transpose(rows_first).reshape(math.prod(shape[0] for shape in shapes), -1)


def hermitian_part(matrix: Inexact[Array, "size size"]) -> Inexact[Array, "size size"]:
    """``(A + A^H) / 2``."""
    return (matrix + matrix.conj().T) / 2


def require_hermitian(matrix: Inexact[Array, "size size"], name: str) -> None:
    """Raise where a matrix is known, finite and not Hermitian to half of its digits."""
    if isinstance(matrix, Tracer):
        return
    with jax.ensure_compile_time_eval():  # a constant stays one inside jit
        difference = float(jnp.max(jnp.abs(matrix - matrix.conj().T)))
        largest = float(jnp.max(jnp.abs(matrix)))
    if difference > largest * float(jnp.finfo(matrix.dtype).eps) ** 0.5:
        raise ValueError(
            f"{name} differs from its conjugate transpose by {difference:.3g} where its largest "
            f"entry is {largest:.3g}; expected a Hermitian matrix"
        )
