r"""Conjugate updates: responsibilities, posteriors of components given them, bounds, predictions.

Given responsibilities :math:`r_{ik}`, with :math:`n_k = \sum_i r_{ik}` and means
:math:`\bar x_k`, locations and precisions have the posterior

.. math::
    \kappa_k = \kappa_0 + n_k, \quad \nu_k = \nu_0 + n_k, \quad
    m_k = (\kappa_0 m_0 + n_k \bar x_k) / \kappa_k, \quad
    S_k = S_0 + \sum_i r_{ik} (x_i - \bar x_k)(x_i - \bar x_k)^T
        + \frac{\kappa_0 n_k}{\kappa_k} (\bar x_k - m_0)(\bar x_k - m_0)^T

and weights are Dirichlet(:math:`\alpha + n_k`). Expectation maximisation and variational messages
differ only in which Gaussians responsibilities are computed from. C. Bishop, "Pattern recognition
and machine learning", 2006, section 10.2; missing values: Z. Ghahramani and M. Jordan, "Supervised
learning from incomplete data via an EM approach", NIPS 1994.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, logsumexp

from bayeskit.codec import storable
from bayeskit.linalg import safe
from bayeskit.models.gaussian_mixture import blocks as wishart

_LOG_TWO_PI = math.log(2 * math.pi)


@storable
class MixtureComponents(NamedTuple):
    """Posterior of weights, locations and precisions given responsibilities.

    Attributes
    ----------
    concentration : array (K,)
        Of the Dirichlet distribution of the weights; zero for components that were pruned.
    location : array (K, d)
    strength : array (K,)
        Rows that each location rests on.
    freedom : array (groups, blocks)
    scale : array (groups, blocks, p, p)
    """

    concentration: Any
    location: Any
    strength: Any
    freedom: Any
    scale: Any


class Gaussians(NamedTuple):
    """What rows are compared with: logarithms of weights (K,), locations (K, d), covariances.

    Covariances are matrices (groups, d, d), or variances (groups, d).
    """

    log_weights: Any
    location: Any
    covariance: Any


class Statistics(NamedTuple):
    """Sums over rows, weighted by responsibilities; deviations are from ``Gaussians.location``.

    Attributes
    ----------
    evidence : scalar
        Sum over rows of the log of the mixture's density.
    counts : array (K,)
    first : array (K, d)
    second : array (K, d, d), or (K, d) where covariances are diagonal
    """

    evidence: Any
    counts: Any
    first: Any
    second: Any


class Distances(NamedTuple):
    """Of rows from every component, by block of the covariances; last axis: blocks.

    Attributes
    ----------
    squares : array (rows, K, blocks)
        ``y' A⁻¹ y`` over observed features, ``y`` the deviation from the location.
    logdet : array (rows or 1, K, blocks)
        Log-determinant of the observed part of A.
    sizes : array (rows or 1, 1, blocks)
        Number of observed features.
    deviations : array (rows, K, d)
        ``y``, missing entries by their conditional means.
    residual : array (rows, K, d, d) or (rows, K, d), or None
        Conditional covariances of missing entries.
    """

    squares: Any
    logdet: Any
    sizes: Any
    deviations: Any
    residual: Any


def measure(blocks, values, observed, location, covariance):
    """Distances of rows (rows, d), in which ``observed`` is zero where a value is missing."""
    deviations = values[:, None, :] - location
    if blocks.dense:
        return _measure_dense(values, observed, deviations, covariance)
    parts = deviations**2 / covariance
    logdet = jnp.log(covariance)[None]
    sizes = jnp.ones((1, 1, values.shape[1]), values.dtype)
    residual = None
    if observed is not None:
        sizes = observed[:, None, :]
        parts, logdet = parts * sizes, logdet * sizes
        deviations = deviations * sizes
        residual = covariance * (1.0 - sizes)
    if blocks.structure == "spherical":
        parts, logdet, sizes = (
            jnp.sum(each, axis=-1, keepdims=True) for each in (parts, logdet, sizes)
        )
    return Distances(parts, logdet, sizes, deviations, residual)


def _measure_dense(values, observed, deviations, covariance):
    features = values.shape[1]
    if observed is None:
        lower = safe.cholesky(covariance)
        columns = jnp.moveaxis(deviations, 0, -1)
        each = jnp.broadcast_to(lower, (columns.shape[0], *lower.shape[1:]))
        white = safe.solve_triangular(each, columns)
        squares = jnp.sum(white**2, axis=-2).T[..., None]
        logdet = 2 * jnp.sum(jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)), axis=-1)
        sizes = jnp.full((1, 1, 1), features, values.dtype)
        return Distances(squares, logdet[None, :, None], sizes, deviations, None)
    covariance = jnp.broadcast_to(covariance, (deviations.shape[1], *covariance.shape[1:]))
    seen = observed[:, None, :, None]
    # An identity in place of what is missing takes it out of determinants and solutions.
    kept = covariance * seen * jnp.swapaxes(seen, -1, -2)
    lower = safe.cholesky(kept + (1.0 - seen) * jnp.eye(features, dtype=values.dtype))
    deviations = deviations * observed[:, None, :]
    right = jnp.concatenate([seen * covariance, deviations[..., None]], axis=-1)
    solved = safe.solve_triangular(lower, right)
    cross, white = solved[..., :-1], solved[..., -1]
    missing = 1.0 - observed[:, None, :]
    predicted = jnp.einsum("nkij,nki->nkj", cross, white)
    explained = jnp.einsum("nkij,nkil->nkjl", cross, cross)
    residual = (covariance - explained) * missing[..., :, None] * missing[..., None, :]
    logdet = 2 * jnp.sum(jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)), axis=-1)
    return Distances(
        jnp.sum(white**2, axis=-1)[..., None],
        logdet[..., None],
        jnp.sum(observed, axis=-1)[:, None, None],
        deviations + missing * predicted,
        residual,
    )


def log_gaussian(distances):
    """Log densities (rows, K) of the observed features under every Gaussian."""
    each = distances.squares + distances.logdet + distances.sizes * _LOG_TWO_PI
    return -0.5 * jnp.sum(each, axis=-1)


def statistics(blocks, rows, gaussians, hard=False):
    """Sums over all rows, in blocks of rows: the E-step.

    Where it is ``hard``, rows belong wholly to their most probable component.
    """

    def block(total, part):
        found = block_statistics(blocks, part, gaussians, hard)
        return jax.tree.map(jnp.add, total, found), None

    return jax.lax.scan(block, empty_statistics(blocks, rows.values.dtype), rows)[0]


def block_statistics(blocks, rows, gaussians, hard=False):
    """Sums over the rows of one block."""
    distances = measure(blocks, rows.values, rows.observed, *gaussians[1:])
    joint = gaussians.log_weights + log_gaussian(distances)
    evidence = logsumexp(joint, axis=-1)
    if hard:
        share = jax.nn.one_hot(jnp.argmax(joint, axis=-1), joint.shape[-1], dtype=joint.dtype)
    else:
        share = jnp.exp(joint - evidence[:, None])
    share = share * rows.weights[:, None]
    sums = sums_of(blocks, distances, share)
    return Statistics(jnp.sum(evidence * rows.weights), *sums)


def empty_statistics(blocks, dtype):
    """No rows."""
    shape = (blocks.components, blocks.features)
    second = (*shape, blocks.features) if blocks.dense else shape
    return Statistics(
        jnp.zeros((), dtype),
        jnp.zeros(blocks.components, dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros(second, dtype),
    )


def sums_of(blocks, distances, share):
    """Counts, first and second moments of deviations, weighted by ``share`` (rows, K)."""
    weighted = share[..., None] * distances.deviations
    counts, first = jnp.sum(share, axis=0), jnp.sum(weighted, axis=0)
    if blocks.dense:
        second = jnp.einsum("nki,nkj->kij", weighted, distances.deviations)
        if distances.residual is not None:
            second = second + jnp.einsum("nk,nkij->kij", share, distances.residual)
    else:
        second = jnp.sum(weighted * distances.deviations, axis=0)
        if distances.residual is not None:
            second = second + jnp.einsum("nk,nki->ki", share, distances.residual)
    return counts, first, second


def within(statistics):
    """Sums of squares about the components' own means."""
    counts = jnp.maximum(statistics.counts, jnp.finfo(statistics.counts.dtype).tiny)
    outer = squares_of(statistics.first, statistics.second.ndim == 3)
    return statistics.second - outer / _over(counts, outer)


def squares_of(vectors, dense):
    """Squares of vectors (K, d): outer products (K, d, d) where ``dense``."""
    return vectors[:, :, None] * vectors[:, None, :] if dense else vectors**2


def _over(values, like):
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def renew(blocks, prior, concentration, statistics, location, active):
    """Posterior of the components given statistics of deviations from ``location``: the M-step.

    ``active`` (K,) is false for components that were pruned.
    """
    counts = jnp.where(active, statistics.counts, 0.0)
    strength = prior.strength + counts
    floor = jnp.finfo(strength.dtype).tiny
    toward = prior.location - location
    mean = statistics.first / jnp.maximum(counts, floor)[:, None]
    moved = (prior.strength * toward + statistics.first) / jnp.maximum(strength, floor)[:, None]
    share = prior.strength * counts / jnp.maximum(strength, floor)
    spread = squares_of(mean - toward, blocks.dense)
    moments = within(statistics) + _over(share, spread) * spread
    scale = prior.scale + blocks.gather(moments)
    # Of what was pruned a flat prior says nothing: any numbers will do.
    nothing = ~active & (prior.strength == 0)
    if blocks.groups == blocks.components:
        eye = jnp.eye(blocks.size, dtype=scale.dtype)
        scale = jnp.where(nothing[:, None, None, None], eye, scale)
    return MixtureComponents(
        jnp.where(active, concentration + counts, 0.0),
        location + moved,
        jnp.where(nothing, 1.0, strength),
        prior.freedom + blocks.counts(counts),
        scale,
    )


def active_of(components):
    """Which components have not been pruned."""
    return components.concentration > 0


def log_or_never(weights):
    """Logarithms; of zero, one that no sum of exponentials notices."""
    positive = weights > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, weights, 1.0)), -jnp.inf)


def mode_gaussians(blocks, components):
    """Mode of the posterior density of (log-odds of weights, locations, precisions).

    Where a component of few rows has none, the precisions' mean.
    """
    total = jnp.sum(components.concentration)
    divisor = components.freedom - blocks.size - 1 + blocks.locations
    divisor = jnp.where(divisor > 0, divisor, components.freedom)
    return Gaussians(
        log_or_never(components.concentration / total),
        components.location,
        blocks.spread(components.scale / divisor[..., None, None]),
    )


def message_gaussians(blocks, components):
    """Gaussians whose weighted densities are ``exp E log p(x, z)`` under the posterior."""
    scale_logdet = wishart.logdet(components.scale)
    expected = wishart.expected_logdet(components.freedom, scale_logdet, blocks.size)
    plugged = blocks.size * jnp.log(components.freedom) - scale_logdet
    active = active_of(components)
    concentration = jnp.where(active, components.concentration, 1.0)
    log_weights = digamma(concentration) - digamma(jnp.sum(components.concentration))
    shift = 0.5 * blocks.of_components(expected - plugged)
    shift = shift - 0.5 * blocks.features / components.strength
    return Gaussians(
        jnp.where(active, log_weights + shift, -jnp.inf),
        components.location,
        blocks.spread(components.scale / components.freedom[..., None, None]),
    )


def deviations_from_prior(blocks, prior, location):
    """Blocks of squares of locations about the prior's."""
    return blocks.gather(squares_of(location - prior.location, blocks.dense))


def log_prior(blocks, prior, concentration, components, proper):
    """Log density, at its mode, of log-odds of weights, locations and precisions."""
    active = active_of(components)
    count = jnp.sum(active)
    total = jnp.sum(components.concentration)
    logs = jnp.where(active, jnp.log(jnp.where(active, components.concentration, 1.0) / total), 0.0)
    density = concentration * jnp.sum(logs)
    density = density + gammaln(count * concentration) - count * gammaln(concentration)
    if not proper:
        return density
    divisor = components.freedom - blocks.size - 1 + blocks.locations
    covariance = components.scale / divisor[..., None, None]
    squares = deviations_from_prior(blocks, prior, components.location)
    scale = jnp.broadcast_to(prior.scale, covariance.shape)
    exponent = 0.5 * (prior.freedom - blocks.size - 1 + blocks.locations)
    each = -exponent * wishart.logdet(covariance)
    each = each - 0.5 * wishart.trace_of_quotient(scale + prior.strength * squares, covariance)
    each = each - wishart.log_normaliser(prior.freedom, wishart.logdet(scale), blocks.size)
    numbers = blocks.components * blocks.features
    constant = 0.5 * numbers * (jnp.log(prior.strength) - _LOG_TWO_PI)
    return density + jnp.sum(each) + constant


def divergence(blocks, prior, concentration, components):
    """Kullback–Leibler divergence of the posterior of the components from the prior."""
    active = active_of(components)
    count, own = jnp.sum(active), jnp.where(active, components.concentration, 1.0)
    total = jnp.sum(components.concentration)
    logs = jnp.where(active, digamma(own) - digamma(total), 0.0)
    weights = gammaln(total) - jnp.sum(jnp.where(active, gammaln(own), 0.0))
    weights = weights - gammaln(count * concentration) + count * gammaln(concentration)
    weights = weights + jnp.sum(jnp.where(active, own - concentration, 0.0) * logs)

    freedom, scale = components.freedom, components.scale
    own_logdet = wishart.logdet(scale)
    first = jnp.broadcast_to(prior.scale, scale.shape)
    expected = wishart.expected_logdet(freedom, own_logdet, blocks.size)
    squares = deviations_from_prior(blocks, prior, components.location)
    quotient = wishart.trace_of_quotient(first + prior.strength * squares, scale)
    each = 0.5 * freedom * (quotient - blocks.size)
    each = each + 0.5 * (freedom - prior.freedom) * expected
    each = each - wishart.log_normaliser(freedom, own_logdet, blocks.size)
    each = each + wishart.log_normaliser(prior.freedom, wishart.logdet(first), blocks.size)
    ratio = prior.strength / components.strength
    return weights + jnp.sum(each) + 0.5 * blocks.features * jnp.sum(ratio - 1.0 - jnp.log(ratio))


# Predictions of a row that the components have not seen


def log_student(blocks, components, distances, left=None):
    """Log densities (rows, K) of rows under the components' posterior predictive distributions.

    ``distances`` are from the locations, with the posterior's scales in place of covariances.
    ``left`` (rows, K) are shares of the rows themselves that are first taken out of the posterior.
    """
    strength = components.strength[:, None]
    freedom = components.freedom
    freedom = jnp.broadcast_to(freedom, (blocks.components, freedom.shape[1]))
    squares, logdet, sizes = distances.squares, distances.logdet, distances.sizes
    if left is not None:
        left = left[..., None]
        # Of S - a y y', whose determinant and inverse follow from y' S⁻¹ y.
        rest = jnp.maximum(strength - left, jnp.finfo(strength.dtype).eps)
        factor = left * strength / rest
        kept = jnp.maximum(1.0 - factor * squares, jnp.finfo(strength.dtype).eps)
        ranks = sizes if blocks.structure == "spherical" else jnp.minimum(sizes, 1.0)
        logdet = logdet + ranks * jnp.log(kept)
        squares = squares / kept * (strength / rest) ** 2
        freedom = freedom - left * ranks
        strength = rest
    # Marginals of a block keep its degrees of freedom as a Student distribution.
    degrees = jnp.maximum(freedom - blocks.size + 1, jnp.finfo(strength.dtype).eps)
    ratio = strength / (strength + 1)
    each = gammaln(0.5 * (degrees + sizes)) - gammaln(0.5 * degrees)
    each = each + 0.5 * sizes * (jnp.log(ratio) - math.log(math.pi)) - 0.5 * logdet
    each = each - 0.5 * (degrees + sizes) * jnp.log1p(ratio * squares)
    return jnp.sum(each, axis=-1)


def log_mean_weights(components):
    """Logarithms of the weights' posterior means."""
    return log_or_never(components.concentration / jnp.sum(components.concentration))
