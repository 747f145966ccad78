"""Clustering by any affinity or distance: the semidefinite program of k-means on a given matrix."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.models.gaussian_mixture import lifted
from bayeskit.models.gaussian_mixture.affinity import MatrixAffinity
from bayeskit.models.gaussian_mixture.lifted import Certificate
from bayeskit.precision import as_key, double_precision, refuse_transformation
from bayeskit.validation import check_integer, check_number, double_array

_FEWEST = 3


class MatrixClustering(NamedTuple):
    """A clustering of the rows of a matrix.

    Attributes
    ----------
    labels : numpy.ndarray (n,)
        In the order of falling size.
    certificate : Certificate
        Its objective, and a bound that no clustering into as many parts can pass.
    """

    labels: Any
    certificate: Certificate


class _Budget(eqx.Module):
    """What solvers are told."""

    solver_iterations: Any
    solver_tolerance: Any


def cluster_affinity(
    affinity, num_clusters, *, solver_iterations=1000, solver_tolerance=1e-4, key=0
) -> MatrixClustering:
    r"""Cluster by a matrix of affinities, with a certificate.

    .. math::
        \max_{G_1, \dots, G_K} \sum_k \frac{1}{|G_k|} \sum_{i, j \in G_k} A_{ij}

    Parameters
    ----------
    affinity : array (n, n)
        Symmetric; larger is closer, negative numbers are welcome. The Gram matrix of centred rows
        gives k-means.
    num_clusters : int
        K.
    solver_iterations, solver_tolerance
        As for :class:`~bayeskit.inference.SemidefiniteProgram`.
    key : int or JAX key
        Of the random starts of solver and rounding.

    Returns
    -------
    MatrixClustering

    Raises
    ------
    TypeError, ValueError
        If the matrix is not real, square, symmetric and finite, has fewer than three rows, or fewer
        than clusters.

    Notes
    -----
    A step costs O(n² K) on factors, and O(n³) where the bound is made tight, up to 1000 rows; of
    more, the bound is that of the multipliers that follow from the factors. J. Peng and Y. Wei,
    "Approximating k-means-type clustering via semidefinite programming", SIAM Journal on
    Optimization, 2007.

    Examples
    --------
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> affinity = np.kron(np.eye(2), np.ones((4, 4)))
    >>> found = bk.models.cluster_affinity(affinity, 2)
    >>> found.labels.tolist(), round(found.certificate.primal, 6)
    ([0, 0, 0, 0, 1, 1, 1, 1], 8.0)
    """
    refuse_transformation("cluster_affinity", affinity)
    return _clustered(
        "affinity", affinity, 1.0, num_clusters, solver_iterations, solver_tolerance, key
    )


def cluster_distances(
    squared_distances, num_clusters, *, solver_iterations=1000, solver_tolerance=1e-4, key=0
) -> MatrixClustering:
    r"""Cluster by a matrix of squared distances of any kind, with a certificate.

    .. math::
        \min_{G_1, \dots, G_K} \sum_k \frac{1}{2 |G_k|} \sum_{i, j \in G_k} D_{ij}

    which is the sum of squares of k-means where distances are Euclidean; the certificate has the
    negative of it.

    Parameters
    ----------
    squared_distances : array (n, n)
        Symmetric and not negative.
    num_clusters, solver_iterations, solver_tolerance, key
        As for :func:`cluster_affinity`.

    Returns
    -------
    MatrixClustering

    Raises
    ------
    TypeError, ValueError
        As :func:`cluster_affinity`, and if an entry is negative.

    Examples
    --------
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> points = np.array([0.0, 1.0, 9.0, 10.0])
    >>> found = bk.models.cluster_distances((points[:, None] - points) ** 2, 2)
    >>> round(found.certificate.primal, 6), round(found.certificate.dual_bound, 6)
    (-1.0, -1.0)
    """
    refuse_transformation("cluster_distances", squared_distances)
    name = "squared_distances"
    matrix = double_array(name, squared_distances, "iuf")
    if (matrix < 0).any():
        first = tuple(int(i) for i in np.argwhere(matrix < 0)[0])
        raise ValueError(f"{name} must not be negative, got {matrix[first]} at index {first}")
    return _clustered(name, matrix, -0.5, num_clusters, solver_iterations, solver_tolerance, key)


def _clustered(name, matrix, factor, num_clusters, iterations, tolerance, key):
    matrix = double_array(name, matrix, "iuf")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < _FEWEST:
        raise ValueError(
            f"{name} must have the shape (n, n), n at least {_FEWEST}, got {matrix.shape}"
        )
    uneven = ~np.isclose(matrix, matrix.T, rtol=1e-8, atol=1e-8 * np.max(np.abs(matrix)))
    if uneven.any():
        first = tuple(int(i) for i in np.argwhere(uneven)[0])
        raise ValueError(f"{name} must be symmetric; entry {first} and its mirror image differ")
    count = check_integer("num_clusters", num_clusters, 1)
    if count > len(matrix):
        raise ValueError(f"num_clusters must be at most {len(matrix)}, the rows, got {count}")
    budget = (
        check_integer("solver_iterations", iterations, 1),
        check_number("solver_tolerance", tolerance, 0.0),
    )
    with double_precision():
        key = as_key(key, "starts are random")
        steps, least = map(jnp.asarray, budget)
        affinity = jnp.asarray(0.5 * factor * (matrix + matrix.T))
        found, share = _solved(affinity, steps, least, count, key)
        share = np.asarray(share)
    order = np.argsort(-share.sum(axis=0), kind="stable")
    certificate = Certificate(*(float(value) for value in found))
    return MatrixClustering(np.argmax(share[:, order], axis=1), certificate)


@eqx.filter_jit
def _solved(matrix, iterations, tolerance, count, key):
    affinity = MatrixAffinity(matrix[None])
    first = jnp.arange(len(matrix)) % count
    share = jax.nn.one_hot(first, count, dtype=matrix.dtype)
    return lifted.certificate(affinity, share, count, True, _Budget(iterations, tolerance), key)
