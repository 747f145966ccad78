r"""Likelihood-adjusted semidefinite programs of clustering.

With locations profiled out, the classification likelihood of a partition :math:`G_1, \dots, G_K`
is linear in its membership matrices :math:`Z_k = 1_{G_k} 1_{G_k}^T / |G_k|`:

.. math::
    \max \sum_k \langle A_k, Z_k \rangle, \quad
    (A_k)_{ij} = \log w_k - \tfrac12 \log|\Sigma_k|
        - \tfrac14 (x_i - x_j)^T \Sigma_k^{-1} (x_i - x_j)

over positive semi-definite, entrywise non-negative :math:`Z_k` with :math:`\sum_k Z_k 1 = 1` and
:math:`tr Z_k = 1` (``"group"``) or :math:`\sum_k tr Z_k = K` (``"joint"``). One matrix for all is
the program of k-means of J. Peng and Y. Wei, 2007. Y. Zhuang, X. Chen and Y. Yang, "Likelihood
adjusted semidefinite programs for clustering heterogeneous data", ICML 2023. Solved exactly by the
alternating direction method of multipliers, or on factors of low rank
(:mod:`bayeskit.models.gaussian_mixture.lowrank`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax.assignment import hungarian_algorithm

from bayeskit.codec import storable
from bayeskit.linalg import safe
from bayeskit.models.gaussian_mixture import lowrank
from bayeskit.models.gaussian_mixture.affinity import RowAffinity
from bayeskit.models.gaussian_mixture.starts import seeded_labels

_RELAXATION = 1.6
_CHECK = 25
_ROUND = 100
_BALANCINGS = 100
_DESCENTS = 300
_ROUNDINGS = 8
_STEP_ROWS, _DENSE_ROWS = 1000, 2000
_CERTAIN, _SMALL, _FALL = 1e-6, 100.0, 0.02


@storable
class Certificate(NamedTuple):
    """How good a clustering is for its program, whatever the solver did.

    The program has the covariances that it was given: it says nothing of other covariances.

    Attributes
    ----------
    primal : float
        Objective of the program at a feasible point, the membership matrices of a partition.
    dual_bound : float
        No feasible point has a larger objective.
    gap : float
        Their difference over ``|primal|``, or where that is larger over one (of a matrix that was
        given: over its largest entry's distance from their mean).
    """

    primal: Any
    dual_bound: Any
    gap: Any


class Splitting(NamedTuple):
    """State of the alternating direction method of multipliers.

    Attributes
    ----------
    semi, positive : arrays (G, n, n)
        Matrices that are positive semi-definite, and non-negative.
    first, second : arrays (G, n, n)
        Scaled multipliers of either: ``-S / penalty`` and ``-B / penalty``.
    penalty : scalar
    residual : scalar
        The larger of the primal and the dual residual, relative.
    count : scalar
        Steps made.
    """

    semi: Any
    positive: Any
    first: Any
    second: Any
    penalty: Any
    residual: Any
    count: Any


class Relaxed(NamedTuple):
    """What a clustering is rounded from.

    Attributes
    ----------
    weights : array (n, G)
        Row sums of the matrices: soft memberships where there is a matrix a cluster.
    vectors : array (n, K)
        Leading eigenvectors of the sum of the matrices.
    residual : scalar
        Of the solver.
    """

    weights: Any
    vectors: Any
    residual: Any


def on_constraints(matrices, total, joint):
    """Nearest matrices (G, n, n) with row sums of one together, and the traces of the program."""
    groups, size, _ = matrices.shape
    rows = 1.0 - jnp.sum(matrices, axis=(0, 2))
    traces = jnp.trace(matrices, axis1=1, axis2=2)
    # Normals of the constraints are u 1' + 1 u', the same in all groups, and t_k I.
    if joint:
        missing = total - jnp.sum(traces)
        half = (jnp.sum(rows) - missing) / (2 * (size - 1))
        shift = jnp.full(groups, (missing - 2 * half) / size / groups)
        common = (rows - half - jnp.sum(shift)) / size / groups
        diagonal = shift
    else:
        missing = 1.0 - traces
        half = (jnp.sum(rows) - jnp.sum(missing)) / (2 * groups * (size - 1))
        diagonal = (missing - 2 * half) / size
        common = (rows - jnp.sum(diagonal) - groups * half) / (groups * size)
    eye = jnp.eye(size, dtype=matrices.dtype)
    return matrices + common[:, None] + common + diagonal[:, None, None] * eye


def semidefinite_part(matrices):
    """Nearest positive semi-definite matrices."""
    values, vectors = safe.eigh(0.5 * (matrices + jnp.swapaxes(matrices, -1, -2)))
    kept = vectors * jnp.maximum(values, 0.0)[..., None, :]
    return kept @ jnp.swapaxes(vectors, -1, -2)


def standard(affinity):
    """Matrices about zero and in units of their largest entry; what was subtracted, the unit."""
    shift = jnp.mean(affinity)
    scale = jnp.maximum(jnp.max(jnp.abs(affinity - shift)), jnp.finfo(affinity.dtype).tiny)
    return (affinity - shift) / scale, shift, scale


def start(target, total):
    """Nothing is known."""
    zeros = jnp.zeros_like(target)
    penalty = jnp.asarray(target.shape[-1] / (4.0 * total), target.dtype)
    residual = jnp.asarray(jnp.inf, target.dtype)
    return Splitting(zeros, zeros, zeros, zeros, penalty, residual, jnp.asarray(0))


def start_from(target, matrices, alpha, total):
    """From a solution and the multipliers of its row sums; the others follow from these.

    Where a matrix is nothing, non-negativity may bear all that semi-definiteness would not.
    """
    left = 0.5 * (alpha[:, None] + alpha) - target
    nothing = matrices < 1e-3 * jnp.max(matrices)
    slack = jnp.where(nothing, jnp.maximum(left, 0.0), 0.0)
    left = left - slack
    eye = jnp.eye(target.shape[-1], dtype=target.dtype)
    left = left - safe.eigvalsh(left)[:, :1, None] * eye
    cold = start(target, total)
    # A quarter of the penalty of a cold start: multipliers are what is still to be found.
    penalty = 0.25 * cold.penalty
    return cold._replace(
        semi=matrices,
        positive=matrices,
        first=-left / penalty,
        second=-slack / penalty,
        penalty=penalty,
    )


def split(target, total, joint, state, iterations, tolerance, resting):
    """Steps of the alternating direction method of multipliers.

    Parameters
    ----------
    target : array (G, n, n)
        Standard affinities.
    total : int
        K: the sum of all traces.
    joint : bool
    state : Splitting
    iterations : int
        Largest number, with those made before.
    tolerance : float
        Of primal and dual residuals, relative.
    resting : int
        The penalty balances residuals until then, but not for ever: convergence needs one that
        rests.

    Notes
    -----
    A step costs O(G n³), memory is some ten matrices (G, n, n).
    """
    tiny = jnp.finfo(target.dtype).tiny

    def step(s):
        middle = 0.5 * (s.semi - s.first + s.positive - s.second) + target / (2.0 * s.penalty)
        point = on_constraints(middle, total, joint)
        relaxed = [_RELAXATION * point + (1.0 - _RELAXATION) * z for z in (s.semi, s.positive)]
        semi = semidefinite_part(relaxed[0] + s.first)
        positive = jnp.maximum(relaxed[1] + s.second, 0.0)
        first, second = s.first + relaxed[0] - semi, s.second + relaxed[1] - positive
        off = jnp.sqrt(jnp.sum((point - semi) ** 2) + jnp.sum((point - positive) ** 2))
        primal = off / jnp.sqrt(total)
        moved = s.penalty * jnp.linalg.norm(semi - s.semi + positive - s.positive)
        dual = moved / jnp.maximum(1.0, s.penalty * jnp.linalg.norm(first + second))
        count = s.count + 1
        ratio = jnp.sqrt(primal / jnp.maximum(dual, tiny))
        unbalanced = (ratio > 2.0) | (ratio < 0.5)
        adapt = (count % _CHECK == 0) & (count < resting) & unbalanced
        factor = jnp.where(adapt, jnp.clip(ratio, 0.2, 5.0), 1.0)
        residual = jnp.maximum(primal, dual)
        return Splitting(
            semi, positive, first / factor, second / factor, s.penalty * factor, residual, count
        )

    def unfinished(s):
        return (s.count < iterations) & ~(s.residual < tolerance)

    return jax.lax.while_loop(unfinished, step, state)


def multipliers(target, state):
    """Multipliers ``alpha`` (n,) of the row sums and ``slack`` (G, n, n) ≥ 0 of non-negativity."""
    size = target.shape[-1]
    slack = jnp.maximum(-state.penalty * state.second, 0.0)
    # Off the diagonal, affinities, slack and what is left over for semi-definiteness add up to
    # the means of alpha: least squares.
    left = jnp.mean(target - state.penalty * state.first + slack, axis=0)
    left = left - jnp.diag(jnp.diagonal(left))
    sums = jnp.sum(left, axis=1)
    return (2.0 * sums - jnp.sum(sums) / (size - 1)) / jnp.maximum(size - 2, 1), slack


def solve(affinity, total, joint, iterations, tolerance):
    """The solution by the alternating direction method: ``Splitting``, ``alpha``, ``slack``.

    Parameters
    ----------
    affinity : array (G, n, n)
    total, joint, iterations, tolerance
        As for :func:`split`.
    """
    target, shift, scale = standard(affinity)
    resting = 0.7 * iterations
    state = split(target, total, joint, start(target, total), iterations, tolerance, resting)
    alpha, slack = multipliers(target, state)
    # Constants take a part of the objective that is the same at all feasible points.
    return state, alpha * scale + shift, slack * scale


def relaxed(affinity, total, joint, method, key):
    """The program solved as ``method`` says.

    Parameters
    ----------
    affinity : RowAffinity or MatrixAffinity
    method : SemidefiniteProgram
    key : JAX key
        Of the factors that searches start from.
    """
    budget = method.solver_iterations, method.solver_tolerance
    if method.solver == "low-rank":
        found = lowrank.solve(affinity, total, joint, *budget, key)
        columns = jnp.moveaxis(found.factors, 0, 1).reshape(affinity.size, -1)
        vectors = safe.svd(columns)[0][:, :total]
        return Relaxed(lowrank.memberships(found.factors), vectors, found.residual)
    state, _, _ = solve(affinity.dense(), total, joint, *budget)
    summed = jnp.sum(state.positive, axis=0)
    vectors = safe.eigh(0.5 * (summed + summed.T))[1][:, -total:]
    return Relaxed(jnp.sum(state.positive, axis=-1).T, vectors, state.residual)


def dual_bound(affinity, alpha, slack, total, joint):
    """Upper bound on the program for any ``alpha`` and any ``slack`` ≥ 0, rounding included.

    ``⟨A, Z⟩ ≤ ⟨A + B, Z⟩ = 1'α + ⟨A + B - (α1' + 1α')/2, Z⟩``, and the trace of Z is known.
    """
    matrices = affinity + jnp.maximum(slack, 0.0) - 0.5 * (alpha[:, None] + alpha)
    values = safe.eigvalsh(matrices)
    size = affinity.shape[-1]
    rounding = 4.0 * size * jnp.finfo(affinity.dtype).eps
    largest = values[:, -1] + rounding * jnp.max(jnp.abs(values), axis=-1)
    traces = total * jnp.max(largest) if joint else jnp.sum(largest)
    return jnp.sum(alpha) + rounding * jnp.sum(jnp.abs(alpha)) + traces


def principal_bound(affinity, alpha, total, joint, primal):
    """Upper bound without multipliers of non-negativity, for any number of rows.

    Parameters
    ----------
    affinity : RowAffinity
    alpha : array (n,)
        Where the search for the smallest bound starts.
    primal : scalar
        An objective that is attained, which the steps aim at (Polyak).

    Notes
    -----
    Without them the matrices of :func:`dual_bound` have the columns of the rows, ``1`` and ``v``,
    so that their eigenvalues are those of a small matrix: O(G n d²) a step.
    """
    white, size = affinity.white, affinity.size
    dtype = white.dtype
    squares = jnp.sum(white**2, axis=-1)
    inner = white.shape[-1]
    core = jnp.diag(jnp.append(jnp.full(inner, 0.5, dtype), jnp.zeros(2, dtype)))
    core = core.at[inner, inner + 1].set(1.0).at[inner + 1, inner].set(1.0)
    rounding = 8.0 * size * jnp.finfo(dtype).eps

    def one(alpha, each):
        constant, rows, squares = each
        shifted = 0.5 * constant - 0.25 * squares - 0.5 * alpha
        basis, small = safe.qr(jnp.column_stack([rows, jnp.ones(size, dtype), shifted]))
        values, vectors = safe.eigh(small @ core @ small.T)
        top = basis @ vectors[:, -1]
        # Other directions have the value zero.
        largest = jnp.maximum(values[-1], 0.0) if size > inner + 2 else values[-1]
        largest = largest + rounding * jnp.max(jnp.abs(values))
        steep = (values[-1] > 0) | (size <= inner + 2)
        return largest, jnp.where(steep, top * jnp.sum(top), 0.0)

    def bound(alpha):
        largest, slopes = jax.lax.map(
            lambda each: one(alpha, each), (affinity.constant, white, squares)
        )
        margin = rounding * jnp.sum(jnp.abs(alpha))
        if joint:
            top = jnp.argmax(largest)
            return jnp.sum(alpha) + margin + total * largest[top], 1.0 - total * slopes[top]
        return jnp.sum(alpha) + margin + jnp.sum(largest), 1.0 - jnp.sum(slopes, axis=0)

    def descend(_, carry):
        alpha, best = carry
        value, slope = bound(alpha)
        step = (value - primal) / jnp.maximum(jnp.sum(slope**2), jnp.finfo(dtype).tiny)
        return alpha - step * slope, jnp.minimum(best, value)

    infinite = jnp.asarray(jnp.inf, dtype)
    return jax.lax.fori_loop(0, _DESCENTS, descend, (alpha, infinite))[1]


def complementary(target, alpha, slack, share, total, joint):
    """Multipliers near given ones that fit a partition, shares (n, K) of zeros and ones.

    At a partition that solves the program, ``S_k 1 = 0`` on its part, and there is no slack inside
    it. That says what ``alpha`` and the row sums of the slack are; where the given multipliers are
    near enough the bound that follows meets the objective to rounding, though theirs does not.
    """
    groups = target.shape[0]
    sizes = jnp.maximum(jnp.sum(share, axis=0), 1.0)
    largest = safe.eigvalsh(target + slack - 0.5 * (alpha[:, None] + alpha))[:, -1]
    largest = jnp.broadcast_to(jnp.max(largest) if joint else largest, (total,))
    parts = jnp.broadcast_to(target, (total, *target.shape[1:]))
    sums = jnp.einsum("kij,jk->ik", parts, share)
    inside = jnp.sum(sums * share, axis=0) / sizes - largest
    alpha = jnp.sum((2.0 * (sums - largest) - inside) / sizes * share, axis=1)
    needed = 0.5 * (alpha[:, None] * sizes + share.T @ alpha) - sums
    needed = jnp.maximum(jnp.where(share > 0, 0.0, needed), 0.0)
    tiny = jnp.finfo(target.dtype).tiny

    if groups == total:
        own = share.T
        outside = 1.0 - own
        toward = slack * outside[:, :, None] * own[:, None, :]
        have = jnp.sum(toward, axis=-1)
        ratio = needed.T / jnp.maximum(have, tiny)
        even = (needed / sizes).T[:, :, None] * own[:, None, :]
        toward = jnp.where(have[:, :, None] > tiny, toward * ratio[:, :, None], even)
        rest = slack * outside[:, :, None] * outside[:, None, :]
        return alpha, rest + toward + jnp.swapaxes(toward, 1, 2)

    # One matrix for all parts: row sums over every part, by turns with symmetry.
    between = 1.0 - share @ share.T
    floor = jnp.finfo(target.dtype).eps * jnp.max(slack)

    def balance(_, matrix):
        have = matrix @ share
        scaled = matrix * ((needed / jnp.maximum(have, tiny)) @ share.T)
        return 0.5 * (scaled + scaled.T)

    matrix = jnp.maximum(slack[0], floor) * between
    return alpha, jax.lax.fori_loop(0, _BALANCINGS, balance, matrix)[None]


def value_of(affinity, share):
    """Objective at the membership matrices of a partition, shares (n, K) of zeros and ones."""
    columns = share.T[:, :, None]
    if affinity.groups == 1:
        columns = share[None]
    sums = jnp.sum(columns * affinity.times(columns), axis=1).reshape(-1)
    return jnp.sum(sums / jnp.maximum(jnp.sum(share, axis=0), 1.0))


def certificate(affinity, share, total, joint, method, key):
    """What a partition misses at most of its program.

    Parameters
    ----------
    affinity : RowAffinity or MatrixAffinity
    share : array (n, K)
        Of zeros and ones; a partition that the solution is rounded to takes its place if better.
    method : SemidefiniteProgram
    key : JAX key

    Returns
    -------
    Certificate, share

    Notes
    -----
    Factors of low rank come first, and multipliers that follow from them; the alternating direction
    method goes on from there, up to 1000 rows. The best bound of all multipliers, as they are and
    fitted to the partition, counts. Beyond 2000 rows no matrix is formed of what is given as rows:
    there :func:`principal_bound` stands alone.
    """
    found = lowrank.solve(
        affinity, total, joint, method.solver_iterations, method.solver_tolerance, key
    )
    weights = lowrank.memberships(found.factors)
    columns = jnp.moveaxis(found.factors, 0, 1).reshape(affinity.size, -1)
    near = rounded(
        affinity,
        Relaxed(weights, safe.svd(columns)[0][:, :total], found.residual),
        total,
        joint,
        key,
    )
    values = [value_of(affinity, each) for each in (share, near)]
    share = jnp.where(values[1] > values[0], near, share)
    primal = jnp.maximum(*values)
    if affinity.size > _DENSE_ROWS and isinstance(affinity, RowAffinity):
        bound = principal_bound(affinity, found.alpha, total, joint, primal)
        return _certificate(primal, bound), share
    matrices = affinity.dense()
    target, shift, scale = standard(matrices)
    matrices_of_factors = jnp.einsum("gir,gjr->gij", found.factors, found.factors)
    alpha = (found.alpha - shift) / scale
    limit = method.solver_iterations if affinity.size <= _STEP_ROWS else 0

    def bounds(state):
        given = multipliers(target, state)
        fitted = complementary(target, *given, share, total, joint)
        return [
            dual_bound(matrices, alpha * scale + shift, slack * scale, total, joint)
            for alpha, slack in (given, fitted)
        ]

    # Affinities of rows are logarithms of densities, of which one is a nat; matrices have any unit.
    unit = jnp.ones_like(scale) if isinstance(affinity, RowAffinity) else scale
    least = _CERTAIN * jnp.maximum(unit, jnp.abs(primal))

    def unfinished(carry):
        state, bound, _, earlier = carry
        gap = bound - primal
        # A gap that hardly falls any more is the relaxation's own, unless it is next to none.
        falls = (earlier - bound > _FALL * gap) | (gap < _SMALL * least)
        return (state.count < limit) & (gap > least) & falls

    def go_on(carry):
        state, bound, before, _ = carry
        until = jnp.minimum(state.count + _ROUND, limit)
        state = split(target, total, joint, state, until, 0.0, 0.7 * limit)
        return state, jnp.fmin(bound, jnp.fmin(*bounds(state))), bound, before

    first = start_from(target, matrices_of_factors, alpha, total)
    unknown = jnp.asarray(jnp.inf, target.dtype)
    begun = (first, jnp.fmin(*bounds(first)), unknown, unknown)
    bound = jax.lax.while_loop(unfinished, go_on, begun)[1]
    return _certificate(primal, bound, unit), share


def _certificate(primal, bound, unit: Any = 1.0):
    return Certificate(primal, bound, (bound - primal) / jnp.maximum(unit, jnp.abs(primal)))


def rounded(affinity, solution, components, joint, key):
    """A partition (n, K) near a solution, no part of it empty.

    By the largest soft membership where every cluster has a matrix and a trace; else by spectral
    rounding of the sum.
    """
    if not joint:
        labels = filled(jnp.argmax(solution.weights, axis=1), solution.weights)
        return jax.nn.one_hot(labels, components, dtype=solution.weights.dtype)
    share = spectral(solution.vectors, components, key)
    if affinity.groups == 1:
        return share
    # Which part has which shape is not said by the sum of the matrices.
    columns = jnp.broadcast_to(share, (affinity.groups, *share.shape))
    gain = jnp.sum(columns * affinity.times(columns), axis=1).T
    gain = gain / jnp.maximum(jnp.sum(share, axis=0), 1.0)[:, None]
    parts, shapes = hungarian_algorithm(-jnp.nan_to_num(gain))
    return jnp.zeros_like(share).at[:, shapes].set(share[:, parts])


def filled(labels, weights):
    """Labels with every component in use: an empty one gets the row that weighs most in it."""

    def fill(k, labels):
        empty = ~jnp.any(labels == k)
        alone = jnp.sum(labels[:, None] == labels, axis=1) < 2
        row = jnp.argmax(jnp.where(alone, -jnp.inf, weights[:, k]))
        return jnp.where(empty, labels.at[row].set(k), labels)

    return jax.lax.fori_loop(0, weights.shape[1], fill, labels)


def spectral(rows, components, key):
    """A partition (n, K): k-means of the leading eigenvectors (n, K), the best of several seeds."""

    def trial(key):
        share = seeded_labels(rows, components, key)
        means = share.T @ rows / jnp.maximum(jnp.sum(share, axis=0), 1.0)[:, None]
        return share, jnp.sum((rows - share @ means) ** 2)

    shares, spreads = jax.lax.map(trial, jax.random.split(key, _ROUNDINGS))
    share = shares[jnp.argmin(spreads)]
    labels = filled(jnp.argmax(share, axis=1), share)
    return jax.nn.one_hot(labels, components, dtype=rows.dtype)
