"""Conditional expectation propagation for functional Tucker decompositions, index by index.

S. Fang, X. Yu, Z. Wang, S. Li, M. Kirby, S. Zhe, "Functional Bayesian Tucker decomposition for
continuous-indexed tensor data", ICLR 2024, computed as its authors' code computes it: a message
for every observation and mode is stored and damped, messages of equal index are merged by a loop
over the indices, and a Kalman filter and smoother in covariance form visit them one by one. What
is done at one index is compiled; the loops are Python's.

Where that code departs from the paper by mistake, the paper is followed: the core is unfolded along
the right axis, it has its standard normal prior, functions have mean zero, and a function at a new
index is exact given its neighbours.
"""

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

KERNELS = ("matern12", "matern32")
_PREDICTED_ROWS = 256


class _Prior(NamedTuple):
    """Kernel of the functions of one mode, and the variance of constants beside them."""

    lengthscale: Any
    variance: Any
    constant: Any


class _Mode(NamedTuple):
    """Unique indices of one mode, the rows that have each, and its kernel."""

    points: np.ndarray
    steps: np.ndarray
    position: np.ndarray
    rows: list
    prior: _Prior
    kernel: str
    rank: int
    stationary: np.ndarray
    output: np.ndarray


class _States(NamedTuple):
    """Means (n, S) and covariances (n, S, S) of the states of one mode."""

    filtered: tuple
    smoothed: tuple


@dataclass(frozen=True)
class ConditionalEPResult:
    """Posterior of :func:`conditional_ep`.

    Attributes
    ----------
    means, covariances : tuples of arrays (n_k, R_k) and (n_k, R_k, R_k)
        Functions of every mode at its unique sorted indices.
    core, core_covariance : arrays (R_1, …, R_K) and (R_1 ⋯ R_K, R_1 ⋯ R_K), or None
        None for CP.
    noise_variance : float
    seconds : array (sweeps,)
        Of every sweep; the first ones compile.
    """

    means: tuple
    covariances: tuple
    core: np.ndarray | None
    core_covariance: np.ndarray | None
    noise_variance: float
    seconds: np.ndarray
    _modes: tuple
    _states: tuple

    def predict(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance (P,) of noiseless values at any indices (P, K).

        The variance is that of the product of independent functions and core: the authors' code
        has none.
        """
        indices = _check_indices(indices, len(self._modes))
        with jax.enable_x64(True):
            means, seconds = [], []
            for mode, states, column in zip(self._modes, self._states, indices.T, strict=True):
                points, position = np.unique(column, return_inverse=True)
                mean, covariance = _at_new_points(mode, states, points)
                means.append(mean[position])
                seconds.append((covariance + mean[:, :, None] * mean[:, None, :])[position])
            parts = [
                _product_moments(
                    [m[first : first + _PREDICTED_ROWS] for m in means],
                    [s[first : first + _PREDICTED_ROWS] for s in seconds],
                    self.core,
                    self.core_covariance,
                )
                for first in range(0, len(indices), _PREDICTED_ROWS)
            ]
        mean, variance = (np.concatenate([np.asarray(p[i]) for p in parts]) for i in (0, 1))
        return mean, variance


def conditional_ep(
    indices: np.ndarray,
    values: np.ndarray,
    *,
    rank: int | Sequence[int],
    lengthscales: float | Sequence[float],
    variances: float | Sequence[float] = 1.0,
    kernels: str | Sequence[str] = "matern12",
    core: str | np.ndarray = "cp",
    sweeps: int = 100,
    damping: float = 0.3,
    core_damping: float = 0.5,
    noise_damping: float = 0.8,
    shrinkage: float | None = 1.0,
    constant: float | None = None,
    noise_variance: float | None = None,
    initial: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    key: int = 0,
) -> ConditionalEPResult:
    """Fit ``y = Σ W[r_1 … r_K] Π_k u^k_{r_k}(x_k) + ε`` with fixed kernels.

    Parameters
    ----------
    indices, values : arrays (N, K) and (N,)
    rank : int, or one a mode
    lengthscales, variances, kernels : one value, or one a mode
        Of the Matérn kernels, ``"matern12"`` or ``"matern32"``.
    core : "cp", "tucker" or array (R_1, …, R_K)
        Ones on the superdiagonal, learned, or known.
    sweeps : int
    damping, core_damping, noise_damping : float
        Share of the old message that is kept: of functions, core and noise. The defaults are the
        authors' for CP on the Beijing data; zero is coordinate ascent on the variational bound.
    shrinkage : float or None
        Variance of a normal factor around zero that the authors' code multiplies to the message of
        every index beside the prior; ``None`` leaves it out.
    constant : float or None
        Variance of a constant beside every function, as :class:`bayeskit.models.FunctionalTucker`
        has it; the paper has none.
    noise_variance : float or None
        Known, or learned under a Gamma(1, 1) prior of its inverse.
    initial : sequence of pairs of arrays (n_k, R_k) and (n_k, R_k, R_k), optional
        Means and covariances of the functions to start from; by default uniform random numbers and
        identities.
    key : int
        Of the start.

    Notes
    -----
    As in the authors' code, messages to functions and noise use the mean of the core only. Memory
    ``O(N Σ R_k²)``, and ``O(N Π R_k²)`` for a learned core.
    """
    indices = _check_indices(indices)
    values = _check_values(values, len(indices))
    modes = _modes_of(indices, rank, lengthscales, variances, kernels, constant)
    for name, number in (("noise_variance", noise_variance), ("shrinkage", shrinkage)):
        if number is not None:
            _positive(name, number)
    for name, share in zip(
        ("damping", "core_damping", "noise_damping"),
        (damping, core_damping, noise_damping),
        strict=True,
    ):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must be in [0, 1), got {share}")
    if sweeps < 1:
        raise ValueError(f"sweeps must be at least 1, got {sweeps}")
    fixed = _check_core(core, [mode.rank for mode in modes])
    learned = isinstance(core, str) and core == "tucker"
    with jax.enable_x64(True):
        fit = _Fit(modes, values, fixed, learned, noise_variance, initial, key)
        seconds = []
        for _ in range(sweeps):
            start = time.perf_counter()
            fit.sweep(damping, core_damping, noise_damping, shrinkage)
            seconds.append(time.perf_counter() - start)
        return fit.result(np.array(seconds))


class _Fit:
    """Messages and posterior, renewed in place."""

    def __init__(self, modes, values, core, learned, noise_variance, initial, key):
        generator = np.random.default_rng(key)
        count = len(values)
        self.modes, self.values, self.learned = modes, jnp.asarray(values), learned
        self.position = tuple(jnp.asarray(mode.position) for mode in modes)
        self.noise_known = noise_variance is not None
        self.precision = jnp.asarray(1.0 / noise_variance if self.noise_known else 1.0)
        self.concentration, self.rate_message = 1.0 + 0.5 * count, jnp.asarray(0.0)
        self.states = [None] * len(modes)
        self.means, self.seconds = [None] * len(modes), [None] * len(modes)
        self.shifts, self.precisions = [], []
        for k, mode in enumerate(modes):
            shape, eye = (len(mode.points), mode.rank), np.eye(mode.rank)
            mean, covariance = generator.uniform(size=shape), eye
            if initial is not None:
                mean, covariance = (np.asarray(part, float) for part in initial[k])
                if mean.shape != shape:
                    raise ValueError(f"initial[{k}] must have the shape {shape}, got {mean.shape}")
            self._set(k, mean, covariance)
            self.shifts.append(jnp.asarray(1e-3 * generator.uniform(size=(count, mode.rank))))
            self.precisions.append(jnp.asarray(np.broadcast_to(1e-3 * eye, (count, *eye.shape))))
        self.core, self.core_covariance = core, None
        if learned:
            ranks = [mode.rank for mode in modes]
            size = math.prod(ranks)
            self.core = jnp.asarray(generator.uniform(size=ranks))
            self.core_shifts = jnp.zeros((count, size))
            self.core_precisions = jnp.zeros((count, size, size))
        elif core is not None:
            self.core = jnp.asarray(core)

    def sweep(self, damping, core_damping, noise_damping, shrinkage):
        for k, mode in enumerate(self.modes):
            self.shifts[k], self.precisions[k] = _function_messages(
                self.shifts[k],
                self.precisions[k],
                *self._given(),
                self.values,
                self.precision,
                damping,
                k=k,
            )
            extra = 0.0 if shrinkage is None else 1.0 / shrinkage
            merged = [
                _merged(self.shifts[k], self.precisions[k], rows, extra) for rows in mode.rows
            ]
            self.states[k] = _filter_and_smooth(mode, merged)
            mean, covariance = _values_of(mode, *self.states[k].smoothed)
            self._set(k, mean, covariance)
        if self.learned:
            self.core_shifts, self.core_precisions, mean, self.core_covariance = _core_update(
                self.core_shifts,
                self.core_precisions,
                *self._given()[:3],
                self.values,
                self.precision,
                core_damping,
            )
            self.core = mean.reshape(self.core.shape)
        if not self.noise_known:
            self.rate_message = noise_damping * self.rate_message + (
                1 - noise_damping
            ) * _half_squares(*self._given(), self.values)
            self.precision = self.concentration / (1.0 + self.rate_message)
        jax.block_until_ready((self.core, self.precision))

    def _set(self, k, mean, covariance):
        self.means[k] = jnp.asarray(mean)
        self.seconds[k] = jnp.asarray(covariance + mean[:, :, None] * mean[:, None, :])

    def _given(self):
        return tuple(self.means), tuple(self.seconds), self.position, self.core

    def result(self, seconds):
        marginals = [
            _values_of(mode, *states.smoothed)
            for mode, states in zip(self.modes, self.states, strict=True)
        ]
        covariance = self.core_covariance
        return ConditionalEPResult(
            means=tuple(mean for mean, _ in marginals),
            covariances=tuple(covariance for _, covariance in marginals),
            core=None if self.core is None else np.asarray(self.core),
            core_covariance=None if covariance is None else np.asarray(covariance),
            noise_variance=float(1.0 / self.precision),
            seconds=seconds,
            _modes=self.modes,
            _states=tuple(self.states),
        )


# Messages


def _kronecker(matrices):
    """Row-wise Kronecker products of (N, a, a), (N, b, b), …"""
    result = matrices[0]
    for matrix in matrices[1:]:
        size = result.shape[1] * matrix.shape[1]
        result = result[:, :, None, :, None] * matrix[:, None, :, None, :]
        result = result.reshape(-1, size, size)
    return result


def _kronecker_vectors(vectors):
    result = vectors[0]
    for vector in vectors[1:]:
        result = (result[:, :, None] * vector[:, None, :]).reshape(len(vector), -1)
    return result


def _design(means, seconds, position, core, k):
    """First and second moments of what multiplies the functions of mode ``k`` in every row."""
    others = [j for j in range(len(means)) if j != k]
    first = [means[j][position[j]] for j in others]
    second = [seconds[j][position[j]] for j in others]
    if core is None:
        one = jnp.ones((len(position[k]), means[k].shape[1]))
        return math.prod(first, start=one), math.prod(second, start=one[:, :, None])
    unfolded = jnp.moveaxis(core, k, 0).reshape(core.shape[k], -1)
    if not others:
        shape = (len(position[k]), len(unfolded))
        outer = unfolded @ unfolded.T
        return jnp.broadcast_to(unfolded[:, 0], shape), jnp.broadcast_to(outer, (*shape, shape[1]))
    paired = jnp.einsum("ra,nab,sb->nrs", unfolded, _kronecker(second), unfolded)
    return _kronecker_vectors(first) @ unfolded.T, paired


@functools.partial(jax.jit, static_argnames="k", donate_argnums=(0, 1))
def _function_messages(
    shifts, precisions, means, seconds, position, core, values, precision, damping, k
):
    mean, second = _design(means, seconds, position, core, k)
    shifts = damping * shifts + (1 - damping) * precision * values[:, None] * mean
    return shifts, damping * precisions + (1 - damping) * precision * second


@jax.jit
def _merged(shifts, precisions, rows, extra):
    """All messages of one index as an observation and its covariance."""
    shift = jnp.sum(shifts.at[rows].get(mode="fill", fill_value=0.0), axis=0)
    precision = jnp.sum(precisions.at[rows].get(mode="fill", fill_value=0.0), axis=0)
    eye = jnp.eye(len(shift))
    covariance = _solve(precision + extra * eye, eye)
    return covariance @ shift, covariance


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _core_update(shifts, precisions, means, seconds, position, values, precision, damping):
    first = _kronecker_vectors([m[at] for m, at in zip(means, position, strict=True)])
    second = _kronecker([s[at] for s, at in zip(seconds, position, strict=True)])
    shifts = damping * shifts + (1 - damping) * precision * values[:, None] * first
    precisions = damping * precisions + (1 - damping) * precision * second
    eye = jnp.eye(first.shape[1])
    covariance = _solve(jnp.sum(precisions, axis=0) + eye, eye)
    return shifts, precisions, covariance @ jnp.sum(shifts, axis=0), covariance


@jax.jit
def _half_squares(means, seconds, position, core, values):
    mean, second = _design(means, seconds, position, core, 0)
    fitted = jnp.sum(mean * means[0][position[0]], axis=1)
    squares = jnp.sum(second * seconds[0][position[0]], axis=(1, 2))
    return jnp.sum(0.5 * values**2 - values * fitted + 0.5 * squares)


def _solve(matrix, right):
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), right)


# Kalman filter and smoother


def _transition(prior, kernel, step):
    """Transition, noise, stationary covariance and output of one function."""
    if kernel == "matern12":
        decay = jnp.exp(-step / prior.lengthscale)
        transition, stationary = decay.reshape(1, 1), prior.variance * jnp.eye(1)
    else:
        rate = jnp.sqrt(3.0) / prior.lengthscale
        rows = [[1 + rate * step, step], [-(rate**2) * step, 1 - rate * step]]
        transition = jnp.exp(-rate * step) * jnp.array(rows)
        stationary = prior.variance * jnp.diag(jnp.array([1.0, rate**2]))
    noise = stationary - transition @ stationary @ transition.T
    output = jnp.zeros(len(stationary)).at[0].set(1.0)
    if prior.constant is None:
        return transition, noise, stationary, output
    pad = ((0, 1), (0, 1))
    return (
        jnp.pad(transition, pad).at[-1, -1].set(1.0),
        jnp.pad(noise, pad),
        jnp.pad(stationary, pad).at[-1, -1].set(prior.constant),
        jnp.append(output, 1.0),
    )


def _stacked(prior, kernel, rank, step):
    """The same for independent functions."""
    eye = jnp.eye(rank)
    transition, noise, stationary, output = _transition(prior, kernel, step)
    matrices = [jnp.kron(eye, matrix) for matrix in (transition, noise, stationary)]
    return (*matrices, jnp.kron(eye, output[None, :]))


@functools.partial(jax.jit, static_argnames=("kernel", "rank"))
def _filter_step(mean, covariance, step, observation, spread, prior, kernel, rank):
    transition, noise, _, output = _stacked(prior, kernel, rank, step)
    mean, covariance = _moved(transition, noise, mean, covariance)
    return (mean, covariance), _updated(mean, covariance, observation, spread, output)


def _moved(transition, noise, mean, covariance):
    return transition @ mean, transition @ covariance @ transition.T + noise


def _updated(mean, covariance, observation, spread, output):
    gain = _solve(output @ covariance @ output.T + spread, output @ covariance).T
    covariance = covariance - gain @ output @ covariance
    mean = mean + gain @ (observation - output @ mean)
    return mean, 0.5 * (covariance + covariance.T)


def _smoothed(transition, filtered, predicted, after):
    gain = _solve(predicted[1], transition @ filtered[1]).T
    mean = filtered[0] + gain @ (after[0] - predicted[0])
    return mean, filtered[1] + gain @ (after[1] - predicted[1]) @ gain.T


@functools.partial(jax.jit, static_argnames=("kernel", "rank"))
def _smoother_step(filtered, predicted, after, step, prior, kernel, rank):
    return _smoothed(_stacked(prior, kernel, rank, step)[0], filtered, predicted, after)


def _filter_and_smooth(mode, merged):
    fixed = {"kernel": mode.kernel, "rank": mode.rank}
    mean, covariance = jnp.zeros(len(mode.stationary)), jnp.asarray(mode.stationary)
    predicted, filtered = [], []
    for step, (observation, spread) in zip(mode.steps, merged, strict=True):
        before, (mean, covariance) = _filter_step(
            mean, covariance, step, observation, spread, mode.prior, **fixed
        )
        predicted.append(before)
        filtered.append((mean, covariance))
    smoothed = [filtered[-1]]
    for i in range(len(filtered) - 2, -1, -1):
        smoothed.append(
            _smoother_step(
                filtered[i],
                predicted[i + 1],
                smoothed[-1],
                mode.steps[i + 1],
                mode.prior,
                **fixed,
            )
        )
    return _States(_gathered(filtered), _gathered(smoothed[::-1]))


def _gathered(states):
    return tuple(np.stack([np.asarray(state[i]) for state in states]) for i in (0, 1))


def _values_of(mode, mean, covariance):
    """Moments of the functions from those of their states."""
    return mean @ mode.output.T, mode.output @ covariance @ mode.output.T


# Prediction


def _at_new_points(mode, states, points):
    """Moments of the functions at points: on from the left neighbour, then back from the right."""
    left = np.searchsorted(mode.points, points, side="right") - 1
    right = np.minimum(left + 1, len(mode.points) - 1)
    steps = np.where(left >= 0, points - mode.points[left], 0.0)
    ahead = np.where(left + 1 < len(mode.points), mode.points[right] - points, np.nan)
    filtered = tuple(part[np.maximum(left, 0)] for part in states.filtered)
    after = tuple(part[right] for part in states.smoothed)
    mean, covariance = _bridged(
        mode.prior, filtered, after, left < 0, steps, ahead, kernel=mode.kernel, rank=mode.rank
    )
    return _values_of(mode, np.asarray(mean), np.asarray(covariance))


@functools.partial(jax.jit, static_argnames=("kernel", "rank"))
def _bridged(prior, filtered, after, outside, steps, ahead, kernel, rank):
    def one(filtered, after, outside, step, ahead):
        transition, noise, stationary, _ = _stacked(prior, kernel, rank, step)
        mean, covariance = _moved(transition, noise, *filtered)
        mean = jnp.where(outside, 0.0, mean)
        covariance = jnp.where(outside, stationary, covariance)
        last = jnp.isnan(ahead)
        transition, noise, _, _ = _stacked(prior, kernel, rank, jnp.where(last, 1.0, ahead))
        predicted = _moved(transition, noise, mean, covariance)
        smoothed = _smoothed(transition, (mean, covariance), predicted, after)
        return jax.tree.map(
            lambda alone, bridged: jnp.where(last, alone, bridged), (mean, covariance), smoothed
        )

    return jax.vmap(one)(filtered, after, outside, steps, ahead)


@jax.jit
def _product_moments(means, seconds, core, core_covariance):
    if core is None:
        mean, square = jnp.sum(math.prod(means), axis=1), jnp.sum(math.prod(seconds), axis=(1, 2))
        return mean, square - mean**2
    flat = core.reshape(-1)
    core_second = flat[:, None] * flat
    if core_covariance is not None:
        core_second = core_second + core_covariance
    mean = _kronecker_vectors(means) @ flat
    return mean, jnp.sum(_kronecker(seconds) * core_second, axis=(1, 2)) - mean**2


# Input


def _check_indices(indices, count=None):
    indices = np.asarray(indices, float)
    if indices.ndim != 2 or not indices.size or count not in (None, indices.shape[1]):
        raise ValueError(f"indices must have the shape (N, {count or 'K'}), got {indices.shape}")
    if not np.isfinite(indices).all():
        raise ValueError(f"indices has {np.sum(~np.isfinite(indices))} entries that are not finite")
    return indices


def _check_values(values, count):
    values = np.asarray(values, float)
    if values.shape != (count,):
        raise ValueError(f"values must have the shape ({count},), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"values has {np.sum(~np.isfinite(values))} entries that are not finite")
    return values


def _positive(name, number):
    if not (np.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be positive, got {number}")
    return float(number)


def _each(name, given, count):
    given = [given] * count if np.ndim(given) == 0 else list(given)
    if len(given) != count:
        raise ValueError(f"{name} must be one or one a mode ({count}), got {given}")
    return given


def _modes_of(indices, rank, lengthscales, variances, kernels, constant):
    count = indices.shape[1]
    settings = zip(
        indices.T,
        _each("rank", rank, count),
        _each("lengthscales", lengthscales, count),
        _each("variances", variances, count),
        _each("kernels", kernels, count),
        strict=True,
    )
    if constant is not None:
        constant = _positive("constant", constant)
    modes = []
    for column, functions, lengthscale, variance, kernel in settings:
        if kernel not in KERNELS:
            raise ValueError(f"kernels must be of {KERNELS}, got {kernel!r}")
        if functions < 1:
            raise ValueError(f"rank must be at least 1, got {functions}")
        points, position, sizes = np.unique(column, return_inverse=True, return_counts=True)
        groups = np.split(np.argsort(position, kind="stable"), np.cumsum(sizes)[:-1])
        # Lists of rows are filled up to a power of two: a compiled body serves many indices.
        rows = [
            np.pad(g, (0, 2 ** (len(g) - 1).bit_length() - len(g)), constant_values=len(column))
            for g in groups
        ]
        prior = _Prior(
            _positive("lengthscales", lengthscale), _positive("variances", variance), constant
        )
        steps = np.diff(points, prepend=points[0])
        with jax.enable_x64(True):
            _, _, stationary, output = map(np.asarray, _stacked(prior, kernel, functions, 0.0))
            rows = [jnp.asarray(each) for each in rows]
        mode = (points, steps, position, rows, prior, kernel, int(functions), stationary, output)
        modes.append(_Mode(*mode))
    return tuple(modes)


def _check_core(core, ranks):
    """A known core, or none."""
    if isinstance(core, str):
        if core not in ("cp", "tucker"):
            raise ValueError(f"core must be 'cp', 'tucker' or an array, got {core!r}")
        if core == "cp" and len(set(ranks)) > 1:
            raise ValueError(f"a CP core needs equal ranks, got {ranks}")
        return None
    core = np.asarray(core, float)
    if core.shape != tuple(ranks):
        raise ValueError(f"core must have the shape {tuple(ranks)}, got {core.shape}")
    return core
