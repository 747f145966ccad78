r"""Expectation maximisation of networks with any number of latents, by weighted draws of them.

.. math:: L(f, \sigma, g) = \sum_i \log \frac{1}{K} \sum_k
          \frac{N(x_i; f(z_{ik}), \sigma^2 I_D)\, N(z_{ik}; 0, I_q)}{q_g(z_{ik} \mid x_i)}

with latents :math:`z_{ik}` from the encoder :math:`g` and white numbers that are the same in every
step. That makes :math:`L` a fixed function, the sample average of the importance-weighted bound,
and of the decoder the log likelihood of a mixture of K known nodes a row: with their
self-normalised weights as responsibilities, and some steps of L-BFGS on a weighted least-squares
problem, it never falls. So do steps of the encoder on :math:`L` itself. In expectation over the
numbers :math:`L` is below the log likelihood; at its maximum over networks that know the numbers
it may be above. D. Kim, J. Hwang and Y. Kim, "On casting importance weighted autoencoder to an EM
algorithm to learn deep generative models", AISTATS, 2020, with new numbers in every step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from bayeskit.models.base import key_of_lane, relative_change
from bayeskit.models.singular import deep, last_layer
from bayeskit.models.singular.decoding import Doubts
from bayeskit.models.singular.earlier import started
from bayeskit.models.singular.network_latents import encoded_latents

M_STEP = "generalized"
_PARTICLES = 20
_PROBES = 256  # latents whose rows say how far a decoder has moved
_OWN, _OTHER, _PROBED = range(3)  # seeds of random numbers


class SampledParameters(NamedTuple):
    """Arrays of both networks, σ² with the perturbation, and the rows (n, D), perturbed once."""

    decoder: Any
    encoder: Any
    noise_variance: Any
    rows: Any


def check(model, method):
    """Raise where the likelihood is no fixed function."""
    deep.check_fixed(model)


def start(model, data, key, lane, initial) -> SampledParameters:
    """Random weights, the modules that were given, or an earlier fit's networks."""
    found = started(model, data, key_of_lane(key, lane), initial)
    variance = deep.noise_variance_of(data, found, data.perturbation)
    return SampledParameters(
        found.decoder, found.encoder, variance, deep.perturbed_once(model, data)
    )


def _drawn(model, data, encoder, rows, seed=_OWN):
    return deep.proposed(model, data, encoder, rows, jax.random.key(seed), _PARTICLES)


def _likelihood(model, data, parameters, latents):
    """Log densities (K, n) of rows given latents (K, n, q)."""
    decoded = deep.decode(model, data, parameters.decoder, latents)
    return deep.log_normal(parameters.rows, decoded, parameters.noise_variance)


def _bounds(model, data, parameters, seed=_OWN):
    """What every row (n,) adds to the objective."""
    latents, ratios = _drawn(model, data, parameters.encoder, parameters.rows, seed)
    return _averaged(ratios + _likelihood(model, data, parameters, latents))


def _averaged(weights):
    return logsumexp(weights, axis=0) - jnp.log(float(_PARTICLES))


def _total(data, parameters, bounds):
    prior = deep.log_noise_prior(data, parameters.noise_variance)
    return jnp.sum(bounds) - data.log_unit + prior


def step(model, data, parameters):
    """New parameters, and the objective of the old ones; some passes of n K rows."""
    rows = parameters.rows
    latents, ratios = _drawn(model, data, parameters.encoder, rows)
    weights = ratios + _likelihood(model, data, parameters, latents)
    share = jax.nn.softmax(weights, axis=0)

    def misfit(decoder):
        found = deep.decode(model, data, decoder, latents)
        return jnp.sum(share * jnp.sum((rows - found) ** 2, axis=-1)) / rows.size

    decoder = deep.lessened(misfit, parameters.decoder)
    noise = deep.noise_variance_from(data, misfit(decoder))
    moved = parameters._replace(decoder=decoder, noise_variance=noise)

    def lost(encoder):
        return -jnp.mean(_bounds(model, data, moved._replace(encoder=encoder)))

    encoder = deep.lessened(lost, parameters.encoder)
    return moved._replace(encoder=encoder), _total(data, parameters, _averaged(weights))


def change(model, data, new, old):
    """Of what some latents are decoded to, and of the noise variance."""
    shape = (_PROBES, model.latent_dim)
    probes = jax.random.normal(jax.random.key(_PROBED), shape, data.values.dtype)
    return relative_change(
        *((deep.decode(model, data, p.decoder, probes), p.noise_variance) for p in (new, old))
    )


def objective(model, data, parameters):
    """The bound of the perturbed rows at the numbers of all steps, and the noise's prior."""
    return _total(data, parameters, _bounds(model, data, parameters))


def finish(model, data, parameters):
    """Latents by the encoder, no evidence, and what other numbers think of the networks."""
    networks = deep.trained(
        parameters.decoder, parameters.encoder, parameters.noise_variance, data.perturbation
    )
    own, other = (jnp.mean(_bounds(model, data, parameters, seed)) for seed in (_OWN, _OTHER))
    layer = last_layer.by_encoder(model, data, networks)
    return (
        encoded_latents(networks, layer),
        None,
        Doubts(deep.is_shrunken(data, networks), own - other),
    )
