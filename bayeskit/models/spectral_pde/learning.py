"""Ascent of the evidence over spectrum, noise and unknown coefficients, and where it ends."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from bayeskit.linalg import safe
from bayeskit.models.base import key_of_lane, relative_change
from bayeskit.models.spectral_pde import evidence
from bayeskit.models.spectral_pde import hyper as hypers
from bayeskit.models.spectral_pde.approximation import nodes_of
from bayeskit.models.spectral_pde.dense import factorised
from bayeskit.models.spectral_pde.learned import (
    EVERYTHING,
    NOTHING,
    UNKNOWNS,
    LearnedSolution,
    Spread,
    with_part,
)
from bayeskit.models.spectral_pde.newton import rms, share_of
from bayeskit.models.spectral_pde.solver import Diagnostics, missing_conditions

_OPTIMISER = optax.lbfgs(memory_size=20)
_FIRST_STEP, _LATER_STEP = 1e-4, 0.1  # of differences: absolute, then of the deviation found
_SLOPE = 0.01  # counts as change
_FLATTEST = 1e-2  # curvature of what neither data nor prior determine
_NOISY = 3.0  # deviations of noise that a residual may have
_OPEN = 1.0  # posterior deviation, relative to the field, that leaves it open
_OPEN_IF_CERTAIN = 0.1  # where nothing is noisy by statement


class Learning(NamedTuple):
    """Hyper-parameters, coefficients that an equation is linearised at, the optimiser's state."""

    hyper: Any
    field: Any
    ascent: Any


def begin(model, problem, key, lane, initial) -> Learning:
    """Peaks of the source's spectrum, other lanes random spectra; or where another fit ended."""
    if initial is not None and not isinstance(initial, tuple):
        raise ValueError("initial has no learned spectrum: m_step='evidence' cannot start there")
    if initial is None:
        initial = hypers.start(problem), evidence.constant(problem, model.points)
    drawn = hypers.scattered(key_of_lane(key, lane), problem, initial[0])
    hyper = optax.tree.where(lane == 0, initial[0], drawn)
    field = initial[1]
    if not problem.at_nodes.linear:
        field = evidence.mode(model.kernel, problem, evidence.design(problem), hyper, field)
    return Learning(hyper, field, _OPTIMISER.init(hyper))


def objective(model, problem, state):
    """Log evidence and log density of the hyper-parameters."""
    return _objective(model, problem, evidence.design(problem), state.hyper, state.field)


def _objective(model, problem, matrices, hyper, field):
    value = evidence.log_evidence(model.kernel, problem, matrices, hyper, field)
    return value + hypers.log_prior(model, problem, hyper)


def step(model, problem, state, damping=0.0):
    """One step of L-BFGS with a line search, and the objective before it.

    The Gaussian messages of a nonlinear equation are renewed after it: its linearisation at the
    new field, of which ``damping`` is the share of the old one.
    """
    matrices = evidence.design(problem)

    def loss(hyper):
        return -_objective(model, problem, matrices, hyper, state.field)

    if problem.at_nodes.linear:
        value, slope = optax.value_and_grad_from_state(loss)(state.hyper, state=state.ascent)
    else:
        # The field has moved since.
        value, slope = jax.value_and_grad(loss)(state.hyper)
    updates, ascent = _OPTIMISER.update(
        slope, state.ascent, state.hyper, value=value, grad=slope, value_fn=loss
    )
    hyper = optax.apply_updates(state.hyper, updates)
    field = state.field
    if not problem.at_nodes.linear:
        moved = evidence.mode(model.kernel, problem, matrices, hyper, field)
        field = damping * field + (1.0 - damping) * moved
    return Learning(hyper, field, ascent), jnp.negative(value)


def change(model, problem, new, old):
    """Relative change of the prior's deviations, noise and unknowns, and the slope that is left.

    A slope of 0.1 nats a unit of any logarithm counts as a change of 1e-3.
    """

    def watched(state):
        scales = jnp.exp(hypers.log_scales(model.kernel, problem, state.hyper))
        noise = jnp.exp(jnp.stack([jnp.zeros(()), *state.hyper.log_noise.values()]))
        values = hypers.unknown_values(problem, state.hyper.unknowns)
        return scales, noise, values, state.field

    slopes = jax.tree.leaves(optax.tree.get(new.ascent, "grad"))
    steepest = jnp.max(jnp.stack([jnp.max(jnp.abs(each), initial=0.0) for each in slopes]))
    return jnp.maximum(relative_change(watched(new), watched(old)), _SLOPE * steepest)


def solution(model, problem, hyper, start, which=NOTHING, spread=None) -> LearnedSolution:
    """The field given hyper-parameters, exact (Laplace's approximation if nonlinear)."""
    matrices = evidence.design(problem)
    field = evidence.mode(model.kernel, problem, matrices, hyper, start)
    rows = evidence.rows_of(model.kernel, problem, matrices, hyper, field)
    factor, _, _ = factorised(*rows.whitened())
    left, misfit = evidence.residuals(problem, matrices, hyper, field)
    scales = jnp.exp(rows.log_scales)
    return LearnedSolution(
        coefficients=field,
        scales=scales,
        factor=factor,
        hyper=hyper,
        which=which,
        spread=spread,
        residual=left,
        misfit=misfit,
    )


def finish(model, problem, state, which=UNKNOWNS):
    """The posterior at the end of the ascent, its log evidence, and diagnostics.

    With ``"everything"`` open the log evidence is Laplace's, hyper-parameters integrated out.
    """
    matrices = evidence.design(problem)
    spread, log_volume = None, jnp.zeros(())
    if which == UNKNOWNS and not problem.unknowns:
        which = NOTHING
    if which != NOTHING:
        spread, log_volume = _spread(model, problem, state, which)
    found = solution(model, problem, state.hyper, state.field, which, spread)
    value = evidence.log_evidence(model.kernel, problem, matrices, state.hyper, found.coefficients)
    if which == EVERYTHING:
        value = value + hypers.log_prior(model, problem, state.hyper) + log_volume
    return found, value, _diagnosed(model, problem, matrices, found)


def _diagnosed(model, problem, matrices, found):
    mean, variance = found.predict(nodes_of(problem), False, model, problem)
    power = jnp.mean(mean**2)
    # Of a field that is zero all that tells is how much of the prior is left.
    prior = jnp.mean((matrices.value * found.scales) ** 2 @ jnp.ones_like(found.scales))
    deviation = jnp.sqrt(jnp.mean(variance) / jnp.where(power > 0, power, prior))
    noise, of_sensors = hypers.deviations(problem, found.hyper)
    terms = jnp.maximum(evidence.size_of_terms(problem, matrices, found), problem.units.equation)
    relative = noise / terms
    # Two independent errors: the nodes', which the field follows in part, and those between.
    excess = jnp.sqrt(jnp.maximum(found.residual**2 - (_NOISY * relative) ** 2, 0.0))
    large = _OPEN if problem.stated.uncertain else _OPEN_IF_CERTAIN
    open_ended = jnp.where(deviation > large, deviation, 0.0)
    measured, no = problem.measured, jnp.zeros(())
    missing = missing_conditions(problem) if measured is None else 0
    if measured is None or measured.noise is not None:
        of_measured = no
    else:
        of_measured = share_of(rms(of_sensors), rms(measured.values))
    return Diagnostics(
        excess,
        found.misfit,
        open_ended,
        problem.near_nyquist,
        jnp.asarray(missing),
        relative if problem.equation_noise is None else no,
        no,
        no,
        of_measured,
    )


def _spread(model, problem, state, which):
    """Laplace's approximation for hyper-parameters, and the logarithm of their volume.

    For unknown coefficients alone those of the noise are integrated out beside them, the spectrum
    stays plugged in. Second derivatives are differences of exact gradients.
    """
    matrices = evidence.design(problem)
    watched = (
        {"a": state.hyper.unknowns, "b": state.hyper.log_noise}
        if which == UNKNOWNS
        else {"a": state.hyper}
    )
    start, unravel = ravel_pytree(watched)
    count = ravel_pytree(watched["a"])[0].shape[0]

    def given(vector):
        parts = unravel(vector)
        hyper = with_part(state.hyper, which, parts["a"])
        return hyper._replace(log_noise=parts["b"]) if "b" in parts else hyper

    def fields(vector):
        return evidence.mode(model.kernel, problem, matrices, given(vector), state.field)

    def slope(vector):
        field = state.field if problem.at_nodes.linear else fields(vector)
        return jax.grad(lambda v: _objective(model, problem, matrices, given(v), field))(vector)

    def differences(function, steps):
        moves = jnp.diag(steps)
        above = jax.lax.map(lambda move: function(start + move), moves)
        below = jax.lax.map(lambda move: function(start - move), moves)
        return (above - below) / (2.0 * steps[:, None])

    first = differences(slope, jnp.full(start.shape, _FIRST_STEP))
    curvature = jnp.maximum(-jnp.diagonal(first), _FLATTEST)
    steps = jnp.minimum(_LATER_STEP / jnp.sqrt(curvature), _LATER_STEP)
    second = -differences(slope, steps) + jnp.diag(_flat_curvature(problem, watched, unravel))
    values, vectors = safe.eigh(0.5 * (second + second.T))
    values = jnp.maximum(values, _FLATTEST)
    # A root of the block of the inverse that is open.
    half = (vectors / jnp.sqrt(values))[:count]
    response = differences(fields, steps)[:count].T
    log_volume = 0.5 * jnp.sum(jnp.log(2.0 * jnp.pi / values))
    return Spread(safe.cholesky(half @ half.T), response), log_volume


def _flat_curvature(problem, watched, unravel):
    """What a uniform prior of frequencies counts as: a normal one of the same height."""
    zeros = unravel(jnp.zeros_like(ravel_pytree(watched)[0]))
    if not isinstance(zeros["a"], hypers.Hyper):
        return ravel_pytree(zeros)[0]
    frequencies = tuple(
        jnp.full_like(each, 2.0 * jnp.pi / hypers.highest_of(axis) ** 2)
        for each, axis in zip(zeros["a"].frequencies, problem.axes, strict=True)
    )
    return ravel_pytree({"a": zeros["a"]._replace(frequencies=frequencies)})[0]
