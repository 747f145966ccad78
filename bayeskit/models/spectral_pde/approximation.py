"""Posteriors of solutions of partial differential equations."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.linalg import kronecker_multiply, safe
from bayeskit.models.spectral_pde import joint
from bayeskit.models.spectral_pde.basis import derivative
from bayeskit.models.spectral_pde.dense import back_substitute
from bayeskit.models.spectral_pde.spectrum import SpectralMixture
from bayeskit.pde.field import orders_of
from bayeskit.posterior import Posterior
from bayeskit.precision import double_precision
from bayeskit.results import AbstractApproximation, Prediction

_PEAK_SHARE = 0.01
_ROUNDING = 8.0  # units of it, in evaluating a field


class Places(eqx.Module):
    """A grid of points in the scaled box, one array a dimension, and orders of a derivative."""

    points: tuple[Any, ...]
    orders: tuple[int, ...] = eqx.field(static=True)


def nodes_of(data) -> Places:
    """The collocation points."""
    return Places(tuple(axis.nodes for axis in data.axes), (0,) * len(data.axes))


class Spectrum(NamedTuple):
    """Frequencies of a solution in one dimension.

    Attributes
    ----------
    frequencies : array (m,)
        Cycles per unit of the dimension.
    weights : array (m,)
        Share of the solution's power at each, summed over the other dimensions: its periodogram
        under a Hann window, whose resolution is two cycles a length of the domain.
    peaks : array (p,)
        Frequencies of maxima that carry at least a hundredth of the power, strongest first:
        centres of gravity over neighbours.
    """

    frequencies: Any
    weights: Any
    peaks: Any


class AbstractSolution(AbstractApproximation):
    """A field with its spectrum plugged in.

    Attributes
    ----------
    residual, misfit : scalars
        Relative residual between the nodes and at the conditions.
    """

    residual: eqx.AbstractVar[Any]
    misfit: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def on_grid(self, data, places) -> tuple[Any, Any]:
        """Mean, and variance by the equation's error, on a grid."""

    def predict(self, inputs, include_noise, model, data):
        """Mean and variance on a grid, no smaller than the error of the conditions or of rounding.

        There is no noise.
        """
        places = nodes_of(data) if inputs is None else inputs
        mean, variance = self.on_grid(data, places)
        return mean, variance + self._floor(data, places.orders) ** 2

    def _floor(self, data, orders):
        """Smallest deviation of a derivative: what the conditions are met to, or rounding.

        Relative to its largest value at the collocation points.
        """
        mean, _ = self.on_grid(data, Places(nodes_of(data).points, orders))
        relative = jnp.maximum(self.misfit, _ROUNDING * jnp.finfo(mean.dtype).eps)
        return relative * jnp.max(jnp.abs(mean))

    def moved_as_a_whole(self, key, field, data):
        """A draw of a field at the nodes, with the smallest deviation, which it shares."""
        floor = self._floor(data, nodes_of(data).orders)
        return field + floor * jax.random.normal(key, (), floor.dtype)

    def moments(self, model, data):
        """Of the field at the nodes."""
        mean, variance = self.predict(nodes_of(data), False, model, data)
        fixed = self.plugged_in(model, data)
        zeros = jax.tree.map(jnp.zeros_like, fixed)
        return {"solution": mean, **fixed}, {"solution": variance, **zeros}

    def log_predictive(self, model, data):
        """There are no observations: raises ``TypeError``."""
        raise TypeError(
            "leave-one-out needs measurements; a deterministic solve has none, and its equation "
            "holds at every point"
        )


class _BandSolution(AbstractSolution):
    """A field under a band of frequencies that was chosen by the residual.

    Attributes
    ----------
    components : tuple of Components
        One a dimension, in cycles per box.
    noise, power : scalars
        Deviation of the equation's error; mean square of the field.
    """

    components: eqx.AbstractVar[Any]
    noise: eqx.AbstractVar[Any]
    power: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def draw(self, key, data) -> Any:
        """A field at the nodes, by the equation's error alone."""

    def sample(self, key, model, data):
        """The field at the nodes; the smallest deviation moves it as a whole."""
        own, whole = jax.random.split(key)
        return {"solution": self.moved_as_a_whole(whole, self.draw(own, data), data)}

    def plugged_in(self, model, data):
        """Components in the user's units, whose weights sum to the power of the field."""
        found: dict[str, Any] = {"equation_noise": self.noise}
        for k, (dim, axis) in enumerate(zip(model.dims, data.axes, strict=True)):
            each = self.components[k]
            weights = jnp.exp(each.log_weights - jnp.max(each.log_weights))
            found[f"weights_{dim}"] = self.power * weights / jnp.sum(weights)
            found[f"frequencies_{dim}"] = each.frequencies / axis.length
            found[f"widths_{dim}"] = each.widths / axis.length
        return found


class DenseSolution(_BandSolution):
    """Normal weights of waves and polynomials of one dimension.

    Attributes
    ----------
    coefficients, scales : arrays (K,)
        Posterior means and prior deviations.
    factor : array (K, K)
        See :class:`~bayeskit.models.spectral_pde.dense.Covariance`.
    rivals : array (B, K)
        Deviations of the coefficients that the equation's error does not show.
    """

    coefficients: Any
    scales: Any
    factor: Any
    rivals: Any
    components: Any
    residual: Any
    misfit: Any
    noise: Any
    power: Any

    @staticmethod
    def _features(data, places):
        return derivative(data.axes[0], places.points[0], places.orders[0])

    def on_grid(self, data, places):
        """See :class:`AbstractSolution`."""
        features = self._features(data, places)
        spread = safe.solve_triangular(self.factor.T, (features * self.scales).T)
        variance = jnp.sum(spread**2, axis=0) + jnp.sum((self.rivals @ features.T) ** 2, axis=0)
        return features @ self.coefficients, variance

    def draw(self, key, data):
        """See :class:`AbstractSolution`."""
        own, between = jax.random.split(key)
        dtype = self.coefficients.dtype
        noise = jax.random.normal(own, self.coefficients.shape, dtype)
        moved = self.coefficients + self.scales * back_substitute(self.factor, noise)
        moved = moved + jax.random.normal(between, self.rivals.shape[:1], dtype) @ self.rivals
        return self._features(data, nodes_of(data)) @ moved


class TensorSolution(_BandSolution):
    """A field in products of orthonormal functions, and draws of what its residual leaves open.

    Attributes
    ----------
    coefficients : array (R_1, …, R_d)
    transforms : tuple of arrays (K_i, R_i)
        From coefficients to those of the waves.
    deviations : array (D, R_1, …, R_d)
        Of the coefficients; their squares sum to the variance.
    """

    coefficients: Any
    transforms: Any
    deviations: Any
    components: Any
    residual: Any
    misfit: Any
    noise: Any
    power: Any

    def _factors(self, data, places):
        return [
            derivative(axis, points, order) @ transform
            for axis, points, order, transform in zip(
                data.axes, places.points, places.orders, self.transforms, strict=True
            )
        ]

    def on_grid(self, data, places):
        """See :class:`AbstractSolution`."""
        factors = self._factors(data, places)
        mean = kronecker_multiply(factors, self.coefficients)

        def add(total, deviation):
            return total + kronecker_multiply(factors, deviation) ** 2, None

        total, _ = jax.lax.scan(add, jnp.zeros_like(mean), self.deviations)
        return mean, total

    def draw(self, key, data):
        """A random combination of the deviations, whose covariance is theirs."""
        weights = jax.random.normal(key, self.deviations.shape[:1], self.coefficients.dtype)
        moved = self.coefficients + jnp.tensordot(weights, self.deviations, axes=1)
        return kronecker_multiply(self._factors(data, nodes_of(data)), moved)


class JointSolution(_BandSolution):
    """Values on a uniform grid, their covariance around a joint mode, and the kernel in between.

    Attributes
    ----------
    mode : JointMode
    kernel : SpectralMixture
    """

    mode: joint.JointMode
    kernel: SpectralMixture
    components: Any
    residual: Any
    misfit: Any
    noise: Any
    power: Any

    def interpolations(self, data, places):
        """Weights, explained variances and prior variances of all dimensions."""
        found = []
        for k, (axis, components) in enumerate(zip(data.axes, self.components, strict=True)):
            root = joint.root_of(self.kernel, components, self.mode.values.shape[k])
            order = places.orders[k]
            weights, explained, prior = joint.interpolation(
                self.kernel, components, root, places.points[k], order
            )
            unit = axis.length**-order
            found.append((unit * weights, unit**2 * explained, unit**2 * prior))
        return found

    def on_grid(self, data, places):
        """See :class:`AbstractSolution`: of the values, and of the field given these."""
        found = self.interpolations(data, places)
        factors = [weights for weights, _, _ in found]
        mean = kronecker_multiply(factors, self.mode.values)
        explained, prior = jnp.ones(()), jnp.ones(())
        for _, explains, has in found:
            explained, prior = explained[..., None] * explains, prior * has

        def add(total, deviation):
            return total + kronecker_multiply(factors, deviation) ** 2, None

        variance, _ = jax.lax.scan(add, jnp.maximum(prior - explained, 0.0), self.mode.deviations)
        return mean, variance

    def draw(self, key, data):
        """A draw of the values, and one of the field given these: from the prior, moved."""
        own, given = jax.random.split(key)
        weights = jax.random.normal(own, self.mode.deviations.shape[:1])
        values = self.mode.values + jnp.tensordot(weights, self.mode.deviations, axes=1)
        factors, roots = [], []
        places = nodes_of(data)
        for k, (interpolates, _, _) in enumerate(self.interpolations(data, places)):
            factors.append(interpolates)
            roots.append(
                joint.conditional_root(
                    self.kernel, self.components[k], places.points[k], interpolates.shape[1]
                )
            )
        # The prior's field at the nodes and on the grid, together.
        noise = jax.random.normal(given, tuple(root.shape[1] for root in roots))
        both = kronecker_multiply(roots, noise)
        counts = [interpolates.shape[0] for interpolates in factors]
        at_nodes = both[tuple(slice(0, count) for count in counts)]
        on_grid = both[tuple(slice(count, None) for count in counts)]
        return at_nodes + kronecker_multiply(factors, values - on_grid)


def _left(approximation, model, data):
    """Residual and misfit, of chains their means."""
    if approximation.chains is None:
        return jnp.stack([approximation.residual, approximation.misfit])
    left = approximation.map_conditionals(lambda c: (c.residual, c.misfit), model, data)
    return jnp.stack([jnp.mean(each) for each in left])


class SpectralPDEPosterior(Posterior):
    """A solution with its uncertainty, residual and spectrum."""

    @property
    def residual(self) -> float:
        """Relative residual between the collocation points, the measure of error to go by.

        Root mean square of the equation's residual over that of its terms, or the largest relative
        misfit of a condition, or the posterior deviation relative to the solution (what the
        residual and rounding leave open; the deviation itself of a solution that is zero),
        whichever is largest.
        """
        mean, variance = self.mean["solution"], self.variance["solution"]
        size = float(np.max(np.abs(mean))) or 1.0
        power = float(np.mean((mean / size) ** 2)) or 1.0
        relative = np.sqrt(np.mean(variance / size / size) / power)
        return float(np.max(np.append(self.evaluate(_left), relative)))

    def predict(self, inputs=None, *, derivative=None, include_noise=False) -> Prediction:
        """The solution or a derivative of it, on any grid in the domain.

        Parameters
        ----------
        inputs : mapping, optional
            Points (P_i,) by dimension, of whose product all are taken. By default what the
            sensors measure, where they do; the collocation points if there are none.
        derivative : mapping, optional
            Orders by dimension, such as ``{"x": 1}``.
        include_noise : bool
            Add the variance of the sensors' errors, where they are.

        Returns
        -------
        Prediction
            Mean and variance (P_1, …, P_d).

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
        >>> posterior = bk.infer(bk.models.SpectralPDE(pde, grid={"x": 48}), None)
        >>> slope = posterior.predict({"x": [0.0]}, derivative={"x": 1}).mean[0]
        >>> bool(abs(slope - np.pi) < 1e-6)
        True
        """
        if include_noise and (inputs is not None or self.prepared.data.measured is None):
            raise ValueError("include_noise: noise is the sensors' own; leave inputs out")
        if derivative is None:
            return super().predict(inputs, include_noise=include_noise)
        if not isinstance(derivative, dict):
            raise TypeError(f"derivative must be a mapping such as {{'x': 1}}, got {derivative!r}")
        orders = orders_of(derivative, self.prepared.model.dims)
        solution = self.approximation
        rough = isinstance(solution, JointSolution) and solution.kernel.family == "student-t"
        if rough and max(orders) > 2:
            raise ValueError(
                "derivative: under a student-t spectrum a field has two derivatives only, got "
                f"{derivative!r}"
            )
        return super().predict((inputs, orders))

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
        dims = self.prepared.model.dims
        if dim not in dims:
            raise ValueError(f"dim is {dim!r}; there are {list(dims)}")
        k = dims.index(dim)
        axis = self.prepared.data.axes[k]
        count, length = 2 * self.prepared.model.points[k], float(axis.length)
        inputs = {name: np.asarray(self.names.coords[name]) for name in dims}
        inputs[dim] = float(axis.lower) + length * np.linspace(0.0, 1.0, count)
        with double_precision():
            values = np.moveaxis(np.asarray(super().predict(inputs).mean), k, -1)
        power = np.abs(np.fft.rfft(values * np.hanning(count))) ** 2
        power = power.reshape(-1, power.shape[-1]).sum(axis=0)
        total = power.sum()
        weights = power / total if total > 0 else power
        frequencies = np.fft.rfftfreq(count, length / (count - 1))
        return Spectrum(frequencies, weights, _peaks(frequencies, weights))


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
