"""Orthogonal matching pursuit over blocks: a support that is a product set."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bayeskit.datasets.sparse import multiply_modes, outer_product


@dataclass(frozen=True)
class KroneckerOMPResult:
    coefficients: np.ndarray  # (N_1, …, N_I)
    support: tuple[np.ndarray, ...]  # an axis's selected atoms, in order
    iterations: int
    relative_residual: float
    seconds: float


def kronecker_omp(
    dictionaries: Sequence[np.ndarray],
    measurements: np.ndarray,
    *,
    max_atoms: int | Sequence[int] = 10,
    tolerance: float = 1e-2,
) -> KroneckerOMPResult:
    """N-way orthogonal matching pursuit, Caiafa and Cichocki, Neural Computation 25(1), 2013.

    The entry best correlated with the residual adds its index to the support of each axis, and
    all coefficients on the product set are refitted. Defaults are the stop rule of the authors of
    KroSBL in their comparisons: ten atoms an axis, or a relative residual of 1e-2. With
    ``max_atoms=(K_1, …, K_I)`` and ``tolerance=0`` it is the oracle that knows the sizes.

    Two things are in the method's favour here: correlations are normalised by the columns' norms,
    and an axis that is full restricts the search to the atoms it has, where the original stops.
    """
    start = time.perf_counter()
    axes = len(dictionaries)
    limits = (max_atoms,) * axes if isinstance(max_atoms, int) else tuple(max_atoms)
    limits = tuple(min(k, H.shape[1]) for k, H in zip(limits, dictionaries, strict=True))
    adjoints = [H.conj().T for H in dictionaries]
    norms = [np.linalg.norm(H, axis=0) for H in dictionaries]
    inverse_norms = outer_product(
        [np.divide(1.0, n, out=np.zeros_like(n), where=n > 0) for n in norms]
    )
    scale = float(np.linalg.norm(measurements))

    support: list[list[int]] = [[] for _ in range(axes)]
    block = np.zeros((0,) * axes)
    residual, relative, iterations = measurements, float(scale > 0), 0
    while relative > tolerance and any(len(s) < k for s, k in zip(support, limits, strict=True)):
        correlation = np.abs(multiply_modes(adjoints, residual)) * inverse_norms
        allowed = [
            s if len(s) == k else list(range(n))
            for s, k, n in zip(support, limits, correlation.shape, strict=True)
        ]
        candidates = correlation[np.ix_(*allowed)]
        best = np.unravel_index(np.argmax(candidates), candidates.shape)
        chosen = [choice[n] for choice, n in zip(allowed, best, strict=True)]
        if all(n in s for n, s in zip(chosen, support, strict=True)):  # only rounding is left
            break
        for axis, n in enumerate(chosen):
            if n not in support[axis]:
                support[axis].append(n)
        columns = [H[:, s] for H, s in zip(dictionaries, support, strict=True)]
        block = multiply_modes([np.linalg.pinv(c) for c in columns], measurements)
        residual = measurements - multiply_modes(columns, block)
        relative = float(np.linalg.norm(residual)) / scale
        iterations += 1

    coefficients = np.zeros(inverse_norms.shape, np.result_type(measurements, *dictionaries))
    if iterations:
        coefficients[np.ix_(*support)] = block
    return KroneckerOMPResult(
        coefficients=coefficients,
        support=tuple(np.array(s, dtype=int) for s in support),
        iterations=iterations,
        relative_residual=relative,
        seconds=time.perf_counter() - start,
    )
