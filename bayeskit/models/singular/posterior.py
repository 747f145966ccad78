"""Results of :class:`~bayeskit.models.SingularDistribution`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from arviz_stats.base import array_stats

from bayeskit.models.singular import images
from bayeskit.models.singular.decoding import PARTICLES, ROW_BLOCK
from bayeskit.models.singular.earlier import given
from bayeskit.models.singular.network_latents import EncodedLatents, at_level
from bayeskit.models.tables import log_units
from bayeskit.posterior import Posterior
from bayeskit.precision import double_precision
from bayeskit.results import Prediction, map_in_blocks, positive_count
from bayeskit.validation import check_integer


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
        ROW_BLOCK,
    )
    return data.center + data.unit * rows


def encoded(approximation, model, data, inputs):
    """Means and variances (rows, q) of latents, for ``Posterior.evaluate``."""
    source, data = _closed_form(approximation, model, data)
    rows = None if inputs is None else inputs.standardised(data)
    return source.encoded(model, data, rows)


def row_densities(approximation, model, data, inputs, particles=PARTICLES):
    """Log densities (rows,) in the user's units and log weights, for ``Posterior.evaluate``."""
    source, data = _closed_form(approximation, model, data)
    values, observed = (
        (data.all_rows, data.observed) if inputs is None else inputs.standardised(data)
    )
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
            Of images (num_rows, H, W) or (num_rows, H, W, C). A leading axis ``batch`` for a batch.
            Where a linear decoder is uncertain, every row is drawn with a decoder of its own;
            networks are those that were trained.
        """
        count = positive_count("num_rows", num_rows)
        rows = self.evaluate_random(generated, key, count, bool(observation_noise))
        return images.as_images(np.asarray(rows), self.names)

    def predict(self, inputs=None, *, include_noise: bool = False) -> Prediction:
        """As :meth:`Posterior.predict`, of rows, complete or not; of images these are images."""
        found = super().predict(inputs, include_noise=include_noise)
        dims = self.names.dims.get(images.SITE, found.dims[-1:])
        mean, variance = (images.as_images(part, self.names) for part in found[:2])
        dims = (*found.dims[:-1], *dims)
        coords = {**found.coords, **self.names.coords_of(dims)}
        return Prediction(mean, variance, dims, {d: c for d, c in coords.items() if d in dims})

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
        approximation = self._several_levels("selection")
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

    def at_level(self, index: int) -> "SingularDistributionPosterior":
        """The posterior at any level that was tried, as training with held-out rows left it.

        Parameters
        ----------
        index : int
            Row of :attr:`selection`.

        Returns
        -------
        SingularDistributionPosterior
            With the convergence of the fit as a whole. At the level that was chosen, it is what
            the levels were compared by, not the fit to all rows.

        Raises
        ------
        TypeError
            If one level was stated, or for the posterior of a batch.
        ValueError
            If there is no such row, or its training broke down.
        """
        densities = np.asarray(self._several_levels("at_level").densities)
        index = check_integer("index", index, 0)
        if index >= len(densities):
            raise ValueError(
                f"index must be below {len(densities)}, the number of levels, got {index}"
            )
        if densities[index] == -np.inf:
            raise ValueError(f"index {index} is of a level whose training broke down")
        kept = ("data", "method", "prepared", "log_evidence", "convergence", "trace", "key")
        return type(self)(
            model=self.model.with_estimates(None),
            approximation=self.evaluate(at_level, jnp.asarray(index)),
            batch=None,
            **{name: getattr(self, name) for name in kept},
        )

    def _several_levels(self, what) -> EncodedLatents:
        approximation = self.approximation
        if self.batch is not None:
            raise TypeError(f"{what} is for one data set; index the batch's data and fit it alone")
        if not isinstance(approximation, EncodedLatents) or len(approximation.levels) < 2:
            raise TypeError("nothing was selected: give perturbation='auto' or several levels")
        return approximation

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
