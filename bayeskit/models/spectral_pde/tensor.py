r"""Collocation on a product of grids: zero-boundary bases and Sylvester's equation.

Every dimension has an orthonormal basis :math:`\Psi_i` of the functions that its prior holds
possible, split into :math:`N_i`, which satisfies the conditions with value zero, and a lift. The
field is :math:`C = C_0 + (N_1 \otimes \dots \otimes N_d) Z` with a :math:`C_0` that satisfies the
conditions, and the equation, projected on the same functions,

.. math::
    \Bigl(\sum_i I \otimes \dots \otimes A_i \otimes \dots \otimes I + c I\Bigr) Z = R, \quad
    A_i = N_i^T \Psi_i^T \partial_i^{\alpha} \Psi_i N_i,

is solved in :math:`O(d r^3 + d r^{d+1})`. Where coefficients vary, derivatives are mixed or the
equation is not linear, this is the preconditioner of GMRES inside Newton's iteration, with the
coefficients' means.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx

from bayeskit.linalg.contract import kronecker_multiply
from bayeskit.linalg.sylvester import schur_form, solve_kronecker_sum
from bayeskit.models.spectral_pde.basis import Basis, basis_of, derivative
from bayeskit.models.spectral_pde.newton import equation_share, iterate, rms, share_of
from bayeskit.pde.residual import Affine

_HIDDEN = 1e-8  # relative error of the equation for fields of size one, if the field is zero
_HALVINGS = 6
_KRYLOV = 40
_KRYLOV_TOLERANCE = 1e-10


class Space(NamedTuple):
    """Bases of all dimensions, and matrices for the derivatives in use.

    Attributes
    ----------
    bases : tuple of Basis
    at_nodes, at_check : tuples of dicts of arrays
        By order: from coefficients to derivatives at the nodes (times the roots of the weights)
        and at the points between them.
    roots : array (N_1, …, N_d)
        Roots of the weights.
    """

    bases: tuple[Basis, ...]
    at_nodes: tuple
    at_check: tuple
    roots: Any


def space_of(problem, scales) -> Space:
    """Bases under prior deviations of the waves, one array a dimension."""
    bases = [basis_of(axis, each) for axis, each in zip(problem.axes, scales, strict=True)]
    at_nodes, at_check = [], []
    for k, (axis, basis) in enumerate(zip(problem.axes, bases, strict=True)):
        used = {0, 1, *(orders[k] for orders in problem.at_nodes.orders)}
        root = jnp.sqrt(axis.weights)[:, None]
        at_nodes.append({o: root * derivative(axis, axis.nodes, o) @ basis.transform for o in used})
        at_check.append({o: derivative(axis, axis.check, o) @ basis.transform for o in used})
    roots = jnp.ones(())
    for axis in problem.axes:
        roots = roots[..., None] * jnp.sqrt(axis.weights)
    return Space(tuple(bases), tuple(at_nodes), tuple(at_check), roots)


def _derivatives(matrices, orders, coefficients):
    """All derivatives (A, product of points) of a field by its coefficients."""
    found = [
        kronecker_multiply([m[o] for m, o in zip(matrices, each, strict=True)], coefficients)
        for each in orders
    ]
    return jnp.stack(found).reshape(len(orders), -1)


def _projected(space, values):
    """Inner products of weighted values at the nodes with the functions that vanish."""
    tests = [(m[0] @ b.null).T for m, b in zip(space.at_nodes, space.bases, strict=True)]
    return kronecker_multiply(tests, values)


def coefficients_of(space, values):
    """Coefficients of the field with such values (N_1, …, N_d) at the nodes."""
    return kronecker_multiply([basis.values.T for basis in space.bases], values * space.roots)


def values_of(space, coefficients):
    """Values (N_1, …, N_d) at the nodes."""
    return kronecker_multiply([m[0] for m in space.at_nodes], coefficients) / space.roots


def with_conditions(problem, space, coefficients):
    """The field moved so that it satisfies the conditions, one dimension after the other.

    What later ones add is projected on what leaves the earlier ones as they are.
    """
    for k, basis in enumerate(space.bases):
        if not basis.conditions.shape[0]:
            continue
        given = problem.values[k]
        weighted = jnp.moveaxis(given, 0, k) * _roots_of_others(problem, k)
        target = kronecker_multiply(
            [
                jnp.eye(given.shape[0]) if j == k else other.values.T
                for j, other in enumerate(space.bases)
            ],
            weighted,
        )
        defect = target - kronecker_multiply(
            [
                other.conditions if j == k else jnp.eye(other.null.shape[0])
                for j, other in enumerate(space.bases)
            ],
            coefficients,
        )
        moves = [
            basis.lift
            if j == k
            else other.null @ other.null.T
            if j < k
            else jnp.eye(other.null.shape[0])
            for j, other in enumerate(space.bases)
        ]
        coefficients = coefficients + kronecker_multiply(moves, defect)
    return coefficients


def _roots_of_others(problem, k):
    """Roots of the weights of all dimensions but one, whose axis has length one."""
    roots = jnp.ones(())
    for j, axis in enumerate(problem.axes):
        roots = roots[..., None] * (jnp.ones(1) if j == k else jnp.sqrt(axis.weights))
    return roots


def preconditioner(problem, space, by_value):
    """The inverse of the equation with the means of its coefficients, mixed terms left out."""
    means = jnp.mean(by_value, axis=1)
    orders = problem.at_nodes.orders
    forms = []
    for k, (matrices, basis) in enumerate(zip(space.at_nodes, space.bases, strict=True)):
        tests = matrices[0] @ basis.null
        size = basis.null.shape[1]
        matrix = jnp.zeros((size, size))
        for mean, each in zip(means, orders, strict=True):
            if each[k] and not any(o for j, o in enumerate(each) if j != k):
                matrix = matrix + mean * (tests.T @ matrices[each[k]] @ basis.null)
        # Functions beyond the prior's rank are zero: they must not make the system singular.
        present = jnp.sum(tests**2, axis=0)
        size_of = jnp.max(jnp.abs(matrix))
        empty = (1.0 - present) * jnp.where(size_of > 0, size_of, 1.0)
        forms.append(schur_form(matrix + jnp.diag(empty)))
    plain = [mean for mean, each in zip(means, orders, strict=True) if not any(each)]
    shift = sum(plain, jnp.zeros(()))
    return lambda right: solve_kronecker_sum(forms, right, shift).real


def is_direct(residual) -> bool:
    """Whether the preconditioner is the inverse of the equation: constant, nothing mixed."""
    unmixed = all(sum(order > 0 for order in each) <= 1 for each in residual.orders)
    return isinstance(residual, Affine) and residual.constant and unmixed


def _step_towards(problem, space, by_value, inverse, right):
    """Solve the linearised equation, with coefficients as they are, for a projected residual."""
    nulls = [basis.null for basis in space.bases]

    def operator(z):
        values = _derivatives(space.at_nodes, problem.at_nodes.orders, kronecker_multiply(nulls, z))
        total = jnp.sum(by_value * values, axis=0).reshape(space.roots.shape)
        return inverse(_projected(space, total))

    start = inverse(right)
    solver = lx.GMRES(
        rtol=_KRYLOV_TOLERANCE, atol=0.0, max_steps=_KRYLOV, restart=_KRYLOV, stagnation_iters=10
    )
    linear = lx.FunctionLinearOperator(operator, jax.eval_shape(lambda: start))
    options = {"y0": start}
    return lx.linear_solve(linear, start, solver, options=options, throw=False).value


def solve(problem, space, start):
    """Coefficients of the field from a start, and the size of the last step relative to it."""
    orders, shape = problem.at_nodes.orders, space.roots.shape
    affine = problem.at_nodes.linear
    nulls = [basis.null for basis in space.bases]
    coefficients = with_conditions(problem, space, start)

    def linearised(coefficients):
        values = _derivatives(space.at_nodes, orders, coefficients) / space.roots.reshape(-1)
        return problem.at_nodes.linearised(values)

    inverse = preconditioner(problem, space, linearised(coefficients)[1])

    def towards(coefficients):
        left, by_value = linearised(coefficients)
        right = -_projected(space, left.reshape(shape) * space.roots)
        if is_direct(problem.at_nodes):
            # A second step refines.
            found = inverse(right)
        else:
            found = _step_towards(problem, space, by_value, inverse, right)
        return kronecker_multiply(nulls, found)

    def merit(coefficients):
        return rms(linearised(coefficients)[0])

    return iterate(towards, jnp.linalg.norm, merit, coefficients, 1 if affine else _HALVINGS)


def residuals(problem, space, coefficients):
    """As for one dimension: root mean square between the nodes, and the largest condition."""
    values = _derivatives(space.at_check, problem.at_check.orders, coefficients)
    typical = jnp.linalg.norm(coefficients)  # root mean square, by orthonormality
    left = equation_share(problem.at_check, values, [a.length for a in problem.axes], typical)
    misfits = [_misfit(problem, space, coefficients, k, typical) for k in range(len(problem.axes))]
    return left, jnp.max(jnp.stack(misfits))


def _misfit(problem, space, coefficients, k, typical):
    """Largest relative misfit of the conditions of one dimension, between the nodes."""
    given = problem.values_between[k]
    if not given.shape[0]:
        return jnp.zeros(())

    def between(matrix):
        factors = [matrix if j == k else m[0] for j, m in enumerate(space.at_check)]
        return jnp.moveaxis(kronecker_multiply(factors, coefficients), k, 0)

    slope = rms(between(space.at_check[k][1]))
    weights = jnp.sum(jnp.abs(problem.axes[k].terms), axis=1)
    flat = given.reshape(given.shape[0], -1)
    scale = weights @ jnp.stack([typical, slope]) + jnp.max(jnp.abs(flat), axis=1)
    misfit = jnp.abs(between(space.bases[k].conditions).reshape(flat.shape) - flat)
    return jnp.max(share_of(jnp.max(misfit, axis=1), scale))


def _size_of_terms(problem, space, by_value):
    """Of the equation for a field of size one that has all frequencies of the space."""
    sizes = [
        math.prod(
            jnp.linalg.norm(m[o]) / jnp.linalg.norm(m[0])
            for m, o in zip(space.at_nodes, each, strict=True)
        )
        for each in problem.at_nodes.orders
    ]
    return rms(jnp.stack(sizes) @ jnp.abs(by_value))


def deviations(key, problem, space, coefficients, count):
    """Deviations (count, R_1, …, R_d) of the field by what the residual found may have hidden.

    Draws of its error, whose squares sum to its variance.
    The projected equation has independent errors, all together of the residual's size. A field
    that is zero shows none, of the discretisation neither: some are supposed.
    Coefficients that vary are replaced by their means.
    """
    values = _derivatives(space.at_check, problem.at_check.orders, coefficients)
    left, _ = problem.at_check.linearised(values)
    at_nodes = _derivatives(space.at_nodes, problem.at_nodes.orders, coefficients)
    _, by_value = problem.at_nodes.linearised(at_nodes / space.roots.reshape(-1))
    hidden = _HIDDEN * _size_of_terms(problem, space, by_value)
    noise = jnp.where(jnp.any(coefficients != 0), rms(left), hidden)
    inverse = preconditioner(problem, space, by_value)
    nulls = [basis.null for basis in space.bases]
    shape = tuple(null.shape[1] for null in nulls)
    # Functions beyond the prior's rank are zero, and take no part.
    present = math.prod(
        jnp.sum((m[0] @ null) ** 2) for m, null in zip(space.at_nodes, nulls, strict=True)
    )

    def draw(key):
        errors = noise / jnp.sqrt(present * count) * jax.random.normal(key, shape)
        return kronecker_multiply(nulls, inverse(errors))

    return jax.lax.map(draw, jax.random.split(key, count)), noise
