"""Host-side random numbers for simulators and scores."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def numpy_generator(key: Any) -> np.random.Generator:
    """Make a NumPy generator from the keys that the package takes everywhere.

    Simulators draw in NumPy, so that their float64 results do not depend on JAX's precision flag.

    Parameters
    ----------
    key : int or JAX key
        A non-negative integer, a typed JAX key or a legacy array of two ``uint32``. The integer
        ``n`` below 2³² and ``jax.random.key(n)`` give the same numbers.

    Returns
    -------
    numpy.random.Generator

    Raises
    ------
    TypeError
        If ``key`` is of another kind (``None`` and booleans included).
    ValueError
        If an integer is negative, or an array of several keys is given.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        words = jax.random.key_data(key)
    elif isinstance(key, jax.Array | np.ndarray) and key.ndim > 0:
        words = key
    else:
        return np.random.default_rng(_words_of_integer(key))
    words = np.asarray(words)
    if words.ndim != 1 or words.dtype != np.uint32:
        raise ValueError(
            f"key: got an array of shape {words.shape} and dtype {words.dtype}; expected one key, "
            "such as jax.random.key(0) or the integer 0"
        )
    return np.random.default_rng([int(word) for word in words])


def _words_of_integer(key):
    try:
        if isinstance(key, bool | np.bool_):
            raise TypeError
        seed = operator.index(key)
    except TypeError:
        raise TypeError(
            f"key: got {type(key).__name__}; expected a JAX key or a non-negative integer"
        ) from None
    if seed < 0:
        raise ValueError(f"key: got {seed}; expected a JAX key or a non-negative integer")
    return list(divmod(seed, 2**32))
