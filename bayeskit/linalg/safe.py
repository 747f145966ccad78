"""Guarded factorisations: the only place of the package that calls LAPACK's through JAX.

LAPACK's singular value decomposition never returns for a matrix with an infinite entry, and a
sampler reaches such matrices at its first divergence. Each function here factorises a finite
stand-in instead and answers NaN, so that the caller's objective becomes NaN and the step is
rejected.

Eigenvectors and singular vectors have no derivative where values repeat, so differentiating
`eigh` or `svd` raises `TypeError` instead of answering NaN there. `eigvalsh`, `cholesky`,
`solve` and `slogdet` have derivatives.

On a CPU, JAX hands the matrices of a large batch to the pool of threads that may be running the
decomposition itself, and waits. A program of several such decompositions, as many as there are
cores, then waits for ever (seen with jaxlib 0.10.2, two cores and three factors). Batches, explicit
or from `jax.vmap`, are therefore decomposed in turns small enough to stay where they are.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact


def _finite_or_identity(
    matrix: Inexact[Array, "*batch m n"],
) -> tuple[Inexact[Array, "*batch m n"], Bool[Array, "*batch 1 1"]]:
    """Return the matrix, or an identity of its shape where an entry is not finite, and which."""
    finite = jnp.all(jnp.isfinite(matrix), axis=(-2, -1), keepdims=True)
    stand_in = jnp.eye(matrix.shape[-2], matrix.shape[-1], dtype=matrix.dtype)
    return jnp.where(finite, matrix, stand_in), finite


def _or_nan(finite, value):
    return jnp.where(finite, value, jnp.nan)


_OPERATIONS_OF_A_TURN = 199_999  # from 200 000 on, a batch is spread over threads


def _in_turns(kernel, operations=1, solves=False):
    """A function of equally batched matrices that no thread of a CPU waits for another in.

    Parameters
    ----------
    kernel : callable
        From arrays (*batch, m, n) to arrays (*batch, ...). It is never differentiated.
    operations : int
        How many JAX counts for real matrices, in units of the smaller side of the first times the
        size of the largest.
    solves : bool
        Whether the result is linear in the columns of the last matrix: one system is then solved
        for a whole batch of columns at once.

    Returns
    -------
    callable
        Calls ``kernel`` on all matrices of a small batch, and in turns on those of a large one.
    """

    @jax.custom_batching.custom_vmap
    def apply(*matrices):
        batch = matrices[0].shape[:-2]
        size = math.prod(batch)
        weight = 3 if jnp.iscomplexobj(matrices[0]) else 1
        cube = min(matrices[0].shape[-2:]) * max(math.prod(m.shape[-2:]) for m in matrices)
        turn = max(1, _OPERATIONS_OF_A_TURN // max(1, operations * weight * cube))
        if size <= turn:
            return kernel(*matrices)

        def turns(*matrices):
            flat = tuple(m.reshape(size, *m.shape[-2:]) for m in matrices)
            parts = lax.map(lambda each: kernel(*each), flat, batch_size=turn)
            return jax.tree.map(lambda part: part.reshape(*batch, *part.shape[1:]), parts)

        return lax.platform_dependent(*matrices, cpu=turns, default=kernel)

    @apply.def_vmap
    def batched(axis_size, is_batched, *matrices):
        if solves and not any(is_batched[:-1]):
            *system, columns = matrices
            wide = jnp.moveaxis(columns, 0, -2)
            solved = apply(*system, wide.reshape(*columns.shape[1:-1], -1))
            return jnp.moveaxis(solved.reshape(wide.shape), -2, 0), True
        matrices = (
            matrix if there else jnp.broadcast_to(matrix, (axis_size, *matrix.shape))
            for matrix, there in zip(matrices, is_batched, strict=True)
        )
        parts = apply(*matrices)
        return parts, jax.tree.map(lambda _: True, parts)

    return apply


def _triangular(transposed):
    return lambda lower, columns: lax.linalg.triangular_solve(
        lower, columns, left_side=True, lower=True, transpose_a=transposed
    )


def _lu(matrix):
    factors, pivots = jax.scipy.linalg.lu_factor(matrix)
    return factors, pivots[..., None]


def _lu_solve(transposed):
    return lambda factors, pivots, columns: jax.scipy.linalg.lu_solve(
        (factors, pivots[..., 0]), columns, trans=int(transposed)
    )


_lapack_eigh = _in_turns(lambda matrix: tuple(jnp.linalg.eigh(matrix)), 5)
_lapack_eigvalsh = _in_turns(jnp.linalg.eigvalsh, 5)
_lapack_svd = {
    full: _in_turns(lambda matrix, full=full: tuple(jnp.linalg.svd(matrix, full)), 10)
    for full in (False, True)
}
_lapack_cholesky = _in_turns(jnp.linalg.cholesky)
_lapack_triangular = {t: _in_turns(_triangular(t), solves=True) for t in (False, True)}
_lapack_lu = _in_turns(_lu)
_lapack_lu_solve = {t: _in_turns(_lu_solve(t), solves=True) for t in (False, True)}


def _no_derivative(vectors):
    return TypeError(
        f"{vectors} have no derivative where values repeat: differentiate a function of the "
        "matrix instead, such as bayeskit.linalg.solve, logdet, diagonal_of_inverse or sample, "
        "whose first derivatives are exact there too"
    )


def svd(
    matrix: Inexact[Array, "*batch m n"], full_matrices: bool = False
) -> tuple[Inexact[Array, "*batch m _"], Float[Array, "*batch k"], Inexact[Array, "*batch _ n"]]:
    """Singular value decomposition ``u, s, vh`` that answers NaN for a non-finite matrix.

    Parameters
    ----------
    matrix : array (*batch, m, n)
        Real or complex.
    full_matrices : bool
        Whether ``u`` is (m, m) and ``vh`` (n, n) rather than their first ``min(m, n)`` columns
        and rows.

    Returns
    -------
    u, s, vh : arrays
        With ``s`` in descending order, all NaN where ``matrix`` holds a non-finite entry.

    Raises
    ------
    TypeError
        When it is differentiated.

    Notes
    -----
    Cost ``O(m n min(m, n))``.
    """
    return _svd(full_matrices, matrix)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _svd(full_matrices, matrix):
    matrix, finite = _finite_or_identity(matrix)
    u, s, vh = _lapack_svd[full_matrices](matrix)
    return _or_nan(finite, u), _or_nan(finite[..., 0], s), _or_nan(finite, vh)


@_svd.defjvp
def _raise_svd(full_matrices, primals, tangents):
    raise _no_derivative("singular vectors")


def eigh(
    matrix: Inexact[Array, "*batch n n"],
) -> tuple[Float[Array, "*batch n"], Inexact[Array, "*batch n n"]]:
    """Eigenvalues in ascending order and eigenvectors of the Hermitian part of a matrix.

    Parameters
    ----------
    matrix : array (*batch, n, n)
        Real symmetric or complex Hermitian.

    Returns
    -------
    eigenvalues, eigenvectors : arrays (*batch, n) and (*batch, n, n)
        All NaN where ``matrix`` holds a non-finite entry.

    Raises
    ------
    TypeError
        When it is differentiated; `eigvalsh` has a derivative.

    Notes
    -----
    Cost ``O(n³)``.
    """
    return _eigh(matrix)


@jax.custom_jvp
def _eigh(matrix):
    matrix, finite = _finite_or_identity(matrix)
    eigenvalues, eigenvectors = _lapack_eigh(matrix)
    return _or_nan(finite[..., 0], eigenvalues), _or_nan(finite, eigenvectors)


@_eigh.defjvp
def _raise_eigh(primals, tangents):
    raise _no_derivative("eigenvectors")


@jax.custom_jvp
def eigvalsh(matrix: Inexact[Array, "*batch n n"]) -> Float[Array, "*batch n"]:
    """Eigenvalues in ascending order of the Hermitian part of a matrix.

    Its derivative is that of every *symmetric* function of the eigenvalues (a log-determinant,
    a trace of powers), at repeated eigenvalues too; one eigenvalue alone has none there.

    Parameters
    ----------
    matrix : array (*batch, n, n)
        Real symmetric or complex Hermitian.

    Returns
    -------
    array (*batch, n)
        NaN where ``matrix`` holds a non-finite entry.

    Notes
    -----
    Cost ``O(n³)``. The first derivative only: a second one raises `TypeError`.
    """
    matrix, finite = _finite_or_identity(matrix)
    return _or_nan(finite[..., 0], _lapack_eigvalsh(matrix))


@eigvalsh.defjvp
def _differentiate_eigvalsh(primals, tangents):
    eigenvalues, vectors = eigh(*primals)
    (change,) = tangents
    rotated = jnp.matmul(change, vectors, precision=lax.Precision.HIGHEST)
    return eigenvalues, jnp.real(jnp.sum(vectors.conj() * rotated, axis=-2))


def cholesky(matrix: Inexact[Array, "*batch n n"]) -> Inexact[Array, "*batch n n"]:
    """Lower triangular ``L`` with ``L L^H`` the Hermitian part of a matrix.

    Parameters
    ----------
    matrix : array (*batch, n, n)
        Real symmetric or complex Hermitian, positive definite.

    Returns
    -------
    array (*batch, n, n)
        NaN where ``matrix`` is not positive definite or holds a non-finite entry.

    Notes
    -----
    Cost ``O(n³)``.
    """
    return _cholesky(0.5 * (matrix + jnp.conj(jnp.swapaxes(matrix, -1, -2))))


@jax.custom_jvp
def _cholesky(matrix):
    matrix, finite = _finite_or_identity(matrix)
    return _or_nan(finite, _lapack_cholesky(matrix))


@_cholesky.defjvp
def _differentiate_cholesky(primals, tangents):
    lower = _cholesky(*primals)
    half = solve_triangular(lower, tangents[0])
    inner = solve_triangular(lower, jnp.conj(jnp.swapaxes(half, -1, -2)))
    halves = jnp.tril(jnp.ones(inner.shape[-2:], lower.real.dtype))
    halves = halves - 0.5 * jnp.eye(inner.shape[-1], dtype=halves.dtype)
    change = jnp.conj(jnp.swapaxes(inner, -1, -2)) * halves
    return lower, jnp.matmul(lower, change, precision=lax.Precision.HIGHEST)


def solve_triangular(
    lower: Inexact[Array, "*batch n n"],
    columns: Inexact[Array, "*batch n k"],
    adjoint: bool = False,
) -> Inexact[Array, "*batch n k"]:
    """Solve ``L x = columns``, or ``L^H x = columns`` when ``adjoint``.

    Parameters
    ----------
    lower : array (*batch, n, n)
        Lower triangular; what is above its diagonal is not read.
    columns : array (*batch, n, k)
    adjoint : bool

    Returns
    -------
    array (*batch, n, k)

    Notes
    -----
    Cost ``O(n² k)``.
    """
    lower, columns = _same_batch(jnp.tril(lower), columns)
    if adjoint:
        lower = jnp.conj(lower)

    def multiply(x):
        left = jnp.swapaxes(lower, -1, -2) if adjoint else lower
        return jnp.matmul(left, x, precision=lax.Precision.HIGHEST)

    fixed = lax.stop_gradient(lower)
    return lax.custom_linear_solve(
        multiply,
        columns,
        solve=lambda _, right: _lapack_triangular[adjoint](fixed, right),
        transpose_solve=lambda _, right: _lapack_triangular[not adjoint](fixed, right),
    )


def solve(
    matrix: Inexact[Array, "*batch n n"], columns: Inexact[Array, "*batch n k"]
) -> Inexact[Array, "*batch n k"]:
    """Solve ``matrix @ x = columns`` by an LU decomposition with partial pivoting.

    Parameters
    ----------
    matrix : array (*batch, n, n)
    columns : array (*batch, n, k)

    Returns
    -------
    array (*batch, n, k)
        NaN where ``matrix`` holds a non-finite entry.

    Notes
    -----
    Cost ``O(n³ + n² k)``.
    """
    matrix, finite = _finite_or_identity(matrix)
    matrix, columns = _same_batch(matrix, columns)
    system = lu(lax.stop_gradient(matrix))
    solved = lax.custom_linear_solve(
        lambda x: jnp.matmul(matrix, x, precision=lax.Precision.HIGHEST),
        columns,
        solve=lambda _, right: lu_solve(system, right),
        transpose_solve=lambda _, right: lu_solve(system, right, transposed=True),
    )
    return _or_nan(finite, solved)


def _same_batch(matrix, columns):
    """Both with all dimensions of the batch, of one type."""
    batch = jnp.broadcast_shapes(matrix.shape[:-2], columns.shape[:-2])
    dtype = jnp.result_type(matrix, columns)
    return tuple(
        jnp.broadcast_to(each, (*batch, *each.shape[-2:])).astype(dtype)
        for each in (matrix, columns)
    )


def lu(matrix: Inexact[Array, "*batch n n"]):
    """LU decomposition with partial pivoting of finite matrices, for `lu_solve`; no derivative.

    Parameters
    ----------
    matrix : array (*batch, n, n)

    Returns
    -------
    factors, pivots : arrays (*batch, n, n) and (*batch, n, 1)
        As LAPACK packs them.

    Notes
    -----
    Cost ``O(n³)``.
    """
    return _lapack_lu(matrix)


def lu_solve(system, columns: Inexact[Array, "*batch n k"], transposed: bool = False):
    """Solve with a matrix decomposed by `lu`, or with its transpose.

    Parameters
    ----------
    system : tuple
        Of `lu`.
    columns : array (*batch, n, k)
    transposed : bool

    Returns
    -------
    array (*batch, n, k)

    Notes
    -----
    Cost ``O(n² k)``.
    """
    return _lapack_lu_solve[transposed](*system, columns)


def slogdet(
    matrix: Inexact[Array, "*batch n n"],
) -> tuple[Inexact[Array, "*batch"], Float[Array, "*batch"]]:
    """Sign and logarithm of the absolute value of a determinant, by an LU decomposition.

    Parameters
    ----------
    matrix : array (*batch, n, n)

    Returns
    -------
    sign, logarithm : arrays (*batch,)
        NaN where ``matrix`` holds a non-finite entry.

    Notes
    -----
    Cost ``O(n³)``.
    """
    return _slogdet(matrix)


@jax.custom_jvp
def _slogdet(matrix):
    matrix, finite = _finite_or_identity(matrix)
    factors, pivots = lu(matrix)
    diagonal = jnp.diagonal(factors, axis1=-2, axis2=-1)
    swaps = jnp.sum(pivots[..., 0] != jnp.arange(matrix.shape[-1]), axis=-1)
    sign = jnp.prod(jnp.sign(diagonal), axis=-1) * (1 - 2 * (swaps % 2)).astype(diagonal.dtype)
    logarithm = jnp.sum(jnp.log(jnp.abs(diagonal)), axis=-1)
    return _or_nan(finite[..., 0, 0], sign), _or_nan(finite[..., 0, 0], logarithm)


@_slogdet.defjvp
def _differentiate_slogdet(primals, tangents):
    sign, logarithm = _slogdet(*primals)
    change = jnp.trace(solve(*primals, *tangents), axis1=-2, axis2=-1)
    turn = sign * (change - jnp.real(change))  # zero for real matrices
    return (sign, logarithm), (turn, jnp.real(change))


def qr(matrix: Inexact[Array, "*batch m n"], complete: bool = False):
    """QR decomposition ``q, r``, NaN for a non-finite matrix; for one, not for a batch.

    Parameters
    ----------
    matrix : array (*batch, m, n)
        Real or complex.
    complete : bool
        Whether ``q`` is square, (m, m), and ``r`` (m, n).

    Returns
    -------
    q : array (*batch, m, min(m, n))
    r : array (*batch, min(m, n), n)

    Notes
    -----
    Cost ``O(m n min(m, n))``.
    """
    matrix, finite = _finite_or_identity(matrix)
    q, r = jnp.linalg.qr(matrix, mode="complete" if complete else "reduced")
    return _or_nan(finite, q), _or_nan(finite, r)


def triangle(matrix: Inexact[Array, "m n"]) -> Inexact[Array, "k n"]:
    """The triangular factor of a QR decomposition alone, NaN for a non-finite matrix; no batches.

    Parameters
    ----------
    matrix : array (m, n)
        Real or complex.

    Returns
    -------
    array (min(m, n), n)
        Upper triangular; rows may have either sign.

    Notes
    -----
    Cost ``O(m n min(m, n))``.
    """
    matrix, finite = _finite_or_identity(matrix)
    return _or_nan(finite, jnp.linalg.qr(matrix, mode="r"))


def schur(matrix: Inexact[Array, "n n"]) -> tuple[Inexact[Array, "n n"], Inexact[Array, "n n"]]:
    """Complex Schur form ``u, t`` with ``matrix = u t u^H``; on a CPU only, no batches.

    Parameters
    ----------
    matrix : array (n, n)

    Returns
    -------
    u, t : complex arrays (n, n)
        Unitary and upper triangular; NaN for a non-finite matrix.

    Notes
    -----
    Cost ``O(n³)``, some 25 times a multiplication's.
    """
    matrix, finite = _finite_or_identity(matrix)
    triangle, unitary = jax.scipy.linalg.schur(matrix, output="complex")
    return _or_nan(finite, unitary), _or_nan(finite, triangle)
