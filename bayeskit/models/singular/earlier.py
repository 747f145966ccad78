"""Decoders of earlier fits, as posteriors of latents."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from bayeskit.models.singular import deep
from bayeskit.models.singular.data import decoder_of, networks_of, sites_of
from bayeskit.models.singular.linear_latents import GivenDecoder
from bayeskit.models.singular.network_latents import GridLatents, encoded_latents


def given(model, data):
    """The posterior of an earlier fit's decoder, and the data in the units of that fit."""
    if model.is_linear:
        return GivenDecoder(data.given), data
    return in_trained_units(data, *data.given)


def in_trained_units(data, networks, center, unit):
    """Networks as a posterior, and the data in the units that they were trained in."""
    moved = (data.unit * data.values + data.center - center) / unit
    view = eqx.tree_at(lambda d: (d.values, d.center, d.unit), data, (moved, center, unit))
    if networks.encoder is None:
        return GridLatents(networks), view
    return encoded_latents(networks), view


def given_sites(model, data):
    """Sites of an earlier fit's decoder, in the user's units."""
    source, view = given(model, data)
    return source.plugged_in(model, view)


def with_sites(model, data, sites):
    """The posterior of latents given a decoder by site, and the data in its units."""
    found: dict[str, Any] = {
        name: jnp.asarray(sites[name], data.values.dtype)
        for name in sites_of(model)
        if name in sites
    }
    if model.is_linear:
        return GivenDecoder(decoder_of(found, data.center, data.unit)), data
    return in_trained_units(data, *networks_of(found))


def started(model, data, key, initial) -> deep.NetworkParameters:
    """Start values of networks: random ones, the user's own, or those of an earlier fit."""
    parameters = deep.start(model, data, key)
    if initial is None:
        return parameters
    source, _ = with_sites(model, data, initial)
    return deep.continued(model, data, parameters, source.networks)
