r"""The field's weights integrated out: evidence of spectrum, noise and unknown coefficients.

With :math:`u = \Phi S^{1/2} z`, :math:`z \sim N(0, I)`, the equation (linearised at a field),
conditions and measurements are rows :math:`b = A z + \epsilon`, all divided by their deviations,
and

.. math::
    \begin{pmatrix} A & b \\ I & 0 \end{pmatrix} =
    Q \begin{pmatrix} R & c \\ 0 & \rho \end{pmatrix}, \quad
    \log p = -\log |R| - \tfrac12 \rho^2 - \sum_i \log \sigma_i + \text{const},

with the errors' deviations :math:`\sigma_i`, and without normal equations. Its gradient needs no
derivative of a factorisation (Fisher's identity): :math:`\partial \log p / \partial A =
E[(b - A z) z^T] = (b - A m) m^T - Q_1 Q_2^T`, where :math:`Q_1, Q_2` are the upper and lower part
of :math:`Q`; by the logarithms of prior and error deviations it is :math:`E z_k^2 - 1` and
:math:`E (b - A z)_i^2 - 1`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayeskit.linalg import safe
from bayeskit.models.spectral_pde import frame
from bayeskit.models.spectral_pde import hyper as hypers
from bayeskit.models.spectral_pde.basis import condition_rows, derivative
from bayeskit.models.spectral_pde.dense import back_substitute, factorised
from bayeskit.models.spectral_pde.newton import equation_share, iterate, rms, share_of
from bayeskit.models.spectral_pde.problem import WIDEST

_EXACT = 1e-7  # deviation of what is exact, of its own size
_HALVINGS = 9


class Design(NamedTuple):
    """Matrices from coefficients: derivatives (A, points, K), conditions, what sensors see.

    Attributes
    ----------
    nodes, check : arrays (A, N, K), (A, M, K)
    value : array (N, K)
    conditions : array (C, K)
    condition_values, condition_noise : arrays (C,)
    sensors : array (n, K)
    """

    nodes: Any
    check: Any
    value: Any
    conditions: Any
    condition_values: Any
    condition_noise: Any
    sensors: Any


class Rows(NamedTuple):
    """What is linear in the field: conditions, sensors, equation.

    Attributes
    ----------
    matrix : array (n, K)
    right, log_deviations : arrays (n,)
    log_scales : array (K,)
        Logarithms of the prior's deviations.
    """

    matrix: Any
    right: Any
    log_scales: Any
    log_deviations: Any

    def whitened(self):
        """Matrix and right-hand side for unit weights and unit errors."""
        return _whitened(*self)


def number_of_waves(points) -> int:
    """Columns of products over dimensions with so many points each."""
    total = 1
    for count in points:
        total *= frame.features(jnp.zeros(1), frame.frequencies(count, WIDEST), 0).shape[1]
    return total


def constant(problem, points):
    """Coefficients (K,) of the constant field to start from, on so many points a dimension."""
    return jnp.zeros(number_of_waves(points)).at[frame.CONSTANT].set(problem.level)


def grid_points(grid):
    """Coordinates (product of all,) of a grid, one array a dimension, row-major."""
    return tuple(each.reshape(-1) for each in jnp.meshgrid(*grid, indexing="ij"))


def features(axes, points, orders, share=WIDEST):
    """Columns (n, K) of products of waves, of some derivative, at scattered points.

    ``share``: of the highest frequencies that the collocation points resolve.
    """
    found = jnp.ones((points[0].shape[0], 1))
    for axis, each, order in zip(axes, points, orders, strict=True):
        columns = derivative(axis, each, order, share)
        size = found.shape[1] * columns.shape[1]
        found = (found[:, :, None] * columns[:, None, :]).reshape(found.shape[0], size)
    return found


def sensor_rows(problem, share):
    """What sensors see of products of waves, (n, K)."""
    measured = problem.measured
    if measured is None:
        nowhere = tuple(jnp.zeros(0) for _ in problem.axes)
        return features(problem.axes, nowhere, (0,) * len(nowhere), share)
    return sum(
        coefficient[:, None] * features(problem.axes, measured.points, order, share)
        for coefficient, order in zip(measured.coefficients, measured.orders, strict=True)
    )


def design(problem) -> Design:
    """All matrices of a problem; they depend on points and conditions alone."""
    axes, orders = problem.axes, problem.at_nodes.orders
    nodes = grid_points([axis.nodes for axis in axes])
    check = grid_points([axis.check for axis in axes])
    rows, values, noise = [], [], []
    for k, axis in enumerate(axes):
        factors = [
            condition_rows(axis, WIDEST) if j == k else derivative(other, other.nodes, 0, WIDEST)
            for j, other in enumerate(axes)
        ]
        block = jnp.ones((1, 1))
        for factor in factors:
            (n, m), (p, q) = block.shape, factor.shape
            block = jnp.einsum("ab,cd->acbd", block, factor).reshape(n * p, m * q)
        # The condition first, then the nodes of the other dimensions.
        sizes = [factor.shape[0] for factor in factors]
        block = jnp.moveaxis(block.reshape(*sizes, block.shape[1]), k, 0)
        block = block.reshape(problem.values[k].size, block.shape[-1])
        rows.append(block)
        values.append(problem.values[k].reshape(-1))
        each = axis.noise.reshape(-1, *[1] * (problem.values[k].ndim - 1))
        noise.append(jnp.broadcast_to(each, problem.values[k].shape).reshape(-1))
    sensors = sensor_rows(problem, WIDEST)
    return Design(
        jnp.stack([features(axes, nodes, order) for order in orders]),
        jnp.stack([features(axes, check, order) for order in orders]),
        features(axes, nodes, (0,) * len(axes)),
        jnp.concatenate(rows),
        jnp.concatenate(values),
        jnp.concatenate(noise),
        sensors,
    )


def rows_of(kernel, problem, matrices, hyper, coefficients) -> Rows:
    """The equation linearised at a field, with conditions and measurements."""
    values = matrices.nodes @ coefficients
    equation = problem.at_nodes.given(hypers.unknown_values(problem, hyper.unknowns))
    left, by_value = equation.linearised(values)
    matrix = jnp.einsum("an,ank->nk", by_value, matrices.nodes)
    right = jnp.sum(by_value * values, axis=0) - left
    noise, sensor_noise = hypers.deviations(problem, hyper)
    # What is exact is so relative to the field that units tell of, not to the present spectrum.
    size = jnp.max(jnp.abs(matrices.conditions), axis=1, initial=0.0) * problem.units.field
    exact = matrices.condition_noise <= 0
    condition = jnp.where(exact, _EXACT * size, matrices.condition_noise)
    spread = jnp.concatenate([condition, sensor_noise, jnp.broadcast_to(noise, right.shape)])
    observed = jnp.zeros(0) if problem.measured is None else problem.measured.values
    blocks = jnp.concatenate([matrices.conditions, matrices.sensors, matrix])
    targets = jnp.concatenate([matrices.condition_values, observed, right])
    return Rows(blocks, targets, hypers.log_scales(kernel, problem, hyper), jnp.log(spread))


@jax.custom_vjp
def log_density(matrix, right, log_scales, log_deviations):
    """Log density of ``right ~ N(0, D² + M S² Mᵀ)`` for deviations ``D`` and scales ``S``."""
    return _log_density(*_whitened(matrix, right, log_scales, log_deviations), log_deviations)


def _whitened(matrix, right, log_scales, log_deviations):
    return matrix * jnp.exp(log_scales - log_deviations[:, None]), right * jnp.exp(-log_deviations)


def _log_density(matrix, right, log_deviations):
    triangle, _, misfit = factorised(matrix, right)
    value = -jnp.sum(jnp.log(jnp.abs(jnp.diagonal(triangle)))) - 0.5 * misfit**2
    return value - _constant(log_deviations)


def _constant(log_deviations):
    return jnp.sum(log_deviations) + 0.5 * log_deviations.shape[0] * jnp.log(2 * jnp.pi)


def _forward(matrix, right, log_scales, log_deviations):
    whitened, target = _whitened(matrix, right, log_scales, log_deviations)
    count = matrix.shape[1]
    orthogonal, triangle = safe.qr(jnp.concatenate([whitened, jnp.eye(count)]))
    upper, lower = orthogonal[:-count], orthogonal[-count:]
    turned = upper.T @ target
    misfit, mean = target - upper @ turned, lower @ turned
    value = -jnp.sum(jnp.log(jnp.abs(jnp.diagonal(triangle)))) - _constant(log_deviations)
    value = value - 0.5 * (jnp.sum(misfit**2) + jnp.sum(mean**2))
    return value, (upper, lower, misfit, mean, log_scales, log_deviations)


def _backward(kept, cotangent):
    upper, lower, misfit, mean, log_scales, log_deviations = kept
    by_matrix = jnp.outer(misfit, mean) - upper @ lower.T
    by_matrix = by_matrix * jnp.exp(log_scales - log_deviations[:, None])
    # The first two are sums of the last over rows or columns, by identities without cancellation.
    by_scales = mean**2 + jnp.sum(lower**2, axis=1) - 1.0
    by_deviations = misfit**2 + jnp.sum(upper**2, axis=1) - 1.0
    by_right = -misfit * jnp.exp(-log_deviations)
    return tuple(cotangent * each for each in (by_matrix, by_right, by_scales, by_deviations))


log_density.defvjp(_forward, _backward)


def log_evidence(kernel, problem, matrices, hyper, coefficients):
    """Of conditions, measurements and equation, linearised at a field.

    Of an equation without a source that is known, where anything is noisy: of conditions and
    measurements given the equation. It says nothing on the size of its solution, but is most
    probable where that is none.
    """
    rows = rows_of(kernel, problem, matrices, hyper, coefficients)
    value = log_density(*rows)
    if not problem.stated.given:
        return value
    own = slice(matrices.conditions.shape[0] + matrices.sensors.shape[0], None)
    equation = rows.matrix[own], rows.right[own], rows.log_scales, rows.log_deviations[own]
    return value - log_density(*equation)


def mode(kernel, problem, matrices, hyper, start):
    """Coefficients of the field's mean (of its mode, for nonlinear equations)."""
    scales = jnp.exp(hypers.log_scales(kernel, problem, hyper))

    def solution(coefficients):
        rows = rows_of(kernel, problem, matrices, hyper, coefficients)
        triangle, right, _ = factorised(*rows.whitened())
        return scales * back_substitute(triangle, right)

    if problem.at_nodes.linear:
        return solution(start)

    def merit(coefficients):
        # Minus twice the log density, up to a constant.
        matrix, right = rows_of(kernel, problem, matrices, hyper, coefficients).whitened()
        unit = coefficients / scales
        return jnp.sum((right - matrix @ unit) ** 2) + jnp.sum(unit**2)

    found, _ = iterate(
        lambda each: solution(each) - each,
        lambda each: rms(matrices.value @ each),
        merit,
        start,
        _HALVINGS,
    )
    return found


def size_of_terms(problem, matrices, solution):
    """Root mean square of the sizes of the equation's terms at the nodes."""
    unknowns = hypers.unknown_values(problem, solution.hyper.unknowns)
    values = matrices.nodes @ solution.coefficients
    left, by_value = problem.at_nodes.given(unknowns).linearised(values)
    terms = by_value * values
    size = jnp.sum(jnp.abs(terms), axis=0) + jnp.abs(left - jnp.sum(terms, axis=0))
    return rms(size)


def residuals(problem, matrices, hyper, coefficients):
    """Relative sizes of what the equation leaves between the nodes, and the exact conditions."""
    equation = problem.at_check.given(hypers.unknown_values(problem, hyper.unknowns))
    lengths = [axis.length for axis in problem.axes]
    typical = rms(matrices.value @ coefficients)
    left = equation_share(equation, matrices.check @ coefficients, lengths, typical)
    exact = matrices.condition_noise <= 0
    misfit = jnp.abs(matrices.conditions @ coefficients - matrices.condition_values)
    scale = jnp.max(jnp.abs(matrices.conditions), axis=1, initial=0.0) * problem.units.field
    scale = scale + jnp.abs(matrices.condition_values)
    relative = jnp.where(exact, share_of(misfit, scale), 0.0)
    return left, jnp.max(relative, initial=0.0)
