"""Posteriors of solutions of partial differential equations."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.linalg import safe
from bayeskit.models.spectral_pde import frame, solve
from bayeskit.models.spectral_pde.spectrum import Components
from bayeskit.pde.field import orders_of
from bayeskit.posterior import Posterior
from bayeskit.precision import double_precision
from bayeskit.results import AbstractApproximation, Prediction

_PEAK_SHARE = 0.01


class Places(eqx.Module):
    """Points (P,) in the scaled box, and the order of the derivative there."""

    points: Any
    order: int = eqx.field(static=True)


class Spectrum(NamedTuple):
    """Frequencies of a solution in one dimension.

    Attributes
    ----------
    frequencies : array (m,)
        Cycles per unit of the dimension.
    weights : array (m,)
        Share of the solution's power at each: its periodogram under a Hann window, whose
        resolution is two cycles a length of the domain.
    prior : array (m,)
        The same of the prior: the band that was chosen.
    peaks : array (p,)
        Frequencies of maxima that carry at least a hundredth of the power, strongest first:
        centres of gravity over neighbours.
    """

    frequencies: Any
    weights: Any
    prior: Any
    peaks: Any


class GaussianSolution(AbstractApproximation):
    """Normal weights of waves and polynomials; the spectrum is plugged in.

    Attributes
    ----------
    coefficients, scales : arrays (K,)
        Posterior means and prior deviations.
    factor : array (K, K)
        See :class:`~bayeskit.models.spectral_pde.solve.Covariance`.
    components : Components
        In cycles per box.
    residual, noise, amplitude : scalars
    """

    coefficients: Any
    scales: Any
    factor: Any
    components: Components
    residual: Any
    noise: Any
    amplitude: Any

    def _features(self, data, inputs):
        waves = frame.frequencies(data.nodes.shape[0])
        return frame.features(inputs.points, waves, inputs.order) / data.length**inputs.order

    def _moments_at(self, features):
        spread = safe.solve_triangular(self.factor.T, (features * self.scales).T)
        return features @ self.coefficients, jnp.sum(spread**2, axis=0)

    def moments(self, model, data):
        mean, variance = self._moments_at(self._features(data, Places(data.nodes, 0)))
        own = safe.solve_triangular(self.factor.T, jnp.diag(self.scales))
        fixed = self.plugged_in(model, data)
        zeros = jax.tree.map(jnp.zeros_like, fixed)
        return (
            {"solution": mean, "coefficients": self.coefficients, **fixed},
            {"solution": variance, "coefficients": jnp.sum(own**2, axis=0), **zeros},
        )

    def sample(self, key, model, data):
        noise = jax.random.normal(key, self.coefficients.shape, self.coefficients.dtype)
        moved = self.coefficients + self.scales * solve.back_substitute(self.factor, noise)
        values = self._features(data, Places(data.nodes, 0)) @ moved
        return {"solution": values, "coefficients": moved}

    def plugged_in(self, model, data):
        dim = model.dims[0]
        weights = jnp.exp(self.components.log_weights - jnp.max(self.components.log_weights))
        return {
            f"weights_{dim}": self.amplitude**2 * weights / jnp.sum(weights),
            f"frequencies_{dim}": self.components.frequencies / data.length,
            f"widths_{dim}": self.components.widths / data.length,
            "equation_noise": self.noise,
        }

    def predict(self, inputs, include_noise, model, data):
        inputs = Places(data.nodes, 0) if inputs is None else inputs
        return self._moments_at(self._features(data, inputs))

    def log_predictive(self, model, data):
        raise TypeError(
            "leave-one-out needs measurements; a deterministic solve has none, and its equation "
            "holds at every point"
        )


class SpectralPDEPosterior(Posterior):
    """A solution with its uncertainty, residual and spectrum."""

    approximation: GaussianSolution

    @property
    def residual(self) -> float:
        """Relative residual between the collocation points, the measure of error to go by.

        Root mean square of the equation's residual over that of its terms, or the largest relative
        misfit of a condition, or the posterior deviation relative to the solution (what the
        residual and rounding leave open), whichever is largest.
        """
        mean, variance = self.mean["solution"], self.variance["solution"]
        power = float(np.mean(mean**2))
        relative = float(np.sqrt(np.mean(variance) / power)) if power > 0 else 0.0
        return max(float(self.approximation.residual), relative)

    def predict(self, inputs=None, *, derivative=None, include_noise=False) -> Prediction:
        """The solution or a derivative of it, anywhere in the domain.

        Parameters
        ----------
        inputs : mapping, optional
            Points (P,) by dimension; the collocation points by default.
        derivative : mapping, optional
            Orders by dimension, such as ``{"x": 1}``.
        include_noise : bool
            There are no measurements, and so no noise of any.

        Returns
        -------
        Prediction
            Mean and variance (P,).

        Raises
        ------
        TypeError, ValueError
            For inputs that are no mapping of the dimensions to finite numbers in the domain, or
            with ``include_noise``.

        Examples
        --------
        >>> import numpy as np
        >>> import bayeskit as bk
        >>> pde = bk.pde.PDE(
        ...     lambda u, x: u.d("x", 2) + np.pi**2 * np.sin(np.pi * x),
        ...     {"x": (0.0, 1.0)},
        ...     [bk.pde.Dirichlet("x", 0.0, 0.0), bk.pde.Dirichlet("x", 1.0, 0.0)],
        ... )
        >>> posterior = bk.infer(bk.models.SpectralPDE(pde, grid={"x": 20}), None)
        >>> slope = posterior.predict({"x": [0.0]}, derivative={"x": 1}).mean[0]
        >>> bool(abs(slope - np.pi) < 1e-6)
        True
        """
        if include_noise:
            raise ValueError("include_noise: there are no measurements whose noise could be added")
        if derivative is None:
            return super().predict(inputs)
        if not isinstance(derivative, dict):
            raise TypeError(f"derivative must be a mapping such as {{'x': 1}}, got {derivative!r}")
        dims = self.prepared.model.dims
        (order,) = orders_of(derivative, dims)
        return super().predict((inputs, order))

    def spectrum(self, dim: str) -> Spectrum:
        """Frequencies that the solution has in one dimension.

        Parameters
        ----------
        dim : str

        Returns
        -------
        Spectrum

        Raises
        ------
        ValueError
            If there is no such dimension.
        """
        if dim not in self.prepared.model.dims:
            raise ValueError(f"dim is {dim!r}; there are {list(self.prepared.model.dims)}")
        data, found = self.prepared.data, self.approximation
        count = 2 * self.prepared.model.points[0]
        with double_precision():
            waves = frame.frequencies(data.nodes.shape[0])
            prior = np.asarray(frame.power(jnp.asarray(found.scales)))
            inside = frame.features(jnp.linspace(0.0, 1.0, count), waves, 0)
            values = np.asarray(inside @ jnp.asarray(found.coefficients))
        length = float(data.length)
        power = np.abs(np.fft.rfft(values * np.hanning(count))) ** 2
        total = power.sum()
        weights = power / total if total > 0 else power
        frequencies = np.fft.rfftfreq(count, length / (count - 1))
        prior = np.interp(frequencies * length, np.asarray(waves), prior)
        return Spectrum(frequencies, weights, prior / prior.sum(), _peaks(frequencies, weights))


def _peaks(frequencies, weights):
    """Centres of gravity of maxima, strongest first."""
    padded = np.pad(weights, 1)
    top = (padded[1:-1] >= padded[:-2]) & (padded[1:-1] > padded[2:])
    found = []
    for index in np.flatnonzero(top):
        near = slice(max(index - 2, 0), index + 3)
        share = weights[near].sum()
        if share >= _PEAK_SHARE:
            found.append((share, float(weights[near] @ frequencies[near] / share)))
    return np.array([frequency for _, frequency in sorted(found, reverse=True)])
