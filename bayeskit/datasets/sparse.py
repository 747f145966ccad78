"""Synthetic sparse recovery with Kronecker-structured dictionaries and support."""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Inexact, Int

from bayeskit._random import numpy_generator
from bayeskit.validation import check_integer, check_number

# Powers of ten beyond this many decibels are no normal numbers.
_MOST_DECIBELS = 3000.0


@dataclass(frozen=True)
class KroneckerSparse:
    """A sparse recovery problem ``y = (H_1 ⊗ … ⊗ H_I) x + noise`` with known truth.

    Attributes
    ----------
    dictionaries : tuple of arrays (M_i, N_i)
    coefficients : array (N_1, …, N_I)
        The truth: zero outside ``support``.
    measurements : array (M_1, …, M_I)
    noise_variance : float
        Variance of one measurement's noise; E|n|² where complex.
    support : tuple of integer arrays (K_i,)
        Sorted indices, one array an axis; the non-zeros are their product set.
    """

    dictionaries: tuple[Inexact[np.ndarray, "_ _"], ...] = field(repr=False)
    coefficients: Inexact[np.ndarray, "..."] = field(repr=False)
    measurements: Inexact[np.ndarray, "..."] = field(repr=False)
    noise_variance: float
    support: tuple[Int[np.ndarray, " _"], ...]

    def oracle(self) -> Inexact[np.ndarray, "..."]:
        """Estimate the coefficients by least squares on the true support.

        The error that no method ignorant of the support is expected to beat by much. The
        pseudo-inverse of a Kronecker product is the Kronecker product of the pseudo-inverses, so
        it costs one small pseudo-inverse an axis.

        Returns
        -------
        array (N_1, …, N_I)
        """
        columns = [
            matrix[:, index] for matrix, index in zip(self.dictionaries, self.support, strict=True)
        ]
        estimate = np.zeros_like(self.coefficients)
        estimate[np.ix_(*self.support)] = multiply_modes(
            [np.linalg.pinv(matrix) for matrix in columns], self.measurements
        )
        return estimate


def kronecker_sparse(
    key: Any,
    *,
    shape: Sequence[int] = (8, 12, 15),
    atoms: Sequence[int] = (15, 15, 15),
    nonzeros: Sequence[int] = (3, 3, 3),
    snr_db: float = 25.0,
    rank_one: bool = False,
    complex: bool = False,
) -> KroneckerSparse:
    """Simulate the synthetic experiment of the Kronecker sparse Bayesian learning paper.

    Dictionaries have independent standard Gaussian entries, and their columns are not normalised.
    Each axis draws its own support of ``nonzeros[i]`` atoms, so the non-zeros form a block of
    ``∏ nonzeros`` entries. Complex quantities are circular with unit E|·|².

    Parameters
    ----------
    key : int or JAX key
    shape : sequence of int
        Numbers of measurements M_i, one an axis.
    atoms : sequence of int
        Numbers of atoms N_i.
    nonzeros : sequence of int
        Numbers of atoms in the support, at most ``atoms``.
    snr_db : float
        Signal-to-noise ratio in decibels: mean |Hx|² over the noise variance. ``inf`` gives
        noiseless measurements.
    rank_one : bool
        Whether the coefficients are an outer product of Gaussian vectors, as in the paper's main
        figures, or independent Gaussians on the same support, as in its convergence figure.
    complex : bool

    Returns
    -------
    KroneckerSparse
        float64 or complex128.

    Raises
    ------
    TypeError
        If sizes are no sequences of integers, or ``snr_db`` is no number.
    ValueError
        If lengths differ, a size is below one, a support exceeds its dictionary, or the noise
        variance of ``snr_db`` is not positive and finite.

    References
    ----------
    He and Joseph, "Bayesian Algorithms for Kronecker-structured Sparse Vector Recovery With
    Application to IRS-MIMO Channel Estimation", IEEE Transactions on Signal Processing, 2024
    (arXiv:2307.14719), section on synthetic data.

    Examples
    --------
    >>> problem = kronecker_sparse(0, shape=(4, 5), atoms=(6, 7), nonzeros=(2, 1))
    >>> problem.measurements.shape, problem.coefficients.shape
    ((4, 5), (6, 7))
    >>> int((problem.coefficients != 0).sum())
    2
    """
    shape, atoms, nonzeros = _checked_sizes(shape, atoms, nonzeros)
    snr_db = check_snr(snr_db)
    rng = numpy_generator(key)
    draw = functools.partial(gaussian, rng, complex=complex)

    dictionaries = tuple(draw(size) for size in zip(shape, atoms, strict=True))
    support = tuple(
        np.sort(rng.choice(n, k, replace=False)) for n, k in zip(atoms, nonzeros, strict=True)
    )
    block = outer_product([draw((k,)) for k in nonzeros]) if rank_one else draw(nonzeros)
    coefficients = np.zeros(atoms, block.dtype)
    coefficients[np.ix_(*support)] = block

    clean = multiply_modes(dictionaries, coefficients)
    noise_variance = noise_variance_of(clean, snr_db)
    measurements = clean + math.sqrt(noise_variance) * draw(shape)
    return KroneckerSparse(dictionaries, coefficients, measurements, noise_variance, support)


def _checked_sizes(shape, atoms, nonzeros):
    shape, atoms, nonzeros = (
        _integers(name, sizes)
        for name, sizes in (("shape", shape), ("atoms", atoms), ("nonzeros", nonzeros))
    )
    if not shape:
        raise ValueError("shape: got no axis; expected at least one")
    for name, sizes in (("atoms", atoms), ("nonzeros", nonzeros)):
        if len(sizes) != len(shape):
            raise ValueError(
                f"{name}: got {len(sizes)} numbers {sizes}; expected {len(shape)}, one for each "
                f"axis of shape={shape}"
            )
    if any(k > n for k, n in zip(nonzeros, atoms, strict=True)):
        raise ValueError(f"nonzeros: got {nonzeros}; expected at most atoms={atoms} on each axis")
    return shape, atoms, nonzeros


def _integers(name, sizes):
    if not isinstance(sizes, Iterable):
        raise TypeError(f"{name} must be a sequence of integers, one for each axis, got {sizes!r}")
    return tuple(check_integer(f"{name}[{axis}]", size, 1) for axis, size in enumerate(sizes))


def noise_variance_of(clean: Inexact[np.ndarray, "..."], snr_db: float) -> float:
    """Variance that puts ``clean`` at the given ratio of mean power to noise, in decibels."""
    if snr_db == math.inf:
        return 0.0
    with np.errstate(over="ignore", under="ignore"):
        power = np.mean(np.abs(clean) ** 2)
        variance = float(power / 10 ** (snr_db / 10))
    if not 0 < variance < math.inf:
        raise ValueError(
            f"snr_db must give a positive finite noise variance, got {snr_db} for measurements of "
            f"mean square {power:.3g}"
        )
    return variance


def gaussian(
    rng: np.random.Generator, size: Sequence[int], *, complex: bool
) -> Inexact[np.ndarray, "..."]:
    """Draw independent Gaussians with E|·|² = 1, real or circular complex."""
    size = tuple(size)
    if not complex:
        return rng.standard_normal(size)
    return (rng.standard_normal(size) + 1j * rng.standard_normal(size)) / math.sqrt(2)


def multiply_modes(
    factors: Sequence[Inexact[np.ndarray, "_ _"]], tensor: Inexact[np.ndarray, "..."]
) -> Inexact[np.ndarray, "..."]:
    """Apply ``factors[0] ⊗ … ⊗ factors[-1]`` (row-major) to the last axes of a NumPy tensor."""
    for axis, factor in enumerate(factors, start=tensor.ndim - len(factors)):
        tensor = np.moveaxis(np.tensordot(factor, tensor, axes=(1, axis)), 0, axis)
    return tensor


def outer_product(vectors: Sequence[Inexact[np.ndarray, " _"]]) -> Inexact[np.ndarray, "..."]:
    """Outer product of vectors, one for each axis of the result."""
    return functools.reduce(np.multiply.outer, vectors)


def check_snr(snr_db: Any) -> float:
    """A signal-to-noise ratio in decibels; ``inf`` is that of no noise."""
    if isinstance(snr_db, float | np.floating) and snr_db == math.inf:
        return math.inf
    return check_number("snr_db", snr_db, -_MOST_DECIBELS, _MOST_DECIBELS)
