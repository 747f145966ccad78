"""Simulated clusters of different shapes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bayeskit._random import numpy_generator
from bayeskit.validation import check_finite_number, check_integer, check_number, check_positive


@dataclass(frozen=True)
class GaussianClusters:
    """Rows of a Gaussian mixture with known truth.

    Attributes
    ----------
    rows : array (n, d)
        In the order of their components.
    labels : integer array (n,)
    locations : array (K, d)
    covariances : array (K, d, d)
    """

    rows: Float[np.ndarray, "n d"] = field(repr=False)
    labels: Int[np.ndarray, " n"] = field(repr=False)
    locations: Float[np.ndarray, "K d"] = field(repr=False)
    covariances: Float[np.ndarray, "K d d"] = field(repr=False)

    def oracle(self) -> Int[np.ndarray, " n"]:
        """Label the rows by the true components: what no clustering is expected to beat by much.

        Returns
        -------
        integer array (n,)
        """
        counts = np.bincount(self.labels)
        scores = []
        for count, location, covariance in zip(
            counts, self.locations, self.covariances, strict=True
        ):
            lower = np.linalg.cholesky(covariance)
            white = np.linalg.solve(lower, (self.rows - location).T)
            logdet = 2 * np.sum(np.log(np.diagonal(lower)))
            scores.append(np.log(count) - 0.5 * (logdet + np.sum(white**2, axis=0)))
        return np.argmax(scores, axis=0)


def gaussian_clusters(
    key: Any,
    *,
    components: int = 4,
    features: int = 4,
    rows: int = 200,
    separation: float = 5.0,
    condition: float = 30.0,
    spread: float = 0.0,
) -> GaussianClusters:
    """Simulate equally many rows of components whose centres are equally far apart.

    Centres are the corners of a simplex. Every covariance has eigenvectors at random and
    eigenvalues whose logarithms are uniform, scaled to a geometric mean of one: the same volume,
    unless there is a ``spread``.

    Parameters
    ----------
    key : int or JAX key
    components : int
        K, at most ``features``.
    features : int
        d.
    rows : int
        n, a multiple of ``components``.
    separation : float
        Distance of any two centres; a standard deviation is one in the geometric mean.
    condition : float
        Largest ratio of a covariance's eigenvalues, at least one.
    spread : float
        A component's eigenvalues are ``exp(spread)`` times those of the one before.

    Returns
    -------
    GaussianClusters
        float64.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of these.

    Examples
    --------
    >>> clusters = gaussian_clusters(0, features=5, rows=80)
    >>> clusters.rows.shape, clusters.covariances.shape
    ((80, 5), (4, 5, 5))
    >>> bool((clusters.oracle() == clusters.labels).mean() > 0.8)
    True
    """
    features = check_integer("features", features, 1)
    components = check_integer("components", components, 1)
    if components > features:
        raise ValueError(
            f"components must be at most features={features}, for their centres to be equally far "
            f"apart, got {components}"
        )
    rows = check_integer("rows", rows, 1)
    if rows % components:
        raise ValueError(f"rows must be a multiple of components={components}, got {rows}")
    separation = check_positive("separation", separation)
    condition = check_number("condition", condition, 1.0)
    spread = check_finite_number("spread", spread)
    generator = numpy_generator(key)

    def turn():
        return np.linalg.qr(generator.standard_normal((features, features)))[0]

    each = rows // components
    locations = separation / np.sqrt(2) * np.eye(components, features) @ turn()
    values, covariances = [], []
    for k, location in enumerate(locations):
        axes = turn()
        logs = generator.uniform(-0.5, 0.5, features) * np.log(condition)
        logs += spread * (k - (components - 1) / 2) - np.mean(logs)
        noise = generator.standard_normal((each, features))
        values.append(location + noise * np.exp(0.5 * logs) @ axes.T)
        covariances.append(axes * np.exp(logs) @ axes.T)
    labels = np.repeat(np.arange(components), each)
    return GaussianClusters(np.concatenate(values), labels, locations, np.stack(covariances))
