"""Expectation maximisation of linear decoders: every step exact, from the closed form."""

import jax
import jax.numpy as jnp

from bayeskit.models.base import first_or, relative_change
from bayeskit.models.singular import linear
from bayeskit.models.singular.arguments import described
from bayeskit.models.singular.decoding import Doubts
from bayeskit.models.singular.earlier import decoder_at
from bayeskit.models.singular.linear_latents import GivenDecoder

M_STEP = "exact"
_SINGULAR = 100.0  # times the rounding of the data: no noise


def check(model, method):
    """Raise where there is no closed form."""
    name = type(method).__name__
    if not model.is_linear:
        raise ValueError(
            f"{name} on SingularDistribution needs decoder='linear', got "
            f"{described(model.decoder)}; networks are trained by VariationalInference()"
        )
    if isinstance(model.perturbation, tuple):
        raise ValueError(
            f"perturbation has {len(model.perturbation)} levels, which give the same linear "
            "decoder: state one"
        )
    if not model.fresh:
        raise ValueError(
            f"{name} on SingularDistribution has expectations over fresh noise in closed form; "
            "fresh=False is for VariationalInference()"
        )


def start(model, data, key, lane, initial) -> linear.LinearDecoder:
    """An earlier decoder, the closed form, or for further lanes random loadings."""

    def first():
        if initial is not None:
            return decoder_at(data, initial)
        return linear.maximum_likelihood(data, model.latent_dim)

    def other():
        features, dtype = data.center.shape[0], data.values.dtype
        shape = (features, model.latent_dim)
        noise = linear.fixed_or(data, jnp.ones((), dtype))
        return linear.LinearDecoder(
            jax.random.normal(key, shape, dtype), jnp.zeros(features, dtype), noise
        )

    return first_or(lane, first, other)


def step(model, data, decoder):
    """Moments of latents, and the decoder given them; the objective of the old one."""
    affine = linear.known(decoder)
    latents = linear.latents_given(affine, data.values, data.observed)
    found = linear.moments(affine, latents, data.values, data.observed, data.perturbation)
    return linear.renewed(data, found), _objective(data, affine, latents)


def change(model, data, new, old):
    """Of loadings, offset and noise variance."""
    # Offsets are about zero, where the unit of the data is what they are relative to.
    return relative_change(
        *((d.loadings, jnp.append(d.offset, 1.0), d.noise_variance) for d in (new, old))
    )


def objective(model, data, decoder):
    """Log likelihood plus log prior density of the noise, expected over fresh noise."""
    affine = linear.known(decoder)
    return _objective(data, affine, linear.latents_given(affine, data.values, data.observed))


def _objective(data, affine, latents):
    rows = linear.log_densities(affine, latents, data.values, data.observed, data.perturbation)
    prior = data.log_noise_prior(affine.log_precision, affine.precision)
    return jnp.sum(rows) - data.log_unit + prior


def finish(model, data, decoder):
    """Exact latents along principal axes, the objective, and whether there is no noise."""
    rotation = linear.principal_axes(decoder.loadings)
    found = decoder._replace(loadings=decoder.loadings @ rotation)
    return GivenDecoder(found), objective(model, data, found), Doubts(is_singular(data, found))


def is_singular(data, decoder):
    """Whether the noise is a rounding error."""
    smallest = _SINGULAR * linear.smallest_variance(data.values)
    return decoder.noise_variance < smallest
