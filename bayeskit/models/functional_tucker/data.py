"""From tables to what the computations use: checks, unique points, units, blocks of rows."""

import contextlib
import datetime
import math
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from bayeskit.errors import PrecisionWarning
from bayeskit.linalg.sharding import mesh_of_rows, spread
from bayeskit.models.functional_tucker.sweep import Rows
from bayeskit.precision import gathered
from bayeskit.results import Labels
from bayeskit.validation import check_finite, values_of

_SKETCH_ROWS = 1024
_BLOCK_NUMBERS = 2**22
_LARGEST_BLOCK = 2**17
_NUMBERS = "fiu"
_MOST_QUARTILES = 10.0  # distances of the quartiles in the range of most points
_EXACT = 2.0**53  # integers beyond it are rounded in double precision
_ROUNDING = 16  # units of it, of sums of squares that are differences
# Of nanoseconds in 64 bits.
_LAST_DATE = np.datetime64((2**63 - 1) // 10**9, "s")
_FIRST_DATE = np.datetime64(-((2**63 - 1) // 10**9), "s")


class Observations(eqx.Module):
    """One data set, values standardised, every index divided by the range of its points.

    Attributes
    ----------
    rows : Rows
    steps : tuple of arrays (n_k,)
        From each point of a mode to the one before; infinite for the first, zero for points that
        only fill a batch up.
    spans : array (K,)
        What indices were divided by.
    sketch : tuple of int arrays (rows,)
        Positions of some rows.
    center, unit : scalars
        Subtracted from the values, and what they were divided by.
    spread : scalar
        Variance of the standardised values: one, or zero if they are all equal, unless the model
        states its own scale.
    noise_variance : scalar
        The known one over ``unit²``, NaN where it is learned.
    count : int
        Number of observations, without what fills the last block up.
    """

    rows: Rows
    steps: tuple
    spans: Any
    sketch: tuple
    center: Any
    unit: Any
    spread: Any
    noise_variance: Any
    count: int = eqx.field(static=True)


class Inputs(NamedTuple):
    """Where to predict: for every mode the points of fit and prediction together.

    Attributes
    ----------
    steps : tuple of arrays (n_k,)
    known : tuple of int arrays
        Positions of the fit's points among them.
    index : tuple of int arrays (rows,)
        Positions of every prediction.
    """

    steps: tuple
    known: tuple
    index: tuple


def columns_of(model, data, with_values=True):
    """Index columns (one array a mode) and values of any accepted form of data.

    Raises
    ------
    TypeError, ValueError
        Naming the column, what came and what was expected.
    """
    names = [mode.name for mode in model.modes]
    if isinstance(data, xr.DataArray) and with_values:
        return _columns_of_array(names, data)
    if isinstance(data, pd.DataFrame):
        wanted = [*names, *([model.value] if with_values else [])]
        missing = [name for name in wanted if name not in data.columns]
        if missing:
            raise ValueError(
                f"data has no column {missing}: expected {wanted}, got {list(data.columns)}"
            )
        repeated = sorted({name for name in wanted if list(data.columns).count(name) > 1})
        if repeated:
            raise ValueError(f"data has several columns {repeated}: expected one of each name")
        columns = [data[name] for name in names]
        values = data[model.value].to_numpy() if with_values else None
        return columns, values
    if with_values:
        if not (isinstance(data, (tuple, list)) and len(data) == 2):
            raise TypeError(
                "data must be a pair (indices (N, K), values (N,)), a DataFrame or a DataArray, "
                f"got {type(data).__name__}"
            )
        indices, values = data
    else:
        indices, values = data, None
    if isinstance(indices, pd.DataFrame):
        columns, _ = columns_of(model, indices, with_values=False)
    elif _is_columns(indices, len(names)):
        columns = list(indices)
    else:
        array = values_of("indices", indices)
        if array.ndim != 2 or array.shape[1] != len(names):
            raise ValueError(
                f"indices must have the shape (N, {len(names)}), one column a mode "
                f"({', '.join(names)}), got {array.shape}"
            )
        columns = list(array.T)
    if values is None:
        return columns, None
    values = values_of("values", values)
    if values.ndim != 1:
        raise ValueError(f"values must have the shape (N,), got {values.shape}")
    return columns, values


def _is_columns(indices, count):
    """Whether the indices are a tuple of columns; nested sequences of numbers are rows."""
    arrays = (np.ndarray, jax.Array, pd.Series, pd.Index, xr.DataArray)
    return (
        isinstance(indices, tuple)
        and len(indices) == count
        and all(isinstance(column, arrays) and np.ndim(column) == 1 for column in indices)
    )


def joined(model, data, new_data):
    """Rows of two tables: a DataFrame where both are, else columns and values, on the host.

    Raises
    ------
    TypeError
        If an index has numbers in one and dates or names in the other.
    """
    parts = [_one(model, *columns_of(model, gathered(each))) for each in (data, new_data)]
    for k, mode in enumerate(model.modes):
        kinds = [part["columns"][k].dtype.kind for part in parts]
        if not _comparable(*kinds):
            types = [part["columns"][k].dtype for part in parts]
            raise TypeError(f"index {mode.name!r} has {types[1]}, the data so far have {types[0]}")
    if isinstance(data, pd.DataFrame) and isinstance(new_data, pd.DataFrame):
        wanted = [*(mode.name for mode in model.modes), model.value]
        return pd.concat([data[wanted], new_data[wanted]], ignore_index=True)
    columns = zip(*(part["columns"] for part in parts), strict=True)
    values = np.concatenate([part["values"] for part in parts])
    return tuple(np.concatenate(pair) for pair in columns), values


def _comparable(kind, other):
    """Whether two columns' entries can be the same: both numbers, or of one kind."""
    return kind == other or {kind, other} <= set(_NUMBERS)


def _columns_of_array(names, data):
    if set(names) != set(data.dims):
        raise ValueError(f"data has the dims {data.dims}, the modes are {tuple(names)}")
    if data.dtype.kind not in _NUMBERS:
        raise TypeError(f"values must be real numbers, got {data.dtype}")
    array = data.transpose(*names)
    present = np.nonzero(~np.isnan(np.asarray(array.values, float)))
    columns = [
        (array.coords[name].values if name in array.coords else np.arange(array.sizes[name]))[at]
        for name, at in zip(names, present, strict=True)
    ]
    return columns, array.values[present]


def check_values(name, values):
    """Values as finite real numbers, in their own precision."""
    values = values_of(name, values)
    if values.dtype.kind == "O":
        values = _as_floats(values)
    if values.dtype.kind not in _NUMBERS:
        raise TypeError(f"{name} must be real numbers, got {values.dtype}")
    values = values if values.dtype == np.float32 else values.astype(np.float64)
    return check_finite(name, values, "leave out rows without a value")


def check_column(mode, column):
    """An index column: categories as they are, other indices as float64 or datetimes in UTC."""
    if isinstance(getattr(column, "dtype", None), pd.DatetimeTZDtype):
        column = pd.Series(column).dt.tz_convert("UTC").dt.tz_localize(None)
    array = values_of(f"index {mode.name!r}", column)
    if array.ndim != 1:
        raise ValueError(f"index {mode.name!r} must have the shape (N,), got {array.shape}")
    missing = np.flatnonzero(np.asarray(pd.isna(pd.Series(array))))
    if missing.size:
        raise ValueError(
            f"index {mode.name!r} has {missing.size} missing entries (NaN or NA), the first at "
            f"({missing[0]},); leave out rows without an index"
        )
    if mode.categorical:
        array = _as_categories(mode, array) if array.dtype.kind == "O" else array
        if array.dtype.kind == "U" and "nan" in array:
            raise ValueError(
                f"index {mode.name!r} has entries 'nan', which is what NumPy makes of missing ones "
                "among texts; leave out rows without an index, or rename a category of that name"
            )
        return array
    if array.dtype.kind == "O" and all(isinstance(each, datetime.date) for each in array):
        array = _dates(mode, array)
    if array.dtype.kind == "M":
        seconds = array.astype("datetime64[s]")
        outside = np.flatnonzero((seconds <= _FIRST_DATE) | (seconds >= _LAST_DATE))
        if outside.size:
            raise ValueError(
                f"index {mode.name!r} has dates outside {_FIRST_DATE} to {_LAST_DATE}, the first "
                f"is {array[outside[0]]}; give numbers, e.g. years"
            )
        return array.astype("datetime64[ns]")
    if array.dtype.kind == "O":
        array = _as_floats(array)
    if array.dtype.kind not in _NUMBERS:
        raise TypeError(
            f"index {mode.name!r} must be numbers or datetimes, got {array.dtype}; is it "
            "categorical=True?"
        )
    floats = array.astype(np.float64)
    if array.dtype.kind in "iu" and np.any(np.abs(floats) > _EXACT):
        if len(np.unique(floats)) < len(np.unique(array)):
            raise ValueError(
                f"index {mode.name!r} has integers beyond 2^53 that differ and are the same in "
                "double precision; give differences from one of them"
            )
    return check_finite(f"index {mode.name!r}", floats)


def _as_floats(array):
    """Decimals, fractions, boxed numbers as float64; anything else as texts."""
    if not any(isinstance(each, (str, bytes, bool, np.bool_)) for each in array.flat):
        with contextlib.suppress(TypeError, ValueError):
            return array.astype(float)
    return array.astype(str)


def _as_categories(mode, array):
    """Boxed numbers or booleans as such, anything else as texts, of which no two are the same."""
    array = np.asarray(pd.Series(array).infer_objects())
    if array.dtype.kind != "O":
        return array
    texts = array.astype(str)
    if len(set(texts)) < len(set(array)):
        raise ValueError(
            f"index {mode.name!r} has categories that differ and read the same, such as 1 and '1'; "
            "give all of one type"
        )
    return texts


def _dates(mode, array):
    """Dates and times of Python as NumPy's, in UTC where they have a time zone."""
    zones = {getattr(each, "tzinfo", None) is None for each in array}
    if len(zones) > 1:
        raise ValueError(f"index {mode.name!r} has dates with a time zone and dates without")
    if zones == {True}:
        return np.array(array, dtype="datetime64[us]")
    moved = [each.astimezone(datetime.UTC).replace(tzinfo=None) for each in array]
    return np.array(moved, dtype="datetime64[us]")


def as_numbers(mode, points, origin):
    """Coordinates of points; datetimes in days since ``origin``, categories by their place."""
    if mode.categorical:
        return np.arange(len(points), dtype=float)
    if points.dtype.kind == "M":
        return (points - origin) / np.timedelta64(1, "D")
    return points


def prepare(model, data, batch):
    """Data, labels and tables of one data set, or of several stacked on axis 0.

    Rows that came spread over devices are spread over them again, in blocks of their own; unique
    points are found on the host.
    """
    mesh = None if batch else mesh_of_rows(data)
    data = gathered(data)
    if not batch:
        parts = [_one(model, *columns_of(model, data))]
    else:
        parts = [_one(model, *columns_of(model, item)) for item in _items(data, len(model.modes))]
        lengths = {len(part["values"]) for part in parts}
        if len(lengths) > 1:
            raise ValueError(f"data sets of a batch need equal numbers of rows, got {lengths}")
    single = all(part["values"].dtype == np.float32 for part in parts)
    dtype = np.float32 if single else np.float64
    sizes = [max(len(part["points"][k]) for part in parts) for k in range(len(model.modes))]
    multiple = 1 if mesh is None else mesh.size
    made = [_observations(model, part, sizes, dtype, multiple) for part in parts]
    observations = made[0]
    if mesh is not None:
        rows = jax.tree.map(lambda leaf: spread(np.asarray(leaf), mesh, axis=1), observations.rows)
        observations = eqx.tree_at(lambda o: o.rows, observations, rows)
    if batch:
        observations = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
    return observations, _labels(model, parts, batch), _tables(model, parts, batch)


def _items(data, count):
    """Data sets of a batch, one by one."""
    if isinstance(data, (tuple, list)) and len(data) == 2:
        indices, values = data[0], np.asarray(data[1])
        if isinstance(indices, tuple) and len(indices) == count:
            columns = [np.asarray(column) for column in indices]
            if values.ndim == 2 and all(column.shape == values.shape for column in columns):
                return [
                    (tuple(column[i] for column in columns), values[i]) for i in range(len(values))
                ]
        indices = np.asarray(indices)
        if indices.ndim == 3 and len(indices) == len(values) and values.ndim == 2:
            return list(zip(indices, values, strict=True))
    raise TypeError(
        f"a batch must be a pair (indices (batch, N, {count}), values (batch, N)), got "
        f"{type(data).__name__}"
    )


def _one(model, columns, values):
    if np.size(values) == 0:
        raise ValueError("values is empty: expected at least one observation")
    values = check_values("values", values)
    columns = [check_column(mode, c) for mode, c in zip(model.modes, columns, strict=True)]
    for mode, column in zip(model.modes, columns, strict=True):
        if column.shape != values.shape:
            raise ValueError(
                f"index {mode.name!r} has the shape {column.shape}, values {values.shape}"
            )
    unique = [np.unique(column, return_inverse=True) for column in columns]
    return {
        "values": values,
        "columns": columns,
        "points": [points for points, _ in unique],
        "index": [inverse.reshape(-1) for _, inverse in unique],
    }


def steps_between(mode, points, origin, span):
    """Scaled steps to the point before; infinite where there is none, or no order."""
    if mode.categorical:
        return np.full(len(points), np.inf)
    return np.diff(as_numbers(mode, points, origin), prepend=-np.inf) / span


def span_of(mode, points):
    """Range of a mode's points, one where it has none."""
    if mode.categorical or len(points) < 2:
        return 1.0
    numbers = as_numbers(mode, points, points[0])
    with np.errstate(over="ignore"):
        whole = float(np.ptp(numbers))
    if not np.isfinite(whole):
        return whole
    # A few points far from all others say nothing of the scale on which functions change.
    low, high = np.quantile(numbers, [0.25, 0.75])
    inner = _MOST_QUARTILES * float(high - low)
    return min(whole, inner) if inner > 0 else whole


def _observations(model, part, sizes, dtype, multiple):
    values = part["values"].astype(np.float64)
    unit = model.scale
    with np.errstate(over="ignore"):  # told of below
        center = float(np.mean(values)) if model.offset is None else model.offset
        if unit is None:
            deviation = float(np.std(values))
            unit = deviation if deviation > 1e-12 * abs(center) else (abs(center) or 1.0)
    # Variances of the noise variance are in fourth powers of the unit.
    if 4.0 * abs(math.log(unit)) > math.log(np.finfo(dtype).max):
        raise ValueError(
            f"values have the scale {unit:.3g}, whose fourth power {np.dtype(dtype)} does not "
            "hold; give them in other units" + (" or in float64" if dtype == np.float32 else "")
        )
    count = len(values)
    ranks = model.rank_tuple
    numbers = max(rank**2 for rank in ranks) * 2
    if model.core == "tucker":
        numbers = max(numbers, math.prod(sorted(r**2 for r in ranks)[1:]) * 2)
    size = int(min(count, max(128, min(_BLOCK_NUMBERS // numbers, _LARGEST_BLOCK))))
    blocks = -(-count // size)
    size = -(-count // blocks)
    size += -size % multiple
    fill = blocks * size - count

    def blocked(array, dtype):
        return jnp.asarray(np.pad(array, (0, fill)).reshape(blocks, size).astype(dtype))

    rows = Rows(
        tuple(blocked(index, np.int32) for index in part["index"]),
        blocked((values - center) / unit, dtype),
        blocked(np.ones(count), dtype),
    )
    spans = [span_of(m, p) for m, p in zip(model.modes, part["points"], strict=True)]
    for mode, span in zip(model.modes, spans, strict=True):
        if not np.isfinite(span):
            raise ValueError(f"index {mode.name!r} has a range beyond float64; rescale it")
    steps = []
    for mode, points, span, length in zip(model.modes, part["points"], spans, sizes, strict=True):
        made = steps_between(mode, points, points[0], span)
        steps.append(jnp.asarray(np.pad(made, (0, length - len(made))), dtype))
    chosen = np.unique(np.linspace(0, count - 1, min(count, _SKETCH_ROWS)).astype(int))
    noise = np.nan if model.noise_variance is None else model.noise_variance / unit**2
    smallest = _ROUNDING * np.finfo(dtype).eps * np.var(values)
    if model.noise_variance is not None and model.noise_variance < smallest:
        warnings.warn(
            f"noise_variance={model.noise_variance:.3g} is below what rounding leaves of the "
            f"values' variance, {smallest:.3g} in {np.dtype(dtype)}: the bound means nothing",
            PrecisionWarning,
            stacklevel=2,
        )
    return Observations(
        rows=rows,
        steps=tuple(steps),
        spans=jnp.asarray(spans, dtype),
        sketch=tuple(jnp.asarray(index[chosen], jnp.int32) for index in part["index"]),
        center=jnp.asarray(center, dtype),
        unit=jnp.asarray(unit, dtype),
        spread=jnp.asarray(np.var(values) / unit**2, dtype),
        noise_variance=jnp.asarray(noise, dtype),
        count=count,
    )


def _labels(model, parts, batch):
    dims: dict[str, tuple[str, ...]] = {model.value: ("observation",)}
    coords = {}
    for mode, rank, points in zip(model.modes, model.rank_tuple, parts[0]["points"], strict=True):
        rank_dim = f"rank_{mode.name}" if model.core == "tucker" else "component"
        dims[f"mode_{mode.name}"] = (mode.name, rank_dim)
        coords[rank_dim] = np.arange(rank)
        if not batch:
            coords[mode.name] = points
        for name in model.parameter_names(mode):
            dims[f"{name}_{mode.name}"] = (rank_dim,)
    if model.core == "tucker":
        dims["core"] = tuple(f"rank_{mode.name}" for mode in model.modes)
    for name in ("offset", "noise_variance"):
        if getattr(model, name) is None:
            dims[name] = ()
    return Labels(dims, coords, model.value)


def _tables(model, parts, batch):
    def table(values):
        return np.stack(values) if batch else values[0]

    lead = ("batch",) if batch else ()
    observed = {model.value: ((*lead, "observation"), table([part["values"] for part in parts]))}
    constant = {
        f"{mode.name}_at": ((*lead, "observation"), table([part["columns"][k] for part in parts]))
        for k, mode in enumerate(model.modes)
    }
    return {"observed_data": observed, "constant_data": constant}


def prediction_inputs(model, points, spans, inputs):
    """Union of the points of the fit and of the prediction, mode by mode."""
    columns, _ = columns_of(model, gathered(inputs), with_values=False)
    columns = [check_column(mode, c) for mode, c in zip(model.modes, columns, strict=True)]
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise ValueError(f"index columns have different lengths: {sorted(lengths)}")
    steps, known, index = [], [], []
    for mode, column, given, span in zip(model.modes, columns, points, spans, strict=True):
        made = union(mode, given, column, span)
        for collected, item in zip((steps, known, index), made, strict=True):
            collected.append(item)
    return Inputs(tuple(steps), tuple(known), tuple(index))


def union(mode, given, column, span):
    """Steps of the union of points, and positions in it of the given and the new ones."""
    column = column if len(column) else given[:0]
    if not _comparable(column.dtype.kind, given.dtype.kind):
        raise TypeError(
            f"index {mode.name!r} has {column.dtype}, the model was fitted to {given.dtype}"
        )
    merged = np.unique(np.concatenate([given, column]))
    return (
        jnp.asarray(steps_between(mode, merged, given[0], span)),
        jnp.asarray(np.searchsorted(merged, given), jnp.int32),
        jnp.asarray(np.searchsorted(merged, column), jnp.int32),
    )
