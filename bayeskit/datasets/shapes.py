"""Distributions on curves and surfaces, moved isometrically into more dimensions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float

from bayeskit._random import numpy_generator
from bayeskit.validation import check_integer, check_number

_TURNS = 1.5 * np.pi
_UNIT = 3.0 * _TURNS  # the outer radius of a roll


def _angles(generator, count):
    """A mixture of two von Mises distributions."""
    near = generator.uniform(size=count) < 0.7
    first, second = generator.vonmises(0.0, 3.0, count), generator.vonmises(np.pi, 1.0, count)
    return np.where(near, first, second)


def _on_circle(angle):
    return np.column_stack([np.cos(angle), np.sin(angle)])


def _circle(generator, count):
    return _on_circle(_angles(generator, count))


def _sphere(generator, count):
    near = generator.uniform(size=count) < 0.7
    pole = np.array([1.0, 0.0, 0.0])
    first = scipy.stats.vonmises_fisher(pole, 3).rvs(count, random_state=generator)
    second = scipy.stats.vonmises_fisher(-pole, 1).rvs(count, random_state=generator)
    return np.where(near[:, None], first, second)


def _roll(generator, count):
    turn = _TURNS * (1.0 + 2.0 * generator.uniform(size=count))
    return (turn / _UNIT)[:, None] * _on_circle(turn)


def _swiss_roll(generator, count):
    return np.column_stack([_roll(generator, count), generator.uniform(-0.5, 0.5, count)])


def _moons(generator, count):
    curve = _on_circle(generator.uniform(0.0, np.pi, count))
    other = generator.integers(0, 2, count) == 1
    return np.where(other[:, None], [1.0, 0.5] - curve, curve) - [0.5, 0.25]


def _torus(generator, count):
    pair = _circle(generator, count), _circle(generator, count)
    return np.column_stack(pair) / np.sqrt(2.0)


# The dimension of each, that of the space it fills least of, and how it is drawn from.
_SHAPES: dict[str, tuple[int, int, Callable]] = {
    "circle": (1, 2, _circle),
    "sphere": (2, 3, _sphere),
    "spiral": (1, 2, _roll),
    "swiss_roll": (2, 3, _swiss_roll),
    "moons": (1, 2, _moons),
    "torus": (2, 4, _torus),
}


@dataclass(frozen=True)
class Shape:
    """Rows on or near a curve or surface, with known truth.

    Attributes
    ----------
    observations : array (n, D)
        With noise.
    name : str
    dimension : int
        Of the curve or surface.
    axes : array (D, d)
        Orthonormal columns that span the space of the shape.
    """

    observations: Float[np.ndarray, "n D"] = field(repr=False)
    name: str
    dimension: int
    axes: Float[np.ndarray, "D d"] = field(repr=False)

    def draw(self, key: Any, count: int) -> Float[np.ndarray, "n D"]:
        """Fresh draws from the truth, without noise.

        Parameters
        ----------
        key : int or JAX key
        count : int

        Returns
        -------
        array (count, D)
        """
        count = check_integer("count", count, 1)
        return _SHAPES[self.name][2](numpy_generator(key), count) @ self.axes.T


def shape(
    key: Any, name: str = "circle", *, rows: int = 500, features: int = 10, noise: float = 0.0
) -> Shape:
    """Draw rows from a distribution on a curve or surface in many dimensions.

    Parameters
    ----------
    key : int or JAX key
        Of the rows; the isometry is the same for all keys.
    name : str
        ``"circle"``, with two von Mises distributions on it; ``"sphere"``, with two of
        von Mises and Fisher; ``"spiral"`` and ``"swiss_roll"``, uniform along the angle (and the
        width); ``"moons"``, two half circles that are not connected; ``"torus"``, the product of
        two such circles.
    rows : int
        n.
    features : int
        D, no less than the shape needs.
    noise : float
        Standard deviation of independent normal noise in every feature.

    Returns
    -------
    Shape
        float64; the radius of the shape is about one.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of these.

    Examples
    --------
    >>> sample = shape(0, "sphere", rows=200, features=5)
    >>> sample.observations.shape, sample.dimension
    ((200, 5), 2)
    >>> sample.draw(1, 3).shape
    (3, 5)
    """
    if name not in _SHAPES:
        raise ValueError(f"name must be one of {list(_SHAPES)}, got {name!r}")
    dimension, least, sampler = _SHAPES[name]
    rows = check_integer("rows", rows, 1)
    features = check_integer("features", features, least)
    noise = check_number("noise", noise, 0.0)
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((features, least)))[0]
    generator = numpy_generator(key)
    clean = sampler(generator, rows) @ axes.T
    values = clean + noise * generator.standard_normal(clean.shape)
    return Shape(values, name, dimension, axes)
