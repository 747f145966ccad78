"""Measurements of the solution of an equation."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.codec import storable
from bayeskit.pde.problem import check_parameters
from bayeskit.pde.residual import symbols_of, trace
from bayeskit.precision import double_precision
from bayeskit.validation import REAL, double_array


@storable
class Sensors(eqx.Module):
    """Noisy values of the solution, or of a linear operator of it, at any points.

    Parameters
    ----------
    points : mapping
        Coordinates (n,) by dimension, all dimensions of the problem; in any order, and a point may
        be measured several times.
    values : array (n,)
        What was measured; (batch, n) for :func:`bayeskit.infer_batch`.
    noise : float or array (n,), optional
        Known deviation of the measurements' errors, in their units; learned by default.
    operator : callable, optional
        What sensors see of the solution, linear in it: ``operator(u, x, …)`` of the same form as
        the residual, its coordinates in the order of ``points``. The value by default.

    Raises
    ------
    TypeError, ValueError
        For points that are no mapping of names to finite numbers of one length, values or noise
        of another shape, non-finite numbers, deviations that are not positive, operators that are
        not linear.

    Examples
    --------
    >>> import bayeskit as bk
    >>> bk.pde.Sensors({"x": [0.1, 0.7]}, [1.0, 2.0], noise=0.1)
    Sensors(2 points of x, noise=0.1)
    >>> bk.pde.Sensors({"x": [0.1, 0.7]}, [1.0, 2.0], operator=lambda u, x: u.d("x"))
    Sensors(2 points of x, noise=None)
    """

    points: dict[str, Any]
    values: Any
    noise: Any
    orders: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    coefficients: Any
    offset: Any

    def __init__(self, points, values, noise=None, operator=None):
        if not isinstance(points, Mapping) or not points:
            raise TypeError(f"points must be a mapping such as {{'x': array}}, got {points!r}")
        self.points = {
            dim: double_array(f"points[{dim!r}]", each, REAL) for dim, each in points.items()
        }
        nameless = [dim for dim in points if not isinstance(dim, str)]
        if nameless:
            raise TypeError(f"points must have names of dimensions as keys, got {nameless}")
        shapes = {dim: each.shape for dim, each in self.points.items()}
        (first, *_) = shapes.values()
        if len(first) != 1 or not first[0] or any(shape != first for shape in shapes.values()):
            raise ValueError(f"points must be arrays (n,) of one length n > 0, got {shapes}")
        self.values = double_array("values", values, REAL)
        if self.values.shape[-1:] != first or self.values.ndim > 2:
            raise ValueError(
                f"values must be {first}, one a point (or (batch, {first[0]})), got "
                f"{self.values.shape}"
            )
        self.noise = None if noise is None else _checked_noise(noise, first[0])
        orders, self.coefficients, self.offset = _seen(operator, self.points)
        # JAX sorts the keys of a mapping: orders must be in the same order before and after.
        given, kept = list(self.points), sorted(self.points)
        self.points = {dim: self.points[dim] for dim in kept}
        self.orders = tuple(tuple(each[given.index(dim)] for dim in kept) for each in orders)

    def items(self) -> list["Sensors"]:
        """The data sets of a batch, one by one: of values (batch, n), other arrays as they are.

        Arrays may be stacked too, as by ``jax.tree.map`` over several ``Sensors``.
        """
        count, sensors = self.values.shape
        # A stacked number looks like one a sensor: stacked points tell which it is.
        all_stacked = all(np.ndim(points) > 1 for points in self.points.values())
        ranks = {"values": 1, "points": 1, "noise": 1, "coefficients": 2, "offset": 1}

        def item(i):
            def part(name, leaf):
                number = name == "noise" and np.ndim(leaf) == 1
                more = np.ndim(leaf) > ranks[name] or (number and (all_stacked or count != sensors))
                return leaf[i] if more and leaf.shape[0] == count else leaf

            fields = {
                name: jax.tree.map(lambda leaf, n=name: part(n, leaf), getattr(self, name))
                for name in ranks
            }
            return eqx.tree_at(
                lambda s: [getattr(s, name) for name in ranks],
                self,
                list(fields.values()),
                is_leaf=lambda leaf: leaf is None,
            )

        return [item(i) for i in range(count)]

    def __repr__(self):
        count = next(iter(self.points.values())).shape[-1]
        noise = self.noise
        if noise is not None and np.ndim(noise) == 0:
            noise = float(noise)
        return f"Sensors({count} points of {', '.join(self.points)}, noise={noise})"


def _checked_noise(noise, count):
    array = double_array("noise", noise, REAL)
    if array.shape not in ((), (count,)):
        raise ValueError(f"noise must be a number or ({count},), got shape {array.shape}")
    bad = int(np.sum(array <= 0))
    if bad:
        raise ValueError(f"noise must be positive, got {bad} values that are not")
    return array


def _seen(operator, points):
    """Orders of derivatives, their coefficients (derivatives, n), and what no field gives (n,)."""
    count = len(next(iter(points.values())))
    if operator is None:
        return ((0,) * len(points),), np.ones((1, count)), np.zeros(count)
    if not callable(operator):
        raise TypeError(f"operator must be a function, got {type(operator).__name__}")
    check_parameters("operator", operator, tuple(points), ("u",))
    with double_precision():
        symbols = symbols_of(operator, points, "operator")
        if symbols.unknowns:
            raise ValueError(
                f"operator must not use unknowns, got {sorted(symbols.unknowns)}: they belong in "
                "the residual"
            )
        found = trace(operator, points, symbols, "operator")
        if not found.linear:
            raise ValueError("operator must be linear in u")
        offset, coefficients = found.linearised(jnp.zeros((len(symbols.orders), count)))
        if not np.any(coefficients):
            raise ValueError("operator does not depend on u: all its coefficients are zero")
        return symbols.orders, np.asarray(coefficients), np.asarray(offset)
