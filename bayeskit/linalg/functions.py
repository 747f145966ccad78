"""Decompositions, solves, determinants, diagonals and draws in factor space.

Throughout, ``N = ∏_i N_i`` is the size of an operator with factors of sizes ``N_i``, and no
function forms an array of ``N²`` entries. Vectors are flat and row-major. Batches go through
``jax.vmap``, over operators too.
"""

import lineax
from jaxtyping import Array, Float, Inexact, Key, UInt32

from bayeskit.linalg import rules
from bayeskit.linalg.operators import (
    KroneckerProduct,
    Operator,
    StructuredOperator,
)
from bayeskit.linalg.rules import EigenDecomposition, SingularValueDecomposition


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
    return rules.eigh(operator)


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
    return rules.svd(operator)


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
    return rules.cholesky(operator)


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
    return rules.solve(operator, vector.reshape(-1)).reshape(vector.shape)


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
    return rules.logdet(operator)


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
    return rules.trace(operator)


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
    return rules.diagonal_of_inverse(operator)


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
    return rules.sample(operator, key)
