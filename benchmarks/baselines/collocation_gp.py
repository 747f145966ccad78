"""Gaussian-process collocation with a plain kernel, everything dense.

The kernel has one lengthscale relative to the box; it, the variance and the nugget are those of the
highest evidence. Nonlinear equations by Newton's iteration. Y. Chen, B. Hosseini, H. Owhadi,
A. M. Stuart, "Solving and learning nonlinear PDEs with Gaussian processes", Journal of
Computational Physics 447, 2021.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

LENGTHSCALES = np.geomspace(2e-3, 0.5, 25)  # in lengths of the box
NUGGETS = (1e-12, 1e-10, 1e-8, 1e-6)  # of the matrix scaled to a unit diagonal
_NEWTON_STEPS = 12


def squared_exponential(lag, scale):
    """The kernel and its second and fourth derivatives at lags."""
    square = (lag / scale) ** 2
    value = np.exp(-0.5 * square)
    second = (square - 1.0) * value / scale**2
    return value, second, (square**2 - 6.0 * square + 3.0) * value / scale**4


def matern52(lag, scale):
    """The kernel and its second and fourth derivatives at lags."""
    s = np.sqrt(5.0) * np.abs(lag) / scale
    decay, square = np.exp(-s), 5.0 / scale**2
    second = -square / 3.0 * (1.0 + s - s**2) * decay
    return (1.0 + s + s**2 / 3.0) * decay, second, square**2 / 3.0 * (3.0 - 5.0 * s + s**2) * decay


KERNELS = {"squared-exponential": squared_exponential, "Matérn 5/2": matern52}


class Known(NamedTuple):
    """What is known of the field: its values on faces, and ``Δu + c u`` inside.

    Attributes
    ----------
    faces, inner : arrays (F, d), (I, d)
    reaction : array (I,)
        ``c``.
    values : array (F + I,)
    """

    faces: Any
    inner: Any
    reaction: Any
    values: Any


class Prior(NamedTuple):
    """A product kernel: its factor, lengthscales (d,) and nugget."""

    kernel: Callable
    scales: Any
    nugget: float


class Fit(NamedTuple):
    """A process given what is known."""

    prior: Prior
    known: Known
    size: Any
    factor: Any
    weights: Any
    variance: float
    log_evidence: float

    def predict(self, places):
        """Mean and variance at places (P, d)."""
        cross = _field_with_known(self.prior, self.known, places) / self.size
        explained = np.sum(cross * cho_solve(self.factor, cross.T).T, axis=1)
        variance = self.variance * np.maximum(1.0 - explained, np.finfo(float).eps)
        return cross @ self.weights, variance


def collocation_gp(kernel, problem, points) -> Fit:
    """Condition on ``Δu [+ u (u² - 1)] = source`` and on the values on all faces.

    Parameters
    ----------
    kernel : str
        One of ``KERNELS``.
    problem : Problem
    points : int
        A dimension, on a uniform grid with the ends.
    """
    lengths = np.asarray(problem.lengths)
    grids = [np.linspace(0.0, length, points) for length in lengths]
    mesh = np.stack([m.reshape(-1) for m in np.meshgrid(*grids, indexing="ij")], axis=1)
    on_face = np.any((mesh == 0.0) | (mesh == lengths), axis=1)
    inner, faces = mesh[~on_face], mesh[on_face]
    given, force = problem.truth(*faces.T), problem.source(*inner.T)
    known = Known(faces, inner, np.zeros(len(inner)), np.concatenate([given, force]))
    priors = [
        Prior(KERNELS[kernel], scale * lengths, nugget)
        for scale in LENGTHSCALES
        for nugget in NUGGETS
    ]
    found = [fit for fit in (condition(prior, known) for prior in priors) if fit is not None]
    best = max(found, key=lambda fit: fit.log_evidence)
    for _ in range(_NEWTON_STEPS if problem.allen_cahn else 0):
        values = best.predict(inner)[0]
        linear = known._replace(
            reaction=3.0 * values**2 - 1.0,
            values=np.concatenate([given, force + 2.0 * values**3]),
        )
        best = condition(best.prior, linear) or best
    return best


def condition(prior, known) -> Fit | None:
    """The variance is that of the highest evidence; nothing if the matrix is not definite."""
    matrix = np.concatenate(
        [
            _field_with_known(prior, known, known.faces),
            _equation_with_known(prior, known),
        ]
    )
    size = np.sqrt(np.diagonal(matrix))
    matrix = matrix / np.outer(size, size)
    try:
        factor = cho_factor(matrix + prior.nugget * np.eye(len(matrix)), lower=True)
    except LinAlgError:
        return None
    scaled = known.values / size
    weights = cho_solve(factor, scaled)
    variance = float(scaled @ weights) / len(scaled)
    roots = np.log(np.diagonal(factor[0])) + np.log(size)
    log_evidence = -0.5 * len(scaled) * np.log(variance) - float(np.sum(roots))
    return Fit(prior, known, size, factor, weights, variance, log_evidence)


def _field_with_known(prior, known, places):
    """Covariance (P, F + I) of the field with what is known."""
    inside = _parts(prior, places, known.inner)
    with_equation = _laplacian(inside) + _value(inside) * known.reaction
    return np.concatenate([_value(_parts(prior, places, known.faces)), with_equation], axis=1)


def _equation_with_known(prior, known):
    """Covariance (I, F + I) of the equation's left side with what is known."""
    left = known.reaction[:, None]
    faces, inner = (_parts(prior, known.inner, each) for each in (known.faces, known.inner))
    with_faces = _laplacian(faces) + left * _value(faces)
    with_inner = _bilaplacian(inner) + left * _value(inner) * known.reaction
    with_inner = with_inner + _laplacian(inner) * (left + known.reaction)
    return np.concatenate([with_faces, with_inner], axis=1)


def _parts(prior, first, second):
    """Kernel and derivatives along every dimension, for all pairs."""
    lags = np.moveaxis(first[:, None] - second, 2, 0)
    return [prior.kernel(lag, scale) for lag, scale in zip(lags, prior.scales, strict=True)]


def _product(parts, twice: tuple[int, ...] = ()):
    """Product over dimensions; those in ``twice`` are derived two times for each mention."""
    return np.prod([part[twice.count(k)] for k, part in enumerate(parts)], axis=0)


def _value(parts):
    return _product(parts)


def _laplacian(parts):
    return sum(_product(parts, (k,)) for k in range(len(parts)))


def _bilaplacian(parts):
    dims = range(len(parts))
    return sum(_product(parts, (k, j)) for k in dims for j in dims)
