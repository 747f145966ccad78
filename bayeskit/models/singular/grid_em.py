r"""Expectation maximisation of networks with one or two latents: sums over a grid of them.

Given responsibilities :math:`r_{im}` of the nodes of :mod:`~bayeskit.models.singular.grid`, the
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
from jax.scipy.special import logsumexp

from bayeskit.models.base import key_of_lane, relative_change
from bayeskit.models.singular import deep, grid, last_layer
from bayeskit.models.singular.decoding import Doubts
from bayeskit.models.singular.earlier import started
from bayeskit.models.singular.network_latents import GridLatents

M_STEP = "generalized"


class GridParameters(NamedTuple):
    """Arrays of the decoder, σ² with the perturbation, and the rows (n, D), perturbed once."""

    decoder: Any
    noise_variance: Any
    rows: Any


def check(model, method):
    """Raise where the likelihood is no fixed function."""
    deep.check_fixed(model)


def start(model, data, key, lane, initial) -> GridParameters:
    """Random weights, the module that was given, or an earlier fit's networks."""
    found = started(model, data, key_of_lane(key, lane), initial)
    variance = deep.noise_variance_of(data, found, data.perturbation)
    return GridParameters(found.decoder, variance, deep.perturbed_once(model, data))


def _decoded(model, data, decoder):
    return deep.decode(model, data, decoder, grid.nodes(model.latent_dim, data.values.dtype))


def _log_joint(model, data, parameters):
    decoded = _decoded(model, data, parameters.decoder)
    return grid.log_joint(decoded, parameters.noise_variance, parameters.rows)


def _total(data, parameters, joint):
    rows = jnp.sum(logsumexp(joint, axis=1)) - data.log_unit
    return rows + deep.log_noise_prior(data, parameters.noise_variance)


def step(model, data, parameters):
    """New parameters, and the objective of the old ones; O(n M D) and a pass of M rows."""
    rows = parameters.rows
    joint = _log_joint(model, data, parameters)
    share = jax.nn.softmax(joint, axis=1)
    weights, sums, squares = jnp.sum(share, axis=0), share.T @ rows, jnp.sum(rows**2)

    def misfit(decoder):
        found = _decoded(model, data, decoder)
        fitted = jnp.sum(weights[:, None] * found**2 - 2.0 * found * sums)
        return (squares + fitted) / rows.size

    decoder = deep.lessened(misfit, parameters.decoder)
    noise = deep.noise_variance_from(data, misfit(decoder))
    return GridParameters(decoder, noise, rows), _total(data, parameters, joint)


def change(model, data, new, old):
    """Of what nodes are decoded to, and of the noise variance."""
    return relative_change(
        *((_decoded(model, data, each.decoder), each.noise_variance) for each in (new, old))
    )


def objective(model, data, parameters):
    """Log likelihood of the perturbed rows, and the log prior density of the noise."""
    return _total(data, parameters, _log_joint(model, data, parameters))


def finish(model, data, parameters):
    """Latents on the grid, the log likelihood, and whether the noise is at its smallest."""
    networks = deep.trained(parameters.decoder, None, parameters.noise_variance, data.perturbation)
    joint = _log_joint(model, data, parameters)
    layer = None
    if last_layer.is_known(model):
        nodes = grid.nodes(model.latent_dim, joint.dtype)
        features = last_layer.before(model, data, networks, nodes)
        gram = last_layer.gram_of(features, jnp.sum(jax.nn.softmax(joint, axis=1), axis=0))
        layer = last_layer.around_trained(model, data, networks, gram)
    return (
        GridLatents(networks, layer),
        _total(data, parameters, joint),
        Doubts(deep.is_shrunken(data, networks)),
    )
