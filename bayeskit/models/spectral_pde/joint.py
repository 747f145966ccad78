r"""Joint mode of field values, spectra and precisions: the paper's algorithm, in factor space.

With the values :math:`U` on a uniform grid, kernel matrices :math:`K_i + 10^{-6} I` of every
dimension, derivatives of the conditional mean, :math:`\partial^\alpha U = (\bigotimes_i
K_i^{(\alpha_i)} K_i^{-1}) U`, and precisions :math:`v` of the equation and :math:`\tau` of the
conditions,

.. math::
    \log p = \log N(U; 0, \textstyle\bigotimes_i K_i)
             + \tfrac{N_c}{2} \log v - \tfrac v2 \lVert R[U] \rVert^2
             + \lambda \bigl(\tfrac{N_b}{2} \log \tau - \tfrac \tau 2 \lVert B U - g \rVert^2\bigr)
             + \log p(v) + \log p(\tau),

flat in logarithms of weights and scales and in frequencies, :math:`\lambda = 200`. The paper leaves
out the last two terms: the density then grows without bound as the residual goes to zero. Here each
precision has seen one more error: a millionth of what the equation is for a field of size one,
and a millionth.

A uniform grid makes every matrix Toeplitz: kernels and their derivatives, in closed form, are
evaluated for a first column only, and gradients flow back to it through sums over diagonals. One
Cholesky factor a dimension gives solves and determinant. An evaluation with its gradient costs
O(d N³ + d N^(d+1)).
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayeskit.codec import storable
from bayeskit.linalg import kronecker_multiply, safe, toeplitz
from bayeskit.models.spectral_pde.newton import equation_share, rms, share_of
from bayeskit.models.spectral_pde.spectrum import Components, covariance

BOX = 2.0 * math.pi  # length of every dimension in the units of the paper's start values and steps
HIGHEST = 0.63  # frequency at the start, as share of the highest that the grid resolves
CONDITION_WEIGHT = 200.0
JITTER = 1e-6
_SMALLEST = 1e-6  # further error of each kind, relative
_EXACT = 2000  # grid values up to which the covariance is formed
_DRAWS = 32
_KRYLOV, _KRYLOV_TOLERANCE = 100, 1e-10


class Spectra(NamedTuple):
    """What is optimised of the kernel of one dimension, arrays (Q,), in boxes of length 2 π.

    Attributes
    ----------
    log_weights : array
    frequencies : array
        In cycles.
    log_scales : array
        Logarithms of inverse squared lengths (Gaussian) or of inverse lengths (Student-t).
    """

    log_weights: Any
    frequencies: Any
    log_scales: Any


class Unknowns(NamedTuple):
    """Everything that is optimised.

    Attributes
    ----------
    values : array (N_1, …, N_d)
        Of the field, on the uniform grid.
    spectra : tuple of Spectra
        One a dimension.
    log_equation, log_condition : scalars
        Logarithms of precisions, in the user's units.
    """

    values: Any
    spectra: tuple[Spectra, ...]
    log_equation: Any
    log_condition: Any


class Factor(NamedTuple):
    """Covariance of the values along one dimension.

    Attributes
    ----------
    column : array (N,)
        First column of ``K + jitter``.
    matrix, lower : arrays (N, N)
        All of it, and its Cholesky factor.
    derivatives : dict of arrays (N, N)
        The kernel's derivatives, in the user's units, by order.
    """

    column: Any
    matrix: Any
    lower: Any
    derivatives: dict


def components_of(kernel, spectra) -> Components:
    """The same spectrum, in cycles per box."""
    if kernel.family == "gaussian":
        widths = math.sqrt(2.0) * jnp.exp(0.5 * spectra.log_scales)
    else:
        widths = jnp.exp(spectra.log_scales)
    return Components(spectra.log_weights, BOX * spectra.frequencies, widths)


def start(problem, kernel, values, frequencies=None) -> Unknowns:
    """Equal weights, unit scales and precisions; frequencies evenly spaced unless given."""
    count = kernel.num_components
    if frequencies is None:
        even = jnp.linspace(0.0, 1.0, count)
        frequencies = [even * highest(axis.nodes.shape[0]) for axis in problem.axes]
    spectra = tuple(
        Spectra(jnp.full(count, -math.log(count)), each, jnp.zeros(count)) for each in frequencies
    )
    return Unknowns(values, spectra, jnp.zeros(()), jnp.zeros(()))


def highest(count):
    """Highest frequency at the start, on a grid of so many points."""
    return HIGHEST * 0.5 * (count - 1) / BOX


def grid(count):
    """Uniform points of the scaled box, ends included."""
    return jnp.linspace(0.0, 1.0, count)


def factors_of(problem, kernel, spectra) -> list[Factor]:
    """Covariances of all dimensions."""
    found = []
    for k, (axis, each) in enumerate(zip(problem.axes, spectra, strict=True)):
        components, lags = components_of(kernel, each), grid(axis.nodes.shape[0])
        used = {orders[k] for orders in problem.uniform.residual.orders} - {0}
        column = covariance(kernel, components, lags).at[0].add(JITTER)
        slopes = {o: covariance(kernel, components, lags, o) / axis.length**o for o in used}
        matrix = toeplitz.matrix(column)
        lower = safe.cholesky(jax.lax.stop_gradient(matrix))
        derivatives = {o: toeplitz.matrix(each, odd=o % 2 == 1) for o, each in slopes.items()}
        found.append(Factor(column, matrix, lower, derivatives))
    return found


@jax.custom_jvp
def _logdet(column, lower):
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(lower)))


@_logdet.defjvp
def _differentiate_logdet(primals, tangents):
    column, lower = primals
    first = jnp.zeros_like(column).at[0].set(1.0)
    sums = toeplitz.diagonal_sums_of_inverse(_cholesky_solve(lower, first[:, None])[:, 0])
    return _logdet(column, lower), jnp.sum(sums * tangents[0])


def _cholesky_solve(lower, columns):
    return safe.solve_triangular(lower, safe.solve_triangular(lower, columns), adjoint=True)


def _along(function, values, axis):
    """Apply a function of columns (N, M) along one axis of an array."""
    moved = jnp.moveaxis(values, axis, 0)
    found = function(moved.reshape(moved.shape[0], -1))
    return jnp.moveaxis(found.reshape(found.shape[0], *moved.shape[1:]), 0, axis)


def _solve(factor, values, axis):
    """``K⁻¹`` along one axis; derivatives by ``K`` are those of products with it."""
    lower = jax.lax.stop_gradient(factor.lower)

    def solve(columns):
        return jax.lax.custom_linear_solve(
            lambda right: factor.matrix @ right,
            columns,
            lambda _, right: _cholesky_solve(lower, right),
            symmetric=True,
        )

    return _along(solve, values, axis)


def _derivatives(factors, orders, values, solved):
    """All derivatives (A, product of points) of the conditional mean at the grid."""
    found = []
    for each in orders:
        current, moved = values, False
        for k, order in enumerate(each):
            if order:
                inverse = _solve(factors[k], current, k) if moved else solved[k]
                current, moved = _along(factors[k].derivatives[order].__matmul__, inverse, k), True
        found.append(current.reshape(-1))
    return jnp.stack(found)


def _misfits(problem, kernel, spectra, values, solved):
    """What the conditions of every dimension leave, arrays (conditions, product of others)."""
    found = []
    for k, (axis, each) in enumerate(zip(problem.axes, spectra, strict=True)):
        rows = _condition_rows(axis, kernel, components_of(kernel, each))
        flat = [
            jnp.moveaxis(array, k, 0).reshape(array.shape[k], -1) for array in (values, solved[k])
        ]
        given = problem.uniform.values[k]
        found.append(rows[0] @ flat[0] + rows[1] @ flat[1] - given.reshape(given.shape[0], -1))
    return found


def _condition_rows(axis, kernel, components):
    """Rows (conditions, N) for values at the grid, and for ``K⁻¹`` times these."""
    points = grid(axis.nodes.shape[0])
    lags = axis.places[..., None] - points
    at_end = (jnp.abs(lags) < 0.5 * points[1]).astype(points.dtype)
    slopes = covariance(kernel, components, lags, 1) / axis.length
    return (
        jnp.sum(axis.terms[:, :, 0, None] * at_end, axis=1),
        jnp.sum(axis.terms[:, :, 1, None] * slopes, axis=1),
    )


def errors(problem, kernel, spectra, factors, values, solved):
    """What equation (points,) and conditions (all,) leave at the grid."""
    residual = problem.uniform.residual
    left = residual.linearised(_derivatives(factors, residual.orders, values, solved))[0]
    misfits = _misfits(problem, kernel, spectra, values, solved)
    return left, jnp.concatenate([each.reshape(-1) for each in misfits])


def log_joint(problem, kernel, unknowns):
    """The paper's log joint density, which is not bounded."""
    values, spectra = unknowns.values, unknowns.spectra
    factors = factors_of(problem, kernel, spectra)
    solved = [_solve(factor, values, k) for k, factor in enumerate(factors)]
    whitened = solved[-1] if len(factors) > 1 else values
    for k in range(1, len(factors) - 1):
        whitened = _solve(factors[k], whitened, k)
    log_prior = -0.5 * jnp.sum(solved[0] * whitened) - sum(
        0.5 * values.size / factor.column.size * _logdet(factor.column, factor.lower)
        for factor in factors
    )
    left, misfit = errors(problem, kernel, spectra, factors, values, solved)
    return (
        log_prior
        + _log_likelihood(unknowns.log_equation, left)
        + CONDITION_WEIGHT * _log_likelihood(unknowns.log_condition, misfit)
    )


def _log_likelihood(log_precision, error):
    return 0.5 * error.size * log_precision - 0.5 * jnp.exp(log_precision) * jnp.sum(error**2)


def objective(problem, kernel, unknowns):
    """Log joint density with priors of both precisions: bounded above."""
    equation, condition = _smallest_errors(problem)
    return (
        log_joint(problem, kernel, unknowns)
        + _log_likelihood(unknowns.log_equation, equation)
        + _log_likelihood(unknowns.log_condition, condition)
    )


def _smallest_errors(problem):
    """One further error of the equation and of the conditions, for a field of size one."""
    residual = problem.uniform.residual
    count = math.prod(axis.nodes.shape[0] for axis in problem.axes)
    source, coefficients = residual.linearised(jnp.zeros((len(residual.orders), count)))
    size = rms(jnp.where(jnp.isfinite(source), source, 0.0))
    for each, orders in zip(coefficients, residual.orders, strict=True):
        lengths = [axis.length**-o for axis, o in zip(problem.axes, orders, strict=True)]
        size = size + rms(jnp.where(jnp.isfinite(each), each, 0.0)) * math.prod(lengths)
    return _SMALLEST * size, jnp.asarray(_SMALLEST)


@storable
class JointMode(NamedTuple):
    """A normal distribution of the values around the mode, everything else held.

    Attributes
    ----------
    values : array (N_1, …, N_d)
    deviations : array (M, N_1, …, N_d)
        The covariance is ``Σ_m δ_m δ_mᵀ``.
    """

    values: Any
    deviations: Any


def laplace(problem, kernel, unknowns, key) -> JointMode:
    """Laplace's approximation for the values, after a last step of Gauss and Newton's iteration.

    Exact for up to 2000 values, in O(values³). Beyond, covariance and step are by conjugate
    gradients, and the covariance is that of 32 draws, each from the prior and moved by Matheron's
    rule: where the iteration is cut off, they keep the prior's deviation.
    """
    spectra, size = unknowns.spectra, unknowns.values.size
    factors = factors_of(problem, kernel, spectra)
    roots = [factor.lower for factor in factors]
    weights = (
        jnp.exp(0.5 * unknowns.log_equation),
        jnp.sqrt(CONDITION_WEIGHT * jnp.exp(unknowns.log_condition)),
    )

    def unwhitened(z):
        return kronecker_multiply(roots, z.reshape(unknowns.values.shape))

    def weighted(values):
        solved = [_solve(factor, values, k) for k, factor in enumerate(factors)]
        found = errors(problem, kernel, spectra, factors, values, solved)
        return jnp.concatenate([w * each for w, each in zip(weights, found, strict=True)])

    whitened = unknowns.values
    for k, root in enumerate(roots):
        whitened = _along(partial(safe.solve_triangular, root), whitened, k)
    whitened = whitened.reshape(-1)
    error, tangent = jax.linearize(
        lambda z: weighted(unknowns.values + unwhitened(z)), 0 * whitened
    )
    if size <= _EXACT:
        matrix = jax.vmap(tangent, out_axes=1)(jnp.eye(size))
        upper = jnp.concatenate([matrix, error[:, None]], axis=1)
        lower = jnp.concatenate([jnp.eye(size), whitened[:, None]], axis=1)
        triangle = safe.triangle(jnp.concatenate([upper, lower]))
        independent = safe.solve_triangular(triangle[:size, :size].T, jnp.eye(size))
        deviations = jax.vmap(unwhitened)(independent)
        step = -jnp.tensordot(triangle[:size, size], deviations, axes=1)
    else:
        transposed = jax.linear_transpose(tangent, whitened)

        def solve(right):
            def operator(z):
                return z + transposed(tangent(z))[0]

            return jax.scipy.sparse.linalg.cg(
                operator, right, tol=_KRYLOV_TOLERANCE, maxiter=_KRYLOV
            )[0]

        def draw(key):
            ours, theirs = jax.random.split(key)
            z = jax.random.normal(ours, whitened.shape)
            noisy = tangent(z) + jax.random.normal(theirs, error.shape)
            return unwhitened(z - solve(transposed(noisy)[0])) / math.sqrt(_DRAWS)

        deviations = jax.lax.map(draw, jax.random.split(key, _DRAWS))
        step = -unwhitened(solve(transposed(error)[0] + whitened))
    moved = unknowns._replace(values=unknowns.values + step)
    better = objective(problem, kernel, moved) > objective(problem, kernel, unknowns)
    return JointMode(jnp.where(better, moved.values, unknowns.values), deviations)


def interpolation(kernel, components, root, points, order):
    """Weights (P, N) of grid values in the conditional mean of a derivative, by the box.

    Also the variance (P,) which those values explain, and that (scalar) of the prior.

    Parameters
    ----------
    root : array (N, N)
        Cholesky factor of the values' covariance.
    points : array (P,)
        In the scaled box.
    """
    lags = points[:, None] - grid(root.shape[0])
    cross = covariance(kernel, components, lags, order)
    half = safe.solve_triangular(root, cross.T)
    prior = (-1.0) ** order * covariance(kernel, components, jnp.zeros(1), 2 * order)[0]
    weights = safe.solve_triangular(root, half, adjoint=True).T
    return weights, jnp.sum(half**2, axis=0), prior


def root_of(kernel, components, count):
    """Cholesky factor (N, N) of the values' covariance along a dimension."""
    column = covariance(kernel, components, grid(count)).at[0].add(JITTER)
    return safe.cholesky(toeplitz.matrix(column))


def conditional_root(kernel, components, points, count):
    """Root (P + N, P + N) of the covariance of the field at points and of the values, together."""
    places = jnp.concatenate([points, grid(count)])
    nugget = JITTER * jnp.concatenate([jnp.zeros_like(points), jnp.ones(count)])
    matrix = covariance(kernel, components, places[:, None] - places) + jnp.diag(nugget)
    sizes, vectors = safe.eigh(matrix)
    return vectors * jnp.sqrt(jnp.maximum(sizes, 0.0))


def largest_misfit(problem, kernel, unknowns, typical):
    """Largest condition's error, relative to the terms of a field of ``typical`` size."""
    factors = factors_of(problem, kernel, unknowns.spectra)
    solved = [_solve(factor, unknowns.values, k) for k, factor in enumerate(factors)]
    misfits = _misfits(problem, kernel, unknowns.spectra, unknowns.values, solved)
    found = [jnp.zeros(())]
    for axis, misfit, given in zip(problem.axes, misfits, problem.uniform.values, strict=True):
        if misfit.shape[0]:
            sizes = jnp.sum(jnp.abs(axis.terms), axis=1) @ jnp.stack(
                [typical, typical / axis.length]
            )
            scale = sizes + jnp.max(jnp.abs(given.reshape(misfit.shape)), axis=1)
            found.append(jnp.max(share_of(jnp.max(jnp.abs(misfit), axis=1), scale)))
    return jnp.max(jnp.stack(found))


def residual_between(problem, factors_at_check, values):
    """Relative residual between the collocation points of the other methods.

    ``factors_at_check(k, order)``: weights of grid values in derivatives there.
    """
    orders = problem.at_check.orders
    derivatives = jnp.stack(
        [
            kronecker_multiply([factors_at_check(k, o) for k, o in enumerate(each)], values)
            for each in orders
        ]
    ).reshape(len(orders), -1)
    lengths = [axis.length for axis in problem.axes]
    return equation_share(problem.at_check, derivatives, lengths, rms(values))
