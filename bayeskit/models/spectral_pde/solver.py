"""What the model asks of a solver: one for a dimension alone, one for products of several."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from bayeskit.linalg import kronecker_multiply
from bayeskit.models.spectral_pde import dense, tensor
from bayeskit.models.spectral_pde.approximation import DenseSolution, TensorSolution
from bayeskit.models.spectral_pde.basis import derivative, scales_of
from bayeskit.models.spectral_pde.spectrum import SpectralMixture

_DRAWS = 16


class Found(NamedTuple):
    """A field under some spectrum.

    Attributes
    ----------
    residual : scalar
        Relative, between the collocation points and at the conditions.
    log_evidence : scalar
        Zero where there is none.
    step : scalar
        Size of Newton's last step relative to the field.
    field : array
        As the solver holds it.
    """

    residual: Any
    log_evidence: Any
    step: Any
    field: Any


class Diagnostics(NamedTuple):
    """What the caveats are read from.

    Attributes
    ----------
    residual, misfit : scalars
        Relative residual between the nodes, beyond what noise explains, and at the conditions.
    deviation : scalar
        Of the posterior, relative to the field.
    near_nyquist : scalar
        See :class:`~bayeskit.models.spectral_pde.problem.Problem`.
    missing : int
        Number of conditions.
    noise : scalar
        Deviation of the equation's errors relative to its terms where it has been learned.
    """

    residual: Any
    misfit: Any
    deviation: Any
    near_nyquist: Any
    missing: Any
    noise: Any


class AbstractSolver(eqx.Module):
    """Solves a problem under given spectra: ``components``, one a dimension."""

    kernel: eqx.AbstractVar[SpectralMixture]

    @abc.abstractmethod
    def zero(self, problem):
        """The field that is zero."""

    @abc.abstractmethod
    def draw(self, problem, components, key):
        """A field from the prior."""

    @abc.abstractmethod
    def find(self, problem, components, start) -> Found:
        """The solution, by some steps of Newton's iteration from a field."""

    @abc.abstractmethod
    def finish(self, problem, components, field):
        """The posterior, its log evidence (``None`` where there is none), and diagnostics."""

    def _scales(self, problem, components):
        return [
            scales_of(self.kernel, each, axis)
            for each, axis in zip(components, problem.axes, strict=True)
        ]


def diagnosed(problem, mean, variance, residual, misfit):
    """What the caveats are read from, of moments at the nodes."""
    power = jnp.mean(mean**2)
    deviation = jnp.sqrt(jnp.mean(variance) / jnp.where(power > 0, power, 1.0))
    deviation = jnp.where(power > 0, deviation, 0.0)
    missing = jnp.asarray(missing_conditions(problem))
    nyquist = problem.near_nyquist
    return Diagnostics(residual, misfit, deviation, nyquist, missing, jnp.zeros(()))


def missing_conditions(problem):
    """How many conditions there are less than the orders of the equation."""
    return sum(
        max(0, max(orders[k] for orders in problem.at_nodes.orders) - given.shape[0])
        for k, given in enumerate(problem.values)
    )


class DenseSolver(AbstractSolver):
    """One dimension: coefficients of waves, by least squares."""

    kernel: SpectralMixture

    def zero(self, problem):
        """Coefficients (K,)."""
        (axis,) = problem.axes
        return jnp.zeros(derivative(axis, axis.nodes[:1], 0).shape[1])

    def draw(self, problem, components, key):
        """See :class:`AbstractSolver`."""
        (scales,) = self._scales(problem, components)
        return scales * jax.random.normal(key, scales.shape)

    def find(self, problem, components, start):
        """See :class:`AbstractSolver`."""
        (scales,) = self._scales(problem, components)
        ops = dense.operators(problem)
        field, step = dense.solve(problem, ops, scales, start)
        residual = jnp.maximum(*dense.residuals(problem, ops, field))
        log_evidence = dense.covariance(problem, ops, scales, field).log_evidence
        return Found(residual, log_evidence, step, field)

    def finish(self, problem, components, field):
        """See :class:`AbstractSolver`."""
        (scales,) = self._scales(problem, components)
        ops = dense.operators(problem)
        spread = dense.covariance(problem, ops, scales, field)
        residual, misfit = dense.residuals(problem, ops, field)
        solution = DenseSolution(
            field,
            scales,
            spread.factor,
            components,
            residual,
            misfit,
            spread.noise,
            jnp.mean((ops.value @ field) ** 2),
        )
        moments = solution.predict(None, False, None, problem)
        return solution, spread.log_evidence, diagnosed(problem, *moments, residual, misfit)


class TensorSolver(AbstractSolver):
    """Products of dimensions: values at the collocation points, in factor space."""

    kernel: SpectralMixture

    def zero(self, problem):
        """Values (N_1, …, N_d)."""
        return jnp.zeros(tuple(axis.nodes.shape[0] for axis in problem.axes))

    def draw(self, problem, components, key):
        """See :class:`AbstractSolver`."""
        factors = [
            derivative(axis, axis.nodes, 0) * scales
            for axis, scales in zip(problem.axes, self._scales(problem, components), strict=True)
        ]
        shape = tuple(factor.shape[1] for factor in factors)
        return kronecker_multiply(factors, jax.random.normal(key, shape))

    def _solved(self, problem, components, start):
        space = tensor.space_of(problem, self._scales(problem, components))
        field, step = tensor.solve(problem, space, tensor.coefficients_of(space, start))
        return space, field, step

    def find(self, problem, components, start):
        """See :class:`AbstractSolver`."""
        space, field, step = self._solved(problem, components, start)
        residual = jnp.maximum(*tensor.residuals(problem, space, field))
        return Found(residual, jnp.zeros(()), step, tensor.values_of(space, field))

    def finish(self, problem, components, field):
        """See :class:`AbstractSolver`."""
        space = tensor.space_of(problem, self._scales(problem, components))
        field = tensor.coefficients_of(space, field)
        residual, misfit = tensor.residuals(problem, space, field)
        deviations, noise = tensor.deviations(jax.random.key(0), problem, space, field, _DRAWS)
        solution = TensorSolution(
            field,
            tuple(basis.transform for basis in space.bases),
            deviations,
            components,
            residual,
            misfit,
            noise,
            jnp.sum(field**2),
        )
        moments = solution.predict(None, False, None, problem)
        return solution, None, diagnosed(problem, *moments, residual, misfit)
