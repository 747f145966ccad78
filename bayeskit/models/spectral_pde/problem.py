"""What both solvers are given: collocation points, traced residuals, conditions."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.models.spectral_pde import frame
from bayeskit.models.spectral_pde.basis import between, scales_of
from bayeskit.models.spectral_pde.spectrum import band
from bayeskit.pde import residual as residuals
from bayeskit.validation import REAL, double_array

WIDEST = 0.65  # band that is tried, as share of the highest frequency that the points resolve
_NEAR_NYQUIST = 0.8  # of Nyquist's frequency


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
    """

    axes: tuple[Axis, ...]
    at_nodes: residuals.Residual
    at_check: residuals.Residual
    values: tuple[Any, ...]
    values_between: tuple[Any, ...]
    near_nyquist: Any
    uniform: Uniform | None


def build(pde, points, kernel) -> Problem:
    """The problem of a statement with so many points a dimension; traces and checks it.

    Raises
    ------
    TypeError, ValueError
        If the residual or a condition does not give finite real numbers, or conditions repeat.
    """
    axes = [
        _axis(pde, dim, ends, count, kernel)
        for dim, ends, count in zip(pde.dims, pde.bounds, points, strict=True)
    ]
    grid = [axis.nodes for axis in axes]
    check = [axis.check for axis in axes]
    uniform = [(np.arange(count) + 0.5) / count for count in points]
    orders = residuals.derivatives_of(pde, _coordinates(pde.dims, axes, grid))

    def traced(where):
        return residuals.trace(pde, _coordinates(pde.dims, axes, where), orders)

    source = np.asarray(source_of(traced(uniform), math.prod(points))).reshape(points)
    problem = Problem(
        tuple(axes),
        traced(grid),
        traced(check),
        tuple(_values(pde, axes, k, grid) for k in range(len(axes))),
        tuple(_values(pde, axes, k, check) for k in range(len(axes))),
        _share_near_nyquist(source) if np.all(np.isfinite(source)) else 0.0,
        _uniform(pde, axes, traced),
    )

    def array(leaf):
        # Masks and integers of a user's program stay what they are, and so do single floats.
        return jnp.asarray(leaf, float) if isinstance(leaf, float) else jnp.asarray(leaf)

    return jax.tree.map(array, problem)


def _uniform(pde, axes, traced):
    grid = [np.linspace(0.0, 1.0, axis.nodes.shape[0]) for axis in axes]
    try:
        with np.errstate(all="ignore"):
            values = tuple(_values(pde, axes, k, grid) for k in range(len(axes)))
            return Uniform(traced(grid), values)
    except ValueError:
        return None


def source_of(residual, count):
    """The residual (points,) of the field that is zero."""
    return residual.linearised(jnp.zeros((len(residual.orders), count)))[0]


def _axis(pde, dim, ends, count, kernel):
    nodes, weights = frame.nodes(count)
    lower, length = ends[0], ends[1] - ends[0]
    rows = [terms for terms, _ in _functionals(pde, dim)]
    _check_independent(pde, dim, rows)
    width = max(map(len, rows), default=1)
    places, terms = np.zeros((len(rows), width)), np.zeros((len(rows), width, 2))
    for c, row in enumerate(rows):
        for t, term in enumerate(row):
            places[c, t] = (pde.place(dim, term.place) - lower) / length
            terms[c, t, term.order] = term.weight
    axis = Axis(nodes, weights, frame.check_points(nodes), lower, length, places, terms, None)
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
