"""Conditions at faces of the domain: what a solution has to be there."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np

from bayeskit.codec import storable
from bayeskit.validation import check_finite_number, check_integer, check_positive

LOWER, UPPER = "lower", "upper"


class Term(NamedTuple):
    """``weight`` times the derivative of some ``order`` along the condition's dimension.

    Attributes
    ----------
    place : float or str
        Coordinate of the face, or ``"lower"`` or ``"upper"`` end of the dimension.
    order : int
    weight : float
    """

    place: Any
    order: int
    weight: float


class AbstractCondition(eqx.Module):
    """A linear functional of the solution at faces of one dimension, and its value there.

    Attributes
    ----------
    dim : str
    noise : float or None
        Deviation of the value's error; ``None`` for an exact one.
    """

    dim: eqx.AbstractVar[str]
    noise: eqx.AbstractVar[float | None]

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        storable(cls)

    @property
    @abc.abstractmethod
    def functionals(self) -> tuple[tuple[tuple[Term, ...], Any], ...]:
        """Sums of terms, each with its value: a number, or a callable of all coordinates."""

    def __repr__(self):
        fields = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in fields if value is not None)
        return f"{type(self).__name__}({shown})"


def _shown(value):
    return getattr(value, "__name__", type(value).__name__) if callable(value) else repr(value)


def _check_value(value) -> float | Callable:
    """A number, or a function of all coordinates."""
    if callable(value):
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    return check_finite_number("value", value)


def _check_noise(noise) -> float | None:
    return None if noise is None else check_positive("noise", noise)


def _check_dim(dim) -> str:
    if not isinstance(dim, str):
        raise TypeError(f"dim must be the name of a dimension, got {dim!r}")
    return dim


class _AtFace(AbstractCondition):
    """A value at one face."""

    dim: str = eqx.field(static=True)
    at: float
    value: Any
    noise: float | None

    def __init__(self, dim, at, value, *, noise=None):
        self.dim, self.at = _check_dim(dim), check_finite_number("at", at)
        self.value, self.noise = _check_value(value), _check_noise(noise)


class Dirichlet(_AtFace):
    """``u = value`` at ``dim = at``.

    Parameters
    ----------
    dim : str
    at : float
        Either end of the dimension.
    value : float or callable
        A callable takes all coordinates in the order of the domain, as the residual does.
    noise : float, optional
        Deviation of the error of the value, in its units; exact by default.
    """

    __init__ = _AtFace.__init__  # type checkers see no inherited one in a module

    @property
    def functionals(self):
        """The value."""
        return (((Term(self.at, 0, 1.0),), self.value),)


class Neumann(_AtFace):
    """``∂u/∂dim = value`` at ``dim = at``: along the axis, not along the outward normal.

    Parameters as for :class:`Dirichlet`.
    """

    __init__ = _AtFace.__init__  # type checkers see no inherited one in a module

    @property
    def functionals(self):
        """The slope."""
        return (((Term(self.at, 1, 1.0),), self.value),)


class Robin(AbstractCondition):
    """``a u + b ∂u/∂dim = value`` at ``dim = at``.

    Parameters
    ----------
    dim, at, value, noise
        As for :class:`Dirichlet`.
    a, b : float
    """

    dim: str = eqx.field(static=True)
    at: float
    value: Any
    a: float
    b: float
    noise: float | None

    def __init__(self, dim, at, value, *, a=1.0, b=1.0, noise=None):
        self.dim, self.at = _check_dim(dim), check_finite_number("at", at)
        self.value, self.noise = _check_value(value), _check_noise(noise)
        self.a, self.b = check_finite_number("a", a), check_finite_number("b", b)
        if self.a == 0.0 and self.b == 0.0:
            raise ValueError("a and b must not both be zero: the condition says nothing")

    @property
    def functionals(self):
        """Both terms."""
        return (((Term(self.at, 0, self.a), Term(self.at, 1, self.b)), self.value),)


class Periodic(AbstractCondition):
    """Value and slope are the same at both ends of ``dim``.

    Parameters
    ----------
    dim : str
    """

    dim: str = eqx.field(static=True)

    noise: float | None

    def __init__(self, dim):
        self.dim, self.noise = _check_dim(dim), None

    @property
    def functionals(self):
        """Differences between the ends."""
        return tuple(((Term(LOWER, k, 1.0), Term(UPPER, k, -1.0)), 0.0) for k in (0, 1))


class Initial(AbstractCondition):
    """Value (``order=0``) or velocity (``order=1``) at the lower end of ``dim``.

    Parameters
    ----------
    dim : str
    value, noise
        As for :class:`Dirichlet`.
    order : int
    """

    dim: str = eqx.field(static=True)
    value: Any
    order: int = eqx.field(static=True)
    noise: float | None

    def __init__(self, dim, value, order=0, *, noise=None):
        self.dim, self.order = _check_dim(dim), check_integer("order", order, 0)
        if self.order > 1:
            raise ValueError(f"order must be 0 (value) or 1 (velocity), got {order}")
        self.value, self.noise = _check_value(value), _check_noise(noise)

    @property
    def functionals(self):
        """The value or the velocity."""
        return (((Term(LOWER, self.order, 1.0),), self.value),)
