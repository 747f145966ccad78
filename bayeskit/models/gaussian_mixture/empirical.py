r"""The prior that the data choose: location, scale and strength by evidence.

Given responsibilities, the evidence of the rows under a prior is a product of ratios of Wishart
normalisers, in closed form. Sweeps of variational messages alternate with the choice of the prior.
Two of its numbers maximise the bound,

- the prior location, the mean of the components' means;
- its strength, in closed form, at most one row: it says how far components lie apart;

three are means over a grid, weighted by the evidence (the largest evidence alone would be too sure
of them where few components say what they are, and labels too sure with it):

- the shape of the prior covariance, from the pooled covariance within components to its diagonal;
- its size;
- its degrees of freedom, as many rows more than the least for which the prior covariance has a
  mean: how much alike the components' covariances are. What the prior knows comes from the other
  components, so it is never worth more rows than those have: one component alone gets one. How
  much components deviate is uniform before the data, as A. Gelman, "Prior distributions for
  variance parameters in hierarchical models", Bayesian Analysis 2006, has deviations of groups.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.linalg import safe
from bayeskit.models.gaussian_mixture import blocks as wishart
from bayeskit.models.gaussian_mixture import conjugate, starts
from bayeskit.models.gaussian_mixture.prior import BlockPrior

_SHRINKAGE = (0.0, 0.1, 0.3, 0.6, 1.0)
_SIZES = (0.35, 0.6, 1.0, 1.6)
_STRENGTHS = 8
_FLOOR = 1e-6  # of pooled variances: covariances of columns that repeat others have inverses
_ROUNDING = 16.0  # units of it, of the features' spread: columns that are constant have a variance


@eqx.filter_jit
def empirical_prior(blocks, table, concentration):
    """The prior with the best bound after sweeps from several starts, and components under it."""
    count = min(table.count, starts.ROWS)

    def renewed(guess, statistics, location, anew):
        prior = jax.lax.cond(
            anew,
            lambda: chosen(
                blocks, statistics, location, moved(blocks, guess.components), count, table.spread
            ),
            lambda: guess.prior,
        )
        active = jnp.ones(blocks.components, bool)
        parts = (prior, concentration, statistics, location, active)
        return starts.Guess(prior, conjugate.renew(blocks, *parts))

    proper = dataclasses.replace(table, proper=True)
    return starts.tournament(blocks, proper, concentration, jax.random.key(0), renewed)


def moved(blocks, components):
    """Location of the prior, and its strength, that maximise the bound given the components."""
    location = jnp.mean(components.location, axis=0)
    covariance = blocks.spread(components.scale / components.freedom[..., None, None])
    distances = conjugate.measure(blocks, location[None], None, components.location, covariance)
    uncertain = blocks.features * jnp.sum(1.0 / components.strength)
    numbers = blocks.components * blocks.features
    strength = numbers / (jnp.sum(distances.squares) + uncertain)
    return location, jnp.minimum(strength, 1.0).astype(location.dtype)


def chosen(blocks, statistics, location, earlier, count, spread):
    """The prior of covariances by their evidence given responsibilities, on a grid."""
    prior_location, strength = earlier
    dtype = location.dtype
    pooled = jnp.sum(conjugate.within(statistics), axis=0) / jnp.sum(statistics.counts)
    # Not of the spread alone: clusters may lie a million of their deviations apart.
    inside = jnp.maximum(jnp.diagonal(pooled) if blocks.dense else pooled, 0.0)
    floor = _FLOOR * inside + _ROUNDING * jnp.finfo(dtype).eps * spread
    nothing = jnp.zeros((1, 1, blocks.size, blocks.size), dtype)
    flat = BlockPrior(prior_location, strength, jnp.zeros((), dtype), nothing)
    active = jnp.ones(blocks.components, bool)
    own = conjugate.renew(blocks, flat, 1.0, statistics, location, active)

    most = max(1.0, blocks.repeats * count * (1.0 - 1.0 / blocks.groups))
    extra = jnp.asarray(np.geomspace(1.0, most, _STRENGTHS), dtype)[:, None, None, None]
    sizes = jnp.asarray(_SIZES, dtype)[:, None, None]
    freedom = blocks.size + 1 + extra
    factor = extra * sizes

    def score(share):
        target = _target(blocks, pooled, share, floor)
        values, target_logdet = _relative(own.scale, target)
        logdet = jnp.sum(jnp.log(factor[..., None] + values), axis=-1) + target_logdet
        first = blocks.size * jnp.log(factor) + target_logdet
        gain = wishart.log_normaliser(freedom + own.freedom, logdet, blocks.size)
        gain = gain - wishart.log_normaliser(freedom, first, blocks.size)
        return jnp.sum(gain, axis=(-2, -1))

    shares = jnp.asarray(_SHRINKAGE if blocks.dense else (0.0,), dtype)
    scores = jax.lax.map(score, shares)
    # An even chance of all deviations of a component's covariance from the prior's, 1 / √extra, on
    # a grid that is even in its logarithm.
    scores = scores - 0.5 * jnp.log(extra[:, :, 0, 0])
    weights = jax.nn.softmax(scores.ravel()).reshape(scores.shape)
    share = jnp.sum(weights * shares[:, None, None])
    rows = jnp.exp(jnp.sum(weights * jnp.log(extra[:, :, 0, 0])))
    size = jnp.exp(jnp.sum(weights * jnp.log(sizes[:, 0, 0])))
    scale = rows * size * _target(blocks, pooled, share, floor)
    return BlockPrior(prior_location, strength, blocks.size + 1 + rows, scale)


def _target(blocks, pooled, share, floor):
    """Prior covariance in blocks, that of the whole mixture's for each component."""
    if blocks.dense:
        diagonal = jnp.diag(jnp.diagonal(pooled))
        floored = (1.0 - share) * pooled + share * diagonal + jnp.diag(floor)
        return floored[None, None].astype(pooled.dtype)
    if blocks.structure == "spherical":
        pooled, floor = (jnp.mean(each, keepdims=True) for each in (pooled, floor))
    return (pooled + floor)[None, :, None, None]


def _relative(matrices, target):
    """Eigenvalues of blocks (…, p, p) relative to a target, and its log-determinant."""
    if target.shape[-1] == 1:
        return (matrices / target)[..., 0], wishart.logdet(target)
    lower = jnp.broadcast_to(safe.cholesky(target), matrices.shape)
    half = safe.solve_triangular(lower, matrices)
    white = safe.solve_triangular(lower, jnp.swapaxes(half, -1, -2))
    values = safe.eigvalsh(0.5 * (white + jnp.swapaxes(white, -1, -2)))
    return jnp.maximum(values, 0.0), wishart.logdet(target)
