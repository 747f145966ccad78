"""Orthogonal matching pursuit over single atoms of a Kronecker dictionary."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from bayeskit.datasets.sparse import multiply_modes, outer_product


@dataclass(frozen=True)
class OMPResult:
    coefficients: np.ndarray  # (N_1, …, N_I)
    support: np.ndarray  # (iterations, I), in order of selection
    iterations: int
    residual_norm: float
    converged: bool  # whether the residual reached the noise level before max_atoms
    seconds: float


def omp(
    dictionaries: Sequence[np.ndarray],
    measurements: np.ndarray,
    *,
    noise_variance: float,
    max_atoms: int = 400,
) -> OMPResult:
    """Add the atom most correlated with the residual, refit by least squares, repeat.

    Pati, Rezaiifar and Krishnaprasad, Asilomar 1993. It stops when the squared residual is no
    larger than the noise expected, ``noise_variance`` times the number of measurements.

    The whole dictionary is never formed: correlations are Kronecker products (``O(Σ_i N ∏ M/N)``),
    normalised by the columns' norms, and the fit is updated by Gram–Schmidt (``O(M k)`` for the
    k-th atom), which is how OMP is made fast on large problems.
    """
    start = time.perf_counter()
    dtype = np.result_type(measurements, *dictionaries, np.float64)
    adjoints = [H.conj().T for H in dictionaries]
    norms = outer_product([np.linalg.norm(H, axis=0) for H in dictionaries])
    inverse_norms = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    max_atoms = min(max_atoms, measurements.size, norms.size)
    threshold = np.sqrt(noise_variance * measurements.size)

    residual = measurements.astype(dtype).ravel()
    basis = np.empty((measurements.size, max_atoms), dtype, order="F")
    triangle = np.zeros((max_atoms, max_atoms), dtype)
    support: list[tuple[int, ...]] = []
    norm = float(np.linalg.norm(residual))
    while norm > threshold and len(support) < max_atoms:
        correlation = np.abs(multiply_modes(adjoints, residual.reshape(measurements.shape)))
        best = np.unravel_index(np.argmax(correlation * inverse_norms), norms.shape)
        atom = tuple(int(n) for n in best)
        if atom in support:  # only rounding is left
            break
        k = len(support)
        column = outer_product([H[:, n] for H, n in zip(dictionaries, atom, strict=True)])
        column = column.ravel().astype(dtype)
        length = np.linalg.norm(column)
        for _ in range(2):  # a second pass makes Gram–Schmidt orthogonal to rounding
            projection = basis[:, :k].conj().T @ column
            column -= basis[:, :k] @ projection
            triangle[:k, k] += projection
        triangle[k, k] = np.linalg.norm(column)
        if triangle[k, k].real <= 1e-12 * length:  # in the span of what is there already
            break
        basis[:, k] = column / triangle[k, k]
        support.append(atom)
        residual = residual - basis[:, k] * np.vdot(basis[:, k], residual)
        norm = float(np.linalg.norm(residual))

    k = len(support)
    coefficients = np.zeros(norms.shape, dtype)
    if k:
        target = basis[:, :k].conj().T @ measurements.ravel()
        values = scipy.linalg.solve_triangular(triangle[:k, :k], target)
        coefficients[tuple(np.transpose(support))] = values
    return OMPResult(
        coefficients=coefficients,
        support=np.array(support, dtype=int).reshape(k, norms.ndim),
        iterations=k,
        residual_norm=norm,
        converged=norm <= threshold,
        seconds=time.perf_counter() - start,
    )
