r"""How expectation maximisation climbs: kernels by their curvature, and leaps of everything.

Kernel parameters of a mode climb on their share of the bound by quasi-Newton steps within a trust
region; both ends of a step are evaluated under the same messages, so that a pair of slopes tells
the curvature whatever the messages do later (BFGS; J. Nocedal and S. Wright, "Numerical
Optimization", 2006, chapter 6).

Sweeps creep where factors depend on each other. After every two sweeps a third one starts from
where their steps lead if they go on shrinking as they do,

.. math:: x_0 + 2 a r + a^2 v, \qquad r = x_1 - x_0, \quad v = (x_2 - x_1) - r, \quad
          a = \lVert r \rVert / \lVert v \rVert,

and counts only if the objective is no lower after it. R. Varadhan and C. Roland, "Simple and
globally convergent methods for accelerating the convergence of any EM algorithm", Scandinavian
Journal of Statistics, 2008 (scheme SqS3).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bayeskit.models.functional_tucker.sweep import Moments

_FIRST_STEP, _LONGEST_STEP, _SHORTEST_STEP = 0.1, 1.0, 1e-6  # of logarithms
_REACHED = 0.99
_FIRST_REACH, _LONGEST_REACH, _REACH_FACTOR = 4.0, 1000.0, 4.0
_PERIOD = 3


class Climb(NamedTuple):
    """What is known of the slope's surroundings.

    Attributes
    ----------
    curvature : array (P, P)
        Estimate of the inverse of the negative Hessian; zeros before the first step.
    radius : scalar
        Longest step of a parameter.
    missed : scalar
        What the last step promised by its slope, where it did not raise the objective.
    """

    curvature: Any
    radius: Any
    missed: Any


def start_climb(parameters) -> Climb:
    """Before the first step."""
    flat = ravel_pytree(parameters)[0]
    zeros = jnp.zeros((len(flat), len(flat)), flat.dtype)
    return Climb(zeros, jnp.asarray(_FIRST_STEP, flat.dtype), jnp.zeros((), flat.dtype))


def climbed(climb, evaluate, parameters):
    """A step uphill that cannot lower the objective.

    Parameters
    ----------
    climb : Climb
    evaluate : function of parameters
        Giving objective, slope and anything else.
    parameters : pytree

    Returns
    -------
    parameters, climb, anything else
        After the step; as before it if the objective was lower there.
    """
    flat, unravel = ravel_pytree(parameters)
    eps = jnp.finfo(flat.dtype).eps

    def step_from(slope):
        # At first every parameter moves as far.
        first = jnp.diag(_FIRST_STEP / jnp.maximum(jnp.abs(slope), eps))
        curvature = jnp.where(jnp.any(climb.curvature != 0), climb.curvature, first)
        newton = curvature @ slope
        length = jnp.max(jnp.abs(newton))
        step = newton * jnp.minimum(1.0, climb.radius / jnp.where(length > 0, length, 1.0))
        return step, curvature

    def end(point, _):
        value, slope, others = evaluate(unravel(point))
        slope = ravel_pytree(slope)[0]
        return point + step_from(slope)[0], (point, value, slope, others)

    # A loop, so that the evaluation is compiled once for both ends.
    points, values, slopes, others = jax.lax.scan(end, flat, length=2)[1]
    step, curvature = step_from(slopes[0])
    better = values[1] >= values[0]
    fall = slopes[0] - slopes[1]
    curved = step @ fall > eps * jnp.linalg.norm(step) * jnp.linalg.norm(fall)
    learned = _with_pair(curvature, step, fall, jnp.where(curved, step @ fall, 1.0))
    made = jnp.max(jnp.abs(step))
    longer = jnp.where(made >= _REACHED * climb.radius, 2.0 * climb.radius, climb.radius)
    radius = jnp.clip(jnp.where(better, longer, 0.5 * made), _SHORTEST_STEP, _LONGEST_STEP)
    missed = jnp.where(better, 0.0, step @ slopes[0])
    chosen = jax.tree.map(lambda leaf: jnp.where(better, leaf[1], leaf[0]), (points, others))
    climb = Climb(jnp.where(curved, learned, curvature), radius, missed)
    return unravel(chosen[0]), climb, chosen[1]


def _with_pair(curvature, step, fall, product):
    """The estimate after the slope fell by ``fall`` along a step."""
    turned = jnp.eye(len(step), dtype=step.dtype) - jnp.outer(step, fall) / product
    return turned @ curvature @ turned.T + jnp.outer(step, step) / product


class Position(NamedTuple):
    """Coordinates of all factors and kernel parameters.

    Attributes
    ----------
    factors : tuple of pairs of arrays
        Mean and covariance of each mode's functions, of the core if there is one, and the offset.
    log_precision : scalar
        Of the noise.
    logs : tuple of dicts
    """

    factors: tuple
    log_precision: Any
    logs: tuple


def position(messages, logs) -> Position:
    """Where messages and kernel parameters are."""
    pairs = tuple((m.mean, m.second - _square(m.mean)) for m in _moments(messages))
    return Position(pairs, jnp.log(messages.precision), logs)


def moved(messages, target):
    """Messages with the moments of another position."""
    moments = [Moments(mean, covariance + _square(mean)) for mean, covariance in target.factors]
    count = len(messages.modes)
    # A known precision stays what it is to the last digit.
    ratio = jnp.exp(target.log_precision - jnp.log(messages.precision))
    return messages._replace(
        modes=tuple(moments[:count]),
        core=None if messages.core is None else moments[count],
        offset=moments[-1],
        precision=messages.precision * ratio,
    )


def _moments(messages):
    cores = () if messages.core is None else (messages.core,)
    return (*messages.modes, *cores, messages.offset)


def _square(mean):
    return mean**2 if mean.ndim == 0 else mean[..., :, None] * mean[..., None, :]


class Leaps(NamedTuple):
    """What a leap is made from.

    Attributes
    ----------
    older, old : Position
        Two sweeps and one sweep back.
    reach : scalar
        Longest leap, in first steps.
    turn : scalar
        Steps made so far, modulo three; the last of three leaps.
    changes : array (3,)
        Of the last three steps, one before they are made; zero for a leap that was taken back.
    """

    older: Position
    old: Position
    reach: Any
    turn: Any
    changes: Any


def start_leaps(here) -> Leaps:
    """Before the first step, from a position."""
    dtype = here.log_precision.dtype
    reach, changes = jnp.asarray(_FIRST_REACH, dtype), jnp.ones(_PERIOD, dtype)
    return Leaps(here, here, reach, jnp.zeros((), jnp.int32), changes)


def target_of(leaps, here):
    """Where the next sweep starts if it leaps, and how far that is in first steps."""
    first = jax.tree.map(jnp.subtract, leaps.old, leaps.older)
    bend = jax.tree.map(lambda x, y, r: x - y - r, here, leaps.old, first)
    size, change = (_norm(each._replace(logs=())) for each in (first, bend))
    length = jnp.clip(size / jnp.where(change > 0, change, 1.0), 1.0, leaps.reach)
    target = jax.tree.map(
        lambda x, r, v: x + 2 * length * r + length**2 * v, leaps.older, first, bend
    )
    return target, length


def _norm(tree):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def is_leap(leaps):
    """Whether it is the leap's turn."""
    return leaps.turn == _PERIOD - 1


def after_step(leaps, here, length, refused, change) -> Leaps:
    """Once a step from ``here`` has changed everything by ``change``, or was taken back."""
    full = is_leap(leaps) & (length >= leaps.reach)
    longer = jnp.where(full, _REACH_FACTOR * leaps.reach, leaps.reach)
    reach = jnp.where(refused, length / _REACH_FACTOR, longer)
    return Leaps(
        leaps.old,
        here,
        jnp.clip(reach, 1.0, _LONGEST_REACH),
        (leaps.turn + 1) % _PERIOD,
        jnp.roll(leaps.changes, 1).at[0].set(jnp.where(refused, 0.0, change)),
    )
