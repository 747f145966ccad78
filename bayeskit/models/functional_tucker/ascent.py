r"""How expectation maximisation climbs: kernels by their curvature, and leaps of everything.

Kernel parameters of a mode climb on their share of the bound by quasi-Newton steps within a trust
region; both ends of a step are evaluated under the same messages, so that a pair of slopes tells
the curvature whatever the messages do later (BFGS; J. Nocedal and S. Wright, "Numerical
Optimization", 2006, chapter 6).

Sweeps creep where factors depend on each other. After every two sweeps a third one starts from
where their steps lead if they go on shrinking as they do,

.. math:: x_0 + 2 a r + a^2 v, \qquad r = x_1 - x_0, \quad v = (x_2 - x_1) - r, \quad
          a = \lVert r \rVert / \lVert v \rVert,

and counts only if the objective is no lower after it. Here x are the factors' means, Cholesky
factors of their covariances (extrapolated covariances may be indefinite, for which the objective
means nothing), and the logarithms of the noise and of the kernel parameters, which take no part in
the length a. R. Varadhan and C. Roland, "Simple and
globally convergent methods for accelerating the convergence of any EM algorithm", Scandinavian
Journal of Statistics, 2008 (scheme SqS3).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bayeskit.linalg import safe
from bayeskit.linalg.small import semidefinite_root
from bayeskit.models.functional_tucker.sweep import Moments

_FIRST_STEP, _LONGEST_STEP, _SHORTEST_STEP = 0.1, 1.0, 1e-6  # of logarithms
_REACHED = 0.99
_FLAT = 1e-3  # slopes relative to the largest, which count as no smaller at first
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
        # At first every parameter moves as far; again, should an estimate lead downhill.
        steepest = jnp.maximum(jnp.max(jnp.abs(slope)), eps)
        first = jnp.diag(_FIRST_STEP / jnp.maximum(jnp.abs(slope), _FLAT * steepest))
        downhill = slope @ climb.curvature @ slope < 0
        unknown = downhill | ~jnp.any(climb.curvature != 0)
        curvature = jnp.where(unknown, first, climb.curvature)
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
    curved = step @ fall > jnp.sqrt(eps) * jnp.linalg.norm(step) * jnp.linalg.norm(fall)
    learned = _with_pair(curvature, step, fall, jnp.where(curved, step @ fall, 1.0))
    made = jnp.max(jnp.abs(step))
    longer = jnp.where(made >= _REACHED * climb.radius, 2.0 * climb.radius, climb.radius)
    radius = jnp.clip(jnp.where(better, longer, 0.5 * made), _SHORTEST_STEP, _LONGEST_STEP)
    # A step that would be longer, and leads nowhere however short, is the estimate's fault.
    lost = ~better & (made >= _REACHED * climb.radius) & (radius <= _SHORTEST_STEP)
    curvature = jnp.where(lost, 0.0, jnp.where(curved, learned, curvature))
    radius = jnp.where(lost, _FIRST_STEP, radius)
    missed = jnp.where(better, 0.0, step @ slopes[0])
    chosen = jax.tree.map(lambda leaf: jnp.where(better, leaf[1], leaf[0]), (points, others))
    return unravel(chosen[0]), Climb(curvature, radius, missed), chosen[1]


def _with_pair(curvature, step, fall, product):
    """The estimate after the slope fell by ``fall`` along a step."""
    turned = jnp.eye(len(step), dtype=step.dtype) - jnp.outer(step, fall) / product
    return turned @ curvature @ turned.T + jnp.outer(step, step) / product


class Position(NamedTuple):
    """Coordinates of all factors and kernel parameters.

    Attributes
    ----------
    factors : tuple of pairs of arrays
        Mean and Cholesky factor of the covariance of each mode's functions (n_k, R_k) and
        (n_k, R_k, R_k), of the core as a vector if there is one, and of the offset.
    log_precision : scalar
        Of the noise.
    logs : tuple of dicts
    """

    factors: tuple
    log_precision: Any
    logs: tuple


def position(messages, logs) -> Position:
    """Where messages and kernel parameters are."""
    factors = [(moments.mean, _root(moments.covariance())) for moments in _moments(messages)]
    return Position(tuple(factors), jnp.log(messages.precision), logs)


def moved(messages, target):
    """Messages with the moments of another position."""
    moments = [Moments.of(mean, _squared(root)) for mean, root in target.factors]
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


def _root(covariance):
    """Of a number, of the one large matrix of a core, or of many small ones."""
    if covariance.ndim == 0:
        return jnp.sqrt(jnp.maximum(covariance, 0.0))
    if covariance.ndim == 3:
        return semidefinite_root(covariance)
    size = len(covariance)
    rounding = size * jnp.finfo(covariance.dtype).eps * jnp.trace(covariance)
    return safe.cholesky(covariance + rounding * jnp.eye(size, dtype=covariance.dtype))


def _squared(root):
    return root**2 if root.ndim == 0 else root @ jnp.swapaxes(root, -1, -2)


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
    length = size / jnp.where(change > 0, change, 1.0)
    # Roots of covariances that have lost all their digits are no numbers.
    length = jnp.clip(jnp.where(jnp.isfinite(length), length, 1.0), 1.0, leaps.reach)
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
