"""A user's residual as arrays and a compiled program: derivatives used, linearisation, values."""

import abc
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float

from bayeskit.errors import PrecisionWarning
from bayeskit.pde.field import Field
from bayeskit.pde.unknown import reading

_PROBES = (0.0, 1.0, 0.37, -0.61)  # values of the field and its derivatives that are tried
_SIZES = (1e-2, 1.0, 1e2, 1e4, 1e6)  # of random ones
_SAME = 1e-10
# Primitives whose inner program has the same arguments and results.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "checkpoint", "remat")


class Code:
    """A program of JAX: equal to every other of the same text, inner constants and functions."""

    def __init__(self, jaxpr):
        self.jaxpr = jaxpr
        self._key = (str(jaxpr), *_hidden(jaxpr))

    def __eq__(self, other):
        return isinstance(other, Code) and self._key == other._key

    def __hash__(self):
        return hash(self._key)

    def __repr__(self):
        return self._key[0]


def _hidden(part):
    """What the text of a program does not show: arrays by content, functions by identity."""
    if isinstance(part, core.ClosedJaxpr):
        return [*_hidden(part.jaxpr), *_hidden(list(part.consts))]
    if isinstance(part, core.Jaxpr):
        literals = [v.val for each in part.eqns for v in each.invars if isinstance(v, core.Literal)]
        parameters = [value for each in part.eqns for value in each.params.values()]
        return _hidden([*literals, *parameters])
    if isinstance(part, (list, tuple)):
        return [found for each in part for found in _hidden(each)]
    if hasattr(part, "dtype") and hasattr(part, "shape"):
        array = np.asarray(part)
        return [(str(array.dtype), array.shape, array.tobytes())]
    return [id(part)] if callable(part) else []


class Residual(eqx.Module):
    """A residual at fixed points, as a function of the derivatives that it uses.

    Attributes
    ----------
    orders : tuple of tuples of int
        One a derivative: orders by dimension.
    linear : bool
        In the field, for every value of the unknowns.
    """

    orders: eqx.AbstractVar[tuple]
    linear: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def given(self, unknowns) -> "Residual":
        """With other values of the unknown coefficients, a dict by name."""

    @abc.abstractmethod
    def linearised(self, values):
        """Residual (points,) and its derivatives (derivatives, points) by the field's own.

        ``values`` (derivatives, points) are those of the field, in the order of ``orders``.
        """


class Affine(Residual):
    """``Σ c_α ∂^α u + source``: the numbers are all there is.

    Attributes
    ----------
    orders : tuple of tuples of int
        One a derivative: orders by dimension.
    constant : bool
        Whether no coefficient varies over the points.
    coefficients : array (derivatives, points)
    source : array (points,)
    """

    orders: tuple = eqx.field(static=True)
    constant: bool = eqx.field(static=True)
    coefficients: Float[Array, "derivatives points"]
    source: Float[Array, " points"]
    linear: bool = eqx.field(static=True, default=True)

    def given(self, unknowns):
        """There are none."""
        return self

    def linearised(self, values):
        """See :class:`Residual`."""
        return jnp.sum(self.coefficients * values, axis=0) + self.source, self.coefficients


class Traced(Residual):
    """A traced program, with the arrays that it was written with.

    Attributes
    ----------
    orders : tuple of tuples of int
    linear : bool
        In the field, for every value of the unknowns.
    code : Code
        Takes the unknowns in alphabetical order, then the derivatives.
    constants : tuple of arrays
    unknowns : dict of scalars by name
    """

    orders: tuple = eqx.field(static=True)
    linear: bool = eqx.field(static=True)
    code: Code = eqx.field(static=True)
    constants: tuple[Any, ...]
    unknowns: dict[str, Any]

    def given(self, unknowns):
        """See :class:`Residual`."""
        own = {name: unknowns.get(name, value) for name, value in self.unknowns.items()}
        return eqx.tree_at(lambda r: r.unknowns, self, own)

    def linearised(self, values):
        """See :class:`Residual`."""
        return self.value(values), _coefficients(self.value, values)

    def value(self, values):
        """The residual alone."""
        closed = core.ClosedJaxpr(self.code.jaxpr, self.constants)
        given = [self.unknowns[name] for name in sorted(self.unknowns)]
        (found,) = core.jaxpr_as_fun(closed)(*given, *values)
        return found


def _coefficients(residual, values):
    """Derivatives (derivatives, points) of a residual that treats every point on its own."""
    directions = jnp.eye(values.shape[0], dtype=values.dtype)[:, :, None]

    def along(direction):
        tangent = jnp.broadcast_to(direction, values.shape)
        return jax.jvp(residual, (values,), (tangent,))[1]

    return jax.vmap(along)(directions)


class Symbols(NamedTuple):
    """What a residual asks for: orders of derivatives, in that order, and unknowns by name."""

    orders: tuple
    unknowns: dict[str, Any]


def symbols_of(function, coordinates, name="residual") -> Symbols:
    """Derivatives and unknowns that a residual uses.

    Parameters
    ----------
    function : callable
        ``residual(u, x, …)``, or an operator of the same form.
    coordinates : mapping
        Arrays (points,) by dimension.
    name : str
        What errors call it.

    Raises
    ------
    TypeError, ValueError
        If the residual does, or does not give one real number a point.
    """
    found, unknowns = {}, {}

    def read(orders):
        found[orders] = True
        return jnp.zeros(count)

    def read_unknown(unknown):
        if unknowns.setdefault(unknown.name, unknown) is not unknown:
            raise ValueError(f"{name} has two unknowns of the name {unknown.name!r}")
        return jnp.ones(())

    count = len(next(iter(coordinates.values())))
    shape = jax.eval_shape(lambda: _call(name, function, coordinates, read, read_unknown))
    if jnp.issubdtype(shape.dtype, jnp.complexfloating):
        raise TypeError(
            f"{name} is complex: complex fields are not supported; state real and imaginary part "
            "as problems of their own where they are not coupled"
        )
    if shape.shape not in ((), (count,)):
        raise ValueError(
            f"{name} must give an array (points,), here ({count},); got {shape.shape}. Systems "
            "of equations are not supported"
        )
    if not found:
        raise ValueError(f"{name} does not depend on u")
    return Symbols(tuple(found), unknowns)


def _call(name, function, coordinates, read, read_unknown):
    field = Field(coordinates, read)
    try:
        with reading(read_unknown):
            found = function(field, *coordinates.values())
            if found is None:
                raise TypeError(f"{name} must give an array (points,), got None")
            return jnp.asarray(found)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            f"{name} gives u or a derivative of it to a function of NumPy; write it with "
            "jax.numpy, for example jnp.sin(u())"
        ) from error
    except jax.errors.TracerBoolConversionError as error:
        raise TypeError(
            f"{name} asks whether a value of u is true, which no value has; use jnp.where"
        ) from error
    except (TypeError, ValueError) as error:
        told, shape = str(error), next(iter(coordinates.values())).shape
        if isinstance(error, TypeError) and ("Field" in told or "Unknown" in told):
            raise TypeError(
                "a function of JAX or NumPy was given u or an unknown itself; write u() for its "
                f"value, for example jnp.sin(u()): {error}"
            ) from error
        if "shapes" in told:
            raise ValueError(
                f"{name} must give one number a point, at any points, which an array of fixed "
                f"shape in it cannot: coordinates were {shape}, and {told.splitlines()[0]}"
            ) from error
        raise


def source_at(function, coordinates, symbols, name="residual"):
    """The residual (points,) of the field that is zero, unknowns at typical values; untraced."""
    count = len(next(iter(coordinates.values())))
    found = _call(
        name,
        function,
        coordinates,
        lambda orders: jnp.zeros(count),
        lambda unknown: symbols.unknowns[unknown.name].typical,
    )
    return np.broadcast_to(np.asarray(found, float), (count,))


def trace(function, coordinates, symbols, name="residual") -> Affine | Traced:
    """The residual at some points.

    Parameters
    ----------
    function : callable
        As for :func:`symbols_of`.
    coordinates : mapping
        NumPy arrays (points,) by dimension: sources written in NumPy are evaluated on them once.
    symbols : Symbols
        Of :func:`symbols_of`.
    name : str
        What errors call it.

    Raises
    ------
    ValueError
        If a coefficient or the source is not finite, or points are mixed.
    """
    orders, unknowns = symbols.orders, sorted(symbols.unknowns)
    count = len(next(iter(coordinates.values())))

    def program(*arguments):
        given = dict(zip(unknowns, arguments, strict=False))
        values = dict(zip(orders, arguments[len(unknowns) :], strict=True))
        found = _call(
            name, function, coordinates, values.__getitem__, lambda unknown: given[unknown.name]
        )
        return jnp.broadcast_to(found, (count,)).astype(float)

    shapes = [jax.ShapeDtypeStruct((), float)] * len(unknowns)
    shapes += [jax.ShapeDtypeStruct((count,), float)] * len(orders)
    closed = jax.make_jaxpr(program)(*shapes)
    constants = tuple(_checked(name, np.asarray(each)) for each in closed.consts)
    middles = {each: symbols.unknowns[each].typical for each in unknowns}
    traced = Traced(orders, False, Code(closed.jaxpr), constants, middles)
    zeros = jnp.zeros((len(orders), count))
    probed = jnp.stack([traced.value(zeros + probe) for probe in _PROBES])
    impossible = jnp.where(jnp.all(~jnp.isfinite(probed), axis=0), jnp.nan, 0.0)
    _check_finite(name, coordinates, "value for every field tried", impossible)
    _check_local(name, traced, zeros)
    linear = jax.make_jaxpr(lambda values: traced.linearised(values)[1])(zeros)
    if _depends(linear.jaxpr)[0]:
        return traced
    source, coefficients = traced.linearised(zeros)
    _check_finite(name, coordinates, "source", source)
    for order, coefficient in zip(orders, coefficients, strict=True):
        _check_finite(name, coordinates, f"coefficient of the derivative {order}", coefficient)
    constant = bool(jnp.all(coefficients == coefficients[:, :1]))
    affine = Affine(orders=orders, constant=constant, coefficients=coefficients, source=source)
    if not _equal(affine, traced, zeros.shape):
        return traced
    return Traced(orders, True, traced.code, constants, middles) if unknowns else affine


def _equal(affine, traced, shape):
    """Whether both agree on random fields: derivatives do not show steps."""
    generator = np.random.default_rng(0)
    for size in _SIZES:
        values = jnp.asarray(size * generator.standard_normal(shape))
        found, expected = affine.linearised(values)[0], traced.value(values)
        scale = jnp.sum(jnp.abs(affine.coefficients * values), axis=0) + jnp.abs(affine.source)
        if not bool(jnp.all(jnp.abs(found - expected) <= _SAME * scale)):
            return False
    return True


def _checked(name, constant):
    """A constant array of the user's, as the program wants it."""
    if constant.dtype in (np.float32, np.float16):
        warnings.warn(
            f"{name} uses an array of {constant.dtype} of shape {constant.shape}: the solution "
            "cannot be more accurate; make it float64",
            PrecisionWarning,
            stacklevel=2,
        )
    return jnp.asarray(constant)


def _check_finite(name, coordinates, what, values):
    bad = np.flatnonzero(~np.isfinite(np.asarray(values)))
    if bad.size:
        place = ", ".join(f"{dim} = {axis[bad[0]]:.6g}" for dim, axis in coordinates.items())
        raise ValueError(
            f"{name}: the {what} is not finite at {bad.size} of {len(values)} points, the first "
            f"at {place}"
        )


def _check_local(name, residual, zeros):
    """A change of the field at some of the points moves the residual there only."""
    count = zeros.shape[1]
    halves = [np.arange(count) < count // 2, np.random.default_rng(0).uniform(size=count) < 0.5]

    def moved_elsewhere(probe, chosen):
        tangent = jnp.broadcast_to(chosen.astype(float), zeros.shape)
        change = jax.jvp(residual.value, (zeros + probe,), (tangent,))[1]
        return bool(jnp.any(jnp.isfinite(change) & (change != 0) & ~chosen))

    for probe in _PROBES:
        if any(moved_elsewhere(probe, each) for half in halves for each in (half, ~half)):
            raise ValueError(
                f"{name} mixes points: integrals and other nonlocal terms are not PDEs"
            )


def _depends(jaxpr, inputs=None):
    """Whether every output of a program depends on its arguments, equation by equation."""
    tainted = set(jaxpr.invars if inputs is None else inputs)
    for equation in jaxpr.eqns:
        moved = [not isinstance(v, core.Literal) and v in tainted for v in equation.invars]
        if not any(moved):
            continue
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        inner = getattr(inner, "jaxpr", inner)
        if equation.primitive.name in _CALLS and len(inner.invars) == len(moved):
            given = [v for v, m in zip(inner.invars, moved, strict=True) if m]
            outputs = _depends(inner, given)
        else:
            outputs = [True] * len(equation.outvars)
        tainted |= {v for v, out in zip(equation.outvars, outputs, strict=True) if out}
    return [not isinstance(v, core.Literal) and v in tainted for v in jaxpr.outvars]
