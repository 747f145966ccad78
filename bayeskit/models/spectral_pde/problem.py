"""What both solvers are given: collocation points, traced residuals, conditions."""

import math
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.errors import ConditioningWarning, PrecisionWarning
from bayeskit.models.spectral_pde import frame, starts
from bayeskit.models.spectral_pde.basis import between, scales_of
from bayeskit.models.spectral_pde.spectrum import band
from bayeskit.pde import residual as residuals
from bayeskit.validation import REAL, double_array

WIDEST = 0.65  # band that is tried, as share of the highest frequency that the points resolve
_NEAR_NYQUIST = 0.8  # of Nyquist's frequency
_SLACK = 1e-9  # of the box
_FAR = 1e-12  # of the box, rounding of coordinates
_GLANCES = 2**14  # points at which spikes of the source are looked for
_SPIKE = 3.0  # times the largest value that the solver sees
_LARGEST = 1e130  # of source and values, and one over the smallest: variances are squares


class Axis(NamedTuple):
    """One dimension, in the scaled box [0, 1].

    Attributes
    ----------
    nodes, weights : arrays (N,)
        Collocation points and quadrature weights with sum one.
    check : array (N + 1,)
        Points between them.
    lower, length : scalars
        Of the box in the user's units.
    places : array (conditions, terms)
    terms : array (conditions, terms, 2)
        Weights of value and slope, in the user's units.
    noise : array (conditions,)
        Deviations of the conditions' errors, zero for exact ones.
    between : array (K, N)
        From values at the nodes to coefficients of waves.
    """

    nodes: Any
    weights: Any
    check: Any
    lower: Any
    length: Any
    places: Any
    terms: Any
    noise: Any
    between: Any


class Uniform(NamedTuple):
    """The problem on a uniform grid that has the ends of every dimension.

    Attributes
    ----------
    residual : Residual
    values : tuple of arrays (conditions, N_others…)
        Of the conditions of each dimension.
    """

    residual: residuals.Residual
    values: tuple[Any, ...]


class Measured(eqx.Module):
    """Measurements of the field at scaled points.

    Attributes
    ----------
    orders : tuple
        One derivative each: orders by dimension.
    coefficients : array (derivatives, n)
    points : tuple of arrays (n,)
    values : array (n,)
        What an operator gives of no field taken off.
    offset : array (n,)
        What has been taken off.
    noise : array (n,) or None
        Known deviations of the errors; ``None`` where they are learned.
    """

    orders: tuple = eqx.field(static=True)
    coefficients: Any
    points: tuple[Any, ...]
    values: Any
    offset: Any
    noise: Any


class Stated(eqx.Module):
    """What decides on the program.

    Attributes
    ----------
    uncertain : bool
        Whether anything is measured, unknown or noisy by statement.
    given : bool
        Whether the equation is given rather than data: it has no source that is known, where
        anything is uncertain.
    """

    uncertain: bool = eqx.field(static=True)
    given: bool = eqx.field(static=True)


class Problem(NamedTuple):
    """Everything that differs from problem to problem of a shape.

    Attributes
    ----------
    axes : tuple of Axis
    at_nodes, at_check : Residual
        On the products of all axes' points, row-major.
    values, values_between : tuples of arrays (conditions, N_others…)
        Of the conditions of each dimension, at the nodes of the others and between these.
    near_nyquist : scalar
        Share of the source's energy at frequencies that the points hardly resolve.
    uniform : Uniform or None
        None where the equation or a condition has no value at the ends.
    measured : Measured or None
    unknowns : dict
        Priors of unknown coefficients by name.
    equation_noise : scalar or None
        Known deviation of the equation's errors.
    units : ~bayeskit.models.spectral_pde.starts.Units
    peaks : tuple of ~bayeskit.models.spectral_pde.starts.Peaks
    highest : scalar
        Highest clear frequency of the source, as a share of what the points resolve.
    stated : Stated
    spans : dict
        Centre and scale of the priors of unknown coefficients, in unconstrained coordinates.
    level : scalar
        The constant field that Newton's iteration starts from: zero, or what the conditions are on
        average where the equation is undefined for zero.
    """

    axes: tuple[Axis, ...]
    at_nodes: residuals.Residual
    at_check: residuals.Residual
    values: tuple[Any, ...]
    values_between: tuple[Any, ...]
    near_nyquist: Any
    uniform: Uniform | None
    measured: Any
    unknowns: Any
    equation_noise: Any
    units: Any
    peaks: Any
    highest: Any
    stated: Stated
    spans: dict[str, Any]
    level: Any


def build(pde, points, kernel, sensors=None, equation_noise=None) -> Problem:
    """The problem of a statement with so many points a dimension; traces and checks it.

    ``sensors``: of a list of data sets, all leaves are stacked on axis 0.

    Raises
    ------
    TypeError, ValueError
        If the residual or a condition does not give finite real numbers, conditions repeat, or
        sensors are outside the domain.
    """
    axes = [
        _axis(pde, dim, ends, count, kernel)
        for dim, ends, count in zip(pde.dims, pde.bounds, points, strict=True)
    ]
    grid = [axis.nodes for axis in axes]
    check = [axis.check for axis in axes]
    uniform = [(np.arange(count) + 0.5) / count for count in points]
    symbols = residuals.symbols_of(pde.residual, _coordinates(pde.dims, axes, grid))

    def traced(where):
        return residuals.trace(pde.residual, _coordinates(pde.dims, axes, where), symbols)

    evenly, at_nodes, at_check = traced(uniform), traced(grid), traced(check)
    source, by_value = (np.asarray(part) for part in source_of(evenly, math.prod(points)))
    source = source.reshape(points)
    finite = bool(np.all(np.isfinite(source)))
    _warn_of_spikes(pde, axes, symbols, (evenly, at_nodes, at_check))
    values = tuple(_values(pde, axes, k, grid) for k in range(len(axes)))
    items = sensors if isinstance(sensors, list) else [sensors]
    measured = [None if each is None else _measured(pde, axes, each) for each in items]
    known = np.concatenate([np.zeros(0), *_as_values(axes, values)])
    _check_magnitude("residual: its source", source if finite else [])
    _check_magnitude("conditions: the largest value", known)
    for each in measured:
        _check_magnitude("data: the largest value", [] if each is None else each.values)
    uncertain = (
        measured[0] is not None
        or equation_noise is not None
        or bool(symbols.unknowns)
        or any(each.noise is not None for each in pde.conditions)
    )
    highest = [WIDEST * 0.5 * (count - 1) for count in points]
    spectrum = (source if finite else None, by_value, symbols.orders, axes)

    def taken_up(each):
        seen = np.zeros(0) if each is None else each.values / _sizes_seen(axes, each)
        given = np.concatenate([known, seen])
        return starts.taken_up(kernel, *spectrum, given, highest)

    problem = Problem(
        tuple(axes),
        at_nodes,
        at_check,
        values,
        tuple(_values(pde, axes, k, check) for k in range(len(axes))),
        _share_near_nyquist(source) if finite else 0.0,
        _uniform(pde, axes, traced),
        measured[0],
        {name: unknown.prior for name, unknown in symbols.unknowns.items()},
        equation_noise,
        *taken_up(measured[0]),
        Stated(
            uncertain,
            uncertain and not _has_source(at_nodes, symbols.unknowns, math.prod(points)),
        ),
        {name: (each.centre, each.scale) for name, each in symbols.unknowns.items()},
        0.0 if finite and bool(np.all(np.isfinite(by_value))) else _mean_level(axes, values),
    )

    def array(leaf):
        # Masks and integers of a user's program stay what they are, and so do single floats.
        return jnp.asarray(leaf, float) if isinstance(leaf, float) else jnp.asarray(leaf)

    if not isinstance(sensors, list):
        return jax.tree.map(array, problem)
    found = []
    for each in measured:
        units, peaks, _ = taken_up(each)
        found.append(problem._replace(measured=each, units=units, peaks=peaks))
    return jax.tree.map(lambda *leaves: jnp.stack([array(leaf) for leaf in leaves]), *found)


def _has_source(equation, unknowns, count):
    """Whether the field that is zero leaves something, and the same whatever the unknowns are."""
    source, _ = source_of(equation, count)
    other = {name: each.prior.sample(jax.random.key(0)) for name, each in unknowns.items()}
    moved, _ = source_of(equation.given(other), count)
    return bool(np.any(source)) and np.array_equal(source, moved)


def _mean_level(axes, values):
    """Mean of the values that the field itself is given by conditions; one without these."""
    given = [np.zeros(0)]
    for axis, own in zip(axes, values, strict=True):
        sizes = np.sum(axis.terms[:, :, 0], axis=1)
        plain = np.flatnonzero((sizes != 0) & np.all(axis.terms[:, :, 1] == 0, axis=1))
        given += [own[c].ravel() / sizes[c] for c in plain]
    found = np.concatenate(given)
    return float(np.mean(found)) if found.size else 1.0


def _check_magnitude(name, values):
    """Whether squares of the largest of some numbers are numbers, and of their errors too."""
    largest = _largest(values)
    if largest and not 1.0 / _LARGEST < largest < _LARGEST:
        raise ValueError(
            f"{name} is {largest:.1e} in size; variances are squares, which double precision has "
            f"between {1.0 / _LARGEST:.0e} and {_LARGEST:.0e}: take other units"
        )


def _as_values(axes, values):
    """Values of conditions, of each dimension, in units of the field: slopes times the length."""
    found = []
    for axis, given in zip(axes, values, strict=True):
        lengths = axis.length ** -np.arange(2.0)
        sizes = np.sqrt(np.sum((axis.terms * lengths) ** 2, axis=(1, 2)))
        found += [(each / size).ravel() for each, size in zip(given, sizes, strict=True)]
    return found


def _sizes_seen(axes, measured):
    """What sensors would see (n,) of a field of size one that varies over the whole box."""
    scales = [
        math.prod(axis.length**-k for axis, k in zip(axes, orders, strict=True))
        for orders in measured.orders
    ]
    sizes = np.asarray(scales) @ np.abs(measured.coefficients)
    return np.where(sizes > 0, sizes, 1.0)


def _uniform(pde, axes, traced):
    grid = [np.linspace(0.0, 1.0, axis.nodes.shape[0]) for axis in axes]
    try:
        with np.errstate(all="ignore"):
            values = tuple(_values(pde, axes, k, grid) for k in range(len(axes)))
            return Uniform(traced(grid), values)
    except ValueError:
        return None


def source_of(residual, count):
    """The residual (points,) of the field that is zero, and its derivatives there."""
    return residual.linearised(jnp.zeros((len(residual.orders), count)))


def _warn_of_spikes(pde, axes, symbols, read):
    """Whether the source is much larger elsewhere than at all points where the solver reads it.

    Looked for at points of a sequence that fills the box evenly, by multiples of powers of the
    root of ``x^(d + 1) = x + 1``.
    """
    counts = (math.prod(axis.nodes.shape[0] + more for axis in axes) for more in (0, 0, 1))
    seen = max(_largest(source_of(*each)[0]) for each in zip(read, counts, strict=True))
    root = np.max(np.roots([1.0, *[0.0] * (len(axes) - 1), -1.0, -1.0]).real)
    steps = np.arange(_GLANCES)
    places = {
        dim: axis.lower + axis.length * ((0.5 + steps * root ** -(k + 1.0)) % 1.0)
        for k, (dim, axis) in enumerate(zip(pde.dims, axes, strict=True))
    }
    with np.errstate(all="ignore"):
        found = residuals.source_at(pde.residual, places, symbols)
    if _largest(found) > _SPIKE * seen:
        first = int(np.flatnonzero(np.abs(found) == _largest(found))[0])
        where = ", ".join(f"{dim} = {each[first]:.6g}" for dim, each in places.items())
        warnings.warn(
            f"residual: its source is {found[first]:.3g} at {where}, and at most {seen:.3g} in "
            "size at all points that the grid has: take more points",
            ConditioningWarning,
            stacklevel=2,
        )


def _largest(values):
    """The largest finite size."""
    values = np.asarray(values)
    return float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))


def _measured(pde, axes, sensors):
    """Sensors in the scaled box, their dimensions in the order of the problem's."""
    if set(sensors.points) != set(pde.dims):
        raise ValueError(
            f"data: sensors have points of {list(sensors.points)}; the dimensions are "
            f"{list(pde.dims)}"
        )
    places = []
    for dim, axis in zip(pde.dims, axes, strict=True):
        name = f"data: points[{dim!r}]"
        places.append(scaled_points(name, sensors.points[dim], axis.lower, axis.length))
    index = [list(sensors.points).index(dim) for dim in pde.dims]
    orders = tuple(tuple(each[i] for i in index) for each in sensors.orders)
    noise = sensors.noise
    if noise is not None:
        noise = np.broadcast_to(noise, sensors.offset.shape)
    values = sensors.values - sensors.offset
    return Measured(orders, sensors.coefficients, tuple(places), values, sensors.offset, noise)


def scaled_points(name, points, lower, length):
    """Points in the scaled box; those outside are refused."""
    scaled = (points - lower) / length
    outside = np.flatnonzero((scaled < -_SLACK) | (scaled > 1 + _SLACK))
    if outside.size:
        raise ValueError(
            f"{name} has {outside.size} points outside the domain [{lower:.6g}, "
            f"{lower + length:.6g}], the first {points[outside[0]]:.6g}"
        )
    return scaled


def _axis(pde, dim, ends, count, kernel):
    nodes, weights = frame.nodes(count)
    lower, length = ends[0], ends[1] - ends[0]
    rounding = np.finfo(float).eps * max(abs(lower), abs(ends[1])) / length
    if rounding > _FAR:
        warnings.warn(
            f"{dim} in [{lower:.6g}, {ends[1]:.6g}]: so far from zero, coordinates are rounded to "
            f"{rounding:.1e} of the domain; state the problem with an origin inside",
            PrecisionWarning,
            stacklevel=2,
        )
    own = [each for each in pde.conditions if each.dim == dim]
    rows = [terms for terms, _ in _functionals(pde, dim)]
    noise = [each.noise or 0.0 for each in own for _ in each.functionals]
    _check_independent(pde, dim, rows)
    width = max(map(len, rows), default=1)
    places, terms = np.zeros((len(rows), width)), np.zeros((len(rows), width, 2))
    for c, row in enumerate(rows):
        for t, term in enumerate(row):
            places[c, t] = (pde.place(dim, term.place) - lower) / length
            terms[c, t, term.order] = term.weight
    check = frame.check_points(nodes)
    axis = Axis(nodes, weights, check, lower, length, places, terms, np.array(noise), None)
    return axis._replace(between=_between(axis, kernel))


def _between(axis, kernel):
    """Coefficients (K, N) of the smoothest field through values at the nodes, in double precision.

    Under the widest band; waves resolve more between Gauss–Legendre points than polynomials.
    """
    as_arrays = Axis(*(None if part is None else jnp.asarray(part, float) for part in axis))
    highest = WIDEST * 0.5 * (axis.nodes.shape[0] - 1)
    return between(as_arrays, scales_of(kernel, band(kernel, jnp.asarray(highest)), as_arrays))


def _check_independent(pde, dim, rows):
    """Bases that satisfy the conditions of a dimension need each of them once."""
    seen = {(pde.place(dim, term.place), term.order) for row in rows for term in row}
    columns = {each: k for k, each in enumerate(sorted(seen))}
    matrix = np.zeros((len(rows), len(columns)))
    for r, row in enumerate(rows):
        for term in row:
            matrix[r, columns[pde.place(dim, term.place), term.order]] += term.weight
    if rows and np.linalg.matrix_rank(matrix) < len(rows):
        raise ValueError(f"conditions: those along {dim!r} say the same twice; state each once")


def _functionals(pde, dim):
    """Terms and value of every condition of one dimension."""
    return [pair for each in pde.conditions if each.dim == dim for pair in each.functionals]


def _coordinates(dims, axes, points):
    """User's coordinates (product of all,) by dimension, row-major."""
    scaled = [axis.lower + axis.length * each for axis, each in zip(axes, points, strict=True)]
    mesh = np.meshgrid(*scaled, indexing="ij")
    return {dim: each.reshape(-1) for dim, each in zip(dims, mesh, strict=True)}


def _values(pde, axes, k, grid):
    """Values (conditions, N_others…) of the conditions of dimension ``k`` on a grid's faces."""
    dim = pde.dims[k]
    others = [each for j, each in enumerate(grid) if j != k]
    shape = tuple(len(each) for each in others)
    found = []
    for terms, value in _functionals(pde, dim):
        name = f"value of the condition at {dim} = {pde.place(dim, terms[0].place):.6g}"
        if callable(value):
            place = (pde.place(dim, terms[0].place) - axes[k].lower) / axes[k].length
            points = [np.array([place]) if j == k else each for j, each in enumerate(grid)]
            given = value(*_coordinates(pde.dims, axes, points).values())
        else:
            given = value
        array = double_array(name, given, REAL)
        kind = np.asarray(given).dtype
        if kind in (np.float32, np.float16):
            warnings.warn(
                f"{name} is {kind}: the solution cannot be more accurate; make it float64",
                PrecisionWarning,
                stacklevel=2,
            )
        if array.size not in (1, math.prod(shape)):
            raise ValueError(
                f"{name} must be one number at every point, got shape {array.shape} at "
                f"{math.prod(shape)} points"
            )
        flat = array.reshape(-1)
        found.append(np.broadcast_to(flat, (math.prod(shape),)).reshape(shape))
    return np.stack(found) if found else np.zeros((0, *shape))


def _share_near_nyquist(source):
    """Largest share over the dimensions of a source's energy in their highest frequencies."""
    shares = []
    for axis in range(source.ndim):
        windowed = np.moveaxis(source, axis, -1) * np.hanning(source.shape[axis])
        energy = np.sum(np.abs(np.fft.rfft(windowed)) ** 2, axis=tuple(range(source.ndim - 1)))
        total = energy.sum()
        high = energy[int(_NEAR_NYQUIST * len(energy)) :].sum()
        shares.append(high / total if total > 0 else 0.0)
    return max(shares)
