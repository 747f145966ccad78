r"""Semidefinite programs of clustering on non-negative factors, for many rows.

The membership matrices of :mod:`bayeskit.models.gaussian_mixture.lifted` are products
:math:`Z_k = U_k U_k^T` of few columns :math:`U_k \ge 0`, so that they are positive semi-definite
and non-negative by themselves. Traces are norms of the factors, which a projection keeps; row sums
are brought to one by multipliers :math:`\alpha` and a penalty:

.. math::
    \min_U \; -\sum_k \langle A_k, U_k U_k^T \rangle + \alpha^T h(U) + \tfrac\beta2 |h(U)|^2,
    \quad h(U) = \sum_k U_k U_k^T 1 - 1.

Steps go along the projected gradient, with the lengths of J. Barzilai and J. Borwein, and are taken
back where the function rises above its last values: E. Birgin, J. Martínez and M. Raydan,
"Nonmonotone spectral projected gradient methods on convex sets", SIAM Journal on Optimization,
2000. Factors: Y. Zhuang, X. Chen, Y. Yang and R. Zhang, "Statistically optimal k-means clustering
via nonnegative low-rank semidefinite programming", ICLR 2024. One column a cluster leaves poor
local optima; there are four here, and several random starts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

_COLUMNS = 4  # a cluster
_STARTS = 8
_MEMORY = 10
_INNER = 40
_DECREASE = 1e-4
_SHORTER, _RANGE = 0.3, 1e3


class Factors(NamedTuple):
    """A solution.

    Attributes
    ----------
    factors : array (G, n, r)
        Non-negative, with the traces of the program.
    alpha : array (n,)
        Multipliers of the row sums.
    residual : scalar
        The larger of the root mean square of what row sums miss, and the relative change of the
        objective by the last update of the multipliers.
    """

    factors: Any
    alpha: Any
    residual: Any


class _Search(NamedTuple):
    """Where a search is: steps made, and those since the multipliers were last updated."""

    factors: Any
    gradient: Any
    missing: Any
    objective: Any
    step: Any
    recent: Any
    alpha: Any
    penalty: Any
    infeasible: Any
    reached: Any
    residual: Any
    inner: Any
    count: Any


def memberships(factors):
    """Row sums (n, G) of the matrices."""
    return jnp.einsum("gnr,gr->ng", factors, jnp.sum(factors, axis=1))


def on_traces(factors, total, joint):
    """Nearest non-negative factors with the traces of the program."""
    positive = jnp.maximum(factors, 0.0)
    squares = jnp.sum(positive**2, axis=None if joint else (1, 2), keepdims=True)
    trace = total if joint else 1.0
    return positive * jnp.sqrt(trace / jnp.maximum(squares, jnp.finfo(factors.dtype).tiny))


def solve(affinity, total, joint, iterations, tolerance, key):
    """The best of several searches from random factors, by the objective.

    Parameters
    ----------
    affinity : RowAffinity or MatrixAffinity
    total : int
        K: the sum of all traces.
    joint : bool
        Whether only the sum of the traces is known.
    iterations : int
        Largest number of steps of a search.
    tolerance : float
        Of ``Factors.residual``.
    key : JAX key

    Returns
    -------
    Factors

    Notes
    -----
    A step costs O(G n d r) on rows, in memory O(G n (d + r)): no matrix (n, n) is formed.
    """
    unit, shift, scale = affinity.standard()

    def found(key):
        end = _search(unit, total, joint, iterations, tolerance, key)
        # What is still infeasible may have too large an objective.
        cost = jnp.sum(jnp.abs(end.alpha * end.missing))
        return Factors(end.factors, end.alpha * scale + shift, end.residual), end.objective - cost

    solutions, objectives = jax.lax.map(found, jax.random.split(key, _STARTS))
    best = jnp.argmax(jnp.where(jnp.isnan(objectives), -jnp.inf, objectives))
    return jax.tree.map(lambda leaf: leaf[best], solutions)


def _search(unit, total, joint, iterations, tolerance, key):
    dtype = jax.tree.leaves(unit)[0].dtype
    tiny = jnp.finfo(dtype).tiny
    columns = _COLUMNS * total // unit.groups

    def evaluated(factors, alpha, penalty):
        sums = jnp.sum(factors, axis=1)
        product = unit.times(factors)
        missing = jnp.einsum("gnr,gr->n", factors, sums) - 1.0
        objective = jnp.sum(factors * product)
        weights = alpha + penalty * missing
        value = jnp.sum((alpha + 0.5 * penalty * missing) * missing) - objective
        gradient = weights[:, None] * sums[:, None] - 2.0 * product
        gradient = gradient + jnp.einsum("n,gnr->gr", weights, factors)[:, None]
        return value, gradient, missing, objective

    def step(s):
        trial = on_traces(s.factors - s.step * s.gradient, total, joint)
        value, gradient, missing, objective = evaluated(trial, s.alpha, s.penalty)
        moved = trial - s.factors
        length = jnp.sum(moved**2)
        taken = value <= jnp.max(s.recent) - _DECREASE * length / s.step
        curvature = jnp.abs(jnp.sum(moved * (gradient - s.gradient)))
        ratio = length / jnp.maximum(curvature, tiny) / s.step
        kept = optax.tree.where(
            taken,
            (trial, gradient, missing, objective, jnp.roll(s.recent, 1).at[0].set(value)),
            (s.factors, s.gradient, s.missing, s.objective, s.recent),
        )
        new = s._replace(
            factors=kept[0],
            gradient=kept[1],
            missing=kept[2],
            objective=kept[3],
            recent=kept[4],
            step=s.step * jnp.where(taken, jnp.clip(ratio, 1.0 / _RANGE, _RANGE), _SHORTER),
            inner=s.inner + 1,
            count=s.count + 1,
        )
        still = length <= (0.1 * tolerance) ** 2 * total
        return jax.lax.cond((new.inner >= _INNER) | still, updated, lambda s: s, new)

    def updated(s):
        infeasible = jnp.sqrt(jnp.mean(s.missing**2))
        alpha = s.alpha + s.penalty * s.missing
        penalty = jnp.where(infeasible > 0.5 * s.infeasible, 2.0 * s.penalty, s.penalty)
        value, gradient, _, _ = evaluated(s.factors, alpha, penalty)
        gain = jnp.abs(s.objective - s.reached) / jnp.maximum(jnp.abs(s.objective), tiny)
        return s._replace(
            gradient=gradient,
            recent=jnp.full(_MEMORY, value),
            alpha=alpha,
            penalty=penalty,
            infeasible=infeasible,
            reached=s.objective,
            residual=jnp.maximum(infeasible, gain),
            inner=jnp.zeros_like(s.inner),
        )

    drawn = jnp.abs(jax.random.normal(key, (unit.groups, unit.size, columns), dtype))
    factors, alpha, penalty = on_traces(drawn, total, joint), jnp.zeros(unit.size, dtype), 1.0
    value, gradient, missing, objective = evaluated(factors, alpha, penalty)
    none = jnp.asarray(jnp.inf, dtype)
    start = _Search(
        factors,
        gradient,
        missing,
        objective,
        0.1 * jnp.sqrt(total / jnp.maximum(jnp.sum(gradient**2), tiny)),
        jnp.full(_MEMORY, value),
        alpha,
        jnp.asarray(penalty, dtype),
        none,
        objective,
        none,
        jnp.asarray(0),
        jnp.asarray(0),
    )
    return jax.lax.while_loop(
        lambda s: (s.count < iterations) & ~(s.residual < tolerance), step, start
    )
