"""A partial differential equation with its domain and conditions, as a user states it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import numpy as np

from bayeskit.codec import storable
from bayeskit.pde.conditions import LOWER, UPPER, AbstractCondition
from bayeskit.validation import check_finite_number

_MOST_DIMENSIONS = 3


@storable
class PDE(eqx.Module):
    """An equation ``residual = 0`` on a box, with conditions at its faces.

    Parameters
    ----------
    residual : callable
        ``residual(u, x)``, ``residual(u, x, t)``, …: the unknown function (:class:`Field`) and all
        coordinates in the order of ``domain``, arrays (points,). Returns an array (points,) that
        is zero for a solution. Each point on its own: nothing that mixes points.
    domain : mapping
        ``(lower, upper)`` by dimension, one to three of them.
    conditions : sequence of conditions
        :class:`Dirichlet`, :class:`Neumann`, :class:`Robin`, :class:`Periodic`, :class:`Initial`.

    Raises
    ------
    TypeError, ValueError
        If the residual takes other arguments, the domain is empty or upside down, a condition is
        of an unknown dimension or not at an end of it.

    Examples
    --------
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> bk.pde.PDE(
    ...     residual=lambda u, x: u.d("x", 2) + u * (u**2 - 1) - np.sin(9 * x),
    ...     domain={"x": (0.0, 1.0)},
    ...     conditions=[bk.pde.Dirichlet("x", 0.0, 0.0), bk.pde.Neumann("x", 1.0, 0.0)],
    ... )
    PDE(x in [0, 1], Dirichlet(dim='x', at=0.0, value=0.0), Neumann(dim='x', at=1.0, value=0.0))
    """

    residual: Callable | None = eqx.field(static=True)
    dims: tuple[str, ...] = eqx.field(static=True)
    bounds: tuple[tuple[float, float], ...]
    conditions: tuple[Any, ...]

    def __init__(self, residual, domain, conditions):
        if not isinstance(domain, Mapping) or not domain:
            raise TypeError(f"domain must be a mapping of dimensions to ends, got {domain!r}")
        if len(domain) > _MOST_DIMENSIONS:
            raise ValueError(f"domain has {len(domain)} dimensions; at most {_MOST_DIMENSIONS}")
        self.dims = tuple(_check_name(name) for name in domain)
        self.bounds = tuple(_check_ends(name, ends) for name, ends in domain.items())
        self.residual = _check_residual(residual, self.dims)
        if isinstance(conditions, AbstractCondition) or not np.iterable(conditions):
            raise TypeError(f"conditions must be a sequence of conditions, got {conditions!r}")
        self.conditions = tuple(conditions)
        for index, condition in enumerate(self.conditions):
            _check_condition(f"conditions[{index}]", condition, self)

    def ends(self, dim) -> tuple[float, float]:
        """Lower and upper end of a dimension."""
        return self.bounds[self.dims.index(dim)]

    def place(self, dim, place) -> float:
        """Coordinate of a term's face."""
        lower, upper = self.ends(dim)
        return {LOWER: lower, UPPER: upper}[place] if isinstance(place, str) else place

    def __repr__(self):
        box = ", ".join(
            f"{dim} in [{lower:.6g}, {upper:.6g}]"
            for dim, (lower, upper) in zip(self.dims, self.bounds, strict=True)
        )
        return f"PDE({', '.join([box, *map(repr, self.conditions)])})"


def _check_name(name) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise TypeError(f"domain: a dimension is a name such as 'x', got {name!r}")
    return name


def _check_ends(name, ends) -> tuple[float, float]:
    try:
        lower, upper = ends
    except (TypeError, ValueError):
        raise TypeError(f"domain[{name!r}] must be (lower, upper), got {ends!r}") from None
    lower = check_finite_number(f"lower end of {name}", lower)
    upper = check_finite_number(f"upper end of {name}", upper)
    if lower >= upper:
        raise ValueError(f"domain[{name!r}] must be (lower, upper), got ({lower}, {upper})")
    return lower, upper


def _check_residual(residual, dims):
    if not callable(residual):
        raise TypeError(f"residual must be a function, got {type(residual).__name__}")
    check_parameters("residual", residual, dims, ("u",))
    return residual


def check_parameters(name, function, dims, first=()):
    """Whether a function takes all coordinates, and not by the domain's names in another order."""
    expected = f"({', '.join([*first, *dims])})"
    try:
        signature = inspect.signature(function)
        signature.bind(*first, *dims)
    except TypeError:
        raise TypeError(f"{name} must take {expected}, in the order of the domain") from None
    except ValueError:  # built-in functions have no signature
        return
    given = tuple(signature.parameters)[len(first) :]
    if set(given) == set(dims) and given != tuple(dims):
        raise ValueError(
            f"{name} takes {', '.join(given)}; coordinates come in the order of the domain: "
            f"{expected}"
        )


def _check_condition(name, condition, pde):
    if not isinstance(condition, AbstractCondition):
        hint = "; did you forget its arguments?" if isinstance(condition, type) else ""
        raise TypeError(f"{name} must be a condition, got {type(condition).__name__}{hint}")
    if condition.dim not in pde.dims:
        raise ValueError(f"{name} is of {condition.dim!r}; the dimensions are {list(pde.dims)}")
    lower, upper = pde.ends(condition.dim)
    slack = 1e-9 * (upper - lower)
    for terms, value in condition.functionals:
        if callable(value):
            check_parameters(f"value of {name}", value, pde.dims)
        for term in terms:
            place = pde.place(condition.dim, term.place)
            if min(abs(place - lower), abs(place - upper)) > slack:
                raise ValueError(
                    f"{name} is at {condition.dim} = {place:.6g}; expected an end of the domain, "
                    f"{lower:.6g} or {upper:.6g}"
                )
