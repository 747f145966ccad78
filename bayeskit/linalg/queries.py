"""What lineax asks of an operator, answered from its tags and its parts.

lineax's solvers choose and check by these functions, which dispatch on the operator's class.
"""

import functools

import jax.numpy as jnp
import lineax

from bayeskit.linalg.operators import (
    KroneckerProduct,
    KroneckerSum,
    ShiftedKronecker,
    StructuredOperator,
    SumOfKroneckers,
)
from bayeskit.linalg.toeplitz import SymmetricToeplitz

_TAGS = {
    lineax.is_symmetric: lineax.symmetric_tag,
    lineax.is_diagonal: lineax.diagonal_tag,
    lineax.is_tridiagonal: lineax.tridiagonal_tag,
    lineax.is_lower_triangular: lineax.lower_triangular_tag,
    lineax.is_upper_triangular: lineax.upper_triangular_tag,
    lineax.is_positive_semidefinite: lineax.positive_semidefinite_tag,
    lineax.is_negative_semidefinite: lineax.negative_semidefinite_tag,
    lineax.has_unit_diagonal: lineax.unit_diagonal_tag,
}
_INHERITED_FROM_DIAGONAL = {
    lineax.is_symmetric,
    lineax.is_tridiagonal,
    lineax.is_lower_triangular,
    lineax.is_upper_triangular,
}


def _holds(query, operator):
    if _TAGS[query] in operator.tags or _follows(operator, query):
        return True
    if query in _INHERITED_FROM_DIAGONAL and lineax.is_diagonal(operator):
        return True
    semidefinite = {lineax.positive_semidefinite_tag, lineax.negative_semidefinite_tag}
    hermitian = not semidefinite.isdisjoint(operator.tags)
    return query is lineax.is_symmetric and hermitian and _is_real(operator)


for _query in _TAGS:
    _query.register(StructuredOperator)(functools.partial(_holds, _query))


def _is_real(operator):
    return not jnp.issubdtype(operator.dtype(), jnp.complexfloating)


@functools.singledispatch
def _follows(operator, query):
    """Whether a property of the operator follows from its parts."""
    return False


@_follows.register(KroneckerProduct)
def _(operator, query):
    factors = operator.factors
    if query in (lineax.is_positive_semidefinite, lineax.is_negative_semidefinite):
        negative = [lineax.is_negative_semidefinite(factor) for factor in factors]
        definite = [
            n or lineax.is_positive_semidefinite(f) for n, f in zip(negative, factors, strict=True)
        ]
        return all(definite) and sum(negative) % 2 == (query is lineax.is_negative_semidefinite)
    return _is_banded(factors) if query is lineax.is_tridiagonal else all(map(query, factors))


@_follows.register(KroneckerSum)
def _(operator, query):
    if query is lineax.is_tridiagonal:
        return _is_banded(operator.factors)
    return query is not lineax.has_unit_diagonal and all(map(query, operator.factors))


@_follows.register(SumOfKroneckers)
def _(operator, query):
    if query is lineax.has_unit_diagonal:
        return len(operator.terms) == 1 and query(operator.terms[0])
    return all(map(query, operator.terms))


@_follows.register(ShiftedKronecker)
def _(operator, query):
    if query is lineax.is_symmetric and _is_real(operator):
        return True
    if query is lineax.is_tridiagonal:
        return _is_banded(operator.factors)
    # The sign of the shift is not known to the program, only to its data.
    unknown = (
        lineax.is_positive_semidefinite,
        lineax.is_negative_semidefinite,
        lineax.has_unit_diagonal,
    )
    return query not in unknown and all(map(query, operator.factors))


@_follows.register(SymmetricToeplitz)
def _(operator, query):
    return query is lineax.is_symmetric or (query is lineax.is_diagonal and operator.in_size() == 1)


def _is_banded(factors):
    return all(map(lineax.is_diagonal, factors[:-1])) and lineax.is_tridiagonal(factors[-1])


@lineax.linearise.register(StructuredOperator)
@lineax.materialise.register(StructuredOperator)
def _(operator):
    # The parts are arrays already; a dense matrix would only cost memory.
    return operator


@lineax.conj.register(StructuredOperator)
def _(operator):
    return operator.conj()


@lineax.tridiagonal.register(StructuredOperator)
def _(operator):
    if not lineax.is_tridiagonal(operator):
        raise ValueError(f"a {type(operator).__name__} without bands; expected a tridiagonal one")
    # Columns three apart do not overlap, so that three products show every entry.
    size = operator.in_size()
    column = jnp.arange(size) % 3
    probes = (column == jnp.arange(3)[:, None]).astype(operator.dtype())
    products = jnp.stack([operator.mv(probe) for probe in probes])
    row = jnp.arange(size)
    return products[column, row], products[column[:-1], row[1:]], products[column[1:], row[:-1]]
