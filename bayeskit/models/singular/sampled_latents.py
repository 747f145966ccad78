"""Latents as chains draw them, given the decoder of an earlier fit."""

from typing import Any

import jax.numpy as jnp

from bayeskit.models.singular.earlier import given
from bayeskit.models.tables import log_units
from bayeskit.results import AbstractApproximation


class KnownLatents(AbstractApproximation):
    """One draw of a sampler: latents known, given the decoder of an earlier fit."""

    positions: Any

    def moments(self, model, data):
        return {"latents": self.positions}, {"latents": jnp.zeros_like(self.positions)}

    def sample(self, key, model, data):
        return {}

    def plugged_in(self, model, data):
        return {"latents": self.positions}

    def predict(self, inputs, include_noise, model, data):
        source, view = given(model, data)
        if inputs is not None:
            return source.predict(inputs, include_noise, model, view)
        rows = source.decoded(model, view, self.positions)
        noise = source.own_noise(view) if include_noise else 0.0
        return view.center + view.unit * rows, jnp.broadcast_to(view.unit**2 * noise, rows.shape)

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
