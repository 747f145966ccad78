"""Where the messages of a functional Tucker decomposition start."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.models.functional_tucker import data as tables
from bayeskit.models.functional_tucker import sweep
from bayeskit.models.functional_tucker.approximation import Factorised, moments_at_points

# Share of the values' variance: weak components do not survive the first sweeps beside much more.
_START_NOISE = 0.01


class Start(NamedTuple):
    """What an earlier posterior tells.

    Attributes
    ----------
    logs : tuple of dicts
        Logarithms of kernel parameters.
    precision : scalar
        Of the noise of the standardised values.
    messages : sweep.FactorMessages or None
        ``None`` after sampling, whose functions mean nothing on average.
    """

    logs: tuple
    precision: Any
    messages: Any


def typical_variance(data):
    """Of the standardised values; one if they are all equal."""
    return jnp.where(data.spread > 0, data.spread, 1.0)


def _start_precision(data):
    return 1.0 / (_START_NOISE * typical_variance(data))


def _messages(modes, core, offset, precision, data):
    """Messages with the given moments, everything that a sweep renews being empty."""
    zero = jnp.zeros((), data.unit.dtype)
    return sweep.FactorMessages(
        modes=tuple(modes),
        shifts=tuple(jnp.zeros_like(m.mean) for m in modes),
        precisions=tuple(jnp.zeros_like(m.second) for m in modes),
        divergences=jnp.zeros(len(modes), zero.dtype),
        core=core,
        offset=offset,
        noise_concentration=zero + 1.0,
        noise_rate=1.0 / precision,
        precision=precision,
        bound=zero,
        sketch=jnp.zeros(len(data.sketch[0]), zero.dtype),
    )


def normal(key, shape, dtype):
    """Standard normal numbers in single precision, so that starts are alike in every precision."""
    return jax.random.normal(key, shape, jnp.float32).astype(dtype)


def random_messages(model, data, key, at_zero):
    """Functions that vary slowly at random, around random constants.

    A learned offset starts at the mean of the values, or ``at_zero``: subtracting the mean of a
    table of low rank adds a component to it, and from there no sweep finds back.
    """
    dtype = data.unit.dtype

    keys = jax.random.split(key, len(model.modes) + 1)
    modes = []
    for k, (mode, rank) in enumerate(zip(model.modes, model.rank_tuple, strict=True)):
        count = data.steps[k].shape[0]
        level_key, phase_key, speed_key = jax.random.split(keys[k], 3)
        if mode.categorical:
            mean = normal(level_key, (count, rank), dtype)
        else:
            place = jnp.cumsum(data.steps[k].at[0].set(0.0))
            speed = normal(speed_key, (rank,), dtype)
            turns = jax.random.uniform(phase_key, (rank,), jnp.float32).astype(dtype)
            level = normal(level_key, (rank,), dtype)
            mean = level + jnp.cos(2 * jnp.pi * (speed * place[:, None] + turns))
        modes.append(_around(mean))
    core = None
    if model.core == "tucker":
        core = _around(normal(keys[-1], (math.prod(model.rank_tuple),), dtype))
    zero = jnp.zeros((), dtype)
    learned = model.noise_variance is None
    precision = _start_precision(data) if learned else 1.0 / data.noise_variance
    offset = zero
    if model.offset is None:
        offset = jnp.where(at_zero, -data.center / data.unit, zero)
    return _messages(modes, core, sweep.Moments(offset, offset**2), precision, data)


def _around(mean):
    """Moments of a normal distribution with a little variance."""
    eye = jnp.eye(mean.shape[-1], dtype=mean.dtype)
    return sweep.Moments.of(mean, 0.1 * eye)


def from_posterior(model, posterior, data, labels) -> Start:
    """The state of an earlier posterior, at the points and in the units of other data.

    Functions of modes that the earlier model did not have start constant.

    Raises
    ------
    ValueError
        If its ranks, core or kernels are others, or if it has modes that this model has not; with
        a Tucker core also if a mode that is new has a rank above one.
    """
    _check_shape(model, posterior.model)
    old, dtype = posterior.prepared.data, data.unit.dtype
    known_before = {mode.name: k for k, mode in enumerate(posterior.model.modes)}
    logs = _start_logs(model, posterior, data)
    ratio = jnp.asarray(old.unit / data.unit, dtype)
    precision = 1.0 / data.noise_variance
    if model.noise_variance is None and "noise_variance" in posterior.mean:
        precision = data.unit**2 / jnp.asarray(posterior.mean["noise_variance"], dtype)
    elif model.noise_variance is None:
        precision = _start_precision(data)
    approximation = posterior.approximation
    if not isinstance(approximation, Factorised):
        return Start(logs, precision, None)
    if model.noise_variance is None and posterior.model.noise_variance is None:
        # The mean of the variance is not the inverse of the precision's.
        precision = approximation.messages.precision.astype(dtype) / ratio**2
    modes = []
    for k, mode in enumerate(model.modes):
        if mode.name not in known_before:
            ones = jnp.ones((data.steps[k].shape[0], model.rank_tuple[k]), dtype)
            modes.append(sweep.Moments.of(ones, 0.0))
            continue
        known, points = posterior.names.coords[mode.name], labels.coords[mode.name]
        span = tables.span_of(mode, known)
        steps, at_known, at_points = tables.union(mode, known, points, span)
        earlier = known_before[mode.name]
        moments = posterior.evaluate(moments_at_points, earlier, steps, at_known)
        scale = ratio if earlier == 0 else 1.0  # values in other units: into one mode
        modes.append(
            sweep.Moments(
                jnp.asarray(moments.mean[np.asarray(at_points)], dtype) * scale,
                jnp.asarray(moments.second[np.asarray(at_points)], dtype) * scale**2,
            )
        )
    core = approximation.messages.core
    offset = sweep.Moments(jnp.zeros((), dtype), jnp.zeros((), dtype))
    if model.offset is None:
        before = approximation.messages.offset
        mean = (old.center - data.center) / data.unit + ratio * before.mean
        offset = sweep.Moments.of(mean, ratio**2 * before.covariance())
    core, offset = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (core, offset))
    return Start(logs, precision, _messages(modes, core, offset, precision, data))


def _start_logs(model, posterior, data):
    """Kernel parameters that were found, and start values of modes that are new."""
    given = model.reported(model.start_logs(data), data)
    return model.logs_of(
        given | {name: posterior.mean[name] for name in given if name in posterior.mean}, data
    )


def _check_shape(model, earlier):
    shared = [mode for mode in model.modes if mode.name in {m.name for m in earlier.modes}]
    before = [mode.name for mode in earlier.modes]
    ranks = {mode.name: rank for mode, rank in zip(model.modes, model.rank_tuple, strict=True)}
    if [mode.name for mode in shared] != before:
        raise ValueError(f"initial has the names of modes {before}, the model {list(ranks)}")
    new = {name: rank for name, rank in ranks.items() if name not in before}
    if model.core == "tucker" and any(rank > 1 for rank in new.values()):
        raise ValueError(
            f"initial has the names of modes {before}; with a Tucker core, modes that are new "
            f"have rank 1, got {new}"
        )
    for what, given, wanted in (
        ("core", earlier.core, model.core),
        ("ranks", earlier.rank_tuple, tuple(ranks[name] for name in before)),
        ("kernels", [mode.form for mode in earlier.modes], [mode.form for mode in shared]),
    ):
        if given != wanted:
            raise ValueError(f"initial has the {what} {given}, the model {wanted}")
