"""The double-precision boundary.

Computations run in the precision of their data whatever JAX's default is: the outermost Python
call enters a local context in which 64-bit arrays exist, and gives NumPy arrays back, because a
64-bit JAX array outside the context silently becomes 32 bit at the next operation. JAX's global
configuration is never changed.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils


@contextlib.contextmanager
def double_precision():
    """Context in which 64-bit JAX arrays exist; wraps the outermost Python call only."""
    with jax.enable_x64(True):
        yield


def refuse_transformation(function_name, *trees):
    """Raise ``TypeError`` if a public function is called inside ``jit``, ``vmap`` or ``grad``."""
    # Inside jit new arrays are traced too.
    leaves = (jnp.zeros(()), *jax.tree.leaves(trees))
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise TypeError(
            f"{function_name} runs from Python and cannot be called inside a JAX transformation "
            "(jit, vmap, grad); to fit many data sets at once use bayeskit.infer_batch"
        )


def is_distributed(array) -> bool:
    """Whether an array lives on more than one device."""
    return isinstance(array, jax.Array) and len(array.sharding.device_set) > 1


def to_host(tree):
    """NumPy arrays for all JAX arrays of a tree; arrays spread over devices stay where they are."""

    def convert(leaf):
        if not isinstance(leaf, jax.Array):
            return leaf
        if is_distributed(leaf) and not leaf.sharding.is_fully_replicated:
            return leaf
        return np.asarray(leaf)

    return jax.tree.map(convert, tree)


def gathered(tree):
    """NumPy arrays for all JAX arrays of a tree, also for those spread over devices or hosts."""

    def convert(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(convert, tree)


def as_key(key, purpose):
    """A typed JAX key from an integer or a key.

    Raises
    ------
    ValueError
        If ``key`` is ``None``; ``purpose`` says what needs randomness.
    TypeError
        If it is neither.
    """
    if key is None:
        raise ValueError(f"key is needed: {purpose}; pass an integer or a JAX key")
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return jax.random.key(int(key))
    if isinstance(key, (jax.Array, np.ndarray)):
        if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.shape == ():
                return key
        elif key.dtype == np.uint32 and key.shape == (2,):
            return jax.random.wrap_key_data(jnp.asarray(key))
    raise TypeError(f"key must be an integer or one JAX key, got {type(key).__name__}: {key!r}")
