r"""Networks by expectation maximisation over a grid of latents, in one or two dimensions.

.. math:: p(x) = \frac{1}{M} \sum_m N(x; f(z_m), \sigma^2 I_D)

with nodes :math:`z_m` at the means of M cells that standard normal latents are in with equal
probability; within a cell, latents keep their prior. Given responsibilities :math:`r_{im}`, the
decoder is a weighted least-squares problem at the nodes alone,

.. math:: \min_f \sum_m w_m |f(z_m)|^2 - 2 f(z_m) \cdot \sum_i r_{im} x_i, \quad
          w_m = \sum_i r_{im}

of which some steps of L-BFGS are made, and taken back where they do not lessen it: the likelihood
never falls. C. Bishop, M. Svensén and C. Williams, "GTM: the generative topographic mapping",
Neural Computation, 1998, whose decoder is linear in its parameters.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import logsumexp, ndtri
from jax.scipy.stats import norm

from bayeskit.models.singular import deep

NODES = {1: 256, 2: 20}  # along every axis, by the number of axes
_INSIDE = 8  # latents along every axis of a cell, for moments of what they are decoded to
_STEPS = 5  # of L-BFGS


class GridParameters(NamedTuple):
    """Arrays of the decoder, and σ² with the perturbation."""

    decoder: Any
    noise_variance: Any


def cells(latent_dim, dtype):
    """Means and variances (M, q) of standard normal latents in cells of equal probability."""
    count = NODES[latent_dim]
    edges = ndtri(jnp.arange(1, count, dtype=dtype) / count)
    density = jnp.pad(norm.pdf(edges), 1)
    mean = -count * jnp.diff(density)
    variance = 1.0 - count * jnp.diff(jnp.pad(edges, 1) * density) - mean**2
    return tuple(
        jnp.stack(jnp.meshgrid(*[axis] * latent_dim, indexing="ij"), -1).reshape(-1, latent_dim)
        for axis in (mean, variance)
    )


def nodes(latent_dim, dtype):
    """Latents (M, q)."""
    return cells(latent_dim, dtype)[0]


def within_cells(latent_dim, dtype):
    """Latents (M, *, q) that spread over every cell with equal probabilities."""
    count, inside = NODES[latent_dim], _INSIDE
    axis = ndtri((jnp.arange(count * inside, dtype=dtype) + 0.5) / (count * inside))
    points = jnp.stack(jnp.meshgrid(*[axis] * latent_dim, indexing="ij"), -1)
    points = points.reshape(*(count, inside) * latent_dim, latent_dim)
    axes = (*range(0, 2 * latent_dim, 2), *range(1, 2 * latent_dim, 2), 2 * latent_dim)
    return jnp.transpose(points, axes).reshape(count**latent_dim, -1, latent_dim)


def drawn(key, chosen, latent_dim, dtype):
    """Latents (n, q) from their prior in the cells that are chosen (n,)."""
    count = NODES[latent_dim]
    places = jnp.stack(jnp.unravel_index(chosen, (count,) * latent_dim), axis=-1)
    # Probabilities of zero or one would be infinite latents.
    edge = count * jnp.finfo(dtype).eps
    within = jax.random.uniform(key, places.shape, dtype, edge, 1.0 - edge)
    return ndtri((places + within) / count)


def clipped(latents):
    """Latents (*, q), those beyond the outermost nodes at these: decoders are not fitted there."""
    last = jnp.max(nodes(latents.shape[-1], latents.dtype))
    return jnp.clip(latents, -last, last)


def start(model, data, key, networks) -> GridParameters:
    """Random weights, the module that was given, or an earlier fit's networks."""
    parameters = deep.start(model, data, key)
    if networks is not None:
        parameters = deep.continued(model, data, parameters, networks)
    variance = deep.noise_variance_of(data, parameters, data.perturbation)
    return GridParameters(parameters.decoder, variance)


def log_joint(decoded, noise_variance, values):
    """Log joint densities (n, M) of rows (n, D) and nodes decoded as rows (M, D)."""
    squares = jnp.sum(values**2, axis=1)[:, None] - 2.0 * values @ decoded.T
    distance = jnp.maximum(squares + jnp.sum(decoded**2, axis=1), 0.0)
    constant = values.shape[1] * jnp.log(2.0 * jnp.pi * noise_variance)
    return -0.5 * (distance / noise_variance + constant) - jnp.log(float(decoded.shape[0]))


def log_likelihood(model, data, parameters, values):
    """Log densities (n,) of rows (n, D)."""
    return logsumexp(log_joint(*determined(model, data, parameters), values), axis=1)


def determined(model, data, parameters):
    """What data determine: nodes decoded (M, D), and σ²."""
    latents = nodes(model.latent_dim, data.values.dtype)
    return deep.decode(model, data, parameters.decoder, latents), parameters.noise_variance


def step(model, data, parameters, values):
    """New parameters, and the log likelihood of the old ones; O(n M D) and a pass of M rows."""
    latents = nodes(model.latent_dim, values.dtype)
    decoded = deep.decode(model, data, parameters.decoder, latents)
    joint = log_joint(decoded, parameters.noise_variance, values)
    share = jax.nn.softmax(joint, axis=1)
    weights, sums, squares = jnp.sum(share, axis=0), share.T @ values, jnp.sum(values**2)

    def misfit(decoder):
        found = deep.decode(model, data, decoder, latents)
        fitted = jnp.sum(weights[:, None] * found**2 - 2.0 * found * sums)
        return (squares + fitted) / values.size

    decoder = _lessened(misfit, parameters.decoder)
    noise = deep.noise_variance_from(data, misfit(decoder))
    return GridParameters(decoder, noise), jnp.sum(logsumexp(joint, axis=1))


def _lessened(function, start):
    """Parameters where a function is no larger than at the start, by steps of L-BFGS."""
    optimizer = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(function)

    def step(carry, _):
        parameters, state = carry
        value, gradient = value_and_gradient(parameters, state=state)
        updates, state = optimizer.update(
            gradient, state, parameters, value=value, grad=gradient, value_fn=function
        )
        return (optax.apply_updates(parameters, updates), state), None

    (found, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=_STEPS)
    return optax.tree.where(function(found) <= function(start), found, start)
