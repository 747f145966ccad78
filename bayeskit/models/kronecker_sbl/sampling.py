"""Sampling of Kronecker-structured sparse Bayesian learning: measurements, and Markov chains."""

import jax
import jax.numpy as jnp
import numpyro

from bayeskit.linalg.contract import kronecker_multiply
from bayeskit.models import priors
from bayeskit.models.kronecker_sbl import structure
from bayeskit.models.kronecker_sbl.approximation import coefficient_unit, scale_units


def sample_data(model, data, key, sites, inputs):
    """Measurements of given coefficients, with noise."""
    factors, layout = model.factors, model.factors.layout
    matrices = factors.original if inputs is None else inputs.factors
    sizes = layout.rows if inputs is None else inputs.sizes
    coefficients = sites["coefficients"] / coefficient_unit(factors, data)
    if not layout.snapshots:
        coefficients = coefficients[None]
    clean = kronecker_multiply(matrices, layout.group(coefficients, layout.columns))
    noise = data.noise_variance
    if model.learns_noise:
        noise = sites["noise_variance"] / data.unit**2
    noisy = clean + jnp.sqrt(noise) * jax.random.normal(key, clean.shape, clean.dtype)
    return layout.as_given(noisy * data.unit, sizes)


def numpyro_model(model, data):
    """Scales (with coupling, weights) and noise, from priors; coefficients integrated out."""
    scale_unit, noise_unit = _site_units(model, data)
    distribution = priors.distribution_of(model.scale_prior)
    weights = [
        numpyro.sample(f"scales_{g}", distribution.expand([mask.shape[0]]).to_event(1))
        for g, mask in enumerate(model.factors.masks)
    ]
    noise = data.noise_variance
    if model.learns_noise:
        noise = (
            numpyro.sample("noise_variance", priors.distribution_of(model.noise_prior)) / noise_unit
        )
    scales = model.effective([w / unit for w, unit in zip(weights, scale_unit, strict=True)])
    logs = [
        jnp.where(mask > 0, jnp.log(jnp.where(mask > 0, scale, 1.0)), -jnp.inf)
        for scale, mask in zip(scales, model.factors.masks, strict=True)
    ]
    value = structure.log_evidence(
        tuple(logs), jnp.log(noise), model.factors.reduced, data.measurements
    )
    numpyro.factor("log_evidence", value - model.log_unit(data))


def chain_start(model, data, key, initial):
    """Scales of the data's own size, spread by about a factor e, different for each chain."""
    scale_unit, noise_unit = _site_units(model, data)
    dtype = data.unit.dtype
    keys = jax.random.split(key, len(model.factors.masks) + 1)
    weights = model.start_weights(data, key, 0, initial)
    jitter = 1.0 if initial is None else 0.1
    sites = {
        f"scales_{g}": jnp.where(w > 0, w, 1.0)
        * unit
        * jnp.exp(jitter * jax.random.normal(k, w.shape, dtype))
        for g, (w, unit, k) in enumerate(zip(weights, scale_unit, keys[1:], strict=True))
    }
    if model.learns_noise:
        noise = model.start_noise(data, initial) * noise_unit
        sites["noise_variance"] = noise * jnp.exp(jitter * jax.random.normal(keys[0], (), dtype))
    return sites


def conditioned_on(model, data, sites):
    """Scales and noise variance, of the scaled problem, in one draw."""
    scale_unit, noise_unit = _site_units(model, data)
    scales = model.effective([sites[f"scales_{g}"] / unit for g, unit in enumerate(scale_unit)])
    noise = sites["noise_variance"] / noise_unit if model.learns_noise else data.noise_variance
    return scales, noise


def _site_units(model, data):
    """Units of the sites of the NumPyro model over those of the scaled problem."""
    count = len(model.factors.masks)
    relative_scale = isinstance(model.scale_prior, priors.ScaledByData)
    relative_noise = isinstance(model.noise_prior, priors.ScaledByData)
    ones = jnp.ones(count, data.unit.dtype)
    scales = ones if relative_scale else scale_units(model.factors, data).astype(data.unit.dtype)
    return scales, jnp.ones_like(data.unit) if relative_noise else data.unit**2
