r"""Collocation in weight space: least squares by orthogonal factorisations, Newton, covariance.

With the field :math:`u = \Phi a`, :math:`a = S^{1/2} z`, :math:`z \sim N(0, \alpha^2 I)`, a linear
equation and its conditions are rows :math:`M z = b`, known up to errors of deviation
:math:`\sigma`, and

.. math::
    \begin{pmatrix} M & b \\ \lambda I & 0 \end{pmatrix} = Q
    \begin{pmatrix} R & c \\ 0 & \rho \end{pmatrix}, \quad \lambda = \sigma / \alpha, \quad
    \mathrm E z = R^{-1} c, \quad \mathrm{cov} z = \sigma^2 (R^T R)^{-1}.

Normal equations would lose half of the digits. The mean is of :math:`\lambda` at rounding, the
covariance of a :math:`\sigma` that is the residual found between the collocation points.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from bayeskit.linalg import safe
from bayeskit.models.spectral_pde.basis import condition_rows, derivative
from bayeskit.models.spectral_pde.newton import equation_share, iterate, rms, share_of
from bayeskit.models.spectral_pde.problem import Problem

_SHARP = 1e-15  # of the largest column, as ratio of noise to prior deviation
_HIDDEN = 1e-10  # relative error of the equation for fields of size one, if the field is zero
_HALVINGS = 9


class Operators(NamedTuple):
    """Matrices from coefficients to values (N, K), derivatives (A, points, K) and conditions."""

    value: Any
    slope: Any
    nodes: Any
    check: Any
    conditions: Any


class Rows(NamedTuple):
    """A linear system for the prior's unit weights: equation first, then conditions."""

    matrix: Any
    right: Any
    factors: Any


def operators(problem: Problem) -> Operators:
    """Matrices for all derivatives that the equation and its conditions use."""
    (axis,) = problem.axes
    orders = [order for (order,) in problem.at_nodes.orders]
    return Operators(
        derivative(axis, axis.nodes, 0),
        derivative(axis, axis.nodes, 1),
        jnp.stack([derivative(axis, axis.nodes, order) for order in orders]),
        jnp.stack([derivative(axis, axis.check, order) for order in orders]),
        condition_rows(axis),
    )


def rows_of(problem, ops, scales, coefficients) -> Rows:
    """The equation linearised at a field, and the conditions; all rows of similar size."""
    values = ops.nodes @ coefficients
    residual, by_value = problem.at_nodes.linearised(values)
    matrix = jnp.einsum("an,ank->nk", by_value, ops.nodes)
    right = jnp.sum(by_value * values, axis=0) - residual
    largest = jnp.max(jnp.abs(matrix * scales))
    factors = jnp.sqrt(problem.axes[0].weights) / jnp.where(largest > 0, largest, 1.0)
    each = jnp.max(jnp.abs(ops.conditions * scales), axis=1)
    factors = jnp.concatenate([factors, 1.0 / jnp.where(each > 0, each, 1.0)])
    matrix = jnp.concatenate([matrix, ops.conditions])
    right = jnp.concatenate([right, problem.values[0]])
    return Rows(matrix * scales * factors[:, None], right * factors, factors)


def factorised(matrix, right, ratio: Any = 1.0):
    """Triangle ``R``, right-hand side ``c`` and size ``rho`` of the misfit; see the module."""
    count = matrix.shape[1]
    upper = jnp.concatenate([matrix, right[:, None]], axis=1)
    lower = jnp.concatenate([ratio * jnp.eye(count), jnp.zeros((count, 1))], axis=1)
    found = safe.triangle(jnp.concatenate([upper, lower]))
    return found[:count, :count], found[:count, count], jnp.abs(found[count, count])


def back_substitute(triangle, right):
    """``R⁻¹ right`` for upper triangular ``R``."""
    return safe.solve_triangular(triangle.T, right[:, None], adjoint=True)[:, 0]


def _smallest_ratio(rows):
    return _SHARP * jnp.sqrt(jnp.max(jnp.sum(rows.matrix**2, axis=0)))


def _linear_step(problem, ops, scales, coefficients):
    """Coefficients of the solution of the equation linearised at some others."""
    rows = rows_of(problem, ops, scales, coefficients)
    triangle, right, _ = factorised(rows.matrix, rows.right, _smallest_ratio(rows))
    return scales * back_substitute(triangle, right)


def solve(problem, ops, scales, start):
    """Coefficients of the field, and the size of the last step: Newton's, halved where needed."""
    if problem.at_nodes.linear:
        return _linear_step(problem, ops, scales, start), jnp.zeros(())

    def towards(coefficients):
        return _linear_step(problem, ops, scales, coefficients) - coefficients

    def merit(coefficients):
        return jnp.maximum(*residuals(problem, ops, coefficients, at_check=False))

    return iterate(towards, lambda each: rms(ops.value @ each), merit, start, _HALVINGS)


def residuals(problem, ops, coefficients, at_check=True):
    """Relative sizes of what the equation and the conditions leave, each by its own terms' size.

    Root mean square between the collocation points (or at them), and the largest condition.
    """
    equation = problem.at_check if at_check else problem.at_nodes
    values = (ops.check if at_check else ops.nodes) @ coefficients
    typical = jnp.stack([rms(ops.value @ coefficients), rms(ops.slope @ coefficients)])
    (axis,) = problem.axes
    scale = jnp.sum(jnp.abs(axis.terms) @ typical, axis=1) + jnp.abs(problem.values[0])
    misfit = jnp.abs(ops.conditions @ coefficients - problem.values[0])
    left = equation_share(equation, values, [axis.length], typical[0])
    return left, jnp.max(share_of(misfit, scale), initial=0.0)


class Covariance(NamedTuple):
    """What is not known of a solution.

    Attributes
    ----------
    factor : array (K, K)
        Upper triangular ``R``: the unit weights have covariance ``(RᵀR)⁻¹``.
    noise : scalar
        Deviation of the equation's error in its own units.
    log_evidence : scalar
    """

    factor: Any
    noise: Any
    log_evidence: Any


def covariance(problem, ops, scales, coefficients) -> Covariance:
    """Uncertainty of the solution, from the residual that it leaves between the points.

    Errors of the equation are taken to be independent from point to point, of the size of the
    residual or of rounding; the prior's amplitude is that of the solution. A field that is zero
    shows no errors, of the discretisation neither: some are supposed.
    """
    rows = rows_of(problem, ops, scales, coefficients)
    left, _ = problem.at_check.linearised(ops.check @ coefficients)
    factor = rows.factors[: problem.axes[0].nodes.shape[0]] / jnp.sqrt(problem.axes[0].weights)
    eps = jnp.finfo(left.dtype).eps
    weights = jnp.abs(coefficients / jnp.where(scales > 0, scales, 1.0))
    units = jnp.concatenate([jnp.sqrt(problem.axes[0].weights), jnp.ones_like(problem.values[0])])
    rounding = eps * rms((jnp.abs(rows.matrix) @ weights) / units)
    nodes = problem.axes[0].nodes.shape[0]
    found = jnp.hypot(rms(left) * factor[0], rounding) / jnp.sqrt(nodes)
    power = jnp.mean((ops.value @ coefficients) ** 2)
    found = jnp.where(power > 0, found, _HIDDEN)
    prior_power = jnp.mean((ops.value * scales) ** 2 @ jnp.ones_like(scales))
    amplitude = jnp.sqrt(jnp.where(power > 0, power, 1.0) / prior_power)
    ratio = jnp.maximum(found / amplitude, _smallest_ratio(rows))
    noise = ratio * amplitude
    triangle, _, misfit = factorised(rows.matrix, rows.right, ratio)
    count, size = rows.matrix.shape
    log_determinant = (
        2.0 * jnp.sum(jnp.log(jnp.abs(jnp.diagonal(triangle))))
        + 2.0 * count * jnp.log(noise)
        - 2.0 * size * jnp.log(ratio)
    )
    log_evidence = -0.5 * (
        log_determinant + (misfit / noise) ** 2 + count * jnp.log(2.0 * jnp.pi)
    ) + jnp.sum(jnp.log(rows.factors))
    return Covariance(triangle / noise, noise * jnp.sqrt(nodes) / factor[0], log_evidence)
