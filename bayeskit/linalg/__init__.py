"""Structured linear algebra: operators stored by their factors, and functions in factor space.

Operators are ``lineax.AbstractLinearOperator`` subclasses, so that every lineax solver takes them.
Vectors are flat and row-major: ``(A ⊗ B) x.reshape(-1) == (A @ X @ B.T).reshape(-1)``.
"""

from bayeskit.linalg import queries, safe
from bayeskit.linalg.contract import kronecker_multiply, kronecker_sum_multiply
from bayeskit.linalg.functions import (
    EigenDecomposition,
    SingularValueDecomposition,
    cholesky,
    diagonal,
    diagonal_of_inverse,
    eigh,
    logdet,
    sample,
    solve,
    svd,
    trace,
)
from bayeskit.linalg.operators import (
    KroneckerProduct,
    KroneckerSum,
    ShiftedKronecker,
    StructuredOperator,
    SumOfKroneckers,
)
from bayeskit.linalg.sharding import make_mesh, shard_along, to_auto_mesh
from bayeskit.linalg.toeplitz import SymmetricToeplitz

del queries  # imported for what it registers with lineax

__all__ = [
    "EigenDecomposition",
    "KroneckerProduct",
    "KroneckerSum",
    "ShiftedKronecker",
    "SingularValueDecomposition",
    "StructuredOperator",
    "SumOfKroneckers",
    "SymmetricToeplitz",
    "cholesky",
    "diagonal",
    "diagonal_of_inverse",
    "eigh",
    "kronecker_multiply",
    "kronecker_sum_multiply",
    "logdet",
    "make_mesh",
    "safe",
    "sample",
    "shard_along",
    "solve",
    "svd",
    "to_auto_mesh",
    "trace",
]
