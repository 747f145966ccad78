"""Posteriors of singular distributions."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from arviz_stats.base import array_stats
from jax.scipy.special import logsumexp

from bayeskit.linalg import safe
from bayeskit.models.priors import inverse_gamma_moments
from bayeskit.models.singular import deep, grid, linear, messages
from bayeskit.models.tables import log_units
from bayeskit.posterior import Posterior
from bayeskit.precision import double_precision
from bayeskit.results import AbstractApproximation, Prediction, map_in_blocks, positive_count

_ROW_BLOCK = 64
_WEIGHTS = 1000
_MOMENT_DRAWS = 1024
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


class _Decoding(AbstractApproximation):
    """What the posterior's own functions need of every closed form."""

    @abc.abstractmethod
    def noise(self, model, data):
        """Expected noise variance, with the perturbation, of standardised data."""

    @abc.abstractmethod
    def level(self, data):
        """The perturbation, of standardised data."""

    @abc.abstractmethod
    def encoded(self, model, data, rows) -> Any:
        """Mean and variance (rows, q) of latents of standardised rows."""

    @abc.abstractmethod
    def generated(self, key, model, data, observation_noise):
        """One standardised row (D,)."""

    @abc.abstractmethod
    def row_densities(self, model, data, values, observed, particles):
        """Log densities (rows,) of standardised rows, and log weights where there are any.

        Those of importance sampling are (rows, particles), ``None`` where none was needed.
        """


class _Linear(_Decoding):
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

    def log_predictive(self, model, data):
        density, _ = row_densities(self, model, data, None)
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

    def row_densities(self, model, data, values, observed, particles):
        affine = self.affine(model, data)

        def one(row):
            values, observed = row
            latents = linear.latents_given(affine, *_alone(values, observed))
            return _averaged(affine, latents, values, observed, particles)

        return map_in_blocks(one, (values, observed), _ROW_BLOCK), None

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


def _averaged(affine, latents, values, observed, particles=_WEIGHTS):
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


class _Trained(_Decoding):
    """What all distributions of latents given networks have in common."""

    networks: eqx.AbstractVar[deep.Networks]

    @abc.abstractmethod
    def drawn(self, key, model, data, rows):
        """One draw of the latents of standardised rows; the data's where there are none."""

    def noise(self, model, data):
        return self.networks.noise_variance

    def level(self, data):
        return self.networks.level

    def own_noise(self, data):
        """Noise variance of the data themselves, of standardised data."""
        return self.networks.noise_variance - self.networks.level**2

    def decoded(self, model, data, latents):
        """Standardised rows (*, D) of latents (*, q)."""
        decoder, _ = deep.unpacked(model, data, self.networks)
        return deep.decode(model, data, decoder, latents)

    def latent(self, key, model, data):
        """One latent (q,) of the distribution."""
        return jax.random.normal(key, (model.latent_dim,), data.values.dtype)

    def generated(self, key, model, data, observation_noise):
        for_latent, for_noise = jax.random.split(key)
        row = self.decoded(model, data, self.latent(for_latent, model, data))
        if observation_noise:
            row = row + jnp.sqrt(self.own_noise(data)) * jax.random.normal(
                for_noise, row.shape, row.dtype
            )
        return row

    def moments(self, model, data):
        mean, variance = self.encoded(model, data, None)
        sites = self.plugged_in(model, data)
        return (
            {"latents": mean, **sites},
            {"latents": variance, **jax.tree.map(jnp.zeros_like, sites)},
        )

    def sample(self, key, model, data):
        return {"latents": self.drawn(key, model, data, None)}

    def plugged_in(self, model, data):
        return network_sites(self.networks, data)

    def log_predictive(self, model, data):
        density, _ = row_densities(self, model, data, None)
        return density, density


class EncodedLatents(_Trained):
    """Independent Gaussian latents from an encoder, networks given.

    Attributes
    ----------
    networks : Networks
    levels, densities, errors : arrays (G,)
        The perturbations that were tried, log densities of held-out rows at one scale for all, and
        standard errors of their differences from the largest; zeros where there was no choice.
    """

    networks: deep.Networks
    levels: Any
    densities: Any
    errors: Any

    def encoded(self, model, data, rows):
        values = data.values if rows is None else rows[0]
        _, encoder = deep.unpacked(model, data, self.networks)
        mean, log_deviation = deep.encode(model, data, encoder, values)
        return mean, jnp.exp(2.0 * log_deviation)

    def drawn(self, key, model, data, rows):
        mean, variance = self.encoded(model, data, rows)
        return mean + jnp.sqrt(variance) * jax.random.normal(key, mean.shape, mean.dtype)

    def predict(self, inputs, include_noise, model, data):
        rows = None if inputs is None else inputs.standardised(data)
        means, variances = self.encoded(model, data, rows)
        white = jax.random.normal(jax.random.key(0), (_MOMENT_DRAWS, model.latent_dim), means.dtype)

        def one(row):
            mean, variance = row
            found = self.decoded(model, data, mean + jnp.sqrt(variance) * white)
            return jnp.mean(found, axis=0), jnp.var(found, axis=0)

        mean, variance = map_in_blocks(one, (means, variances), _ROW_BLOCK)
        if include_noise:
            variance = variance + self.own_noise(data)
        return data.center + data.unit * mean, data.unit**2 * variance

    def row_densities(self, model, data, values, observed, particles):
        def one(item):
            key, row = item
            weights = deep.log_weights(
                model, data, self.networks, self.networks.noise_variance, row[None], key, particles
            )
            return weights[:, 0]

        keys = jax.random.split(jax.random.key(0), values.shape[0])
        weights = map_in_blocks(one, (keys, values), _ROW_BLOCK)
        return logsumexp(weights, axis=1) - jnp.log(float(particles)), weights


class GridLatents(_Trained):
    """Latents on a grid with their exact probabilities, decoder given."""

    networks: deep.Networks

    def _grid(self, model, data, rows):
        """Nodes (M, q), and log joint densities (n, M) of rows and them."""
        values = data.values if rows is None else rows[0]
        nodes = grid.nodes(model.latent_dim, values.dtype)
        decoded = self.decoded(model, data, nodes)
        return nodes, grid.log_joint(decoded, self.networks.noise_variance, values)

    def latent(self, key, model, data):
        return grid.clipped(super().latent(key, model, data))

    def encoded(self, model, data, rows):
        _, joint = self._grid(model, data, rows)
        return _moments_of(joint, *grid.cells(model.latent_dim, joint.dtype))

    def drawn(self, key, model, data, rows):
        nodes, joint = self._grid(model, data, rows)
        for_cells, for_places = jax.random.split(key)
        # One number a row, where categorical draws take one a node.
        uniform = jax.random.uniform(for_cells, (joint.shape[0], 1), joint.dtype)
        below = jnp.cumsum(jax.nn.softmax(joint, axis=1), axis=1) < uniform
        chosen = jnp.minimum(jnp.sum(below, axis=1), nodes.shape[0] - 1)
        return grid.drawn(for_places, chosen, model.latent_dim, joint.dtype)

    def predict(self, inputs, include_noise, model, data):
        rows = None if inputs is None else inputs.standardised(data)
        _, joint = self._grid(model, data, rows)
        found = self.decoded(model, data, grid.within_cells(model.latent_dim, joint.dtype))
        mean, variance = _moments_of(joint, jnp.mean(found, axis=1), jnp.var(found, axis=1))
        if include_noise:
            variance = variance + self.own_noise(data)
        return data.center + data.unit * mean, data.unit**2 * variance

    def row_densities(self, model, data, values, observed, particles):
        _, joint = self._grid(model, data, (values, observed))
        return logsumexp(joint, axis=1), None


def _moments_of(joint, means, variances):
    """Means and variances (n, d) of mixtures of cells (M, d), by log joint densities (n, M)."""
    shares = jax.nn.softmax(joint, axis=1)
    mean = shares @ means
    # About the mean of all cells: squares of what is far from zero cancel.
    center = jnp.mean(means, axis=0)
    between = shares @ (means - center) ** 2 - (mean - center) ** 2
    return mean, jnp.maximum(between, 0.0) + shares @ variances


def network_sites(networks, data):
    """Sites of networks in the user's units."""
    sites = {
        "noise_variance": data.unit**2 * networks.noise_variance,
        "perturbation": data.unit * networks.level,
        "decoder_weights": networks.decoder,
        "encoder_weights": networks.encoder,
        "center": data.center,
        "unit": data.unit,
    }
    return {name: value for name, value in sites.items() if value is not None}


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
    levels = networks.level[None]
    return EncodedLatents(networks, levels, jnp.zeros_like(levels), jnp.zeros_like(levels)), view


def given_sites(model, data):
    """Sites of an earlier fit's decoder, in the user's units."""
    source, view = given(model, data)
    return source.plugged_in(model, view)


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


def _closed_form(approximation, model, data):
    """A posterior that decodes and encodes, and the data in its units.

    Of chains: the decoder that they were given.
    """
    return (approximation, data) if approximation.chains is None else given(model, data)


def generated(approximation, model, data, key, count, observation_noise):
    """Draws (count, D) from the distribution, for ``Posterior.evaluate_random``."""
    source, data = _closed_form(approximation, model, data)
    rows = map_in_blocks(
        lambda key: source.generated(key, model, data, observation_noise),
        jax.random.split(key, count),
        _ROW_BLOCK,
    )
    return data.center + data.unit * rows


def encoded(approximation, model, data, inputs):
    """Means and variances (rows, q) of latents, for ``Posterior.evaluate``."""
    source, data = _closed_form(approximation, model, data)
    rows = None if inputs is None else inputs.standardised(data)
    return source.encoded(model, data, rows)


def row_densities(approximation, model, data, inputs, particles=_WEIGHTS):
    """Log densities (rows,) in the user's units and log weights, for ``Posterior.evaluate``."""
    source, data = _closed_form(approximation, model, data)
    values, observed = (data.values, data.observed) if inputs is None else inputs.standardised(data)
    density, weights = source.row_densities(model, data, values, observed, particles)
    return density - log_units(data, values, observed), weights


def scales(approximation, model, data):
    """Noise scale and perturbation in the user's units, for ``Posterior.evaluate``."""
    source, data = _closed_form(approximation, model, data)
    noise = source.noise(model, data)
    return data.unit * jnp.sqrt(noise), data.unit * source.level(data)


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

    def log_likelihood(self, X=None, *, num_particles: int = 1000) -> RowLikelihood:
        """Log densities of rows under the perturbed model, latents integrated out.

        Parameters
        ----------
        X
            As for :meth:`encode`. Missing values are integrated out.
        num_particles : int
            Draws of importance sampling, by fixed random numbers. A linear decoder that is known
            needs none.

        Returns
        -------
        RowLikelihood
            In the user's units; a leading axis ``batch`` for a batch.

        Raises
        ------
        TypeError, ValueError
            If ``X`` is not of real numbers, or has another number of columns than the data.
        """
        count = positive_count("num_particles", num_particles)
        with double_precision():
            values, weights = self.evaluate(row_densities, self._rows(X), count)
        values = np.asarray(values)
        if weights is None:
            return RowLikelihood(values, np.zeros_like(values))
        weights = np.asarray(weights, np.float64)
        weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
        # A chain for every row: (…, chain, draw).
        pareto_k = array_stats.pareto_khat(weights[..., None, :], r_eff=1.0, tail="right")
        return RowLikelihood(values, pareto_k)

    @property
    def selection(self) -> pd.DataFrame:
        """The perturbations that were tried, and what they were chosen by.

        Returns
        -------
        pandas.DataFrame
            One row a level, with columns ``level`` (in units of the data's standard deviation),
            ``perturbation`` (in the user's), ``density`` (mean log density of held-out rows, with
            noise of one size for all levels, in the user's units), ``error`` (standard error of its
            difference from the largest) and ``chosen``.

        Raises
        ------
        TypeError
            If one level was stated, or for the posterior of a batch.
        """
        approximation = self.approximation
        if self.batch is not None:
            raise TypeError(
                "selection is for one data set; index the batch's data and fit it alone"
            )
        if not isinstance(approximation, EncodedLatents) or len(approximation.levels) < 2:
            raise TypeError("nothing was selected: give perturbation='auto' or several levels")
        levels = np.asarray(approximation.levels)
        unit = float(self.prepared.data.unit)
        features = self.prepared.data.center.shape[0]
        return pd.DataFrame(
            {
                "level": levels,
                "perturbation": unit * levels,
                "density": np.asarray(approximation.densities) - features * np.log(unit),
                "error": np.asarray(approximation.errors),
                "chosen": levels == np.asarray(approximation.networks.level),
            }
        )

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
