"""Decoders of earlier fits, as posteriors of latents."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from bayeskit.models.singular import deep, last_layer
from bayeskit.models.singular.data import (
    LINEAR_SITES,
    NETWORK_SITES,
    decoder_of,
    networks_of,
)
from bayeskit.models.singular.linear import LinearDecoder
from bayeskit.models.singular.linear_latents import GivenDecoder
from bayeskit.models.singular.network_latents import GridLatents, encoded_latents


def given(model, data):
    """The posterior of an earlier fit's decoder, and the data in the units of that fit."""
    if model.is_linear:
        return GivenDecoder(data.given), data
    return in_trained_units(data, *data.given)


def given_networks(model, data):
    """As :func:`given`, the networks themselves."""
    _, view = given(model, data)
    networks, _, _ = data.given
    return networks, view


def in_trained_units(data, networks, center, unit):
    """Networks as a posterior, and the data in the units that they were trained in."""
    moved = (data.unit * data.all_rows + data.center - center) / unit
    view = eqx.tree_at(lambda d: (d.values, d.center, d.unit), data, (moved, center, unit))
    if networks.encoder is None:
        return GridLatents(networks), view
    return encoded_latents(networks), view


def given_sites(model, data):
    """Sites of an earlier fit's decoder, in the user's units."""
    source, view = given(model, data)
    return source.plugged_in(model, view)


def _cast(data, sites, names) -> dict[str, Any]:
    return {name: jnp.asarray(sites[name], data.values.dtype) for name in names if name in sites}


def decoder_at(data, sites) -> LinearDecoder:
    """A linear decoder by site, of standardised data."""
    return decoder_of(_cast(data, sites, LINEAR_SITES), data.center, data.unit)


def with_sites(model, data, sites):
    """The posterior of latents given a decoder by site, and the data in its units."""
    if model.is_linear:
        return GivenDecoder(decoder_at(data, sites)), data
    networks, center, unit = networks_of(_cast(data, sites, NETWORK_SITES))
    if last_layer.SITE in sites:
        networks = last_layer.replaced(networks, sites[last_layer.SITE])
    return in_trained_units(data, networks, center, unit)


def simulated(model, key):
    """Latents (n, q) from their prior, and rows (n, D) of a trained model, perturbation included.

    Raises
    ------
    ValueError
        If images cannot be decoded without their shape.
    """
    if deep.is_convolutional(model.decoder):
        raise ValueError(
            "decoder='convolutional' is for images, whose shape a model without data does not know"
        )
    for_latents, for_noise = jax.random.split(key)
    latents = jax.random.normal(for_latents, (model.num_observations, model.latent_dim))
    sites = {name: jnp.asarray(value, latents.dtype) for name, value in model.estimates.items()}
    if model.is_linear:
        rows = latents @ sites["loadings"].T + sites["offset"]
    else:
        networks, center, unit = networks_of(sites)
        decoder = deep.whole_decoder(model, center.shape, networks)
        rows = center + unit * deep.mapped(decoder, latents)
    noise = jnp.sqrt(sites["noise_variance"]) * jax.random.normal(for_noise, rows.shape)
    return latents, rows + noise


def started(model, data, key, initial) -> deep.NetworkParameters:
    """Start values of networks: random ones, the user's own, or those of an earlier fit."""
    parameters = deep.start(model, data, key)
    if initial is None:
        return parameters
    networks, _, _ = networks_of(_cast(data, initial, NETWORK_SITES))
    return deep.continued(model, data, parameters, networks)
