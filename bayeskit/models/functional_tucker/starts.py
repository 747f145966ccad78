"""Where the messages of a functional Tucker decomposition start."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.models.functional_tucker import data as tables
from bayeskit.models.functional_tucker import sweep
from bayeskit.models.functional_tucker.approximation import Factorised, moments_at_points

# Share of the values' power: weak components do not survive the first sweeps beside much more.
START_NOISE = 0.01


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


def random_messages(model, data, key, at_zero):
    """Functions that vary slowly at random, around random constants.

    A learned offset starts at the mean of the values, or ``at_zero``: subtracting the mean of a
    table of low rank adds a component to it, and from there no sweep finds back.
    """
    dtype = data.unit.dtype

    def normal(key, *shape):
        # Single precision, so that the start is the same in every precision.
        return jax.random.normal(key, shape, jnp.float32).astype(dtype)

    keys = jax.random.split(key, len(model.modes) + 1)
    modes = []
    for k, (mode, rank) in enumerate(zip(model.modes, model.rank_tuple, strict=True)):
        count = data.steps[k].shape[0]
        level_key, phase_key, speed_key = jax.random.split(keys[k], 3)
        if mode.categorical:
            mean = normal(level_key, count, rank)
        else:
            place = jnp.cumsum(data.steps[k].at[0].set(0.0))
            speed = normal(speed_key, rank)
            turns = jax.random.uniform(phase_key, (rank,), jnp.float32).astype(dtype)
            level = normal(level_key, rank)
            mean = level + jnp.cos(2 * jnp.pi * (speed * place[:, None] + turns))
        modes.append(_around(mean))
    core = None
    if model.core == "tucker":
        core = _around(normal(keys[-1], math.prod(model.rank_tuple)))
    zero = jnp.zeros((), dtype)
    learned = model.noise_variance is None
    precision = zero + 1.0 / START_NOISE if learned else 1.0 / data.noise_variance
    offset = zero
    if model.offset is None:
        offset = jnp.where(at_zero, -data.center / data.unit, zero)
    return _messages(modes, core, sweep.Moments(offset, offset**2), precision, data)


def _around(mean):
    """Moments of a normal distribution with a little variance."""
    eye = jnp.eye(mean.shape[-1], dtype=mean.dtype)
    return sweep.Moments(mean, mean[..., :, None] * mean[..., None, :] + 0.1 * eye)


def from_posterior(model, posterior, data, labels) -> Start:
    """The state of an earlier posterior, at the points and in the units of other data.

    Raises
    ------
    ValueError
        If its modes, ranks or core are others.
    """
    earlier = posterior.model
    for name in ("names of modes", "ranks", "core", "kernels"):
        given, wanted = _shape_of(earlier)[name], _shape_of(model)[name]
        if given != wanted:
            raise ValueError(f"initial has the {name} {given}, the model {wanted}")
    old, dtype = posterior.prepared.data, data.unit.dtype
    logs = model.logs_of(posterior.mean, data)
    ratio = jnp.asarray(old.unit / data.unit, dtype)
    precision = 1.0 / data.noise_variance
    if model.noise_variance is None and "noise_variance" in posterior.mean:
        precision = data.unit**2 / jnp.asarray(posterior.mean["noise_variance"], dtype)
    elif model.noise_variance is None:
        precision = jnp.asarray(1.0 / START_NOISE, dtype)
    approximation = posterior.approximation
    if not isinstance(approximation, Factorised):
        return Start(logs, precision, None)
    modes = []
    for k, mode in enumerate(model.modes):
        known, points = posterior.labels.coords[mode.name], labels.coords[mode.name]
        span = tables.span_of(mode, known)
        steps, at_known, at_points = tables.union(mode, known, points, span)
        moments = posterior.evaluate(moments_at_points, k, steps, at_known)
        scale = ratio if k == 0 else 1.0  # values in other units: into the first mode
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
        variance = ratio**2 * (before.second - before.mean**2)
        offset = sweep.Moments(mean, variance + mean**2)
    core, offset = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (core, offset))
    return Start(logs, precision, _messages(modes, core, offset, precision, data))


def _shape_of(model):
    return {
        "names of modes": [mode.name for mode in model.modes],
        "ranks": model.rank_tuple,
        "core": model.core,
        "kernels": [mode.form for mode in model.modes],
    }
