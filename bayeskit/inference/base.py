"""What an iterative method is, and the one compiled loop that runs any of them."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from bayeskit.codec import storable


class Fit(NamedTuple):
    """What a method hands back, one data set: arrays only, so that it can be mapped over.

    Attributes
    ----------
    approximation : AbstractApproximation
    log_evidence : scalar
        NaN where the method has none.
    finite : bool
        Whether the result is usable at all.
    lane : int
        The restart that was kept.
    diagnosed : pytree
        Draws of what convergence is judged by where a method samples, else the model's own
        diagnostics.
    """

    approximation: Any
    log_evidence: Any
    finite: Any
    lane: Any
    diagnosed: Any = None


class AbstractMethod(eqx.Module):
    """An iterative method as pure functions over the state of a single lane.

    Restarts and chains are lanes: the driver maps ``init`` and ``step`` over them, ``finish``
    reduces them. Numbers are leaves (changing one compiles nothing); what changes shapes or the
    program is static.
    """

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        storable(cls)

    @property
    @abc.abstractmethod
    def needs(self) -> type:
        """The abstract model class of :mod:`bayeskit.models.base` that the method calls."""

    @property
    @abc.abstractmethod
    def lanes(self) -> int:
        """Number of restarts or chains."""

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """Largest number of steps."""

    @property
    @abc.abstractmethod
    def random(self) -> bool:
        """Whether a key is needed."""

    @property
    @abc.abstractmethod
    def fixed_length(self) -> bool:
        """Whether all steps are always made (and their records kept), or ``done`` ends the loop."""

    @abc.abstractmethod
    def settings(self) -> dict:
        """The arguments, as JSON can hold them."""

    @abc.abstractmethod
    def check(self, model) -> None:
        """Raise where the model cannot be fitted with these settings; host side, before tracing."""

    def check_data(self, model, data) -> None:
        """Raise where the prepared data cannot be fitted with these settings; host side.

        As it is, all that the model takes can.
        """

    @abc.abstractmethod
    def init(self, model, data, key, lane, initial):
        """State of one lane before the first step."""

    @abc.abstractmethod
    def step(self, model, data, state):
        """New state, and a record of scalars (or draws) that the driver stacks."""

    @abc.abstractmethod
    def done(self, state):
        """Whether the lane has met the method's criterion."""

    @abc.abstractmethod
    def finish(self, model, data, states, records) -> Fit:
        """Combine the lanes."""

    @abc.abstractmethod
    def map_lanes(self, function, lanes):
        """``vmap`` where lanes march in step, ``lax.map`` where each ends at its own time."""

    @abc.abstractmethod
    def caveats(self, fit, model) -> tuple[str, ...]:
        """What the model warns about, given NumPy arrays of a fit."""

    @abc.abstractmethod
    def report(self, fit, records, counts) -> tuple[dict[str, Any], dict[str, Any]]:
        """``Convergence`` fields and trace of one data set from NumPy records."""


def as_leaves(tree):
    """Turn Python numbers of a pytree into arrays: their values are traced, not compiled."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, (bool, int, float)) else leaf, tree
    )


@eqx.filter_jit
def _step(method, model, data, state):
    """A step; a function of its own, so that it is traced once for all programs that make it."""
    return method.step(model, data, state)


def advance(method, model, data, states, size, limit):
    """Advance every lane by at most ``size`` steps; the only loop of the package.

    Parameters
    ----------
    size : int
        Length of the record buffers; static.
    limit : scalar
        Steps to make at most, ``<= size``; traced. Methods of fixed length always make ``size``.

    Returns
    -------
    states, records, counts, done
        Records stacked on axis 1 (lane, step, …); the first ``counts[lane]`` are valid. ``done``
        says which lanes have met the criterion.
    """

    def scan_lane(state):
        state, records = jax.lax.scan(
            lambda s, _: _step(method, model, data, s), state, length=size
        )
        return state, records, jnp.asarray(size), jnp.asarray(False)

    def while_lane(state):
        record = jax.eval_shape(lambda s: _step(method, model, data, s)[1], state)
        buffer = jax.tree.map(
            lambda leaf: jnp.full((size, *leaf.shape), jnp.nan, leaf.dtype), record
        )

        def unfinished(carry):
            state, _, count = carry
            return (count < limit) & ~method.done(state)

        def body(carry):
            state, buffer, count = carry
            state, record = _step(method, model, data, state)
            buffer = jax.tree.map(lambda b, leaf: b.at[count].set(leaf), buffer, record)
            return state, buffer, count + 1

        state, buffer, count = jax.lax.while_loop(unfinished, body, (state, buffer, jnp.asarray(0)))
        return state, buffer, count, method.done(state)

    return method.map_lanes(scan_lane if method.fixed_length else while_lane, states)


def start(method, model, data, key, initial):
    """States of all lanes before the first step.

    A single one is lane 0 as a number of Python's: what other lanes need is then not compiled.
    """
    keys = jax.random.split(key, method.lanes)
    if method.lanes == 1:
        state = method.init(model, data, keys[0], 0, initial)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], state)
    lanes = jnp.arange(method.lanes)
    return method.map_lanes(lambda lane: method.init(model, data, *lane, initial), (keys, lanes))


def run_compiled(method, model, data, key, length):
    """A whole fit as one pure function, for ``vmap`` and ``lax.map`` over data sets."""
    states = start(method, model, data, key, None)
    states, records, counts, _ = advance(method, model, data, states, length, jnp.asarray(length))
    return method.finish(model, data, states, records), records, counts
