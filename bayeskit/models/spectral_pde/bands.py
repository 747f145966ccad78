"""Search among bands of frequencies: the one whose solution leaves least between the points."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bayeskit.models.base import key_of_lane
from bayeskit.models.spectral_pde import problem as problems
from bayeskit.models.spectral_pde.newton import share_of
from bayeskit.models.spectral_pde.solver import DenseSolver, TensorSolver
from bayeskit.models.spectral_pde.spectrum import band

# Bands that compete, as shares of the highest frequency that the points resolve.
_BANDS = (0.4, 0.5, 0.3, 0.55, 0.2, 0.6, 0.1, 0.45, problems.WIDEST)
_MARGIN = 1.05  # of a band beyond the source's frequencies, to be tried first
_NEARLY = 30.0  # times the smallest residual: rounding decides below
_ENOUGH = 1e-8  # a residual at which no further band is tried in several dimensions


class Candidates(NamedTuple):
    """Solutions under competing bands: one row each.

    Attributes
    ----------
    residuals : array (B,)
        Relative, between the collocation points and at the conditions; one before the first try.
    log_evidences : array (B,)
    steps : array (B,)
        Sizes of Newton's last steps relative to the field; zero for linear equations.
    fields : array (B, …)
    trials : scalar
        Number of solves so far.
    """

    residuals: Any
    log_evidences: Any
    steps: Any
    fields: Any
    trials: Any


def begin(model, problem, key, lane, initial) -> Candidates:
    """A constant, zero if it may be; other lanes a draw from the prior of the narrowest band."""
    if isinstance(initial, tuple):
        raise ValueError("initial has a learned spectrum: m_step='residual' starts from none")
    count, solver = len(_BANDS), _solver(model)
    constant = solver.constant(problem)
    narrowest = _components(model, problem, int(np.argmin(_BANDS)))
    drawn = solver.draw(problem, narrowest, key_of_lane(key, lane))
    start = jnp.where(lane == 0, constant if initial is None else initial, drawn)
    return Candidates(
        jnp.ones(count),
        jnp.full(count, jnp.finfo(start.dtype).min),
        jnp.ones(count),
        jnp.broadcast_to(start, (count, *start.shape)),
        jnp.zeros(()),
    )


def step(model, problem, state):
    """Solve under the next band, or go on with the best one's iteration; objective before it."""
    tried = jnp.minimum(state.trials.astype(int), len(_BANDS) - 1)
    index = jnp.where(_all_tried(problem, state), _chosen(state), _order(problem)[tried])
    components = _components(model, problem, index)
    found = _solver(model).find(problem, components, state.fields[index])
    usable = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in found]))

    def renewed(rows, new):
        return rows.at[index].set(jnp.where(usable, new, rows[index]))

    candidates = Candidates(
        renewed(state.residuals, found.residual),
        renewed(state.log_evidences, found.log_evidence),
        renewed(state.steps, found.step),
        renewed(state.fields, found.field),
        state.trials + 1.0,
    )
    return candidates, objective(model, problem, state)


def change(model, problem, new, old):
    """Newton's last step under the chosen band; at least one while bands are left to try."""
    last = new.steps[_chosen(new)]
    return jnp.where(_all_tried(problem, new), last, jnp.maximum(last, 1.0))


def objective(model, problem, state):
    """Minus the logarithm of the smallest residual."""
    smallest = jnp.min(state.residuals)
    return -jnp.log(jnp.maximum(smallest, jnp.finfo(smallest.dtype).tiny))


def finish(model, problem, state):
    """The solution, the evidence where there is one, and what the caveats are read from."""
    best = _chosen(state)
    components = _components(model, problem, best)
    return _solver(model).finish(problem, components, state.fields[best], _rivals(state))


def _solver(model):
    return (DenseSolver if len(model.dims) == 1 else TensorSolver)(model.kernel)


def _components(model, problem, index):
    """Candidate spectra, one a dimension, in cycles per box."""
    share = jnp.asarray(_BANDS)[index]
    return tuple(
        band(model.kernel, share * 0.5 * (axis.nodes.shape[0] - 1)) for axis in problem.axes
    )


def _order(problem):
    """Bands in the order in which they are tried: those that hold the source first."""
    shares = jnp.asarray(_BANDS)
    holds = shares >= _MARGIN * problem.highest
    return jnp.argsort(jnp.where(holds, shares, 2.0 - shares))


def _all_tried(problem, state):
    """In several dimensions, where a solve is long, one that is good enough ends the search."""
    enough = _ENOUGH if len(problem.axes) > 1 else 0.0
    return (state.trials >= len(_BANDS)) | (jnp.min(state.residuals) < enough)


def _near(state):
    """Whether a residual is nearly the smallest."""
    return state.residuals <= _NEARLY * jnp.min(state.residuals)


def _chosen(state):
    """The most probable band of those whose residual is nearly the smallest."""
    smaller = jnp.where(_near(state), state.log_evidences, -jnp.inf)
    # Where there is no evidence, all are zero: the residual decides.
    tied = jnp.where(smaller == jnp.max(smaller), state.residuals, jnp.inf)
    return jnp.argmin(tied)


def _rivals(state):
    """Deviations (B, …) of the chosen field that other bands show, their squares a variance.

    Differences from fields that leave nearly as little, in the ratio of the two residuals: bands
    agree on what the equation determines. Where it amplifies a residual along solutions that the
    chosen band does not hold, its own covariance knows nothing of them. Bands share a part of
    their errors, so that all differences count, not their mean.
    """
    best = _chosen(state)
    larger = jnp.maximum(state.residuals, state.residuals[best])
    shares = jnp.where(_near(state), share_of(state.residuals[best], larger), 0.0)
    return jnp.einsum("b,b...->b...", shares, state.fields - state.fields[best])
