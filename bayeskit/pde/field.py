"""The unknown function, as a user's residual sees it."""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bayeskit.validation import check_integer


class Symbol(abc.ABC):
    """Stands for numbers of a residual; ``symbol()`` are the numbers themselves.

    Beside ``+ - * / **`` the symbol alone will do.
    """

    # Operators of NumPy's arrays leave the work to the reflected ones here.
    __array_ufunc__ = None

    @abc.abstractmethod
    def __call__(self) -> Any:
        """The numbers."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __eq__(self, other):
        raise self._no_array()

    def __ne__(self, other):
        raise self._no_array()

    def __bool__(self):
        raise self._no_array()

    def __add__(self, other):
        return self() + _value(other)

    def __radd__(self, other):
        return other + self()

    def __sub__(self, other):
        return self() - _value(other)

    def __rsub__(self, other):
        return other - self()

    def __mul__(self, other):
        return self() * _value(other)

    def __rmul__(self, other):
        return other * self()

    def __truediv__(self, other):
        return self() / _value(other)

    def __rtruediv__(self, other):
        return other / self()

    def __pow__(self, other):
        return self() ** _value(other)

    def __rpow__(self, other):
        return other ** self()

    def __neg__(self):
        return -self()

    def __pos__(self):
        return self()

    def __array__(self, *_, **__):
        raise self._no_array()

    def _no_array(self):
        kind = type(self).__name__
        return TypeError(f"a {kind} is no array: write u() for its value")


class Field(Symbol):
    """The unknown function ``u`` of a residual, at some points.

    ``u()`` is its value, ``u.d("x", 2)`` or ``u.d(x=1, y=1)`` a derivative; all are real arrays
    (points,), which any function of ``jax.numpy`` takes. ``u`` itself may stand for its value
    beside ``+ - * / **`` only.

    Parameters
    ----------
    coordinates : mapping
        Arrays (points,) by dimension.
    read : callable
        Gives the derivative of some orders, one a dimension.
    """

    def __init__(self, coordinates: Mapping, read: Callable):
        self.coordinates = dict(coordinates)
        self._read = read

    def __call__(self):
        """The value, an array (points,)."""
        return self._read((0,) * len(self.coordinates))

    def d(self, dim=None, order=None, **orders):
        """A derivative.

        Parameters
        ----------
        dim : str, optional
        order : int, optional
            Of the derivative by ``dim``; one by default.
        **orders : int
            Orders by dimension, instead: ``u.d(x=1, y=1)``.

        Returns
        -------
        array (points,)

        Raises
        ------
        TypeError
            If both forms are mixed, or an order is no integer.
        ValueError
            For an unknown dimension or a negative order.
        """
        if (dim is None) == (not orders) or (dim is None and order is not None):
            raise TypeError("u.d takes a dimension and an order, or orders by name: u.d(x=1, y=1)")
        if dim is not None:
            orders = {dim: 1 if order is None else order}
        return self._read(orders_of(orders, self.coordinates))


def orders_of(orders, dims) -> tuple[int, ...]:
    """Orders of a derivative, one a dimension in their order, from a mapping by name."""
    unknown = [name for name in orders if name not in dims]
    if unknown:
        raise ValueError(f"derivative by {unknown}; the dimensions are {list(dims)}")
    return tuple(
        check_integer(f"order of the derivative by {d}", orders.get(d, 0), 0) for d in dims
    )


def _value(operand):
    return operand() if isinstance(operand, Symbol) else operand


def divergence(coefficient: Callable, u: Field):
    r"""``div(a grad u)``, for a coefficient that varies.

    .. math:: \sum_i \partial_i (a \, \partial_i u)
              = \sum_i (\partial_i a) (\partial_i u) + a \, \partial_i^2 u

    Parameters
    ----------
    coefficient : callable
        Of all coordinates in the order of the domain, written with ``jax.numpy``, point by point.
    u : Field

    Returns
    -------
    array (points,)

    Examples
    --------
    >>> import bayeskit as bk
    >>> residual = lambda u, x: bk.pde.divergence(lambda x: 1 + x**2, u) - 1.0
    >>> pde = bk.pde.PDE(residual, {"x": (0.0, 1.0)}, [bk.pde.Dirichlet("x", 0.0, 0.0),
    ...                                               bk.pde.Dirichlet("x", 1.0, 0.0)])
    """
    points = tuple(jnp.asarray(axis) for axis in u.coordinates.values())
    total = jnp.zeros(())
    for i, dim in enumerate(u.coordinates):
        tangents = tuple(
            jnp.ones_like(axis) if j == i else jnp.zeros_like(axis) for j, axis in enumerate(points)
        )
        value, slope = jax.jvp(coefficient, points, tangents)
        total = total + slope * u.d(dim, 1) + value * u.d(dim, 2)
    return total
