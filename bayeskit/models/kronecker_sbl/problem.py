"""From what users give to what the computations use: checks, units, groups of axes."""

import functools
import math
import operator
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from bayeskit.errors import ConditioningWarning
from bayeskit.linalg.contract import kronecker_multiply, outer
from bayeskit.models import priors
from bayeskit.models.kronecker_sbl import structure, updates
from bayeskit.models.kronecker_sbl.labels import make_labels, prediction_labels
from bayeskit.precision import as_key, double_precision, is_distributed, to_host
from bayeskit.results import PredictionTarget
from bayeskit.validation import check_finite, is_numeric, values_of

_DENSE_GROUP_ENTRIES = 2 * 10**8


class Layout(NamedTuple):
    """Shapes of the problem: hashable, part of the compiled program.

    Attributes
    ----------
    groups : tuple of tuples of int
        Axes that share one scale factor.
    rows, columns : tuple of int
        M_i and N_i of every axis.
    snapshots : bool
        Whether the data have a leading axis of snapshots.
    """

    groups: tuple
    rows: tuple
    columns: tuple
    snapshots: bool

    @property
    def order(self):
        """The axes in the order of the groups."""
        return tuple(axis for group in self.groups for axis in group)

    def group(self, tensor, sizes):
        """(snapshots, one axis each of ``sizes``) to one axis a group."""
        tensor = jnp.transpose(tensor, (0, *(axis + 1 for axis in self.order)))
        grouped = (math.prod(sizes[axis] for axis in group) for group in self.groups)
        return tensor.reshape(tensor.shape[0], *grouped)

    def ungroup(self, tensor, sizes):
        """(…, one axis a group) back to one axis each of ``sizes`` in the user's order."""
        lead = tensor.ndim - len(self.groups)
        tensor = tensor.reshape(*tensor.shape[:lead], *(sizes[axis] for axis in self.order))
        inverse = np.argsort(self.order)
        return jnp.transpose(tensor, (*range(lead), *(int(axis) + lead for axis in inverse)))

    def as_given(self, tensor, sizes):
        """(snapshots, groups…) back to the user's axes, without snapshots where there are none."""
        tensor = self.ungroup(tensor, sizes)
        return tensor if self.snapshots else tensor[0]


class Factors(eqx.Module):
    """Dictionaries in the form that the computations use, one entry a group of axes.

    Attributes
    ----------
    reduced : tuple of arrays (m_g, N_g)
        Scaled so that unit scales explain a unit mean square, and rotated onto their range.
    original : tuple of arrays (M_g, N_g)
        Scaled only.
    rotations : tuple of arrays (M_g, m_g) or None
    units : array (groups,)
        What each dictionary was divided by.
    masks : tuple of arrays (N_g,)
        Zero at columns that are zero, one elsewhere.
    strengths : array (groups,)
        Pattern coupling.
    """

    reduced: tuple
    original: tuple
    rotations: tuple
    units: Any
    masks: tuple
    strengths: Any
    layout: Layout = eqx.field(static=True)


class NewFactors(eqx.Module):
    """Dictionaries to predict at, scaled, and the number of rows of every axis."""

    factors: tuple
    sizes: tuple = eqx.field(static=True)


class Observations(NamedTuple):
    """One data set: tensors divided by their root mean square, ``unit``.

    ``noise_variance`` is the known one over ``unit²``, NaN where it is learned.
    """

    measurements: structure.Measurements
    tensor: Any
    unit: Any
    noise_variance: Any


def check_dictionaries(dictionaries):
    """The dictionaries as a tuple, arrays as they were given."""
    dictionaries = _check_matrices("dictionaries", dictionaries)
    for i, dictionary in enumerate(dictionaries):
        if not np.any(np.asarray(dictionary)):
            raise ValueError(f"dictionaries[{i}] is zero everywhere: it carries no information")
    return dictionaries


def _check_matrices(name, dictionaries):
    if isinstance(dictionaries, (np.ndarray, jax.Array, xr.DataArray)) and dictionaries.ndim == 2:
        raise TypeError(f"{name} must be a sequence of matrices, got one matrix; write (matrix,)")
    try:
        dictionaries = tuple(dictionaries)
    except TypeError:
        raise TypeError(
            f"{name} must be a sequence of matrices, got {type(dictionaries).__name__}"
        ) from None
    if not dictionaries:
        raise ValueError(f"{name} is empty; at least one matrix is expected")
    return tuple(_check_matrix(f"{name}[{i}]", i, d) for i, d in enumerate(dictionaries))


def _check_matrix(name, axis, matrix):
    values = values_of(name, matrix)
    if not is_numeric(values):
        raise TypeError(f"{name} must be real or complex, got {values.dtype}")
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"{name} must be a non-empty matrix (M_{axis}, N_{axis}), got shape {values.shape}"
        )
    check_finite(name, values)
    return matrix if isinstance(matrix, xr.DataArray) else values


def check_noise_variance(value):
    """A positive finite number, or ``None``."""
    if value is None:
        return None
    if isinstance(value, bool) or np.ndim(value) or np.iscomplexobj(value) or not np.isreal(value):
        raise TypeError(
            f"noise_variance must be a positive number or None (learned), got {value!r}"
        )
    value = float(value)
    if not 0 < value < np.inf:
        raise ValueError(
            f"noise_variance must be positive and finite, got {value}; for noiseless data give "
            "the size of rounding errors, or None to learn it"
        )
    return value


def check_coupling(coupling, axes):
    """One finite strength ≥ 0 an axis, or ``None``."""
    if coupling is None:
        return None
    try:
        strengths = np.asarray(coupling, dtype=float)
    except (TypeError, ValueError):
        raise TypeError(
            f"coupling must have {axes} real numbers >= 0, one an axis, got {coupling!r}"
        ) from None
    if strengths.shape != (axes,) or not np.all(np.isfinite(strengths)) or np.any(strengths < 0):
        raise ValueError(
            f"coupling must have {axes} finite numbers >= 0, one an axis, got {coupling!r}"
        )
    return tuple(float(strength) for strength in strengths)


def check_groups(scales, dictionaries, coupling):
    """The groups of axes that ``scales`` means."""
    axes = len(dictionaries)
    if isinstance(scales, str):
        named = {
            "kronecker": tuple((i,) for i in range(axes)),
            "unstructured": (tuple(range(axes)),),
        }
        if scales not in named:
            raise ValueError(
                f"scales must be 'kronecker', 'unstructured' or groups of axes, got {scales!r}"
            )
        groups = named[scales]
    else:
        try:
            groups = tuple(tuple(operator.index(axis) for axis in group) for group in scales)
        except TypeError:
            raise TypeError(
                f"scales must be a name or groups of axes such as ((0, 1), (2,)), got {scales!r}"
            ) from None
        if sorted(axis for group in groups for axis in group) != list(range(axes)) or () in groups:
            raise ValueError(
                f"scales must group every axis 0 … {axes - 1} exactly once, got {scales!r}"
            )
    for group in groups:
        entries = math.prod(math.prod(dictionaries[axis].shape) for axis in group)
        if len(group) > 1 and entries > _DENSE_GROUP_ENTRIES:
            raise ValueError(
                f"scales groups the axes {group}, whose dense dictionary has {entries:.3g} "
                f"entries; at most {_DENSE_GROUP_ENTRIES:.0e} are possible: "
                "use scales='kronecker' or smaller groups"
            )
        if len(group) > 1 and coupling is not None and any(coupling[axis] for axis in group):
            raise ValueError(
                f"coupling acts on single axes; the grouped axes {group} need strength 0, "
                f"got {coupling}"
            )
    return groups


def working_type(dictionaries, tensor):
    """Floating-point types (real, of the data) that the problem is computed in."""
    joint = jnp.result_type(*(d.dtype for d in dictionaries), tensor.dtype)
    kinds = {
        "float32": "float32",
        "complex64": "complex64",
        "float16": "float32",
        "bfloat16": "float32",
    }
    complex_data = jnp.issubdtype(joint, jnp.complexfloating)
    name = kinds.get(joint.name, "complex128" if complex_data else "float64")
    return jnp.finfo(name).dtype, jnp.dtype(name)


def _root_mean_square(array):
    """Root mean square without overflow, and one for a zero array."""
    peak = jnp.max(jnp.abs(array))
    scaled = array / jnp.where(peak > 0, peak, 1.0)
    return jnp.where(peak > 0, peak * jnp.sqrt(jnp.mean(jnp.abs(scaled) ** 2)), 1.0)


def prepare_factors(dictionaries, groups, coupling, layout, dtype, real_dtype):
    """Group, scale and reduce the dictionaries; warn about columns that nothing can be said of."""
    original, masks, units, strengths = [], [], [], []
    for group in groups:
        scaled, unit = [], 1.0
        for axis in group:
            matrix = np.asarray(dictionaries[axis])
            matrix = matrix.astype(dtype if np.iscomplexobj(matrix) else real_dtype)
            _warn_about_columns(axis, matrix)
            peak = np.max(np.abs(matrix))
            size = float(
                np.sqrt(np.sum(np.abs(matrix / peak).astype(float) ** 2) / matrix.shape[0])
            )
            scaled.append(matrix / peak / size)
            unit *= float(peak) * size
        dense = functools.reduce(np.kron, scaled)
        original.append(jnp.asarray(dense))
        masks.append(jnp.asarray(np.any(dense != 0, axis=0), real_dtype))
        units.append(unit)
        strengths.append(coupling[group[0]] if coupling is not None else 0.0)
    rotations, reduced = structure.reduce_factors(original)
    return Factors(
        reduced,
        tuple(original),
        rotations,
        jnp.asarray(np.asarray(units), jnp.float64),
        tuple(masks),
        jnp.asarray(np.asarray(strengths), real_dtype),
        layout,
    )


def _warn_about_columns(axis, matrix):
    zero = np.flatnonzero(~np.any(matrix, axis=0))
    if zero.size:
        warnings.warn(
            f"dictionaries[{axis}] has {zero.size} zero columns (the first is {zero[0]}): "
            "the data say nothing about their coefficients, which are held at zero",
            ConditioningWarning,
            stacklevel=5,
        )
    if matrix.shape[0] == 1:  # columns of one number are always multiples of each other
        return
    nonzero = np.setdiff1d(np.arange(matrix.shape[1]), zero)
    columns = matrix[:, nonzero]
    pivot = columns[np.argmax(np.abs(columns), axis=0), np.arange(columns.shape[1])]
    _, first = np.unique(np.round(columns / pivot, 9), axis=1, return_index=True)
    if first.size < nonzero.size:
        again = nonzero[np.setdiff1d(np.arange(nonzero.size), first)]
        warnings.warn(
            f"dictionaries[{axis}] has {again.size} columns that are multiples of others "
            f"(one is {again[0]}): only the sum of what they carry is determined",
            ConditioningWarning,
            stacklevel=5,
        )


def check_tensor(data, dictionaries, batch):
    """The measurements as an array, and whether they have snapshots."""
    rows = tuple(d.shape[0] for d in dictionaries)
    tensor = values_of("data", data)
    lead = ("data sets",) if batch else ()
    wanted = f"({', '.join(('batch',) * batch + tuple(map(str, rows)))})"
    with_snapshots = f"({', '.join(('batch',) * batch + ('snapshots',) + tuple(map(str, rows)))})"
    if not is_numeric(tensor):
        raise TypeError(f"data must be real or complex numbers, got {tensor.dtype}")
    if tensor.size == 0:
        raise ValueError(
            f"data is empty, shape {tensor.shape}; {wanted} or {with_snapshots} is expected"
        )
    own = tensor.shape[len(lead) :]
    if own not in (rows, (*own[:1], *rows)) or len(tensor.shape) < len(lead):
        hint = ""
        if len(rows) > 1 and own == (math.prod(rows),):
            hint = (
                f"; a flattened row-major vector becomes one by data.reshape({wanted.strip('()')})"
            )
        elif sorted(own) == sorted(rows):
            hint = "; the axes are in another order: transpose the data or reorder the dictionaries"
        raise ValueError(
            f"data has shape {tensor.shape}; {wanted} or {with_snapshots} is expected{hint}"
        )
    if jnp.issubdtype(tensor.dtype, jnp.complexfloating) is False and any(
        np.iscomplexobj(d) for d in dictionaries
    ):
        raise ValueError(
            f"data is real ({tensor.dtype}) and a dictionary is complex: give complex "
            "measurements, or stack real and imaginary parts of the dictionary as rows"
        )
    return tensor, own != rows


def joined(dictionaries, data, new_data):
    """Snapshots of two tensors, which share the scales; one without snapshots is one of them."""
    named = [isinstance(each, xr.DataArray) for each in (data, new_data)]
    if any(named) != all(named):
        raise TypeError("new_data must be a DataArray where the data so far are one, and only then")
    tensors = []
    for each in (data, new_data):
        tensor, snapshots = check_tensor(each, dictionaries, False)
        tensors.append((each if all(named) else tensor, snapshots))
    if all(named):
        return _joined_by_name(tensors[0], tensors[1], len(dictionaries))
    return np.concatenate([np.asarray(t if lead else t[None]) for t, lead in tensors])


def _joined_by_name(first, second, axes):
    """Two named tensors, each with whether it has snapshots, behind one another."""
    lead = next((tensor.dims[0] for tensor, snapshots in (first, second) if snapshots), "snapshot")
    both = [tensor if has else tensor.expand_dims(lead) for tensor, has in (first, second)]
    if both[0].dims != both[1].dims:
        raise ValueError(
            f"new_data has the dimensions {second[0].dims}, expected those of the data so far, "
            f"{first[0].dims[-axes:]}, after snapshots {both[0].dims[0]!r} if there are any"
        )
    if (lead in both[0].coords) != (lead in both[1].coords):
        raise ValueError(
            f"the snapshots of the data so far or of new_data have no coordinate {lead!r}, the "
            f"others have one: give both, as in new_data.expand_dims({lead}=[...]), or drop it"
        )
    try:
        return xr.concat(both, dim=lead, join="exact")
    except ValueError as error:
        raise ValueError(f"new_data has other coordinates than the data so far: {error}") from None


def prepare_observations(tensor, factors, noise_variance, dtype):
    """One data set in the form that the computations use; pure, mapped over a batch."""
    tensor = jnp.asarray(tensor, dtype)
    if not factors.layout.snapshots:
        tensor = tensor[None]
    unit = _root_mean_square(tensor)
    scaled = factors.layout.group(tensor / unit, factors.layout.rows)
    measurements = structure.compress(factors.rotations, scaled)
    known = (
        jnp.asarray(jnp.nan if noise_variance is None else noise_variance, unit.dtype) / unit / unit
    )
    return Observations(measurements, scaled, unit, known)


def _out_of_range(units, factors, noise_variance, real_dtype):
    """For every data set what would leave the range of the working precision, or ``None``."""
    info = jnp.finfo(real_dtype)
    smallest, largest = float(info.tiny) / float(info.eps), float(info.max) * float(info.eps)
    units = np.atleast_1d(np.asarray(units, float))
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        dictionary = float(np.prod(np.asarray(factors.units, float)))
        quantities = {
            "the noise variance (data²)": units**2,
            "the variance of the coefficients ((data / dictionaries)²)": (units / dictionary) ** 2,
        }
        if noise_variance is not None:
            quantities["noise_variance / data²"] = noise_variance / units / units
    found: list[str | None] = [None] * len(units)
    for name, value in quantities.items():
        # A unit that is not finite belongs to data that are not, which is told elsewhere.
        extreme = (value < smallest) | (value > largest) | ~np.isfinite(value)
        for i in np.flatnonzero(extreme & np.isfinite(units)):
            found[i] = (
                f"{name} is of the order {value[i]:.1e}, outside the range of "
                f"{np.dtype(real_dtype).name}; rescale the data or the dictionaries"
            )
    return found


def _refuse_out_of_range(observations, factors, noise_variance, real_dtype, batch):
    """Raise where results would leave the range of numbers; of a batch, leave such items out."""
    found = _out_of_range(observations.unit, factors, noise_variance, real_dtype)
    bad = [i for i, problem in enumerate(found) if problem is not None]
    if not bad:
        return observations
    if len(bad) == len(found):
        raise ValueError(found[0])
    warnings.warn(
        f"{len(bad)} of {len(found)} data sets ({', '.join(map(str, bad[:10]))}) cannot be "
        f"fitted: {found[bad[0]]}",
        ConditioningWarning,
        stacklevel=4,
    )
    return jax.tree.map(lambda leaf: leaf.at[np.asarray(bad)].set(jnp.nan), observations)


def prepare(model, data, batch):
    """Everything that :class:`~bayeskit.models.base.Prepared` needs for this family."""
    dictionaries = model.dictionaries
    tensor, snapshots = check_tensor(data, dictionaries, batch)
    if not batch:
        check_finite("data", tensor)
    real_dtype, dtype = working_type(dictionaries, tensor)
    shapes = [d.shape for d in dictionaries]
    groups = check_groups(model.scales, dictionaries, model.coupling)
    layout = Layout(groups, tuple(s[0] for s in shapes), tuple(s[1] for s in shapes), snapshots)
    labels = make_labels(data, dictionaries, layout, batch)
    factors = prepare_factors(dictionaries, groups, model.coupling, layout, dtype, real_dtype)
    make = _prepare_batch if batch else _prepare_observations
    device_tensor = tensor if is_distributed(tensor) else jnp.asarray(tensor)
    observations = make(device_tensor, factors, model.noise_variance, dtype)
    observations = _refuse_out_of_range(
        observations, factors, model.noise_variance, real_dtype, batch
    )
    lead = ("batch",) if batch else ()
    tables = {
        "observed_data": {"y": ((*lead, *labels.dims["y"]), tensor)},
        "constant_data": {
            f"dictionary_{i}": (
                (labels.dims["y"][i + snapshots], labels.dims["coefficients"][i + snapshots]),
                np.asarray(d),
            )
            for i, d in enumerate(dictionaries)
        },
    }
    if model.noise_variance is not None:
        tables["constant_data"]["noise_variance"] = ((), model.noise_variance)
    return factors, observations, labels, tables


@eqx.filter_jit
def _prepare_observations(tensor, factors, noise_variance, dtype):
    return prepare_observations(tensor, factors, noise_variance, dtype)


@eqx.filter_jit
def _prepare_batch(tensor, factors, noise_variance, dtype):
    return jax.vmap(lambda item: prepare_observations(item, factors, noise_variance, dtype))(tensor)


def prediction_target(inputs, factors, labels):
    """New dictionaries in the scaled problem's units and precision, names and coordinates."""
    layout = factors.layout
    inputs = _check_matrices("inputs", inputs)
    shapes = tuple(d.shape for d in inputs)
    if tuple(shape[1] for shape in shapes) != layout.columns:
        raise ValueError(
            f"inputs must have {layout.columns} columns, one matrix an axis, got shapes {shapes}"
        )
    dims, coords = prediction_labels(inputs, layout, labels)
    real_dtype = factors.masks[0].dtype
    new_factors = []
    for group, unit in zip(layout.groups, np.asarray(factors.units), strict=True):
        dense = functools.reduce(np.kron, [np.asarray(inputs[axis]) for axis in group]) / unit
        kind = np.result_type(real_dtype, np.complex64) if np.iscomplexobj(dense) else real_dtype
        new_factors.append(jnp.asarray(dense, kind))
    sizes = tuple(shape[0] for shape in shapes)
    return PredictionTarget(dims, coords, NewFactors(tuple(new_factors), sizes))


def sample_prior(model, key):
    """Parameters by site, and measurements, from the priors in the user's own units."""
    scale_prior = priors.simulable("scale_prior", model.scale_prior)
    noise_prior = (
        None
        if model.noise_variance is not None
        else priors.simulable("noise_prior", model.noise_prior)
    )
    shapes = [d.shape for d in model.dictionaries]
    groups = check_groups(model.scales, model.dictionaries, model.coupling)
    layout = Layout(groups, tuple(s[0] for s in shapes), tuple(s[1] for s in shapes), False)
    with double_precision():
        real_dtype, dtype = working_type(model.dictionaries, model.dictionaries[0])
        drawn = _draw_from_priors(
            as_key(key, "draws are random"),
            tuple(jnp.asarray(np.asarray(d)) for d in model.dictionaries),
            scale_prior,
            noise_prior,
            jnp.asarray(0.0 if model.noise_variance is None else model.noise_variance),
            jnp.asarray(model.coupling or (0.0,) * len(shapes)),
            layout,
            dtype,
        )
        cast = {True: dtype, False: real_dtype}
        return to_host(jax.tree.map(lambda leaf: leaf.astype(cast[jnp.iscomplexobj(leaf)]), drawn))


@eqx.filter_jit
def _draw_from_priors(
    key, dictionaries, scale_prior, noise_prior, noise_variance, strengths, layout, dtype
):
    keys = jax.random.split(key, len(layout.groups) + 3)
    weights = [
        scale_prior.sample(k, (math.prod(layout.columns[axis] for axis in group),))
        for k, group in zip(keys[3:], layout.groups, strict=True)
    ]
    used = [
        jnp.any(dictionary != 0, axis=0).astype(weights[0].dtype) for dictionary in dictionaries
    ]
    masks = [functools.reduce(jnp.kron, [used[axis] for axis in group]) for group in layout.groups]
    scales = updates.effective(weights, [strengths[group[0]] for group in layout.groups], masks)
    noise = noise_variance if noise_prior is None else noise_prior.sample(keys[0])
    roots = outer([jnp.sqrt(scale) for scale in scales])
    coefficients = roots * jax.random.normal(keys[1], roots.shape, dtype)
    coefficients = layout.ungroup(coefficients, layout.columns)
    clean = kronecker_multiply(dictionaries, coefficients)
    data = clean + jnp.sqrt(noise) * jax.random.normal(keys[2], clean.shape, dtype)
    parameters = {"coefficients": coefficients, **normalised_scales(scales, layout)}
    if noise_prior is not None:
        parameters["noise_variance"] = noise
    return parameters, data


def normalised_scales(scales, layout):
    """Scale factors by site as they are reported: all but the last have mean one."""
    sites, carried = {}, 1.0
    for g, (scale, group) in enumerate(zip(scales, layout.groups, strict=True)):
        level = jnp.mean(scale)
        level = jnp.where(level > 0, level, 1.0)
        last = g == len(scales) - 1
        sites[f"scales_{g}"] = (scale * carried if last else scale / level).reshape(
            tuple(layout.columns[axis] for axis in group)
        )
        carried = carried * level
    return sites
