"""Posteriors of singular distributions."""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from bayeskit.linalg import safe
from bayeskit.models.priors import inverse_gamma_moments
from bayeskit.models.singular import linear, messages
from bayeskit.models.tables import log_units
from bayeskit.posterior import Posterior
from bayeskit.precision import double_precision
from bayeskit.results import AbstractApproximation, Prediction, map_in_blocks, positive_count

_ROW_BLOCK = 64
_PARTICLES = 256
_INFLATION = 1.5  # of the variance of latents that densities are averaged over


class RowLikelihood(NamedTuple):
    """Log densities of rows.

    Attributes
    ----------
    values : numpy.ndarray (rows,)
    pareto_k : numpy.ndarray (rows,)
        Shape of the tail of the importance weights, zero where none were needed; above 0.7 a value
        cannot be trusted.
    """

    values: Any
    pareto_k: Any


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


class _Linear(AbstractApproximation):
    """What all distributions of a linear decoder have in common."""

    @abc.abstractmethod
    def affine(self, model, data) -> linear.Affine:
        """The decoder as latents see it, of standardised data."""

    @abc.abstractmethod
    def noise(self, model, data):
        """Expected noise variance, with the perturbation, of standardised data."""

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

    def row_densities(self, model, data, values, observed):
        """Log densities of standardised rows, exact."""
        affine = linear.known(self.estimate)
        latents = linear.latents_given(affine, values, observed)
        density = linear.log_densities(affine, latents, values, observed)
        return density - log_units(data, values, observed)

    def log_predictive(self, model, data):
        density = self.row_densities(model, data, data.values, data.observed)
        return density, density


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

    def row_densities(self, model, data, values, observed):
        """Log densities of standardised rows, averaged over decoders by importance sampling."""
        affine = self.affine(model, data)

        def one(row):
            values, observed = row
            latents = linear.latents_given(affine, *_alone(values, observed))
            return _averaged(affine, latents, values, observed)

        density = map_in_blocks(one, (values, observed), _ROW_BLOCK)
        return density - log_units(data, values, observed)

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

        found = map_in_blocks(one, (data.values, data.observed), _ROW_BLOCK)
        units = log_units(data, data.values, data.observed)
        return tuple(each - units for each in found)


def _alone(values, observed):
    return values[None], None if observed is None else observed[None]


def _averaged(affine, latents, values, observed):
    """Log density of one row (D,): rows of the decoder integrated out, latents averaged over.

    The noise variance is the inverse of the mean precision.
    """
    size = latents.mean.shape[1]
    root = safe.cholesky(_INFLATION * latents.covariance[0])
    white = jax.random.normal(jax.random.key(0), (_PARTICLES, size), values.dtype)
    particles = latents.mean + white @ root.T
    points = linear.continued(particles)
    spread = jnp.einsum("ki,dij,kj->kd", points, affine.covariance, points)
    variance = 1.0 / affine.precision + spread
    misfit = (values - points @ affine.mean.T) ** 2 / variance
    each = -0.5 * (misfit + jnp.log(2.0 * jnp.pi * variance))
    likelihood = jnp.sum(each if observed is None else observed * each, axis=1)
    prior = -0.5 * jnp.sum(particles**2, axis=1)
    proposal = -0.5 * jnp.sum(white**2, axis=1) - jnp.sum(jnp.log(jnp.diagonal(root)))
    return logsumexp(likelihood + prior - proposal) - jnp.log(float(_PARTICLES))


class KnownLatents(AbstractApproximation):
    """One draw of a sampler: latents known, given the decoder of an earlier fit."""

    positions: Any

    def _decoder(self, data):
        return GivenDecoder(data.given)

    def moments(self, model, data):
        return {"latents": self.positions}, {"latents": jnp.zeros_like(self.positions)}

    def sample(self, key, model, data):
        return {}

    def plugged_in(self, model, data):
        return {"latents": self.positions}

    def predict(self, inputs, include_noise, model, data):
        if inputs is not None:
            return self._decoder(data).predict(inputs, include_noise, model, data)
        affine = linear.known(data.given)
        mean = data.center + data.unit * linear.continued(self.positions) @ affine.mean.T
        noise = own_noise(data.given.noise_variance, data) if include_noise else 0.0
        return mean, jnp.broadcast_to(data.unit**2 * noise, mean.shape)

    def log_predictive(self, model, data):
        density = log_given_latents(data, self.positions) - log_units(
            data, data.values, data.observed
        )
        return density, density

    def judged(self, model, data):
        """Norms of the latents."""
        return {"latent_norms": jnp.linalg.norm(self.positions, axis=-1)}

    def log_evidence(self, model, data):
        """Log joint density of rows and latents."""
        prior = -0.5 * jnp.sum(self.positions**2 + jnp.log(2.0 * jnp.pi))
        return prior + jnp.sum(self.log_predictive(model, data)[0])


def log_given_latents(data, positions):
    """Log densities of standardised rows (n,) given their latents and the earlier fit's decoder."""
    affine = linear.known(data.given)
    residual = data.values - linear.continued(positions) @ affine.mean.T
    each = -0.5 * (affine.precision * residual**2 - affine.log_precision + jnp.log(2.0 * jnp.pi))
    return jnp.sum(each if data.observed is None else data.observed * each, axis=1)


def _closed_form(approximation, data):
    """The part of a posterior that decodes and encodes: of chains, the decoder they were given."""
    return approximation if approximation.chains is None else GivenDecoder(data.given)


def generated(approximation, model, data, key, count, observation_noise):
    """Draws (count, D) from the distribution, for ``Posterior.evaluate_random``."""
    source = _closed_form(approximation, data)

    def one(key):
        for_decoder, for_latent, for_noise = jax.random.split(key, 3)
        decoder = source.decoder(for_decoder, model, data)
        dtype = decoder.offset.dtype
        latent = jax.random.normal(for_latent, decoder.loadings.shape[1:], dtype)
        row = decoder.loadings @ latent + decoder.offset
        if observation_noise:
            scale = jnp.sqrt(own_noise(decoder.noise_variance, data))
            row = row + scale * jax.random.normal(for_noise, row.shape, dtype)
        return data.center + data.unit * row

    return map_in_blocks(one, jax.random.split(key, count), _ROW_BLOCK)


def encoded(approximation, model, data, inputs):
    """Means and variances (rows, q) of latents, for ``Posterior.evaluate``."""
    source = _closed_form(approximation, data)
    rows = None if inputs is None else inputs.standardised(data)
    latents = source.latents(model, data, rows)
    variance = jnp.diagonal(latents.covariance, axis1=-2, axis2=-1)
    return latents.mean, jnp.broadcast_to(variance, latents.mean.shape)


def row_densities(approximation, model, data, inputs):
    """Log densities (rows,) in the user's units, for ``Posterior.evaluate``."""
    rows = (data.values, data.observed) if inputs is None else inputs.standardised(data)
    return _closed_form(approximation, data).row_densities(model, data, *rows)


def scales(approximation, model, data):
    """Noise scale and perturbation in the user's units, for ``Posterior.evaluate``."""
    noise = _closed_form(approximation, data).noise(model, data)
    return data.unit * jnp.sqrt(noise), data.unit * data.perturbation


class SingularDistributionPosterior(Posterior):
    """Posterior of :class:`~bayeskit.models.SingularDistribution`."""

    def generate(self, key, num_rows: int, *, observation_noise: bool = False) -> np.ndarray:
        """Draws from the estimated singular distribution, in the user's units.

        Parameters
        ----------
        key : int or JAX key
        num_rows : int
        observation_noise : bool
            Whether to add the noise of the data themselves: what was fitted beyond the
            perturbation.

        Returns
        -------
        numpy.ndarray (num_rows, D)
            A leading axis ``batch`` for a batch. Where the decoder is uncertain, every row is drawn
            with a decoder of its own.
        """
        count = positive_count("num_rows", num_rows)
        return np.asarray(self.evaluate_random(generated, key, count, bool(observation_noise)))

    def _rows(self, X):
        return None if X is None else self.target(X).inputs

    def encode(self, X=None) -> Prediction:
        """Latents of rows, given the perturbed model.

        Parameters
        ----------
        X : array (rows, D), DataFrame or DataArray, optional
            NaN where a value is missing; the rows of the data by default.

        Returns
        -------
        Prediction
            Mean and variance (rows, latent_dim).

        Raises
        ------
        TypeError, ValueError
            If ``X`` is not of real numbers, or has another number of columns than the data.

        Notes
        -----
        Under ``MCMC`` exact given the decoder; draws of the data's own latents are in the tree.
        """
        with double_precision():
            mean, variance = self.evaluate(encoded, self._rows(X))
        lead = () if self.batch is None else ("batch",)
        dims = (*lead, *self.names.dims["latents"])
        kept = dims if X is None else (*lead, dims[-1])
        return Prediction(mean, variance, dims, self.names.coords_of(kept))

    def log_likelihood(self, X=None) -> RowLikelihood:
        """Log densities of rows under the perturbed model, latents integrated out.

        Parameters
        ----------
        X
            As for :meth:`encode`. Missing values are integrated out.

        Returns
        -------
        RowLikelihood
            In the user's units; a leading axis ``batch`` for a batch. Exact where the decoder is
            known; of a distribution of linear decoders, by importance sampling with fixed random
            numbers around the latents' posterior.

        Raises
        ------
        TypeError, ValueError
            If ``X`` is not of real numbers, or has another number of columns than the data.
        """
        with double_precision():
            values = np.asarray(self.evaluate(row_densities, self._rows(X)))
        return RowLikelihood(values, np.zeros_like(values))

    @property
    def noise_scale(self):
        """Standard deviation of the fitted noise, perturbation included, in the user's units."""
        return self._number(0)

    @property
    def perturbation(self):
        """Standard deviation of the noise that rows were perturbed by, in the user's units."""
        return self._number(1)

    def _number(self, index):
        value = np.asarray(self.evaluate(scales)[index])
        return float(value) if self.batch is None else value
