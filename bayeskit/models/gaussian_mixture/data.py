"""From tables to what the computations use: checks, units, blocks of rows."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.linalg.sharding import mesh_of_rows, spread
from bayeskit.models import tables
from bayeskit.models.gaussian_mixture.empirical import empirical_prior
from bayeskit.models.gaussian_mixture.prior import block_prior, flat_prior
from bayeskit.models.gaussian_mixture.table import Rows, Table
from bayeskit.results import Labels
from bayeskit.validation import coordinates_along

_BLOCK_NUMBERS = 2**20
_QUARTILE_ROWS = 4096
_QUARTILES = 1.349  # between the quartiles of a standard normal variable
_OBSERVED = "x"


def prepare(model, data, batch):
    """Tables, labels and groups of one data set, or of several stacked on axis 0.

    Rows that came spread over devices are spread over them again, in blocks of their own.
    """
    mesh = None if batch else mesh_of_rows(data)
    values = tables.array_of("data", data, 3 if batch else 2)
    items = values if batch else values[None]
    count, features = items.shape[1:]
    if count < model.num_components:
        raise ValueError(
            f"data has {count} rows; num_components={model.num_components} components need at "
            "least as many"
        )
    unusable = np.asarray(np.isnan(items).all(axis=(1, 2)))
    if not batch and unusable[0]:
        raise ValueError("data is NaN everywhere: at least one value is expected")
    given = model.prior
    if not isinstance(given, (str, type(None))) and given.location.size != features:
        raise ValueError(f"prior is of {given.location.size} features, data has {features} columns")
    for item in items[~unusable]:
        tables.check_columns(data, item, "they tell nothing of the components")
    # A data set of nothing but NaN is no set of missing values: it stays NaN.
    missing = bool(np.isnan(items[~unusable]).any())
    holes = np.isnan(items[~unusable]).any(axis=2).sum(axis=1)
    complete = count - int(holes.max(initial=0))
    made = [_table(model, item, missing, complete, mesh) for item in items]
    table = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made) if batch else made[0]
    return table, _labels(model, data, values, batch), _groups(data, values, batch)


def blocked(blocks, values, observed, dtype, mesh=None):
    """Rows (n, d) in blocks that a step can hold in memory, each spread over a mesh's devices."""
    count, features = values.shape
    numbers = blocks.components * features
    if observed is not None and blocks.dense:
        numbers *= 2 * features
    size = int(min(count, max(64, _BLOCK_NUMBERS // numbers)))
    number = -(-count // size)
    devices = 1 if mesh is None else mesh.size
    size = -(-count // (number * devices)) * devices
    fill = number * size - count

    def cut(array):
        padded = np.pad(array, ((0, fill), *((0, 0),) * (array.ndim - 1)))
        padded = padded.reshape(number, size, *array.shape[1:]).astype(dtype)
        return jnp.asarray(padded) if mesh is None else spread(padded, mesh, axis=1)

    seen = None if observed is None else cut(observed)
    return Rows(cut(values), seen, cut(np.ones(count)))


def _table(model, values, missing, complete, mesh=None):
    dtype = values.dtype
    blocks = model.blocks(values.shape[1])
    observed = ~np.isnan(values)
    whole = values.astype(np.float64)
    if observed.any():
        safe = np.where(observed, whole, 0.0)
        counts = np.maximum(observed.sum(axis=0), 1)
        # Twice, so that the mean of numbers far from zero has no rounding error.
        center = safe.sum(axis=0) / counts
        center = center + np.where(observed, whole - center, 0.0).sum(axis=0) / counts
        squares = np.where(observed, whole - center, 0.0) ** 2
        unit = np.sqrt(squares.sum(axis=0) / counts)
        if blocks.structure == "spherical":
            unit = np.full_like(unit, np.sqrt(squares.sum() / max(observed.sum(), 1)))
        alone = unit <= 1e-12 * np.abs(center)
        unit = np.where(alone, np.where(center == 0, 1.0, np.abs(center)), unit)
    else:
        center, unit = np.zeros(values.shape[1]), np.ones(values.shape[1])
    standard = (whole - center) / unit
    typical = _spread(standard)
    if missing and observed.any():
        standard = np.where(observed, standard, 0.0)
    rows = blocked(blocks, standard, observed.astype(float) if missing else None, dtype, mesh)
    proper, prior = model.prior is not None, flat_prior(blocks, dtype)
    table = Table(
        rows,
        jnp.asarray(center, dtype),
        jnp.asarray(unit, dtype),
        jnp.asarray(typical, dtype),
        jnp.asarray(np.sum(observed * np.log(unit)), dtype),
        prior,
        None,
        len(values),
        complete,
        proper,
    )
    if isinstance(model.prior, str):
        found = empirical_prior(blocks, table, jnp.asarray(model.weights_concentration, dtype))
        return dataclasses.replace(table, prior=found.prior, start=found.components)
    if proper:
        prior = _stated_prior(model.prior, blocks, center, unit, dtype)
    return dataclasses.replace(table, prior=prior)


def _spread(standard):
    """Variance (d,) that outliers do not widen; one where half of the values are equal."""
    if len(standard) > _QUARTILE_ROWS:
        chosen = np.random.default_rng(0).choice(len(standard), _QUARTILE_ROWS, replace=False)
        standard = standard[chosen]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        lower, upper = np.nanquantile(standard, [0.25, 0.75], axis=0)
    variance = ((upper - lower) / _QUARTILES) ** 2
    return np.where(variance > 0, np.minimum(variance, 1.0), 1.0)


def _stated_prior(given, blocks, center, unit, dtype):
    location = (given.location - center) / unit
    scale = given.scale / np.outer(unit, unit)
    parts = (location, given.location_strength, scale, given.degrees_of_freedom)
    return block_prior(blocks, *(jnp.asarray(part, dtype) for part in parts))


def _labels(model, data, values, batch):
    row, feature, rows, features = tables.names_of(data, batch)
    other = f"{feature}_other"
    reserved = {"batch", "chain", "draw", "iteration", "part", "component"}
    if row == feature or {row, feature, other} & reserved:
        raise ValueError(
            f"data has the dimensions {(row, feature)}; they need names of their own, other than "
            f"{sorted(reserved)}"
        )
    covariances = {
        "full": ("component", feature, other),
        "tied": (feature, other),
        "diagonal": ("component", feature),
        "spherical": ("component",),
    }[model.covariance]
    dims = {
        "weights": ("component",),
        "locations": ("component", feature),
        "covariances": covariances,
        _OBSERVED: (row, feature),
    }
    coords = {"component": np.arange(model.num_components)}
    features = np.arange(values.shape[-1]) if features is None else features
    known = {row: rows, feature: features, other: features}
    if batch:
        known["batch"] = coordinates_along(data, 0)
    coords |= {name: values for name, values in known.items() if values is not None}
    return Labels(dims, coords, _OBSERVED)


def _groups(data, values, batch):
    row, feature, _, _ = tables.names_of(data, batch)
    dims = ("batch",) * bool(batch) + (row, feature)
    return {"observed_data": {_OBSERVED: (dims, values)}, "constant_data": {}}
