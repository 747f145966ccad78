"""Checks of what users give, before any tracing."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr


def owned(tree):
    """A pytree whose arrays and tables nobody else can write into: copies of the user's.

    JAX arrays cannot be written into and stay as they are.
    """

    def copy(leaf):
        if isinstance(leaf, np.ma.MaskedArray) and not np.ma.getmaskarray(leaf).any():
            return np.array(leaf.data)
        if isinstance(leaf, np.ndarray):
            return leaf.copy()
        if isinstance(leaf, (xr.DataArray, pd.DataFrame, pd.Series)):
            return leaf.copy(deep=True)
        return leaf

    return jax.tree.map(copy, tree)


def values_of(name, array):
    """The numbers of an array-like: NumPy, or JAX as it is.

    Raises
    ------
    TypeError
        If there are no data.
    ValueError
        If entries are masked: nothing is known of them, and their values must not be used. If
        rows are of unequal length.
    """
    if array is None:
        raise TypeError(f"{name} must be real or complex numbers, got None")
    if isinstance(array, xr.DataArray):
        return array.values
    if isinstance(array, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(array)
        if masked.any():
            first = np.unravel_index(int(masked.reshape(-1).argmax()), masked.shape)
            raise ValueError(
                f"{name} has {int(masked.sum())} masked entries, the first at index "
                f"{_plain(first)}; known numbers are expected"
            )
        return np.asarray(array.data)
    if isinstance(array, jax.Array):
        return array
    try:
        return np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{name} is no array of numbers: {error}") from None


def is_numeric(array) -> bool:
    """Whether an array holds real or complex numbers (not booleans, strings, objects).

    Longer ones than double precision are none that JAX could hold.
    """
    return jnp.issubdtype(array.dtype, jnp.number) and array.dtype.char not in "gG"


def check_finite(name, array, advice="finite numbers are expected"):
    """The array itself, if all its entries are finite; the check runs where the array lives.

    Raises
    ------
    ValueError
        Naming the first bad index and how many there are.
    """
    bad = ~jnp.isfinite(array) if isinstance(array, jax.Array) else ~np.isfinite(array)
    count = int(bad.sum())
    if count:
        first = np.unravel_index(int(bad.reshape(-1).argmax()), array.shape)
        raise ValueError(
            f"{name} has {count} non-finite values, the first at index {_plain(first)}; {advice}"
        )
    return array


def _plain(index):
    return tuple(int(i) for i in index)
