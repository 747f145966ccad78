"""Posteriors under linear decoders: exact latents, or factors of everything."""

import abc

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from bayeskit.linalg import safe
from bayeskit.models.priors import inverse_gamma_moments
from bayeskit.models.singular import linear, messages
from bayeskit.models.singular.decoding import PARTICLES, ROW_BLOCK, Decoding
from bayeskit.models.tables import log_units
from bayeskit.results import map_in_blocks

_INFLATION = 1.5  # of the variance of latents that densities are averaged over


def in_units(decoder, data):
    """Sites of a decoder in the user's units."""
    return {
        "loadings": data.unit * decoder.loadings,
        "offset": data.center + data.unit * decoder.offset,
        "noise_variance": data.unit**2 * decoder.noise_variance,
    }


def own_noise(noise_variance, data):
    """Noise variance of the data themselves: without the perturbation."""
    return jnp.maximum(noise_variance - data.perturbation**2, 0.0)


class _Linear(Decoding):
    """What all distributions of a linear decoder have in common."""

    @abc.abstractmethod
    def affine(self, model, data) -> linear.Affine:
        """The decoder as latents see it, of standardised data."""

    @abc.abstractmethod
    def decoder(self, key, model, data) -> linear.LinearDecoder:
        """One draw of the decoder."""

    def latents(self, model, data, rows=None):
        """Posteriors of the latents of standardised rows; the data's where there are none."""
        values, observed = (data.values, data.observed) if rows is None else rows
        return linear.latents_given(self.affine(model, data), values, observed)

    def drawn_latents(self, key, latents):
        """One draw of the latents (n, q)."""
        noise = jax.random.normal(key, latents.mean.shape, latents.mean.dtype)
        return latents.mean + linear.apply(safe.cholesky(latents.covariance), noise)

    def level(self, data):
        return data.perturbation

    def encoded(self, model, data, rows):
        latents = self.latents(model, data, rows)
        variance = jnp.diagonal(latents.covariance, axis1=-2, axis2=-1)
        return latents.mean, jnp.broadcast_to(variance, latents.mean.shape)

    def generated(self, key, model, data, observation_noise):
        for_decoder, for_latent, for_noise = jax.random.split(key, 3)
        decoder = self.decoder(for_decoder, model, data)
        dtype = decoder.offset.dtype
        latent = jax.random.normal(for_latent, decoder.loadings.shape[1:], dtype)
        row = decoder.loadings @ latent + decoder.offset
        if observation_noise:
            scale = jnp.sqrt(own_noise(decoder.noise_variance, data))
            row = row + scale * jax.random.normal(for_noise, row.shape, dtype)
        return row

    def predict(self, inputs, include_noise, model, data):
        rows = None if inputs is None else inputs.standardised(data)
        affine, latents = self.affine(model, data), self.latents(model, data, rows)
        points = linear.continued(latents.mean)
        loadings = affine.mean[:, :-1]
        variance = jnp.einsum("di,nij,dj->nd", loadings, latents.covariance, loadings)
        if affine.covariance is not None:
            second = points[:, :, None] * points[:, None, :]
            second = second.at[:, :-1, :-1].add(latents.covariance)
            variance = variance + jnp.einsum("dij,nij->nd", affine.covariance, second)
        shape = points.shape[:1] + loadings.shape[:1]
        variance = jnp.broadcast_to(variance, shape)
        if include_noise:
            variance = variance + own_noise(self.noise(model, data), data)
        return data.center + data.unit * points @ affine.mean.T, data.unit**2 * variance


class GivenDecoder(_Linear):
    """Exact Gaussian latents given an estimated decoder."""

    estimate: linear.LinearDecoder

    def affine(self, model, data):
        return linear.known(self.estimate)

    def noise(self, model, data):
        return self.estimate.noise_variance

    def decoder(self, key, model, data):
        return self.estimate

    def drawn(self, key, model, data, rows):
        """One draw of the latents of standardised rows."""
        return self.drawn_latents(key, self.latents(model, data, rows))

    def own_noise(self, data):
        """Noise variance of the data themselves, of standardised data."""
        return own_noise(self.estimate.noise_variance, data)

    def decoded(self, model, data, latents):
        """Standardised rows (n, D) of latents (n, q)."""
        return latents @ self.estimate.loadings.T + self.estimate.offset

    def moments(self, model, data):
        latents = self.latents(model, data)
        variance = jnp.diagonal(latents.covariance, axis1=-2, axis2=-1)
        sites = self.plugged_in(model, data)
        return (
            {"latents": latents.mean, **sites},
            {
                "latents": jnp.broadcast_to(variance, latents.mean.shape),
                **jax.tree.map(jnp.zeros_like, sites),
            },
        )

    def sample(self, key, model, data):
        return {"latents": self.drawn_latents(key, self.latents(model, data))}

    def plugged_in(self, model, data):
        return in_units(self.estimate, data)

    def row_densities(self, model, data, values, observed, particles):
        affine = linear.known(self.estimate)
        latents = linear.latents_given(affine, values, observed)
        return linear.log_densities(affine, latents, values, observed), None


class DecoderMeanField(_Linear):
    """Independent Gaussian latents and rows of the decoder, inverse-gamma noise."""

    factors: messages.DecoderMessages

    def affine(self, model, data):
        return messages.affine(data, self.factors)

    def _noise_moments(self, data):
        factors = self.factors
        if not data.noise_learned:
            return factors.noise_rate, jnp.zeros_like(factors.noise_rate)
        return inverse_gamma_moments(factors.noise_concentration, factors.noise_rate)

    def noise(self, model, data):
        return self._noise_moments(data)[0]

    def decoder(self, key, model, data):
        factors = self.factors
        for_weights, for_noise = jax.random.split(key)
        covariance, _ = linear.inverse(factors.precision)
        white = jax.random.normal(for_weights, factors.mean.shape, factors.mean.dtype)
        weights = factors.mean + linear.apply(safe.cholesky(covariance), white)
        noise = factors.noise_rate
        if data.noise_learned:
            noise = noise / jax.random.gamma(
                for_noise, factors.noise_concentration, dtype=noise.dtype
            )
        return linear.LinearDecoder(weights[:, :-1], weights[:, -1], noise)

    def moments(self, model, data):
        factors, latents = self.factors, self.latents(model, data)
        covariance, _ = linear.inverse(factors.precision)
        weights = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        weights = data.unit**2 * jnp.broadcast_to(weights, factors.mean.shape)
        of_latents = jnp.diagonal(latents.covariance, axis1=-2, axis2=-1)
        noise, of_noise = self._noise_moments(data)
        center = linear.LinearDecoder(factors.mean[:, :-1], factors.mean[:, -1], noise)
        return (
            {"latents": latents.mean, **in_units(center, data)},
            {
                "latents": jnp.broadcast_to(of_latents, latents.mean.shape),
                "loadings": weights[:, :-1],
                "offset": weights[:, -1],
                "noise_variance": data.unit**4 * of_noise,
            },
        )

    def sample(self, key, model, data):
        for_decoder, for_latents = jax.random.split(key)
        latents = self.drawn_latents(for_latents, self.latents(model, data))
        sites = in_units(self.decoder(for_decoder, model, data), data)
        return {"latents": latents, **sites}

    def plugged_in(self, model, data):
        return {}

    def row_densities(self, model, data, values, observed, particles):
        affine = self.affine(model, data)

        def one(row):
            values, observed = row
            latents = linear.latents_given(affine, *_alone(values, observed))
            return _averaged(affine, latents, values, observed, particles)

        return map_in_blocks(one, (values, observed), ROW_BLOCK), None

    def log_predictive(self, model, data):
        affine = self.affine(model, data)

        def one(row):
            """With a row's own message taken out of the decoder's factors, and without."""
            values, observed = row
            alone = _alone(values, observed)
            latents = linear.latents_given(affine, *alone)
            own = linear.moments(affine, latents, *alone, data.perturbation)
            rest = messages.without(data, self.factors, own, affine)
            return (
                _averaged(rest, latents, values, observed),
                _averaged(affine, latents, values, observed),
            )

        found = map_in_blocks(one, (data.values, data.observed), ROW_BLOCK)
        units = log_units(data, data.values, data.observed)
        return tuple(each - units for each in found)


def _alone(values, observed):
    return values[None], None if observed is None else observed[None]


def _averaged(affine, latents, values, observed, particles=PARTICLES):
    """Log density of one row (D,): rows of the decoder integrated out, latents averaged over.

    The noise variance is the inverse of the mean precision.
    """
    size = latents.mean.shape[1]
    root = safe.cholesky(_INFLATION * latents.covariance[0])
    white = jax.random.normal(jax.random.key(0), (particles, size), values.dtype)
    positions = latents.mean + white @ root.T
    points = linear.continued(positions)
    spread = jnp.einsum("ki,dij,kj->kd", points, affine.covariance, points)
    variance = 1.0 / affine.precision + spread
    misfit = (values - points @ affine.mean.T) ** 2 / variance
    each = -0.5 * (misfit + jnp.log(2.0 * jnp.pi * variance))
    likelihood = jnp.sum(each if observed is None else observed * each, axis=1)
    prior = -0.5 * jnp.sum(positions**2, axis=1)
    proposal = -0.5 * jnp.sum(white**2, axis=1) - jnp.sum(jnp.log(jnp.diagonal(root)))
    return logsumexp(likelihood + prior - proposal) - jnp.log(float(particles))
