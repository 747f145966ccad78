"""What results are made of: named dimensions, predictions, how a method ended, approximations."""

import abc
import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.codec import storable


@storable
class Labels(NamedTuple):
    """Names of the dimensions of every site, coordinates, and the name of what was observed."""

    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, Any]
    observed: str

    def coords_of(self, dims) -> dict[str, Any]:
        """Coordinates of some dimensions, where there are any."""
        return {dim: values for dim, values in self.coords.items() if dim in dims}


class Prediction(NamedTuple):
    """Mean and variance of predicted quantities, with named dimensions.

    Attributes
    ----------
    mean : numpy.ndarray
        Real or complex.
    variance : numpy.ndarray
        Real; for complex quantities ``E|y - E y|²``.
    dims : tuple of str
        Names of the axes of both.
    coords : mapping
        Coordinates by dimension, where there are any.
    """

    mean: Any
    variance: Any
    dims: tuple[str, ...]
    coords: Mapping[str, Any] = MappingProxyType({})


class PredictionTarget(NamedTuple):
    """Where to predict: what predictions' dimensions are called, and inputs as methods take them.

    Attributes
    ----------
    dims : tuple of str
    coords : mapping
        Coordinates by dimension, where there are any.
    inputs : pytree or None
        Converted; ``None`` where the observed data were taken.
    """

    dims: tuple[str, ...]
    coords: Mapping[str, Any]
    inputs: Any


@storable
@dataclasses.dataclass(frozen=True)
class Convergence:
    """How a method ended.

    Attributes
    ----------
    converged : bool or array (batch,)
    iterations : int or array (batch,)
    objective : array (iteration,) or (batch, iteration) or None
        What the method increases, one value an iteration; NaN after the end of a shorter run of a
        batch. ``None`` for sampling.
    reason : str or tuple of str
        Why the method stopped.
    seconds : float
        Wall-clock time, compilation included.
    max_rhat, min_ess : float or None
        Worst split R-hat and effective sample size over all sampled hyper-parameters (MCMC).
    divergences : int or None
        Divergent transitions after warm-up (MCMC).
    """

    converged: Any
    iterations: Any
    objective: Any
    reason: Any
    seconds: float
    max_rhat: Any = None
    min_ess: Any = None
    divergences: Any = None


class AbstractApproximation(eqx.Module):
    """A posterior distribution as arrays: a pure pytree that can be mapped over and stored.

    Every function takes the prepared model and data beside it. Dicts are keyed by site.
    """

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        storable(cls)

    @property
    def chains(self) -> tuple[int, int] | None:
        """Numbers of chains and draws where the posterior is held as draws."""
        return None

    @abc.abstractmethod
    def moments(self, model, data):
        """Mean and variance of every site: estimates that were plugged in have variance zero."""

    @abc.abstractmethod
    def sample(self, key, model, data):
        """One joint draw of all sites that are random."""

    @abc.abstractmethod
    def plugged_in(self, model, data) -> dict[str, Any]:
        """Sites that were estimated by a number and carry no uncertainty."""

    def judged(self, model, data):
        """What the convergence of chains is judged by: quantities that the data determine."""
        return self.plugged_in(model, data)

    @abc.abstractmethod
    def predict(self, inputs, include_noise, model, data):
        """Mean and variance of predicted data."""

    @abc.abstractmethod
    def log_predictive(self, model, data):
        """``log p(y_m | y_-m)`` and ``log p(y_m | y)`` for every observation ``m``, exact."""


def map_in_blocks(function, items, block):
    """``lax.map`` in blocks that are computed at once.

    The last block is filled up with the first item: a shorter one would be compiled anew.
    """
    count = jax.tree.leaves(items)[0].shape[0]
    block = min(block, count)
    index = jnp.arange(-(-count // block) * block)
    index = jnp.where(index < count, index, 0)
    padded = jax.tree.map(lambda leaf: leaf[index], items)
    mapped = jax.lax.map(function, padded, batch_size=block)
    return jax.tree.map(lambda leaf: leaf[:count], mapped)


def positive_count(name, value) -> int:
    """A positive integer argument."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)
