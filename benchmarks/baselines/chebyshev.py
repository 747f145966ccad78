"""Chebyshev collocation in one dimension: what spectral accuracy is, without uncertainty."""

import numpy as np
from numpy.polynomial import chebyshev

_NEWTON_STEPS = 30


def chebyshev_collocation(source, ends, length, points, allen_cahn=False):
    """Coefficients of ``u'' [+ u (u² - 1)] = source`` with values at both ends.

    Collocation at Chebyshev's extrema, equation in the interior, by Newton's iteration where the
    equation is not linear. L. N. Trefethen, "Spectral methods in MATLAB", 2000, chapters 6 and 14.

    Returns
    -------
    callable
        The solution at points in ``[0, length]``.
    """
    nodes = -np.cos(np.pi * np.arange(points) / (points - 1))
    basis = chebyshev.chebvander(nodes, points - 1)
    # Columns by differentiation matrices: those of polynomials' own derivatives lose digits.
    weights = np.ones(points)
    weights[[0, -1]] = 2.0
    weights *= (-1.0) ** np.arange(points)
    distance = nodes[:, None] - nodes + np.eye(points)
    first = np.outer(weights, 1.0 / weights) / distance
    first -= np.diag(first.sum(axis=1))
    second = first @ first * (2.0 / length) ** 2
    right = source(0.5 * length * (nodes + 1.0))
    values = np.zeros(points)
    for _ in range(_NEWTON_STEPS if allen_cahn else 1):
        matrix, target = second.copy(), right.copy()
        if allen_cahn:
            matrix += np.diag(3 * values**2 - 1)
            target += 2 * values**3
        matrix[[0, -1]] = 0.0
        matrix[0, 0] = matrix[-1, -1] = 1.0
        target[[0, -1]] = ends
        before, values = values, np.linalg.solve(matrix, target)
        if np.max(np.abs(values - before)) < 1e-12:
            break
    coefficients = np.linalg.solve(basis, values)
    return lambda x: chebyshev.chebval(2.0 * np.asarray(x) / length - 1.0, coefficients)
