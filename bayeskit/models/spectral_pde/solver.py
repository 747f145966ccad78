"""What the model asks of a solver: one for a dimension alone, one for products of several."""

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from bayeskit.linalg import kronecker_multiply
from bayeskit.models.spectral_pde import dense, frame, tensor
from bayeskit.models.spectral_pde.approximation import DenseSolution, TensorSolution
from bayeskit.models.spectral_pde.basis import derivative, scales_of
from bayeskit.models.spectral_pde.newton import rms
from bayeskit.models.spectral_pde.problem import source_of
from bayeskit.models.spectral_pde.spectrum import SpectralMixture

_DRAWS = 16
_OFFSETS = (-4.0, -1.0, 1.0, 4.0)  # of the field, in sizes, from where others are looked for
_SOLVED, _APART = 1e-6, 1e-2  # residual of another solution, and its distance in sizes
_VANISHING = 1e-10  # means of coefficients, relative to their sizes


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
    others : scalar
        Whether Newton's iteration found another solution too.
    averaged_out : scalar
        Whether nothing is left of the equation with its coefficients' means, from which several
        dimensions are solved.
    sensor_noise : scalar
        Deviation of the sensors' errors relative to what they measure where it has been learned.
    """

    residual: Any
    misfit: Any
    deviation: Any
    near_nyquist: Any
    missing: Any
    noise: Any
    others: Any
    averaged_out: Any
    sensor_noise: Any


class AbstractSolver(eqx.Module):
    """Solves a problem under given spectra: ``components``, one a dimension."""

    kernel: eqx.AbstractVar[SpectralMixture]

    @abc.abstractmethod
    def constant(self, problem):
        """The constant field to start from."""

    @abc.abstractmethod
    def draw(self, problem, components, key):
        """A field from the prior."""

    @abc.abstractmethod
    def find(self, problem, components, start) -> Found:
        """The solution, by some steps of Newton's iteration from a field."""

    @abc.abstractmethod
    def finish(self, problem, components, field, rivals):
        """The posterior, its log evidence (``None`` where there is none), and diagnostics.

        ``rivals`` are deviations of the field, one row each, that its own residual does not show.
        """

    def _scales(self, problem, components):
        return [
            scales_of(self.kernel, each, axis)
            for each, axis in zip(components, problem.axes, strict=True)
        ]


def diagnosed(problem, mean, variance, residual, misfit):
    """What the caveats are read from, of moments at the nodes.

    The deviation is relative to the field, or to one where the field is zero.
    """
    power = jnp.mean(mean**2)
    deviation = jnp.sqrt(jnp.mean(variance) / jnp.where(power > 0, power, 1.0))
    missing = jnp.asarray(missing_conditions(problem))
    nyquist = problem.near_nyquist
    no = jnp.zeros(())
    return Diagnostics(residual, misfit, deviation, nyquist, missing, no, no, no, no)


def missing_conditions(problem):
    """How many conditions there are less than the orders of the equation."""
    return sum(
        max(0, max(orders[k] for orders in problem.at_nodes.orders) - given.shape[0])
        for k, given in enumerate(problem.values)
    )


class DenseSolver(AbstractSolver):
    """One dimension: coefficients of waves, by least squares."""

    kernel: SpectralMixture

    def constant(self, problem):
        """Coefficients (K,)."""
        (axis,) = problem.axes
        zero = jnp.zeros(derivative(axis, axis.nodes[:1], 0).shape[1])
        return zero.at[frame.CONSTANT].set(problem.level)

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
        # Zero is most probable under a band that can hold no other solution.
        log_evidence = jnp.where(jnp.any(field != 0), log_evidence, 0.0)
        return Found(residual, log_evidence, step, field)

    def finish(self, problem, components, field, rivals):
        """See :class:`AbstractSolver`."""
        (scales,) = self._scales(problem, components)
        ops = dense.operators(problem)
        spread = dense.covariance(problem, ops, scales, field)
        residual, misfit = dense.residuals(problem, ops, field)
        solution = DenseSolution(
            field,
            scales,
            spread.factor,
            rivals,
            components,
            residual,
            misfit,
            spread.noise,
            jnp.mean((ops.value @ field) ** 2),
        )
        moments = solution.predict(None, False, None, problem)
        diagnostics = diagnosed(problem, *moments, residual, misfit)
        others = self._has_others(problem, ops, scales, field)
        return solution, spread.log_evidence, diagnostics._replace(others=others)

    def _has_others(self, problem, ops, scales, field):
        """Whether Newton's iteration ends elsewhere from starts at some offsets."""
        if problem.at_nodes.linear:
            return jnp.zeros(())
        size = jnp.maximum(rms(ops.value @ field), problem.units.field)

        def is_another(offset):
            start = field.at[frame.CONSTANT].add(offset * size)
            found, _ = dense.solve(problem, ops, scales, start)
            residual = jnp.maximum(*dense.residuals(problem, ops, found))
            return (residual < _SOLVED) & (rms(ops.value @ (found - field)) > _APART * size)

        return jnp.any(jax.lax.map(is_another, jnp.asarray(_OFFSETS))).astype(float)


class TensorSolver(AbstractSolver):
    """Products of dimensions: values at the collocation points, in factor space."""

    kernel: SpectralMixture

    def constant(self, problem):
        """Values (N_1, …, N_d)."""
        return jnp.full(tuple(axis.nodes.shape[0] for axis in problem.axes), problem.level)

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

    def finish(self, problem, components, field, rivals):
        """See :class:`AbstractSolver`."""
        space = tensor.space_of(problem, self._scales(problem, components))
        field = tensor.coefficients_of(space, field)
        residual, misfit = tensor.residuals(problem, space, field)
        deviations, noise = tensor.deviations(jax.random.key(0), problem, space, field, _DRAWS)
        rivals = jax.lax.map(lambda each: tensor.coefficients_of(space, each), rivals)
        solution = TensorSolution(
            field,
            tuple(basis.transform for basis in space.bases),
            jnp.concatenate([deviations, rivals]),
            components,
            residual,
            misfit,
            noise,
            jnp.sum(field**2),
        )
        moments = solution.predict(None, False, None, problem)
        diagnostics = diagnosed(problem, *moments, residual, misfit)
        return solution, None, diagnostics._replace(averaged_out=_averages_out(problem))


def _averages_out(problem):
    """Whether all derivatives are mixed or have coefficients that are zero on average."""
    residual = problem.at_nodes
    _, by_value = source_of(residual, math.prod(axis.nodes.shape[0] for axis in problem.axes))
    unmixed = [sum(order > 0 for order in each) <= 1 for each in residual.orders]
    means = jnp.abs(jnp.mean(by_value, axis=1))
    small = means <= _VANISHING * jnp.max(jnp.mean(jnp.abs(by_value), axis=1))
    return jnp.all(small, where=jnp.asarray(unmixed)).astype(float)
