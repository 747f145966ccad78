"""From tables to what the computations use: checks, one unit for all columns, known decoders."""

import math
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.scipy.special import gammaln

from bayeskit.errors import ConditioningWarning
from bayeskit.linalg.sharding import mesh_of_rows, shard_with, spread
from bayeskit.models import tables
from bayeskit.models.priors import inverse_gamma
from bayeskit.models.singular import deep, images, last_layer, streaming, support
from bayeskit.models.singular.linear import LinearDecoder
from bayeskit.results import Labels, map_in_blocks
from bayeskit.validation import coordinates_along, dimension_name

_OBSERVED = "x"
_OF_CONSTANTS = "they make the noise look smaller; leave them out"
_EQUAL_ROWS = "data has equal rows only, to rounding: there is no distribution to learn"
_SEEN = 0.01  # of the unit: networks do not see ties that are closer
_ENCODER = "encoder_weights"
_STREAMED_BLOCK = 4096  # rows that are read at a time
LINEAR_SITES = ("loadings", "offset", "noise_variance")
NETWORK_SITES = (
    "decoder_weights",
    _ENCODER,
    "noise_variance",
    "perturbation",
    "center",
    "unit",
)


class SingularTable(eqx.Module):
    """One data set.

    Attributes
    ----------
    values : array (n, D), or StreamedRows
        Standardised: columns centred, all divided by one unit. Zero where missing.
    observed : array (n, D) or None
        Zero where a value is missing, one elsewhere; ``None`` where none is.
    center : array (D,)
    unit : scalar
        Root of the mean variance of the columns.
    count : scalar
        Number of observed values.
    levels : array (G,)
        Standard deviations of the added noise, in ``unit``: several where one is to be chosen.
    noise_variance : scalar
        Of the data themselves where it is known, in ``unit²``; NaN where it is learned.
    noise_start : scalar
        Standard deviation of the noise where networks start to learn it, in ``unit``.
    noise_prior : pair of scalars
        Concentration and rate of the inverse-gamma prior of the noise variance, zeros where flat.
    given : LinearDecoder, or Networks with their center and unit
        What an earlier fit found, linear decoders in these units; NaN where there was none.
    spacing : array (D,) or None
        Of columns with multiples of one number, in ``unit``, and zero of others; ``None`` where
        all are zero.
    shape : tuple of int
        Of one row: (D,), or of an image whose pixels it has.
    num_rows : int
        n: of rows that are spread over devices, ``values`` may have some more.
    noise_learned : bool
    proper : bool
        Whether nothing has a flat prior.
    """

    values: Any
    observed: Any
    center: Any
    unit: Any
    count: Any
    levels: Any
    noise_variance: Any
    noise_start: Any
    noise_prior: Any
    given: Any
    spacing: Any
    shape: tuple = eqx.field(static=True)
    num_rows: int = eqx.field(static=True)
    noise_learned: bool = eqx.field(static=True)
    proper: bool = eqx.field(static=True)

    @property
    def all_rows(self):
        """All of them (n, D), in memory, wherever they are."""
        if isinstance(self.values, streaming.StreamedRows):
            return self.values[jnp.arange(self.num_rows)]
        return self.values[..., : self.num_rows, :]

    def map_rows(self, function):
        """A function of rows (m, D), of all rows; in blocks where they are not in memory."""
        if not isinstance(self.values, streaming.StreamedRows):
            return function(self.all_rows)

        def one(row):
            return jax.tree.map(lambda leaf: leaf[0], function(self.values[row[None]]))

        return map_in_blocks(one, jnp.arange(self.num_rows), _STREAMED_BLOCK)

    def batch_of(self, rows):
        """Rows (m, D) by their numbers; spread over devices where the table is."""
        values = self.values[rows]
        if isinstance(self.values, streaming.StreamedRows):
            return values
        return shard_with(values, self.values, 0)

    def log_noise_prior(self, log_precision, precision):
        """Log prior density of the logarithm of the noise variance; zero where flat or known."""
        if not (self.noise_learned and self.proper):
            return jnp.zeros((), precision.dtype)
        concentration, rate = self.noise_prior
        constant = concentration * jnp.log(rate) - gammaln(concentration)
        return constant + concentration * log_precision - rate * precision

    @property
    def perturbation(self):
        """The first of the levels, the only one of a linear decoder."""
        return self.levels[0]

    @property
    def log_unit(self):
        """Sum of the logarithms of the units of all observed values."""
        return self.count * jnp.log(self.unit)


def sites_of(model):
    """Names of the sites that a trained decoder is made of, that of an encoder among them."""
    return LINEAR_SITES if model.is_linear else NETWORK_SITES


def is_trained(model):
    """Whether a model has a trained decoder."""
    return set(sites_of(model)) - {_ENCODER} <= set(model.estimates or ())


def prepare(model, data, batch):
    """Tables, labels and groups of one data set, or of several stacked on axis 0.

    Rows of networks that came spread over devices are spread over them again, filled up so that
    all have as many; those of files stay there until networks are trained.
    """
    if not batch and model.leaves_in_place(data):
        return _prepare_streamed(model, data)
    mesh = None if batch else mesh_of_rows(data)
    values, shape = images.rows_of(data, batch)
    items = values if batch else values[None]
    _check_size(model, *items.shape[1:])
    unusable = np.asarray(np.isnan(items).all(axis=(1, 2)))
    if not batch:
        if unusable[0]:
            raise ValueError("data is NaN everywhere: at least one value is expected")
        tables.check_columns(data, items[0], _OF_CONSTANTS)
    # A data set of nothing but NaN is no set of missing values: it stays NaN.
    holes = np.argwhere(np.isnan(items[~unusable]))
    missing = bool(holes.size)
    if not model.is_linear:
        if missing:
            first = tuple(int(i) for i in holes[0][int(not batch) :])
            raise ValueError(
                f"data has {len(holes)} missing values (NaN), the first at index {first}; only "
                "decoder='linear' takes them"
            )
        deep.check_shapes(model, shape)
    made = [_table(model, item, shape, missing, batch, mesh) for item in items]
    if not model.is_linear:
        made = _with_ties(data, made, items)
        if not batch:
            _check_connected(np.asarray(made[0].all_rows, np.float64), made[0].spacing)
    table = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made) if batch else made[0]
    return table, _labels(model, data, shape, batch), _groups(data, values, shape, batch)


def _prepare_streamed(model, data):
    """As :func:`prepare`, in one pass; ties and gaps are looked for in some of the rows."""
    found = streaming.summary(data, "(n, D) or that of images")
    shape = data.shape[1:]
    _check_size(model, len(data), found.center.size)
    tables.check_columns(data, np.stack([found.smallest, found.largest]), _OF_CONSTANTS)
    deep.check_shapes(model, shape)
    single = data.dtype.kind == "f" and data.dtype.itemsize <= 4
    dtype = np.dtype(np.float32 if single else np.float64)
    unit = _unit(found.center, found.variance)
    if unit is None:
        raise ValueError(_EQUAL_ROWS)
    rows = streaming.StreamedRows(data, found.center, unit, dtype)
    count = float(math.prod(rows.shape))
    table = _assembled(model, rows, None, count, found.center, unit, shape, dtype)
    some = streaming.looked_at(data)
    (table,) = _with_ties(data, [table], some[None])
    _check_connected((some - found.center) / unit, table.spacing)
    return table, _labels(model, data, shape, False), {"observed_data": {}, "constant_data": {}}


def _check_size(model, count, features):
    if features <= model.latent_dim:
        raise ValueError(
            f"latent_dim={model.latent_dim} must be below the number of columns of data, "
            f"{features}: otherwise the noise itself would be decoded"
        )
    if count <= model.latent_dim:
        raise ValueError(
            f"data has {count} rows; latent_dim={model.latent_dim} needs more than that"
        )


def _unit(center, variances):
    """Root of the mean variance of the columns, or ``None`` where rows do not differ."""
    unit = np.sqrt(np.mean(variances))
    return unit if unit > 1e-12 * np.max(np.abs(center)) else None


def _table(model, values, shape, missing, batch, mesh):
    dtype = values.dtype
    observed = ~np.isnan(values)
    whole = values.astype(np.float64)
    counts = np.maximum(observed.sum(axis=0), 1)
    center = np.where(observed, whole, 0.0).sum(axis=0) / counts
    # Twice, so that the mean of numbers far from zero has no rounding error.
    center = center + np.where(observed, whole - center, 0.0).sum(axis=0) / counts
    squares = np.where(observed, whole - center, 0.0) ** 2
    unit = _unit(center, squares.sum(axis=0) / counts) if observed.any() else None
    if unit is None:
        if not batch:
            raise ValueError(_EQUAL_ROWS)
        unit = np.nan
    standard = (whole - center) / unit
    if missing:
        standard = np.where(observed, standard, 0.0)
    rows = _placed(model, standard.astype(dtype), mesh)
    mask = jnp.asarray(observed, dtype) if missing else None
    return _assembled(model, rows, mask, observed.sum(), center, unit, shape, dtype, len(values))


def _placed(model, standard, mesh):
    """Rows on the device, or an equal share of them on every device of a mesh.

    Where the shares of networks would not be equal, rows of zeros follow, which nothing reads;
    those of a linear decoder then stay on one device.
    """
    fill = 0 if mesh is None else -len(standard) % mesh.size
    if mesh is None or (model.is_linear and fill):
        return jnp.asarray(standard)
    return spread(np.pad(standard, ((0, fill), (0, 0))), mesh, axis=0)


def _assembled(model, values, observed, count, center, unit, shape, dtype, num_rows=None):
    num_rows = values.shape[0] if num_rows is None else num_rows
    known_noise = np.nan if model.noise_scale is None else (model.noise_scale / unit) ** 2
    return SingularTable(
        values,
        observed,
        jnp.asarray(center, dtype),
        jnp.asarray(unit, dtype),
        jnp.asarray(count, dtype),
        jnp.asarray(model.levels_of(num_rows), dtype),
        jnp.asarray(known_noise, dtype),
        jnp.asarray(deep.START if model.noise_start is None else model.noise_start, dtype),
        inverse_gamma(model.noise_prior, jnp.asarray(unit**2, dtype), dtype),
        _given(model, shape, center, unit, dtype),
        None,
        shape,
        num_rows,
        model.noise_scale is None,
        model.noise_scale is not None or model.noise_prior is not None,
    )


def _with_ties(data, made, items):
    """Tables with the spacings of columns of few values, and a warning of those."""
    found = np.array([[support.ties(column) for column in item.T] for item in items])
    tied, spacings = found[..., 0] > 0, found[..., 1]
    spacings = spacings / np.array([[float(table.unit)] for table in made])
    smallest = np.array([[float(table.levels.min())] for table in made])
    undone = tied & (spacings == 0.0) & (smallest < _SEEN)
    if undone.any():
        _warn_of_columns(
            data,
            undone,
            "most values occur again, and are no multiples of one number: the density is unbounded "
            f"there; give a perturbation of {_SEEN} or more",
        )
    # Perturbed by half of a spacing, the density ripples by 2 exp(-π² / 2), under 1.5 %.
    wide = 0.5 * spacings > np.maximum(smallest, _SEEN)
    if not wide.any():
        return made
    _warn_of_columns(
        data,
        wide,
        "values are multiples of one number: uniform noise of that width is added to them wherever "
        "the perturbation is smaller than half of it",
    )
    return [
        eqx.tree_at(
            lambda t: t.spacing,
            table,
            jnp.asarray(row, table.unit.dtype),
            is_leaf=lambda leaf: leaf is None,
        )
        for table, row in zip(made, np.where(wide, spacings, 0.0), strict=True)
    ]


def _warn_of_columns(data, chosen, what):
    """Of columns that are chosen in any item (batch, D)."""
    columns = np.flatnonzero(chosen.any(axis=0))
    names = [data.columns[j] for j in columns] if isinstance(data, pd.DataFrame) else list(columns)
    # The first of them: images have many columns.
    shown = ", ".join(map(str, names[:5])) + (", …" if len(names) > 5 else "")
    _warn(f"data has {len(names)} columns ({shown}) with ties: {what}")


def _check_connected(values, spacing):
    """Warn of a support with gaps."""
    if spacing is not None:
        width = np.asarray(spacing, np.float64)
        values = values + width * np.random.default_rng(0).uniform(-0.5, 0.5, values.shape)
    parts = support.num_parts(values)
    if parts > 1:
        _warn(
            f"data has {parts} parts that are not connected: a continuous decoder draws bridges "
            "between them; fit a decoder to each, or give a decoder that jumps"
        )


def _warn(message):
    warnings.warn(message, ConditioningWarning, stacklevel=6)


def _given(model, shape, center, unit, dtype):
    """The decoder of a trained model, linear ones in the units of these data."""
    features = center.size
    if model.is_linear:
        shapes = ((features, model.latent_dim), (features,), ())
    else:
        sizes = deep.sizes(model, shape)
        shapes = ((sizes["decoder"],), (sizes["encoder"],), (), (), (features,), ())
    names = sites_of(model)
    if model.estimates is not None and _ENCODER not in model.estimates:
        # Of EM, which needs no encoder.
        shapes = tuple(shape for name, shape in zip(names, shapes, strict=True) if name != _ENCODER)
        names = tuple(name for name in names if name != _ENCODER)
    sites = model.estimates or {
        name: np.full(shape, np.nan) for name, shape in zip(names, shapes, strict=True)
    }
    parts: dict[str, Any] = {name: np.asarray(sites[name], np.float64) for name in names}
    for (name, part), shape in zip(parts.items(), shapes, strict=True):
        if part.shape != shape:
            raise ValueError(
                f"data has {features} columns; the trained model's {name} has the shape "
                f"{part.shape}, not {shape}"
            )
    if model.is_linear:
        found = decoder_of(parts, center, unit)
    else:
        found = networks_of(parts)
    return jax.tree.map(lambda part: jnp.asarray(part, dtype), found)


def decoder_of(sites, center, unit) -> LinearDecoder:
    """A linear decoder from its sites, which are in the user's units."""
    loadings, offset, noise = (sites[name] for name in LINEAR_SITES)
    return LinearDecoder(loadings / unit, (offset - center) / unit, noise / unit**2)


def networks_of(sites):
    """Networks from their sites, and the center and unit of the data that they were trained on."""
    parts: Any = [sites.get(name) for name in NETWORK_SITES]
    decoder, encoder, noise, level, center, unit = parts
    return deep.Networks(decoder, encoder, noise / unit**2, level / unit), center, unit


def _names_of(data, batch, shape):
    """As :func:`bayeskit.models.tables.names_of`; the features of images are pixels."""
    if len(shape) == 1:
        return tables.names_of(data, batch)
    lead = int(batch)
    return (
        dimension_name(data, lead, "observation"),
        "pixel",
        coordinates_along(data, lead),
        None,
    )


def _labels(model, data, shape, batch):
    row, feature, rows, features = _names_of(data, batch, shape)
    of_image = images.dimensions_of(data, batch, shape)
    reserved = {"batch", "chain", "draw", "iteration", "part", "latent", "hidden_unit"}
    names = (row, feature, *of_image)
    if len(set(names)) < len(names) or set(names) & reserved:
        raise ValueError(
            f"data has the dimensions {names}; they need names of their own, other than "
            f"{sorted(reserved)}"
        )
    dims = {"latents": (row, "latent"), "noise_variance": (), _OBSERVED: (row, feature)}
    if model.is_linear:
        dims |= {"loadings": (feature, "latent"), "offset": (feature,)}
    else:
        dims |= {"perturbation": (), "center": (feature,), "unit": ()}
        dims |= {f"{name}_weights": (f"{name}_weight",) for name in ("decoder", "encoder")}
        dims[last_layer.SITE] = (feature, "hidden_unit")
    if of_image:
        dims[images.SITE] = tuple(of_image)
    features = np.arange(math.prod(shape)) if features is None else features
    known = {row: rows, feature: features, "latent": np.arange(model.latent_dim), **of_image}
    if batch:
        known["batch"] = coordinates_along(data, 0)
    coords = {name: values for name, values in known.items() if values is not None}
    return Labels(dims, coords, _OBSERVED)


def _groups(data, values, shape, batch):
    row, feature, _, _ = _names_of(data, batch, shape)
    of_one = tuple(images.dimensions_of(data, batch, shape)) or (feature,)
    dims = ("batch",) * bool(batch) + (row, *of_one)
    values = values.reshape(*values.shape[:-1], *shape)
    return {"observed_data": {_OBSERVED: (dims, values)}, "constant_data": {}}
