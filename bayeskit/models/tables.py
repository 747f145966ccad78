"""Tables of numbers: rows and named columns, with missing values."""

import warnings
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from bayeskit.errors import ConditioningWarning
from bayeskit.precision import gathered
from bayeskit.results import PredictionTarget
from bayeskit.validation import coordinates_along, dimension_name, is_numeric, values_of

LARGEST = 1e100  # numbers in the user's units


def array_of(name, data, axes=2, expected=None):
    """Numbers of any accepted form of data, NaN where one is missing.

    ``expected`` is what errors call the shape; ``(n, d)`` or ``(batch, n, d)`` by default.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what came and what was expected.
    """
    if isinstance(data, pd.DataFrame):
        wrong = [
            column
            for column, kind in data.dtypes.items()
            if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind)
        ]
        if wrong:
            raise TypeError(f"{name} has columns that are no numbers: {wrong}; drop them")
        if not data.columns.is_unique:
            twice = list(data.columns[data.columns.duplicated()])
            raise ValueError(f"{name} has several columns {twice}: expected one of each name")
        data = data.to_numpy(dtype=float, na_value=np.nan)
    if isinstance(data, np.ma.MaskedArray):
        data = np.ma.filled(np.ma.asarray(data, dtype=float), np.nan)
    values = np.asarray(gathered(values_of(name, data)))
    if not is_numeric(values) or values.dtype.kind == "c":
        raise TypeError(f"{name} must be real numbers, got {values.dtype}")
    expected = expected or ("(n, d)" if axes == 2 else "(batch, n, d)")
    if values.ndim != axes or values.size == 0:
        raise ValueError(f"{name} must have the shape {expected}, got {values.shape}")
    single = values.dtype.itemsize <= 4 and values.dtype.kind == "f"
    values = values.astype(np.float32 if single else np.float64)
    infinite = np.argwhere(np.isinf(values))
    if infinite.size:
        raise ValueError(
            f"{name} has {len(infinite)} infinite values, the first at index "
            f"{tuple(int(i) for i in infinite[0])}; finite numbers are expected, or NaN where a "
            "value is missing"
        )
    # As a number of Python: single precision does not hold the limit.
    if float(np.nanmax(np.abs(values), initial=0.0)) > LARGEST:
        raise ValueError(f"{name} has values beyond {LARGEST:g}, whose squares overflow")
    return values


def check_columns(data, values, consequence):
    """Raise where a column has no value, warn where one is constant, saying what follows of it."""
    observed = ~np.isnan(values)
    names = list(data.columns) if isinstance(data, pd.DataFrame) else list(range(values.shape[1]))
    empty = [names[j] for j in np.flatnonzero(~observed.any(axis=0))]
    if empty:
        raise ValueError(f"data has columns without any value: {empty}; leave them out")
    with np.errstate(all="ignore"):
        constant = np.flatnonzero(np.nanmin(values, axis=0) == np.nanmax(values, axis=0))
    if constant.size:
        warnings.warn(
            f"data has constant columns, {[names[j] for j in constant]}: {consequence}",
            ConditioningWarning,
            stacklevel=5,
        )


def names_of(data, batch):
    """Names of the dimensions of rows and features, and their coordinates or ``None``."""
    if isinstance(data, pd.DataFrame):
        index = None if isinstance(data.index, pd.RangeIndex) else np.asarray(data.index)
        return "observation", "feature", index, np.asarray(data.columns.astype(str))
    lead = int(batch)
    names = [dimension_name(data, lead, "observation"), dimension_name(data, lead + 1, "feature")]
    return (*names, coordinates_along(data, lead), coordinates_along(data, lead + 1))


class RowsToComplete(eqx.Module):
    """Rows of a prediction in the user's units.

    Attributes
    ----------
    values : array (rows, d)
        Zero where missing.
    observed : array (rows, d) or None
        Zero where a value is missing, one elsewhere; ``None`` where none is.
    """

    values: Any
    observed: Any

    def standardised(self, data):
        """Values and mask in the units of the prepared data."""
        values = (self.values - data.center) / data.unit
        return (values if self.observed is None else values * self.observed), self.observed


def log_units(data, values, observed):
    """Sums (rows,) of the logarithms of the units of the observed values."""
    logs = jnp.log(data.unit)
    return jnp.sum(
        jnp.broadcast_to(logs, values.shape) if observed is None else observed * logs, -1
    )


def rows_target(inputs, labels):
    """Rows of a prediction, complete or not, with their columns in the data's order.

    Raises
    ------
    TypeError, ValueError
        If ``inputs`` are no real numbers, or have other columns than the data.
    """
    row, feature = labels.dims[labels.observed]
    known = labels.coords[feature]
    if isinstance(inputs, xr.DataArray):
        inputs = _in_order_of(inputs, row, feature, known)
    if isinstance(inputs, pd.DataFrame) and known.dtype.kind in "OU":
        columns = list(inputs.columns.astype(str))
        missing = [name for name in known if name not in columns]
        if missing:
            raise ValueError(f"inputs has no columns {missing}, which the data have")
        inputs = inputs.set_axis(columns, axis=1)[list(known)]
    values = array_of("inputs", inputs)
    if values.shape[1] != len(known):
        raise ValueError(f"inputs must have the data's {len(known)} columns, got {values.shape[1]}")
    coords = {feature: known}
    seen = ~np.isnan(values)
    rows = RowsToComplete(
        jnp.asarray(np.where(seen, values, 0.0)),
        None if seen.all() else jnp.asarray(seen.astype(values.dtype)),
    )
    return PredictionTarget((row, feature), coords, rows)


def _in_order_of(inputs, row, feature, known):
    """Rows of an array by the names of its dims and of its features."""
    if set(inputs.dims) == {row, feature}:
        inputs = inputs.transpose(row, feature)
    last = inputs.dims[-1]
    if inputs.ndim == 2 and known.dtype.kind in "OU" and last in inputs.coords:
        names = inputs.coords[last].values
        missing = [str(name) for name in known if name not in names]
        if missing:
            raise ValueError(f"inputs has no features {missing}, which the data have")
        return inputs.sel({last: list(known)})
    return inputs
