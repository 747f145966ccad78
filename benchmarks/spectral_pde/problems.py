"""The paper's problems, and some more: true solutions, statements, numbers of points."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import bayeskit as bk

TURN = 2 * np.pi


class Problem(NamedTuple):
    """A problem that has a true solution.

    Attributes
    ----------
    truth : callable
        Of all coordinates.
    lengths : tuple of float
        Of the box, which begins at zero.
    points : int
        Collocation points a dimension, the paper's where it has the problem.
    pde : PDE
    source : callable or None
        For those that have ``u'' [+ u (u² - 1)] = source`` in one dimension.
    allen_cahn : bool
    """

    truth: Callable
    lengths: tuple[float, ...]
    points: int
    pde: bk.pde.PDE
    source: Callable | None = None
    allen_cahn: bool = False


def allen_cahn(value):
    return value * (value**2 - 1)


def _box(truth, lengths):
    """A mapping of dimensions to ends, and true values on all faces."""
    domain = {dim: (0.0, length) for dim, length in zip("xyz", lengths, strict=False)}
    return domain, [bk.pde.Dirichlet(dim, end, truth) for dim in domain for end in domain[dim]]


def poisson(truth, laplacian, lengths, points, reaction=None):
    """``Δu + reaction(u) = f`` with true values on every face."""

    def source(*place):
        return laplacian(*place) + (0.0 if reaction is None else reaction(truth(*place)))

    def residual(u, *place):
        left = sum(u.d(dim, 2) for dim in u.coordinates) - source(*place)
        return left if reaction is None else left + reaction(u())

    pde = bk.pde.PDE(residual, *_box(truth, lengths))
    return Problem(truth, lengths, points, pde, source, reaction is allen_cahn)


def _sin_cos(x):
    return np.sin(6 * x) * np.cos(100 * x)


def _sin_cos_2(x):
    return -(36 + 1e4) * _sin_cos(x) - 1200 * np.cos(6 * x) * np.sin(100 * x)


# A function and its second derivative, length, points.
_LINES = {
    "sin 100x": (lambda x: np.sin(100 * x), lambda x: -1e4 * np.sin(100 * x), TURN, 400),
    "sin x + 0.1 sin 20x + 0.05 sin 100x": (
        lambda x: np.sin(x) + 0.1 * np.sin(20 * x) + 0.05 * np.sin(100 * x),
        lambda x: -np.sin(x) - 40 * np.sin(20 * x) - 500 * np.sin(100 * x),
        1.0,
        900,
    ),
    "sin 6x cos 100x": (_sin_cos, _sin_cos_2, TURN, 400),
    "x sin 200x": (
        lambda x: x * np.sin(200 * x),
        lambda x: 400 * np.cos(200 * x) - 4e4 * x * np.sin(200 * x),
        TURN,
        900,
    ),
    "sin 500x − 2 (x − ½)²": (
        lambda x: np.sin(500 * x) - 2 * (x - 0.5) ** 2,
        lambda x: -250_000 * np.sin(500 * x) - 4,
        1.0,
        400,
    ),
}


def _line(name, reaction=None):
    truth, curvature, length, points = _LINES[name]
    return poisson(truth, curvature, (length,), points, reaction)


ONE_DIMENSION = {f"Poisson, {name}": _line(name) for name in _LINES} | {
    f"Allen–Cahn, {name}": _line(name, allen_cahn) for name in ("sin 100x", "sin 6x cos 100x")
}


def _wave(x):
    return np.sin(6 * x) * np.cos(20 * x)


def _wave_2(x):
    return -436 * _wave(x) - 240 * np.cos(6 * x) * np.sin(20 * x)


def _mixed(x):
    return np.sin(x) + 0.1 * np.sin(20 * x) + np.cos(100 * x)


def _mixed_2(x):
    return -np.sin(x) - 40 * np.sin(20 * x) - 1e4 * np.cos(100 * x)


def _advected(x, t):
    return np.sin(x - 200 * t)


def _sine(x, y):
    return np.sin(30 * x) * np.sin(25 * y)


def _cube(x, y, z):
    return np.sin(20 * x) * np.cos(15 * y) * np.exp(z)


SEVERAL_DIMENSIONS = {
    "Poisson, sin 100x sin 100y": poisson(
        lambda x, y: np.sin(100 * x) * np.sin(100 * y),
        lambda x, y: -2e4 * np.sin(100 * x) * np.sin(100 * y),
        (TURN, TURN),
        400,
    ),
    "Poisson, sin 6x cos 20x + sin 6y cos 20y": poisson(
        lambda x, y: _wave(x) + _wave(y),
        lambda x, y: _wave_2(x) + _wave_2(y),
        (TURN, TURN),
        200,
    ),
    "Allen–Cahn, product of sin x + 0.1 sin 20x + cos 100x": poisson(
        lambda x, y: _mixed(x) * _mixed(y),
        lambda x, y: _mixed_2(x) * _mixed(y) + _mixed(x) * _mixed_2(y),
        (1.0, 1.0),
        200,
        allen_cahn,
    ),
    "Advection, speed 200, from inflow": Problem(
        _advected,
        (1.0, 1.0),
        200,
        bk.pde.PDE(
            lambda u, x, y: 200.0 * u.d("x") + u.d("y"),
            {"x": (0.0, 1.0), "y": (0.0, 1.0)},
            [bk.pde.Dirichlet("x", 0.0, _advected), bk.pde.Initial("y", _advected)],
        ),
    ),
    "Sine–Gordon, sin 30x sin 25y": poisson(
        _sine, lambda x, y: -1525.0 * _sine(x, y), (1.0, 1.0), 100, lambda value: jnp.sin(value)
    ),
    "Poisson, sin 20x cos 15y exp z": poisson(
        _cube, lambda x, y, z: -624.0 * _cube(x, y, z), (1.0, 1.0, 1.0), 64
    ),
}
PROBLEMS = ONE_DIMENSION | SEVERAL_DIMENSIONS
# Of two and three dimensions: where the bar is not 1e-6.
LIMITS = {
    "Advection, speed 200, from inflow": (1e-5, None),
    "Poisson, sin 20x cos 15y exp z": (1e-4, 1e-6),
}
