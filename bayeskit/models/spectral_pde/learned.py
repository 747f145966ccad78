"""Solutions with a learned spectrum: the posterior of weights of waves, given hyper-parameters."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bayeskit.codec import storable
from bayeskit.linalg import safe
from bayeskit.models.spectral_pde import evidence
from bayeskit.models.spectral_pde import hyper as hypers
from bayeskit.models.spectral_pde.approximation import AbstractSolution, nodes_of
from bayeskit.models.spectral_pde.dense import back_substitute
from bayeskit.models.spectral_pde.problem import WIDEST

_BLOCK = 256  # points at once
_QUADRATURE = 32


@storable
class Spread(NamedTuple):
    """A normal distribution of hyper-parameters around their mode, in unbounded coordinates.

    Attributes
    ----------
    root : array (p, p)
        Of the covariance of those that are open, raveled in the order of their pytree.
    response : array (K, p)
        Derivatives of the field's coefficients.
    """

    root: Any
    response: Any


NOTHING, UNKNOWNS, EVERYTHING = "nothing", "unknowns", "everything"


def open_part(hyper, which):
    """The hyper-parameters that are open: none, unknown coefficients, or all."""
    return {NOTHING: (), UNKNOWNS: hyper.unknowns, EVERYTHING: hyper}[which]


def with_part(hyper, which, part):
    """Hyper-parameters with other values of what is open."""
    if which == EVERYTHING:
        return part
    return hyper._replace(unknowns=part) if which == UNKNOWNS else hyper


class LearnedSolution(AbstractSolution):
    """Normal weights of products of waves, and of hyper-parameters beside them.

    Attributes
    ----------
    coefficients, scales : arrays (K,)
        Posterior means and prior deviations.
    factor : array (K, K)
        Upper triangular ``R``: the unit weights have covariance ``(RᵀR)⁻¹``.
    hyper : Hyper
    which : str
        What is open of them: ``"nothing"``, ``"unknowns"`` or ``"everything"``.
    spread : Spread or None
        ``None`` if nothing is.
    residual, misfit : scalars
        Relative residual between the nodes and at exact conditions.
    """

    coefficients: Any
    scales: Any
    factor: Any
    hyper: hypers.Hyper
    which: str = eqx.field(static=True)
    spread: Any
    residual: Any
    misfit: Any

    def on_grid(self, data, places):
        """See :class:`AbstractSolution`."""
        points = evidence.grid_points(places.points)
        count = points[0].shape[0]
        blocks = -(-count // _BLOCK)
        index = jnp.minimum(jnp.arange(blocks * _BLOCK), count - 1).reshape(blocks, _BLOCK)

        def at(chosen):
            block = tuple(each[chosen] for each in points)
            return self._seen(evidence.features(data.axes, block, places.orders))

        mean, variance = (each.reshape(-1)[:count] for each in jax.lax.map(at, index))
        shape = tuple(each.shape[0] for each in places.points)
        return mean.reshape(shape), variance.reshape(shape)

    def _seen(self, rows):
        """Mean and variance (n,) of linear functionals (n, K) of the coefficients."""
        spread = safe.solve_triangular(self.factor.T, (rows * self.scales).T)
        variance = jnp.sum(spread**2, axis=0)
        if self.spread is not None:
            moved = rows @ (self.spread.response @ self.spread.root)
            variance = variance + jnp.sum(moved**2, axis=1)
        return rows @ self.coefficients, variance

    def predict(self, inputs, include_noise, model, data):
        """On a grid; without one what sensors see, with their noise on request."""
        if inputs is not None or data.measured is None:
            return super().predict(inputs, include_noise, model, data)
        mean, variance = self._seen(evidence.sensor_rows(data, WIDEST))
        if include_noise:
            _, noise = hypers.deviations(data, self.hyper)
            variance = variance + noise**2
        return mean + data.measured.offset, variance

    def sample(self, key, model, data):
        """The field at the nodes and unknown coefficients, together."""
        own, others, whole = jax.random.split(key, 3)
        noise = jax.random.normal(own, self.coefficients.shape, self.coefficients.dtype)
        moved = self.coefficients + self.scales * back_substitute(self.factor, noise)
        hyper = self.hyper
        if self.spread is not None:
            flat, unravel = ravel_pytree(open_part(hyper, self.which))
            shift = self.spread.root @ jax.random.normal(others, flat.shape, flat.dtype)
            moved = moved + self.spread.response @ shift
            hyper = with_part(hyper, self.which, unravel(flat + shift))
        places = nodes_of(data)
        features = evidence.features(data.axes, evidence.grid_points(places.points), places.orders)
        field = (features @ moved).reshape(model.points)
        drawn = {"solution": self.moved_as_a_whole(whole, field, data)}
        if data.measured is not None:
            drawn["measured"] = evidence.sensor_rows(data, WIDEST) @ moved + data.measured.offset
        return drawn | self._sites(model, data, hyper)[0]

    def _sites(self, model, data, hyper):
        """Sites that are random, and those that are plugged in, in the user's units."""
        own = hypers.in_user_units(model, data, hyper)
        unknowns = hypers.unknown_values(data, hyper.unknowns)
        if self.which == EVERYTHING:
            return own | unknowns, {}
        return (unknowns, own) if self.which == UNKNOWNS else ({}, own | unknowns)

    def plugged_in(self, model, data):
        """What is not open, in the user's units."""
        return self._sites(model, data, self.hyper)[1]

    def moments(self, model, data):
        """Of the field at the nodes and of what is open: by quadrature, number by number."""
        mean, variance = super().moments(model, data)
        if data.measured is not None:
            mean["measured"], variance["measured"] = self.predict(None, False, model, data)
        if self.spread is None:
            return mean, variance
        flat, unravel = ravel_pytree(open_part(self.hyper, self.which))
        deviations = jnp.sqrt(jnp.sum(self.spread.root**2, axis=1))
        nodes, weights = np.polynomial.hermite_e.hermegauss(_QUADRATURE)
        weights = weights / weights.sum()

        def at(node):
            moved = with_part(self.hyper, self.which, unravel(flat + node * deviations))
            return self._sites(model, data, moved)[0]

        values = jax.lax.map(at, jnp.asarray(nodes))
        means = jax.tree.map(lambda v: jnp.tensordot(weights, v, axes=1), values)
        spreads = jax.tree.map(
            lambda v, m: jnp.tensordot(weights, (v - m) ** 2, axes=1), values, means
        )
        return {**mean, **means}, {**variance, **spreads}

    def judged(self, model, data):
        """Field, noise and unknown coefficients; components may change places."""
        plugged = self._sites(model, data, self.hyper)[1]
        mean, _ = self.on_grid(data, nodes_of(data))
        kept = [name for name in plugged if name.endswith("_noise") or name in data.unknowns]
        return {"solution": mean} | {name: plugged[name] for name in kept}

    def log_evidence(self, model, data):
        """Of everything that is known, given the hyper-parameters."""
        matrices = evidence.design(data)
        return evidence.log_evidence(model.kernel, data, matrices, self.hyper, self.coefficients)

    def log_predictive(self, model, data):
        """Of the sensors, exact for linear equations."""
        if data.measured is None:
            return super().log_predictive(model, data)
        matrices = evidence.design(data)
        rows = evidence.rows_of(model.kernel, data, matrices, self.hyper, self.coefficients)
        first = matrices.conditions.shape[0]
        own = slice(first, first + matrices.sensors.shape[0])
        matrix, right = rows.whitened()
        left = right[own] - matrix[own] @ (self.coefficients / self.scales)
        leverage = jnp.sum(safe.solve_triangular(self.factor.T, matrix[own].T) ** 2, axis=0)

        def density(variance, error):
            return -0.5 * (jnp.log(2 * jnp.pi * variance) + error**2 / variance)

        free = 1.0 - leverage
        outside = density(1.0 / free, left / free) - rows.log_deviations[own]
        return outside, density(1.0 + leverage, left) - rows.log_deviations[own]
