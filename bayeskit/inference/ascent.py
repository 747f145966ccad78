"""Methods that climb an objective: by expectations, by variational messages, by gradients."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bayeskit.inference.base import AbstractMethod, Fit
from bayeskit.models.base import SupportsEM, SupportsMAP, SupportsMessages, best_of
from bayeskit.validation import check_integer, check_number, check_positive


class AscentState(NamedTuple):
    """Parameters, and the relative change of the last step."""

    parameters: Any
    change: Any


class AscentRecord(NamedTuple):
    """Objective before a step, and the relative change that the tolerance is compared with."""

    objective: Any
    change: Any


class _Ascent(AbstractMethod):
    """Loop, restarts and stopping rule shared by the ascending methods."""

    max_iterations: int
    tolerance: float
    restarts: int = eqx.field(static=True)

    @property
    def lanes(self):
        return self.restarts

    @property
    def length(self):
        return self.max_iterations

    @property
    def random(self):
        return self.restarts > 1

    @property
    def fixed_length(self):
        return False

    def map_lanes(self, function, lanes):
        return jax.lax.map(function, lanes)

    def _start(self, parameters):
        dtype = jax.tree.leaves(parameters)[0].dtype
        return AscentState(parameters, jnp.asarray(jnp.inf, dtype))

    def _advance(self, updated, objective, change):
        return AscentState(updated, change), AscentRecord(objective, change)

    def done(self, state):
        # "<", so that a tolerance of 0.0 makes all steps; a lane that has broken down stops.
        return (state.change < self.tolerance) | jnp.isnan(state.change)

    def _best(self, objective, states):
        values = jax.lax.map(objective, states.parameters)
        best, lane = best_of(states.parameters, values)
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(best)]
        return best, lane, jnp.all(jnp.stack([*finite, jnp.isfinite(values[lane])]))

    def _fit(self, finished, finite, lane):
        approximation, log_evidence, diagnosed = finished
        if log_evidence is None:
            log_evidence = jnp.asarray(jnp.nan)
        else:
            finite = finite & jnp.isfinite(log_evidence)
        return Fit(approximation, log_evidence, finite, lane, diagnosed)

    def report(self, fit, records, counts):
        lane = int(fit.lane)
        count = int(counts[lane])
        trace = {
            name: np.asarray(values)[lane, :count] for name, values in records._asdict().items()
        }
        change = float(trace["change"][-1])
        converged = bool(fit.finite) and change < float(self.tolerance)
        if not bool(fit.finite):
            reason = "a non-finite value appeared"
        elif converged:
            reason = f"relative change {change:.2g} below tolerance {float(self.tolerance):.2g}"
        else:
            reason = f"relative change {change:.2g} after max_iterations={int(self.max_iterations)}"
        fields = {
            "converged": converged,
            "iterations": count,
            "objective": trace["objective"],
            "reason": reason,
        }
        return fields, {"optimization": trace}

    def caveats(self, fit, model):
        return model.caveats(fit.diagnosed)

    def _set_loop(self, max_iterations, tolerance, restarts):
        """Check and take the arguments that all ascending methods have; for constructors."""
        self.max_iterations = check_integer("max_iterations", max_iterations, 1)
        self.tolerance = check_number("tolerance", tolerance, 0.0)
        self.restarts = check_integer("restarts", restarts, 1)


class EM(_Ascent):
    """Expectation maximisation: hyper-parameters by maximum evidence or posterior mode.

    The posterior is exact given the estimates ("empirical Bayes"); their own uncertainty is not
    in it.

    Parameters
    ----------
    m_step : str, optional
        One of the model's ``m_steps``; its first by default.
    max_iterations : int
        Budget of a restart.
    tolerance : float
        Stop when nothing that the data determine changes by more than this in a step, relative
        2-norm (and what else the family watches); ``0.0`` makes all steps.
    restarts : int
        Starts, the first documented by the model, others random; the best objective is kept.
    prune : float
        Scales below this share of the largest are set to zero for good after each step, where
        the model has such scales. Zero, the default, prunes nothing, and the objective never
        falls.

    Examples
    --------
    >>> import bayeskit as bk
    >>> bk.inference.EM(m_step="convex", max_iterations=100)
    EM(m_step='convex', max_iterations=100, tolerance=0.001, restarts=1, prune=0.0)
    """

    m_step: str | None = eqx.field(static=True)
    prune: float

    def __init__(self, m_step=None, *, max_iterations=500, tolerance=1e-3, restarts=1, prune=0.0):
        self._set_loop(max_iterations, tolerance, restarts)
        self.prune = check_number("prune", prune, 0.0, 1.0)
        if m_step is not None and not isinstance(m_step, str):
            raise TypeError(f"m_step must be a name, got {m_step!r}")
        self.m_step = None if m_step is None else str(m_step)

    def __repr__(self):
        return f"EM({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"

    @property
    def needs(self):
        return SupportsEM

    def settings(self):
        return {
            "m_step": self.m_step,
            "max_iterations": int(self.max_iterations),
            "tolerance": float(self.tolerance),
            "restarts": self.restarts,
            "prune": float(self.prune),
        }

    def _m_step_of(self, model):
        return self.m_step or model.m_steps[0]

    def check(self, model):
        if self.m_step is not None and self.m_step not in model.m_steps:
            raise ValueError(
                f"m_step={self.m_step!r} is not one of {type(model).__name__}'s: "
                f"{list(model.m_steps)}"
            )
        model.check_em(self)

    def init(self, model, data, key, lane, initial):
        return self._start(model.em_init(data, key, lane, initial, self._m_step_of(model)))

    def step(self, model, data, state):
        updated, objective = model.em_step(
            data, state.parameters, self._m_step_of(model), self.prune
        )
        change = model.em_change(data, updated, state.parameters)
        return self._advance(updated, objective, change)

    def finish(self, model, data, states, records):
        best, lane, finite = self._best(lambda p: model.em_objective(data, p), states)
        return self._fit(model.em_finish(data, best), finite, lane)


class MessagePassing(_Ascent):
    """Variational message passing: coordinate ascent on a lower bound on the log evidence.

    Uncertainty of hyper-parameters is in the posterior, their correlation with everything else is
    not.

    Parameters
    ----------
    max_iterations, tolerance, restarts
        As for :class:`EM`.
    damping : float
        Share of the old messages that a sweep keeps, below one. Zero, the default, keeps nothing,
        and the bound never falls.
    prune : float
        Where the model has parts that the data may not need (components of a mixture): those below
        this share of the largest are dropped for good after each sweep. Zero drops nothing.

    Examples
    --------
    >>> import bayeskit as bk
    >>> bk.inference.MessagePassing()
    MessagePassing(max_iterations=500, tolerance=0.001, restarts=1, damping=0.0, prune=0.0)
    """

    damping: float
    prune: float

    def __init__(self, *, max_iterations=500, tolerance=1e-3, restarts=1, damping=0.0, prune=0.0):
        self._set_loop(max_iterations, tolerance, restarts)
        self.damping = check_number("damping", damping, 0.0, 1.0)
        self.prune = check_number("prune", prune, 0.0, 1.0)

    def __repr__(self):
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"MessagePassing({settings})"

    @property
    def needs(self):
        return SupportsMessages

    def settings(self):
        return {
            "max_iterations": int(self.max_iterations),
            "tolerance": float(self.tolerance),
            "restarts": self.restarts,
            "damping": float(self.damping),
            "prune": float(self.prune),
        }

    def check(self, model):
        if self.prune and not model.prunes_messages:
            raise ValueError(
                f"prune={self.prune} is not for {type(model).__name__}: it has no parts to drop"
            )
        model.check_messages(self)

    def init(self, model, data, key, lane, initial):
        return self._start(model.messages_init(data, key, lane, initial))

    def step(self, model, data, state):
        updated, bound = model.messages_sweep(data, state.parameters, self.damping)
        if model.prunes_messages:
            updated = model.pruned_messages(updated, self.prune)
        change = model.messages_change(data, updated, state.parameters)
        return self._advance(updated, bound, change)

    def finish(self, model, data, states, records):
        best, lane, finite = self._best(lambda p: model.messages_bound(data, p), states)
        return self._fit(model.messages_finish(data, best), finite, lane)


_MEMORY = 0.999  # share of the average gain that a step keeps


class _Climb(NamedTuple):
    """Parameters, Adam's moments and rate, steps made, and the best parameters so far."""

    parameters: Any
    moments: Any
    rate: Any
    count: Any
    best: Any
    objective: Any


class MaximumAPosteriori(_Ascent):
    """Maximum of the joint density over everything unknown, by Adam's steps.

    The posterior is the family's distribution around the mode: never a point, but the uncertainty
    of hyper-parameters is not in it.

    Parameters
    ----------
    max_iterations, restarts
        As for :class:`EM`.
    tolerance : float
        Stop when the best log density grows by less than this share of itself a step, on average
        over some thousand steps. ``0.0`` makes all steps.
    learning_rate : float
        Adam's at the start. It falls to zero over the budget, as half of a cosine: with a constant
        one the iterates would go on jumping around the mode. A step into where the density is not
        finite is taken back, and steps are halved from then on.

    Notes
    -----
    The best of all iterates is kept, by the density.

    Examples
    --------
    >>> import bayeskit as bk
    >>> bk.inference.MaximumAPosteriori()
    MaximumAPosteriori(max_iterations=40000, tolerance=1e-06, restarts=1, learning_rate=0.01)
    """

    learning_rate: float

    def __init__(self, *, max_iterations=40_000, tolerance=1e-6, restarts=1, learning_rate=1e-2):
        self._set_loop(max_iterations, tolerance, restarts)
        self.learning_rate = check_positive("learning_rate", learning_rate)

    def __repr__(self):
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"MaximumAPosteriori({settings})"

    @property
    def needs(self):
        return SupportsMAP

    def settings(self):
        return {
            "max_iterations": int(self.max_iterations),
            "tolerance": float(self.tolerance),
            "restarts": self.restarts,
            "learning_rate": float(self.learning_rate),
        }

    def check(self, model):
        model.check_map(self)

    def init(self, model, data, key, lane, initial):
        parameters = model.map_init(data, key, lane, initial)
        dtype = jax.tree.leaves(parameters)[0].dtype
        climb = _Climb(
            parameters,
            optax.scale_by_adam().init(parameters),
            jnp.asarray(self.learning_rate, dtype),
            jnp.zeros((), dtype),
            parameters,
            jnp.asarray(-jnp.inf, dtype),
        )
        return AscentState(climb, jnp.ones((), dtype))

    def step(self, model, data, state):
        climb = state.parameters
        adam = optax.scale_by_adam()
        objective, gradient = jax.value_and_grad(lambda p: model.map_objective(data, p))(
            climb.parameters
        )
        finite = jnp.all(
            jnp.stack(
                [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((objective, gradient))]
            )
        )
        better = finite & (objective > climb.objective)
        best = optax.tree.where(better, climb.parameters, climb.best)
        direction, moments = adam.update(gradient, climb.moments)
        rate = climb.rate * 0.5 * (1.0 + jnp.cos(jnp.pi * climb.count / self.max_iterations))
        moved = jax.tree.map(lambda p, d: p + rate * d, climb.parameters, direction)
        moved = optax.tree.where(finite, moved, best)
        updated = _Climb(
            moved,
            optax.tree.where(finite, moments, adam.init(best)),
            jnp.where(finite, climb.rate, 0.5 * climb.rate),
            climb.count + 1.0,
            best,
            jnp.where(better, objective, climb.objective),
        )
        gain = jnp.where(better, objective - climb.objective, 0.0)
        gain = jnp.minimum(gain / jnp.maximum(jnp.abs(objective), 1.0), 1.0)
        change = _MEMORY * state.change + (1.0 - _MEMORY) * gain
        # Where the start itself is not finite, nothing is left to try.
        change = jnp.where(jnp.isfinite(updated.objective), change, jnp.nan)
        return self._advance(updated, objective, change)

    def finish(self, model, data, states, records):
        candidates = AscentState(states.parameters.best, states.change)
        best, lane, finite = self._best(lambda p: model.map_objective(data, p), candidates)
        return self._fit(model.map_finish(data, best), finite, lane)
