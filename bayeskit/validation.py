"""Checks of what users give, before any tracing."""

import mmap
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Inexact

from bayeskit.precision import gathered

REAL = "biuf"
REAL_OR_COMPLEX = "biufc"


def owned(tree):
    """A pytree whose arrays and tables nobody else can write into: copies of the user's.

    JAX arrays cannot be written into and stay as they are; mapped files are read.
    """

    def copy(leaf):
        if isinstance(leaf, np.ma.MaskedArray) and not np.ma.getmaskarray(leaf).any():
            return np.array(leaf.data)
        if isinstance(leaf, np.memmap):
            return np.array(leaf)
        if isinstance(leaf, np.ndarray):
            return leaf.copy()
        if isinstance(leaf, (xr.DataArray, pd.DataFrame, pd.Series)):
            return leaf.copy(deep=True)
        return leaf

    return jax.tree.map(copy, tree)


def whole_mapping(array):
    """The mapped file that an array is all or a part of, as NumPy mapped it; ``None`` of others."""
    whole: Any = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    of_file = isinstance(whole, np.memmap) and isinstance(whole.base, mmap.mmap)
    return whole if of_file else None


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


def dimension_name(array, axis, fallback) -> str:
    """Name of a dimension: the user's, unless there is none or it is the one xarray makes up."""
    if not isinstance(array, xr.DataArray):
        return fallback
    name = array.dims[axis]
    if not isinstance(name, str):
        raise TypeError(f"names of dimensions must be strings, got {name!r}")
    made_up = name == f"dim_{axis % array.ndim}" and name not in array.coords
    return fallback if made_up else name


def coordinates_along(array, axis):
    """Coordinates along a dimension, ``None`` where there are none."""
    if not isinstance(array, xr.DataArray) or array.dims[axis] not in array.coords:
        return None
    return array.coords[array.dims[axis]].values


def chosen_names(name, chosen, known, kind):
    """The names that a user chose among the known ones, which are of some kind; all by default.

    Raises
    ------
    TypeError
        If they are one string, whose letters would be taken for names.
    ValueError
        If one is unknown.
    """
    if isinstance(chosen, str):
        raise TypeError(f"{name} must be a sequence of names such as ({chosen!r},), got {chosen!r}")
    chosen = list(known) if chosen is None else list(chosen)
    unknown = [item for item in chosen if item not in known]
    if unknown:
        raise ValueError(f"{name} has {unknown}; the {kind} are {list(known)}")
    return chosen


def check_integer(name, value, smallest) -> int:
    """An integer argument of a method, as Python's own, which JSON and static fields take."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {value}")
    return operator.index(value)


def check_finite_number(name, value) -> float:
    """A finite number argument, as Python's own."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def check_number(name, value, smallest, below=np.inf) -> float:
    """A finite number argument of a method in ``[smallest, below)``, as Python's own."""
    value = check_finite_number(name, value)
    if not smallest <= value < below:
        raise ValueError(f"{name} must be in [{smallest}, {below}), got {value}")
    return value


def check_positive(name: str, value: Any) -> float:
    """A finite number above zero."""
    value = check_finite_number(name, value)
    if value <= 0.0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def check_probability(name, value) -> float:
    """A number argument strictly between zero and one."""
    value = check_finite_number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} must be in (0, 1), got {value}")
    return value


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


def double_array(name: str, array: Any, kinds: str = REAL_OR_COMPLEX) -> Inexact[np.ndarray, "..."]:
    """An array-like of finite numbers as float64 or complex128, gathered from all devices.

    Raises
    ------
    TypeError
        If NumPy's letter for the kind of its numbers is not among ``kinds``.
    ValueError
        If an entry is masked or not finite.
    """
    array = np.asarray(gathered(values_of(name, array)))
    if array.dtype.kind not in kinds:
        expected = "numbers" if "c" in kinds else "real numbers"
        raise TypeError(f"{name}: got dtype {array.dtype}; expected {expected}")
    array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    check_finite(name, array)
    return array


def _plain(index):
    return tuple(int(i) for i in index)
