"""The paper's problems in one dimension: true solutions, their second derivatives, grids."""

from typing import NamedTuple

import numpy as np

import bayeskit as bk

TURN = 2 * np.pi


class Problem(NamedTuple):
    """A true solution with its second derivative, on ``[0, length]``.

    Attributes
    ----------
    truth, curvature : callable
    length : float
    points : int
        The paper's number of collocation points.
    allen_cahn : bool
        ``u'' + u (u² - 1) = f`` instead of ``u'' = f``.
    """

    truth: object
    curvature: object
    length: float
    points: int
    allen_cahn: bool = False

    def source(self, x):
        value = self.truth(x)
        reaction = value * (value**2 - 1) if self.allen_cahn else 0.0
        return self.curvature(x) + reaction

    def statement(self):
        """As a user would write it."""
        conditions = [bk.pde.Dirichlet("x", end, self.truth) for end in (0.0, self.length)]

        def residual(u, x):
            left = u.d("x", 2) - self.source(x)
            return left + u * (u**2 - 1) if self.allen_cahn else left

        return bk.pde.PDE(residual, {"x": (0.0, self.length)}, conditions)


def _product(x):
    return np.sin(6 * x) * np.cos(100 * x)


def _product_curvature(x):
    return -(36 + 1e4) * _product(x) - 1200 * np.cos(6 * x) * np.sin(100 * x)


PROBLEMS = {
    "sin 100x": Problem(lambda x: np.sin(100 * x), lambda x: -1e4 * np.sin(100 * x), TURN, 400),
    "sin x + 0.1 sin 20x + 0.05 sin 100x": Problem(
        lambda x: np.sin(x) + 0.1 * np.sin(20 * x) + 0.05 * np.sin(100 * x),
        lambda x: -np.sin(x) - 40 * np.sin(20 * x) - 500 * np.sin(100 * x),
        1.0,
        900,
    ),
    "sin 6x cos 100x": Problem(_product, _product_curvature, TURN, 400),
    "x sin 200x": Problem(
        lambda x: x * np.sin(200 * x),
        lambda x: 400 * np.cos(200 * x) - 4e4 * x * np.sin(200 * x),
        TURN,
        900,
    ),
    "sin 500x − 2 (x − ½)²": Problem(
        lambda x: np.sin(500 * x) - 2 * (x - 0.5) ** 2,
        lambda x: -250_000 * np.sin(500 * x) - 4,
        1.0,
        400,
    ),
}
PROBLEMS |= {
    f"Allen–Cahn, {name}": PROBLEMS[name]._replace(allen_cahn=True)
    for name in ("sin 100x", "sin 6x cos 100x")
}
