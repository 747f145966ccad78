"""Posteriors of Kronecker-structured sparse Bayesian learning."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from bayeskit.errors import ConvergenceWarning
from bayeskit.models.kronecker_sbl import structure
from bayeskit.models.kronecker_sbl.messages import Messages
from bayeskit.models.kronecker_sbl.problem import normalised_scales
from bayeskit.models.priors import inverse_gamma_moments
from bayeskit.posterior import Posterior
from bayeskit.results import AbstractApproximation
from bayeskit.validation import check_probability

_MOMENT_DRAWS = 4096


def coefficient_unit(factors, data):
    """What coefficients of the scaled problem are multiplied by, to be in the user's units."""
    return (data.unit / jnp.prod(factors.units)).astype(data.unit.dtype)


def scale_units(factors, data):
    """What the scale factors are multiplied by; the last carries the data's unit."""
    squares = 1.0 / factors.units**2
    return squares.at[-1].multiply(data.unit.astype(squares.dtype) ** 2)


def reported_scales(scales, factors, data):
    """Scale factors in the user's units by site: all but the last have mean one."""
    unit = jnp.prod(scale_units(factors, data))
    *others, last = scales
    sites = normalised_scales([*others, last * unit], factors.layout)
    return {name: value.astype(data.unit.dtype) for name, value in sites.items()}


class Conditional(AbstractApproximation):
    """Exact Gaussian posterior of the coefficients given scales and noise variance.

    Attributes
    ----------
    scales : tuple of arrays (N_g,)
    noise_variance : scalar
        Both of the scaled problem.
    """

    scales: tuple
    noise_variance: Any

    def _arguments(self, model, data):
        return model.factors.reduced, self.scales, self.noise_variance

    def moments(self, model, data):
        layout, unit = model.factors.layout, coefficient_unit(model.factors, data)
        arguments = (*self._arguments(model, data), data.measurements)
        mean = layout.as_given(structure.posterior_mean(*arguments) * unit, layout.columns)
        variance = structure.posterior_variance(*arguments) * unit**2
        variance = layout.ungroup(variance, layout.columns)
        if layout.snapshots:
            variance = jnp.broadcast_to(variance, mean.shape)
        fixed = self.plugged_in(model, data)
        zeros = jax.tree.map(jnp.zeros_like, fixed)
        return {"coefficients": mean, **fixed}, {"coefficients": variance, **zeros}

    def sample(self, key, model, data):
        layout = model.factors.layout
        draw = structure.posterior_sample(key, *self._arguments(model, data), data.measurements)
        return {
            "coefficients": layout.as_given(
                draw * coefficient_unit(model.factors, data), layout.columns
            )
        }

    def plugged_in(self, model, data):
        sites = reported_scales(self.scales, model.factors, data)
        if model.noise_variance is None:
            sites["noise_variance"] = self.noise_variance * data.unit**2
        return sites

    def predict(self, inputs, include_noise, model, data):
        factors, layout = model.factors, model.factors.layout
        if inputs is None:
            mean, variance = structure.fitted(
                *self._arguments(model, data), data.measurements, factors.rotations
            )
            sizes = layout.rows
        else:
            new_factors, sizes = inputs.factors, inputs.sizes
            mean, variance = structure.predicted(
                *self._arguments(model, data), data.measurements, new_factors
            )
        variance = variance + self.noise_variance if include_noise else variance
        variance = jnp.broadcast_to(variance, mean.shape)
        return (
            layout.as_given(mean * data.unit, sizes),
            layout.as_given(variance * data.unit**2, sizes),
        )

    def log_evidence(self, model, data):
        """Log marginal likelihood of the measurements, in their own units."""
        stats = structure.statistics(
            structure.spectra(model.factors.reduced, self.scales),
            self.noise_variance,
            data.measurements,
            (),
        )
        return stats.log_evidence - model.log_unit(data)

    def log_predictive(self, model, data):
        layout = model.factors.layout
        left_out = structure.leave_one_out(
            model.factors.original, self.scales, self.noise_variance, data.tensor
        )
        mean, variance = structure.fitted(
            *self._arguments(model, data), data.measurements, model.factors.rotations
        )
        inside = (mean, variance + self.noise_variance)
        return tuple(
            layout.as_given(
                _log_normal(data.tensor, m, v) - model.log_unit(data) / data.tensor.size,
                layout.rows,
            )
            for m, v in (left_out, inside)
        )


def _log_normal(value, mean, variance):
    """Log density of independent (circular complex) normals."""
    kappa = structure.likelihood_power(value.dtype)
    return -kappa * (jnp.log(jnp.pi / kappa * variance) + jnp.abs(value - mean) ** 2 / variance)


class MeanField(AbstractApproximation):
    """Independent Gaussian coefficients and inverse-gamma scales and noise."""

    messages: Messages

    def _conditional(self):
        return Conditional(self.messages.scales, self.messages.noise_variance)

    def _draw_hyper_parameters(self, key, model, data):
        messages = self.messages
        sizes = [rate.shape[0] for rate in messages.rates]
        concentrations = [
            jnp.full(n, a) for n, a in zip(sizes, messages.concentrations, strict=True)
        ]
        concentrations = jnp.concatenate([*concentrations, messages.noise_concentration[None]])
        rates = jnp.concatenate([*messages.rates, messages.noise_rate[None]])
        # One call for all: each compiles for seconds.
        draws = rates / jax.random.gamma(key, concentrations, dtype=rates.dtype)
        *scales, noise = jnp.split(draws, np.cumsum(sizes))
        noise = noise[0] if model.noise_variance is None else messages.noise_variance
        return Conditional(tuple(scales), noise).plugged_in(model, data)

    def _noise_moments(self, data):
        messages = self.messages
        mean, variance = inverse_gamma_moments(messages.noise_concentration, messages.noise_rate)
        return mean * data.unit**2, variance * data.unit**4

    def _last_scale_moments(self, model, data):
        """Mean and variance of the last scale factor, which carries the mean of all others.

        It is the product of its own factor and the independent means of the others.
        """
        messages = self.messages
        pairs = [
            inverse_gamma_moments(a, b)
            for a, b in zip(messages.concentrations, messages.rates, strict=True)
        ]
        mean, variance = pairs[-1]
        second = variance + mean**2
        for means, variances in pairs[:-1]:
            level = jnp.mean(means)
            mean = mean * level
            second = second * (level**2 + jnp.sum(variances) / means.shape[0] ** 2)
        unit = jnp.prod(scale_units(model.factors, data)).astype(data.unit.dtype)
        # Infinity less infinity: a variance that does not exist is infinite.
        variance = jnp.where(jnp.isfinite(second), second - mean**2, jnp.inf)
        # Zero at unused columns, also where the others' level is infinite.
        used = messages.rates[-1] > 0
        return jnp.where(used, mean * unit, 0.0), jnp.where(used, variance * unit**2, 0.0)

    def moments(self, model, data):
        mean, variance = self._conditional().moments(model, data)
        if model.noise_variance is None:
            mean["noise_variance"], variance["noise_variance"] = self._noise_moments(data)
        last = f"scales_{len(self.messages.rates) - 1}"
        shape = mean[last].shape
        for found, value in zip(
            (mean, variance), self._last_scale_moments(model, data), strict=True
        ):
            found[last] = value.reshape(shape)
        others = [f"scales_{g}" for g in range(len(self.messages.rates) - 1)]
        if not others:
            return mean, variance
        # The others are divided by their own mean: bounded, and without a closed form.
        keys = jax.random.split(jax.random.key(0), _MOMENT_DRAWS)
        draws = jax.lax.map(
            lambda key: self._draw_hyper_parameters(key, model, data), keys, batch_size=64
        )
        for site in others:
            mean[site] = jnp.mean(draws[site], axis=0)
            variance[site] = jnp.var(draws[site], axis=0)
        return mean, variance

    def sample(self, key, model, data):
        coefficient_key, scale_key = jax.random.split(key)
        draw = self._conditional().sample(coefficient_key, model, data)
        return {**draw, **self._draw_hyper_parameters(scale_key, model, data)}

    def plugged_in(self, model, data):
        return {}

    def predict(self, inputs, include_noise, model, data):
        # The noise of a new measurement is E σ², not the 1 / E σ⁻² that the fit has seen.
        mean, variance = self._conditional().predict(inputs, False, model, data)
        if not include_noise:
            return mean, variance
        if model.noise_variance is None:
            return mean, variance + self._noise_moments(data)[0]
        return mean, variance + self.messages.noise_variance * data.unit**2

    def log_predictive(self, model, data):
        return self._conditional().log_predictive(model, data)


class KroneckerSBLPosterior(Posterior):
    """Posterior of :class:`~bayeskit.models.KroneckerSBL`."""

    def support(self, probability: float = 0.95):
        """Coefficients that differ from zero.

        A coefficient is in the support if the central interval of ``probability`` of its
        (complex) normal posterior excludes zero: its mean is measured in its own standard
        deviations, not against the largest amplitude.

        Parameters
        ----------
        probability : float
            In (0, 1).

        Returns
        -------
        numpy.ndarray of bool
            Of the shape of the coefficients. Items of a batch that could not be fitted have none,
            and are warned about.

        Raises
        ------
        TypeError
            If ``probability`` is no number.
        ValueError
            If it is not in (0, 1).

        Warns
        -----
        ConvergenceWarning
            If items of a batch could not be fitted, naming them.

        Examples
        --------
        >>> import bayeskit as bk
        >>> problem = bk.datasets.kronecker_sparse(0)
        >>> posterior = bk.infer(bk.models.KroneckerSBL(problem.dictionaries), problem.measurements)
        >>> posterior.support(0.99).shape
        (15, 15, 15)
        """
        probability = check_probability("probability", probability)
        mean, variance = self.mean["coefficients"], self.variance["coefficients"]
        if self.batch is not None:
            unknown = np.flatnonzero(np.isnan(mean).any(axis=tuple(range(1, mean.ndim))))
            if unknown.size:
                warnings.warn(
                    f"items {unknown.tolist()} of the batch could not be fitted: nothing is known "
                    "of their support",
                    ConvergenceWarning,
                    stacklevel=2,
                )
        if np.iscomplexobj(mean):
            threshold = -np.log1p(-probability)
        else:
            threshold = float(ndtri(0.5 + probability / 2)) ** 2
        return np.abs(mean) ** 2 > threshold * variance
