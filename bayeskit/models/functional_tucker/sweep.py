r"""Coordinate ascent on the bound of a functional Tucker decomposition.

With independent factors for the functions of each mode, the core and the noise, every factor's
optimum given the others is exact Gaussian (or inverse-gamma) conditioning. An observation's message
to mode k is :math:`\Lambda_n = E[\tau] E[a_n a_n^T]`, :math:`\eta_n = E[\tau] y_n E[a_n]`, where
:math:`a_n` is what the core and the other modes' functions multiply mode k's functions with; the
expectations are full second moments of the other modes and of the core. Messages of equal index
add up; a Kalman smoother does the rest (:mod:`bayeskit.statespace`).

S. Fang, X. Yu, Z. Wang, S. Li, M. Kirby, S. Zhe, "Functional Bayesian Tucker decomposition for
continuous-indexed tensor data", ICLR 2024: there as conditional expectation propagation.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

from bayeskit.codec import storable
from bayeskit.linalg import safe


class Rows(NamedTuple):
    """Observations in blocks of equal size.

    Attributes
    ----------
    index : tuple of int arrays (blocks, size), one a mode
        Positions among the mode's points.
    values : array (blocks, size)
        Standardised.
    weights : array (blocks, size)
        One, and zero where the last block is filled up.
    """

    index: tuple
    values: Any
    weights: Any


@storable
class Moments(NamedTuple):
    """First and second moments of the functions of one mode, of the core as a vector, or a number.

    Attributes
    ----------
    mean : array (…, R) or scalar
    second : array (…, R, R) or scalar
    """

    mean: Any
    second: Any

    @classmethod
    def of(cls, mean, covariance) -> "Moments":
        """Those of a distribution with some covariance."""
        return cls(mean, covariance + _square(mean))

    def covariance(self):
        """Of shape (…, R, R), or a scalar."""
        return self.second - _square(self.mean)


def _square(mean):
    return mean**2 if jnp.ndim(mean) == 0 else mean[..., :, None] * mean[..., None, :]


@storable
class FactorMessages(NamedTuple):
    """Factors of the approximation, and what each contributes to the bound.

    Attributes
    ----------
    modes : tuple of Moments, (n_k, R_k) and (n_k, R_k, R_k)
    shifts, precisions : tuples of arrays (n_k, R_k) and (n_k, R_k, R_k)
        The merged messages that the functions were conditioned on.
    divergences : array (K,)
        Kullback–Leibler divergences of the functions from their prior.
    core : Moments or None
        (R_1 ⋯ R_K,) and its square; none for CP, whose core is fixed.
    offset : Moments
        Scalars; zeros where the offset is known.
    noise_concentration, noise_rate : scalars
        Inverse-gamma factor of the noise variance, where that is learned.
    precision : scalar
        ``E[1 / noise variance]``.
    bound : scalar
    sketch : array (rows,)
        Fitted means at some rows: what convergence is judged by.
    """

    modes: tuple
    shifts: tuple
    precisions: tuple
    divergences: Any
    core: Any
    offset: Any
    noise_concentration: Any
    noise_rate: Any
    precision: Any
    bound: Any
    sketch: Any


def order_of(modes):
    """Modes in the order of a sweep: most points first, because the start knows them least."""
    return sorted(range(len(modes)), key=lambda k: -modes[k].mean.shape[0])


def _sum_over_blocks(function, rows):
    """Sum of a function of (index, values, weights) over blocks; one block at a time in memory."""
    first = jax.tree.map(lambda leaf: leaf[0], rows)
    if rows.values.shape[0] == 1:
        return function(first)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first)
    )

    def add(total, block):
        return jax.tree.map(jnp.add, total, function(block)), None

    return jax.lax.scan(add, zeros, rows)[0]


def _products(arrays):
    """Row-wise Kronecker products of (rows, a), (rows, b), …: (rows, a b ⋯)."""
    result = arrays[0]
    for array in arrays[1:]:
        result = (result[:, :, None] * array[:, None, :]).reshape(result.shape[0], -1)
    return result


def _paired(core, ranks):
    """Second moments of the core with the axes (r_1, r_1', r_2, r_2', …)."""
    count = len(ranks)
    axes = [axis for k in range(count) for axis in (k, count + k)]
    return jnp.transpose(core.second.reshape(*ranks, *ranks), axes)


def design(modes, core, target):
    """Moments of what multiplies the functions of mode ``target``.

    Returns
    -------
    function of the positions (one array (rows,) a mode)
        Giving ``E a`` (rows, R) and ``E a aᵀ`` (rows, R, R).

    Notes
    -----
    Contracting the core with one mode is done once a point of the mode, not once a row.
    """
    ranks = [mode.mean.shape[1] for mode in modes]
    rank = ranks[target]
    others = sorted((k for k in range(len(modes)) if k != target), key=lambda k: len(modes[k].mean))
    flat = [mode.second.reshape(len(mode.second), -1) for mode in modes]
    if core is None:
        return _product_of_others(modes, flat, others, target)
    mean_core = jnp.transpose(core.mean.reshape(ranks), (*others, target))
    axes = [axis for k in (*others, target) for axis in (2 * k, 2 * k + 1)]
    second_core = jnp.transpose(_paired(core, ranks), axes)
    if others:
        first = others[0]
        mean_table = modes[first].mean @ mean_core.reshape(ranks[first], -1)
        second_table = flat[first] @ second_core.reshape(ranks[first] ** 2, -1)

    def of_rows(index):
        count = len(index[target])
        if not others:
            mean = jnp.broadcast_to(mean_core, (count, rank))
            return mean, jnp.broadcast_to(second_core, (count, rank, rank))
        mean, second = mean_table[index[others[0]]], second_table[index[others[0]]]
        for k in others[1:]:
            mean = jnp.einsum(
                "na,nax->nx", modes[k].mean[index[k]], mean.reshape(count, ranks[k], -1)
            )
            second = jnp.einsum(
                "na,nax->nx", flat[k][index[k]], second.reshape(count, ranks[k] ** 2, -1)
            )
        return mean, second.reshape(count, rank, rank)

    return of_rows


def _product_of_others(modes, flat, others, target):
    """The design of a CP core."""
    rank = modes[target].mean.shape[1]

    def of_rows(index):
        mean = jnp.ones((len(index[target]), rank), modes[target].mean.dtype)
        second = jnp.ones((len(index[target]), rank * rank), mean.dtype)
        for k in others:
            mean, second = mean * modes[k].mean[index[k]], second * flat[k][index[k]]
        return mean, second.reshape(-1, rank, rank)

    return of_rows


def merged_messages(modes, core, rows, target):
    """Sums over the observations at every point of a mode.

    ``Σ y E a``, ``Σ E a`` and ``Σ E a aᵀ``, where ``a`` multiplies the functions of the mode.
    """
    points, rank = modes[target].mean.shape
    of_rows = design(modes, core, target)

    def block(rows):
        mean, second = of_rows(rows.index)
        packed = jnp.concatenate(
            [
                (rows.weights * rows.values)[:, None] * mean,
                rows.weights[:, None] * mean,
                rows.weights[:, None] * second.reshape(-1, rank * rank),
            ],
            axis=1,
        )
        return jax.ops.segment_sum(packed, rows.index[target], num_segments=points)

    packed = _sum_over_blocks(block, rows)
    return (
        packed[:, :rank],
        packed[:, rank : 2 * rank],
        packed[:, 2 * rank :].reshape(points, rank, rank),
    )


def core_statistics(modes, rows):
    """``Σ y E z``, ``Σ E z`` and ``Σ E z zᵀ``, z the Kronecker product of the functions."""
    ranks = [mode.mean.shape[1] for mode in modes]
    size = math.prod(ranks)

    def block(rows):
        means = [mode.mean[index] for mode, index in zip(modes, rows.index, strict=True)]
        seconds = [
            mode.second.reshape(len(mode.second), -1)[index]
            for mode, index in zip(modes, rows.index, strict=True)
        ]
        weighted = rows.weights[:, None] * seconds[-1]
        left = _products([jnp.ones_like(weighted[:, :1]), *seconds[:-1]])
        products = _products(means)
        shifted = (rows.weights * rows.values) @ products
        return shifted, rows.weights @ products, left.T @ weighted

    shift, plain, paired = _sum_over_blocks(block, rows)
    paired = paired.reshape([rank for rank in ranks for _ in range(2)])
    count = len(ranks)
    axes = [*(2 * k for k in range(count)), *(2 * k + 1 for k in range(count))]
    return shift, plain, jnp.transpose(paired, axes).reshape(size, size)


def product_at(values, core, index):
    """Noiseless values at rows of positions, of known functions and core (none for CP)."""
    rows = [value[at] for value, at in zip(values, index, strict=True)]
    if core is None:
        return jnp.sum(math.prod(rows[1:], start=rows[0]), axis=1)
    return _products(rows) @ core


def fitted(modes, core):
    """Mean and second moment of the noiseless value, as a function of positions as in `design`."""
    target = max(range(len(modes)), key=lambda k: len(modes[k].mean))
    of_rows = design(modes, core, target)

    def values(index):
        mean, second = of_rows(index)
        at = index[target]
        return (
            jnp.sum(mean * modes[target].mean[at], axis=1),
            jnp.sum(second * modes[target].second[at], axis=(1, 2)),
        )

    return values


def divergence(smoothed, shifts, precisions):
    """Kullback–Leibler divergence of a chain given messages from its prior."""
    linear, quadratic = jnp.sum(shifts * smoothed.mean), jnp.sum(precisions * smoothed.second)
    return linear - 0.5 * quadratic - smoothed.log_normaliser


def core_update(shift, information):
    """Factor of a core with independent standard normal entries, and its divergence."""
    size = shift.shape[0]
    eye = jnp.eye(size, dtype=shift.dtype)
    lower = safe.cholesky(information + eye)
    half = safe.solve_triangular(lower, jnp.concatenate([eye, shift[:, None]], axis=1))
    solved = safe.solve_triangular(lower, half, adjoint=True)
    covariance, mean = 0.5 * (solved[:, :-1] + solved[:, :-1].T), solved[:, -1]
    log_determinant = -2.0 * jnp.sum(jnp.log(jnp.diagonal(lower)))
    divergence = 0.5 * (jnp.trace(covariance) + mean @ mean - size - log_determinant)
    return Moments.of(mean, covariance), divergence


def offset_update(shift, information):
    """Factor of an offset with a standard normal prior, and its divergence."""
    variance = 1.0 / (information + 1.0)
    moments = Moments.of(variance * shift, variance)
    return moments, 0.5 * (moments.second - 1.0 - jnp.log(variance))


class NoisePrior(NamedTuple):
    """Inverse-gamma prior of the noise variance; zeros are flat in its logarithm."""

    concentration: Any
    rate: Any


def noise_bound(prior, concentration, rate, count, squares):
    """``E log p(y | …) − KL`` of the noise's factor, given the expected sum of squares."""
    precision = concentration / rate
    log_precision = digamma(concentration) - jnp.log(rate)
    likelihood = 0.5 * count * (log_precision - jnp.log(2 * jnp.pi)) - 0.5 * precision * squares
    proper = prior.concentration > 0
    safe_concentration = jnp.where(proper, prior.concentration, 1.0)
    safe_rate = jnp.where(prior.rate > 0, prior.rate, 1.0)
    log_prior = jnp.where(
        proper, safe_concentration * jnp.log(safe_rate) - gammaln(safe_concentration), 0.0
    )
    log_prior = log_prior + prior.concentration * log_precision - prior.rate * precision
    # Prior and factor as densities of the precision's logarithm: the measure cancels.
    entropy = concentration + gammaln(concentration) - concentration * digamma(concentration)
    return likelihood + log_prior + entropy
