"""Posteriors of functional Tucker decompositions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayeskit import statespace
from bayeskit.models.functional_tucker import data as tables
from bayeskit.models.functional_tucker import sweep
from bayeskit.posterior import AbstractApproximation, Posterior, Prediction, map_in_blocks
from bayeskit.precision import double_precision, to_host

_ROW_BLOCK = 4096


class Functions(NamedTuple):
    """Gaussian messages that the functions of every mode are conditioned on, and the core.

    Attributes
    ----------
    shifts, precisions : tuples of arrays (n_k, R_k) and (n_k, R_k, R_k)
    logs : tuple of dicts of arrays (R_k,)
        Logarithms of the kernels' parameters.
    core : sweep.Moments or None
    """

    shifts: tuple
    precisions: tuple
    logs: tuple
    core: Any


def moments_at(functions, model, inputs):
    """Moments of all functions at the union of the fit's and other points."""
    found = []
    for k, (shifts, precisions) in enumerate(
        zip(functions.shifts, functions.precisions, strict=True)
    ):
        steps = inputs.steps[k].astype(shifts.dtype)
        spread = jnp.zeros((len(steps), *shifts.shape[1:]), shifts.dtype)
        smoothed = statespace.smooth(
            model.chain(k, functions.logs[k], steps),
            spread.at[inputs.known[k]].add(shifts),
            jnp.zeros((len(steps), *precisions.shape[1:]), shifts.dtype)
            .at[inputs.known[k]]
            .add(precisions),
        )
        found.append(sweep.Moments(smoothed.mean, smoothed.second))
    return tuple(found)


def predicted(modes, core, index):
    """Mean and variance of noiseless values at rows of positions, in blocks of rows."""
    target = max(range(len(modes)), key=lambda k: len(modes[k].mean))
    of_rows = sweep.design(modes, core, target)

    def block(index):
        mean, second = of_rows(index)
        here = modes[target]
        at = index[target]
        value = jnp.sum(mean * here.mean[at], axis=1)
        square = jnp.sum(second * here.second[at], axis=(1, 2))
        return value, jnp.maximum(square - value**2, 0.0)

    count = index[0].shape[0]
    if count <= _ROW_BLOCK:
        return block(index)
    blocks = -(-count // _ROW_BLOCK)
    padded = [
        jnp.pad(each, (0, blocks * _ROW_BLOCK - count)).reshape(blocks, -1) for each in index
    ]
    parts = jax.lax.map(block, tuple(padded))
    return jax.tree.map(lambda leaf: leaf.reshape(-1)[:count], parts)


class Factorised(AbstractApproximation):
    """Independent Gaussian functions of each mode and core, inverse-gamma noise variance.

    Kernel parameters are plugged in. Values are products, whose means and variances are exact
    under the approximation.
    """

    messages: sweep.Messages
    logs: tuple

    def _functions(self):
        m = self.messages
        return Functions(m.shifts, m.precisions, self.logs, m.core)

    def moments(self, model, data):
        mean, variance = {}, {}
        for mode, moments in zip(model.modes, self.messages.modes, strict=True):
            name = f"mode_{mode.name}"
            mean[name] = moments.mean
            variance[name] = _variances(moments)
        if self.messages.core is not None:
            mean["core"] = self.messages.core.mean.reshape(model.rank_tuple)
            variance["core"] = _variances(self.messages.core).reshape(model.rank_tuple)
        if model.noise_variance is None:
            a, b = self.messages.noise_concentration, self.messages.noise_rate
            unit = data.unit**2
            mean["noise_variance"] = unit * b / jnp.maximum(a - 1, 0.5)
            variance["noise_variance"] = mean["noise_variance"] ** 2 / jnp.maximum(a - 2, 0.5)
        fixed = self.plugged_in(model, data)
        return {**mean, **fixed}, {**variance, **jax.tree.map(jnp.zeros_like, fixed)}

    def sample(self, key, model, data):
        keys = jax.random.split(key, len(model.modes) + 2)
        draw = {}
        for k, mode in enumerate(model.modes):
            draw[f"mode_{mode.name}"] = statespace.sample(
                keys[k],
                model.chain(k, self.logs[k], data.steps[k]),
                self.messages.shifts[k],
                self.messages.precisions[k],
            )
        core = self.messages.core
        if core is not None:
            covariance = core.second - jnp.outer(core.mean, core.mean)
            factor = jnp.linalg.cholesky(
                covariance + 1e-14 * jnp.trace(core.second) * jnp.eye(len(core.mean))
            ).astype(core.mean.dtype)
            noise = jax.random.normal(keys[-2], core.mean.shape, core.mean.dtype)
            draw["core"] = (core.mean + factor @ noise).reshape(model.rank_tuple)
        if model.noise_variance is None:
            a, b = self.messages.noise_concentration, self.messages.noise_rate
            draw["noise_variance"] = data.unit**2 * b / jax.random.gamma(keys[-1], a, dtype=b.dtype)
        return draw

    def plugged_in(self, model, data):
        return model.reported(self.logs, data)

    def _noise(self, data):
        return data.unit**2 / self.messages.precision

    def predict(self, inputs, include_noise, model, data):
        if inputs is None:
            modes, index = self.messages.modes, model.positions(data)
        else:
            modes, index = moments_at(self._functions(), model, inputs), inputs.index
        mean, variance = predicted(modes, self.messages.core, index)
        mean, variance = data.center + data.unit * mean, data.unit**2 * variance
        return mean, variance + self._noise(data) if include_noise else variance

    def functions_at(self, mode, inputs, model, data):
        """Mean and variance (points, R) of the functions of one mode."""
        moments = moments_at(self._functions(), model, inputs)[mode]
        at = inputs.index[mode]
        return moments.mean[at], _variances(moments)[at]

    def log_predictive(self, model, data):
        mean, variance = predicted(self.messages.modes, self.messages.core, model.positions(data))
        values = model.observed(data)
        noise = 1.0 / self.messages.precision
        log_unit = jnp.log(data.unit)
        inside = _log_normal(values, mean, variance + noise) - log_unit
        # The value's own observation is taken out of its Gaussian approximation.
        share = jnp.minimum(variance / noise, 0.999)
        left_mean = (mean - share * values) / (1 - share)
        left_out = _log_normal(values, left_mean, noise / (1 - share)) - log_unit
        return left_out, inside


def _variances(moments):
    if moments.second.ndim == moments.mean.ndim:
        return jnp.maximum(moments.second - moments.mean**2, 0.0)
    squares = jnp.diagonal(moments.second, axis1=-2, axis2=-1)
    return jnp.maximum(squares - moments.mean**2, 0.0)


def _log_normal(value, mean, variance):
    return -0.5 * (jnp.log(2 * jnp.pi * variance) + (value - mean) ** 2 / variance)


class Given(AbstractApproximation):
    """Everything known, as in one draw of a sampler; functions elsewhere follow from it.

    Attributes
    ----------
    values : tuple of arrays (n_k, R_k)
        Functions at the fit's points.
    logs : tuple of dicts
    core : array (R_1 ⋯ R_K,) or None
    noise_variance : scalar
        Of the standardised values.
    """

    values: tuple
    logs: tuple
    core: Any
    noise_variance: Any

    def _core(self):
        return None if self.core is None else sweep.Moments(self.core, jnp.outer(self.core, self.core))

    def _modes(self):
        return tuple(sweep.Moments(v, v[:, :, None] * v[:, None, :]) for v in self.values)

    def moments(self, model, data):
        sites = self.plugged_in(model, data)
        return sites, jax.tree.map(jnp.zeros_like, sites)

    def sample(self, key, model, data):
        return {}

    def plugged_in(self, model, data):
        sites = {
            f"mode_{mode.name}": v for mode, v in zip(model.modes, self.values, strict=True)
        }
        if self.core is not None:
            sites["core"] = self.core.reshape(model.rank_tuple)
        if model.noise_variance is None:
            sites["noise_variance"] = data.unit**2 * self.noise_variance
        return {**sites, **model.reported(self.logs, data)}

    def predict(self, inputs, include_noise, model, data):
        if inputs is None:
            modes, index = self._modes(), model.positions(data)
        else:
            modes = moments_at(model.pinned(self.values, self.logs, data), model, inputs)
            index = inputs.index
        mean, variance = predicted(modes, self._core(), index)
        variance = variance + self.noise_variance if include_noise else variance
        return data.center + data.unit * mean, data.unit**2 * variance

    def log_predictive(self, model, data):
        mean, _ = predicted(self._modes(), self._core(), model.positions(data))
        density = _log_normal(model.observed(data), mean, self.noise_variance) - jnp.log(data.unit)
        return density, density

    def log_evidence(self, model, data):
        """Log likelihood: nothing has been integrated out."""
        return jnp.sum(self.log_predictive(model, data)[0])


class FunctionalTuckerPosterior(Posterior):
    """Posterior of :class:`~bayeskit.models.FunctionalTucker`."""

    def mode_function(self, mode: str, points=None) -> Prediction:
        """Functions of one mode, aligned against rotation and sign.

        The functions of a mode are determined up to an invertible mixing. They are rotated to
        the principal axes of their mean over the points of the fit, the largest first, each with
        the sign that makes its mean there positive (or, where that is zero, its largest value).

        Parameters
        ----------
        mode : str
        points : array (points,), optional
            Where; the points of the fit by default.

        Returns
        -------
        Prediction
            ``mean`` and ``variance`` of the shape (points, R). With ``core="cp"``, where functions
            of different components do not mix, they are only ordered and signed.

        Raises
        ------
        ValueError
            If there is no such mode.
        """
        model = self.prepared.model
        names = [each.name for each in model.modes]
        if mode not in names:
            raise ValueError(f"mode must be one of {names}, got {mode!r}")
        if self.batch is not None:
            raise TypeError("mode_function is for one data set; index the batch's data")
        k = names.index(mode)
        known = self.labels.coords[mode]
        points = known if points is None else np.asarray(points)
        draws = self.sample(0, 200)[f"mode_{mode}"]
        raise NotImplementedError
