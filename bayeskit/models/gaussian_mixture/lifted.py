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
adjusted semidefinite programs for clustering heterogeneous data", ICML 2023; solved by the
alternating direction method of multipliers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax.assignment import hungarian_algorithm

from bayeskit.codec import storable
from bayeskit.linalg import safe
from bayeskit.models.gaussian_mixture.starts import seeded_labels

_RELAXATION = 1.6
_CHECK = 25
_ROUNDINGS = 8


@storable
class Certificate(NamedTuple):
    """How good a clustering is for its program, whatever the solver did.

    Attributes
    ----------
    primal : float
        Objective of the program at a feasible point, the membership matrices of a partition.
    dual_bound : float
        No feasible point has a larger objective.
    gap : float
        Their difference over the larger of one and ``|primal|``.
    """

    primal: Any
    dual_bound: Any
    gap: Any


class Solution(NamedTuple):
    """Membership matrices (G, n, n), dual variables ``alpha`` (n,) and ``slack`` (G, n, n) ≥ 0."""

    matrices: Any
    alpha: Any
    slack: Any


def affinities(log_weights, logdet, white):
    """Matrices A (K, n, n) from whitened rows (K, n, d)."""
    squares = jnp.sum(white**2, axis=-1)
    inner = jnp.einsum("kid,kjd->kij", white, white)
    distances = squares[:, :, None] + squares[:, None, :] - 2.0 * inner
    return (log_weights - 0.5 * logdet)[:, None, None] - 0.25 * jnp.maximum(distances, 0.0)


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


def solve(affinity, total, joint, iterations, tolerance):
    """The program's solution by the alternating direction method of multipliers.

    Parameters
    ----------
    affinity : array (G, n, n)
    total : int
        K: the sum of all traces.
    joint : bool
    iterations : int
        Largest number.
    tolerance : float
        Of primal and dual residuals, relative.

    Notes
    -----
    An iteration costs O(G n³), memory is some ten matrices (G, n, n).
    """
    size = affinity.shape[-1]
    shift = jnp.mean(affinity)
    scale = jnp.maximum(jnp.max(jnp.abs(affinity - shift)), jnp.finfo(affinity.dtype).tiny)
    target = (affinity - shift) / scale
    zeros = jnp.zeros_like(affinity)

    def unfinished(carry):
        return (carry[-2] < iterations) & ~(carry[-1] < tolerance)

    def step(carry):
        semi, positive, first, second, penalty, count, change = carry
        middle = 0.5 * (semi - first + positive - second) + target / (2.0 * penalty)
        point = on_constraints(middle, total, joint)
        relaxed = [_RELAXATION * point + (1.0 - _RELAXATION) * each for each in (semi, positive)]
        new_semi = semidefinite_part(relaxed[0] + first)
        new_positive = jnp.maximum(relaxed[1] + second, 0.0)
        first, second = first + relaxed[0] - new_semi, second + relaxed[1] - new_positive
        off = jnp.sqrt(jnp.sum((point - new_semi) ** 2) + jnp.sum((point - new_positive) ** 2))
        primal = off / jnp.sqrt(total)
        moved = penalty * jnp.linalg.norm(new_semi - semi + new_positive - positive)
        dual = moved / jnp.maximum(1.0, penalty * jnp.linalg.norm(first + second))
        count = count + 1
        # Residuals are kept in balance, but not for ever: convergence needs a penalty that rests.
        adapt = (count % _CHECK == 0) & (count < 0.7 * iterations)
        ratio = jnp.sqrt(primal / jnp.maximum(dual, jnp.finfo(dual.dtype).tiny))
        unbalanced = (ratio > 2.0) | (ratio < 0.5)
        factor = jnp.where(adapt & unbalanced, jnp.clip(ratio, 0.2, 5.0), 1.0)
        change = jnp.maximum(primal, dual)
        return (
            new_semi,
            new_positive,
            first / factor,
            second / factor,
            penalty * factor,
            count,
            change,
        )

    penalty = jnp.asarray(size / (4.0 * total), affinity.dtype)
    start = (zeros, zeros, zeros, zeros, penalty, jnp.asarray(0))
    carry = jax.lax.while_loop(unfinished, step, (*start, jnp.asarray(jnp.inf, affinity.dtype)))
    _, positive, first, second, penalty, _, _ = carry
    slack = jnp.maximum(-penalty * second, 0.0)
    # Off the diagonal, affinities, slack and what is left over for semi-definiteness add up to
    # the means of alpha: least squares.
    left = jnp.mean(target - penalty * first + slack, axis=0)
    left = left - jnp.diag(jnp.diagonal(left))
    sums = jnp.sum(left, axis=1)
    alpha = (2.0 * sums - jnp.sum(sums) / (size - 1)) / jnp.maximum(size - 2, 1)
    # Constants take a part of the objective that is the same at all feasible points.
    return Solution(positive, alpha * scale + shift, slack * scale)


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


def value_of(affinity, share):
    """Objective at the membership matrices of a partition, shares (n, K) of zeros and ones."""
    sums = jnp.einsum("ik,kij,jk->k", share, affinity, share)
    return jnp.sum(sums / jnp.maximum(jnp.sum(share, axis=0), 1.0))


def certificate(affinity, solution, share, total, joint):
    """What a partition misses at most, by the multipliers of a solution."""
    primal = value_of(affinity, share)
    bound = dual_bound(affinity, solution.alpha, solution.slack, total, joint)
    return Certificate(primal, bound, (bound - primal) / jnp.maximum(1.0, jnp.abs(primal)))


def rounded(affinity, solution, components, joint, key):
    """A partition (n, K) near a solution, no part of it empty."""
    matrices = solution.matrices
    if not joint:
        weights = jnp.sum(matrices, axis=-1).T
        labels = jnp.argmax(weights, axis=1)
        return jax.nn.one_hot(filled(labels, weights), components, dtype=affinity.dtype)
    share = spectral(jnp.sum(matrices, axis=0), components, key)
    # Which part has which shape is not said by the sum of the matrices.
    gain = jnp.einsum("ic,kij,jc->ck", share, affinity, share)
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


def spectral(matrix, components, key):
    """A partition (n, K): k-means of the leading eigenvectors, the best of several seeds."""
    _, vectors = safe.eigh(0.5 * (matrix + matrix.T))
    rows = vectors[:, -components:]

    def trial(key):
        share = seeded_labels(rows, components, key)
        means = share.T @ rows / jnp.maximum(jnp.sum(share, axis=0), 1.0)[:, None]
        return share, jnp.sum((rows - share @ means) ** 2)

    shares, spreads = jax.lax.map(trial, jax.random.split(key, _ROUNDINGS))
    share = shares[jnp.argmin(spreads)]
    labels = filled(jnp.argmax(share, axis=1), share)
    return jax.nn.one_hot(labels, components, dtype=matrix.dtype)
