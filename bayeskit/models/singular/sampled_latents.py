"""Latents as chains draw them, given the decoder of an earlier fit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bayeskit.models.singular.earlier import given, given_networks
from bayeskit.models.singular.last_layer import SITE, before, replaced
from bayeskit.models.singular.network_latents import as_data
from bayeskit.models.tables import log_units
from bayeskit.results import AbstractApproximation


class KnownLatents(AbstractApproximation):
    """One draw of a sampler: latents known, given the decoder of an earlier fit.

    Its last layer, where it is known, has its exact distribution given them and the layers before.
    """

    positions: Any
    last_layer: Any

    def moments(self, model, data):
        means, variances = {"latents": self.positions}, {"latents": jnp.zeros_like(self.positions)}
        if self.last_layer is not None:
            means[SITE] = self.last_layer.mean
            variances[SITE] = self.last_layer.variances()
        return as_data(data, means), as_data(data, variances)

    def sample(self, key, model, data):
        if self.last_layer is None:
            return {}
        white = jax.random.normal(key, self.last_layer.mean.shape)
        return as_data(data, {SITE: self.last_layer.drawn(white)})

    def plugged_in(self, model, data):
        return {"latents": self.positions}

    def predict(self, inputs, include_noise, model, data):
        source, view = given(model, data)
        if inputs is not None:
            return self._decoder(source).predict(inputs, include_noise, model, view)
        variance = source.own_noise(view) if include_noise else 0.0
        if self.last_layer is None:
            rows = source.decoded(model, view, self.positions)
        else:
            networks, _ = given_networks(model, data)
            features = before(model, view, networks, self.positions)
            rows = features @ self.last_layer.mean.T.astype(features.dtype)
            variance = variance + self.last_layer.variance_at(features)[:, None]
        return view.center + view.unit * rows, jnp.broadcast_to(view.unit**2 * variance, rows.shape)

    def _decoder(self, source):
        """The earlier fit's, with what this draw knows of the last layer."""
        if self.last_layer is None:
            return source
        networks = replaced(source.networks, self.last_layer.mean)
        return dataclasses.replace(source, networks=networks, last_layer=self.last_layer)

    def log_predictive(self, model, data):
        _, view = given(model, data)
        density = log_given_latents(model, data, self.positions)
        density = density - log_units(view, view.values, view.observed)
        return density, density

    def judged(self, model, data):
        """Norms of the latents."""
        return {"latent_norms": jnp.linalg.norm(self.positions, axis=-1)}

    def log_evidence(self, model, data):
        """Log joint density of rows and latents."""
        prior = -0.5 * jnp.sum(self.positions**2 + jnp.log(2.0 * jnp.pi))
        return prior + jnp.sum(self.log_predictive(model, data)[0])


def log_given_latents(model, data, positions):
    """Log densities (n,) of rows given their latents and an earlier fit's decoder.

    Of standardised rows, in the units of that fit.
    """
    source, view = given(model, data)
    noise = source.noise(model, view)
    residual = view.values - source.decoded(model, view, positions)
    each = -0.5 * (residual**2 / noise + jnp.log(2.0 * jnp.pi * noise))
    return jnp.sum(each if view.observed is None else view.observed * each, axis=1)
