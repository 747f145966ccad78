"""Sparse Bayesian learning with one scale for each coefficient, on a dense dictionary."""

import time
from dataclasses import dataclass

import numpy as np
import scipy.linalg


@dataclass(frozen=True)
class ClassicSBLResult:
    coefficients: np.ndarray  # (N,), posterior mean
    variance: np.ndarray  # (N,), posterior variance; zero where pruned
    scales: np.ndarray  # (N,), zero where pruned
    noise_variance: float
    objective: np.ndarray  # log evidence before each update
    iterations: int
    converged: bool
    seconds: float


def classic_sbl(
    dictionary: np.ndarray,
    measurements: np.ndarray,
    *,
    noise_variance: float | None = None,
    max_iterations: int = 150,
    tolerance: float = 1e-4,
    prune: float = 1e-3,
) -> ClassicSBLResult:
    """Expectation–maximisation for ``y = H x + n``, ``x ~ N or CN(0, diag γ)``.

    Tipping, JMLR 1, 2001; Wipf and Rao, IEEE TSP 52(8), 2004. Updates: ``γ_n ← |μ_n|² + Σ_nn``;
    a noise variance of ``None`` is learned from ``‖y − Hμ‖² + σ² Σ_n (1 − Σ_nn/γ_n)``, starting
    at a tenth of the measurements' variance. Scales start at one; those below ``prune`` times the
    largest are removed with their columns. It stops when γ changes by less than ``tolerance``,
    relatively. These are the settings of the authors of KroSBL for this baseline.

    Each E-step takes the cheaper of two Cholesky forms: in the space of the M measurements,
    ``O(M² N)``, or, once fewer than M atoms are left, in that of the N atoms, ``O(N³ / 3 + N²)``
    with the Gram matrix computed once. Memory ``O(M N + N²)``.
    """
    start = time.perf_counter()
    size, atoms = dictionary.shape
    learn_noise = noise_variance is None
    variance = 0.1 * float(np.var(measurements)) if noise_variance is None else noise_variance
    active, columns, gram = np.arange(atoms), dictionary, None
    scales, full = np.ones(atoms), np.ones(atoms)
    objective: list[float] = []
    converged = False
    for _ in range(max_iterations):
        kept = scales > prune * scales.max()
        if not kept.all():
            scales, active, columns = scales[kept], active[kept], columns[:, kept]
            gram = None if gram is None else gram[np.ix_(kept, kept)]
        if gram is None and len(active) < size:
            gram = columns.conj().T @ columns
        mean, ratio, log_evidence = _e_step(columns, gram, scales, measurements, variance)
        objective.append(log_evidence)
        if learn_noise:
            residual = np.linalg.norm(measurements - columns @ mean) ** 2
            variance = float(residual + variance * np.sum(1 - ratio)) / size
        scales = np.abs(mean) ** 2 + scales * ratio
        previous, full = full, np.zeros(atoms)
        full[active] = scales
        if np.linalg.norm(full - previous) <= tolerance * np.linalg.norm(previous):
            converged = True
            break
    mean, ratio, _ = _e_step(columns, gram, scales, measurements, variance)
    coefficients, posterior_variance = np.zeros(atoms, mean.dtype), np.zeros(atoms)
    coefficients[active], posterior_variance[active] = mean, scales * ratio
    return ClassicSBLResult(
        coefficients=coefficients,
        variance=posterior_variance,
        scales=full,
        noise_variance=variance,
        objective=np.array(objective),
        iterations=len(objective),
        converged=converged,
        seconds=time.perf_counter() - start,
    )


def _e_step(columns, gram, scales, measurements, variance):
    """Posterior mean, ratio of posterior to prior variance, log evidence."""
    if gram is not None:
        return _in_atom_space(columns, gram, scales, measurements, variance)
    return _in_measurement_space(columns, scales, measurements, variance)


def _in_measurement_space(columns, scales, measurements, variance):
    # Σ_y = H Γ Hᴴ + σ² I = C Cᴴ;  μ = Γ Hᴴ Σ_y⁻¹ y;  Σ_nn = γ_n − γ_n² ‖C⁻¹ h_n‖².
    whitened = columns * np.sqrt(scales)
    covariance = whitened @ whitened.conj().T
    covariance[np.diag_indices_from(covariance)] += variance
    factor = scipy.linalg.cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
    solved = _solve(factor, np.column_stack([whitened, measurements]))
    solved, target = solved[:, :-1], solved[:, -1]
    mean = np.sqrt(scales) * (solved.conj().T @ target)
    ratio = np.maximum(1 - np.sum(np.abs(solved) ** 2, axis=0), 0.0)
    log_determinant = 2 * np.sum(np.log(factor.diagonal().real))
    quadratic = np.vdot(target, target).real
    return mean, ratio, _log_density(mean, len(measurements), log_determinant, quadratic)


def _in_atom_space(columns, gram, scales, measurements, variance):
    # B = I + Γ^½ HᴴH Γ^½ / σ² = C Cᴴ;  Σ_x = Γ^½ B⁻¹ Γ^½;  log|Σ_y| = M log σ² + log|B|.
    root = np.sqrt(scales)
    precision = root[:, None] * gram * root / variance
    precision[np.diag_indices_from(precision)] += 1
    factor = scipy.linalg.cholesky(precision, lower=True, overwrite_a=True, check_finite=False)
    target = root * (columns.conj().T @ measurements) / variance
    whitened_mean = scipy.linalg.cho_solve((factor, True), target, check_finite=False)
    (invert,) = scipy.linalg.get_lapack_funcs(("trtri",), (factor,))
    inverse, info = invert(factor, lower=True)
    if info:
        raise np.linalg.LinAlgError("a scale or the noise variance is out of range")
    mean = root * whitened_mean
    ratio = np.sum(np.abs(inverse) ** 2, axis=0)
    # yᴴ Σ_y⁻¹ y as a sum of two positive terms: nothing cancels.
    residual = np.linalg.norm(measurements - columns @ mean) ** 2 / variance
    quadratic = residual + np.linalg.norm(whitened_mean) ** 2
    log_determinant = len(measurements) * np.log(variance)
    log_determinant += 2 * np.sum(np.log(factor.diagonal().real))
    return mean, ratio, _log_density(mean, len(measurements), log_determinant, quadratic)


def _solve(factor, right):
    return scipy.linalg.solve_triangular(
        factor, right, lower=True, overwrite_b=True, check_finite=False
    )


def _log_density(mean, size, log_determinant, quadratic):
    if np.iscomplexobj(mean):
        return float(-(size * np.log(np.pi) + log_determinant + quadratic))
    return float(-0.5 * (size * np.log(2 * np.pi) + log_determinant + quadratic))
