"""Channel sounding through an intelligent reflecting surface (IRS), simulated.

Pattern k of the surface turns the two hops into the cascaded channel
``C_k = H_2 diag(θ_k) H_1`` (base × mobile), and the base station sees ``C_k X`` plus noise for
pilots X. With angles on a grid this is linear in a sparse tensor x with Kronecker dictionaries,

    y = (D_irs ⊗ D_mobile ⊗ D_base) x + noise,
    D_irs = Θᵀ (A_irs ∘ row 0 of its conjugate),  D_mobile = Xᵀ conj(A_mobile),  D_base = A_base,

because the surface enters only through the difference of its arrival and departure angles.
Source: He and Joseph, IEEE Transactions on Signal Processing, 2024 (arXiv:2307.14719), the section
on channel estimation, with the parameters of the authors' experiments.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Complex, Float

from bayeskit._random import numpy_generator
from bayeskit.datasets.sparse import (
    check_snr,
    gaussian,
    multiply_modes,
    noise_variance_of,
    outer_product,
)
from bayeskit.validation import check_integer, check_number, double_array

# Below this Frobenius norm a pattern has steered all power away from the base station.
_WEAKEST_CHANNEL = 1e-5
_MAX_REDRAWS = 1000


@dataclass(frozen=True)
class IRSChannelSounding:
    """Measurements of an IRS-assisted channel, with the truth.

    Attributes
    ----------
    dictionaries : tuple of three complex arrays
        In order: surface (patterns, grid), mobile (pilots, grid), base (base_antennas, grid).
    measurements : complex array (patterns, pilots, base_antennas)
    noise_variance : float
        E|n|² of one measurement.
    coefficients : complex array (grid, grid, grid) or None
        The sparse truth; ``None`` where the angles lie off the grid, for then there is none.
    channels : complex array (patterns, base_antennas, mobile_antennas)
        True cascaded channels.
    channel_factors : tuple of three complex arrays
        The dictionaries before pilots are sent: surface (patterns, grid), mobile
        (mobile_antennas, grid), base (base_antennas, grid).
    """

    dictionaries: tuple[Complex[np.ndarray, "_ grid"], ...] = field(repr=False)
    measurements: Complex[np.ndarray, "patterns pilots base"] = field(repr=False)
    noise_variance: float
    coefficients: Complex[np.ndarray, "grid grid grid"] | None = field(repr=False)
    channels: Complex[np.ndarray, "patterns base mobile"] = field(repr=False)
    channel_factors: tuple[Complex[np.ndarray, "_ grid"], ...] = field(repr=False)

    def channel_estimate(self, coefficients: Any) -> Complex[np.ndarray, "..."]:
        """Cascaded channels that given coefficients stand for.

        Parameters
        ----------
        coefficients : array (*batch, grid, grid, grid)
            An estimate, or draws from a posterior.

        Returns
        -------
        complex array (*batch, patterns, base_antennas, mobile_antennas)

        Raises
        ------
        TypeError
            If they are no numbers.
        ValueError
            If the last three axes are not the grid, or an entry is masked or not finite.
        """
        coefficients = double_array("coefficients", coefficients).astype(complex)
        expected = tuple(factor.shape[1] for factor in self.channel_factors)
        if coefficients.shape[-3:] != expected:
            raise ValueError(
                f"coefficients: got shape {coefficients.shape}; expected (..., "
                f"{', '.join(map(str, expected))}), the angle grids of surface, mobile and base"
            )
        return np.swapaxes(multiply_modes(self.channel_factors, coefficients), -1, -2)


def irs_mimo(
    key: Any,
    *,
    mobile_antennas: int = 6,
    base_antennas: int = 16,
    irs_elements: int = 256,
    grid: int = 18,
    pilots: int = 3,
    patterns: int = 6,
    spread: int = 3,
    snr_db: float = 12.0,
    offset: float = 0.0,
    sounding_key: Any = None,
) -> IRSChannelSounding:
    """Simulate uplink sounding of a MIMO channel through a reflecting surface.

    All arrays are linear with half-wavelength spacing; the angle grid is uniform in the cosine,
    ``2 r / grid − 1``. Departures (mobile, surface) are single angles, arrivals (surface, base)
    are ``spread`` neighbouring ones with circular Gaussian gains. Pilots are QPSK, surface
    patterns random signs.

    Parameters
    ----------
    key : int or JAX key
    mobile_antennas, base_antennas, irs_elements : int
        Sizes of the three arrays.
    grid : int
        Angles in each dictionary.
    pilots : int
        Pilot vectors sent for each pattern.
    patterns : int
        Patterns of the surface.
    spread : int
        Neighbouring angles of arrival, at most ``grid``.
    snr_db : float
        Mean |signal|² over the noise variance, in decibels; ``inf`` for no noise.
    offset : float
        Distance of the true angles from the grid, in bins: 0 on the grid, ½ midway. Only the
        difference of the surface's two angles can be told from the measurements, so the arrival
        carries the offset and the departure stays: every identifiable angle is off by the same.
    sounding_key : int or JAX key, optional
        Draws pilots and patterns instead of ``key``, so that many channels share dictionaries,
        as fitting them in one batch needs.

    Returns
    -------
    IRSChannelSounding
        complex128.

    Raises
    ------
    TypeError
        If a size is no integer, or ``snr_db`` or ``offset`` no number.
    ValueError
        If a size is below one, ``spread`` exceeds the grid, ``offset`` is not finite, or the
        noise variance of ``snr_db`` is not positive and finite.

    Notes
    -----
    A pattern which blocks the channel (Frobenius norm below 1e-5) is drawn again, as in the
    authors' experiments; under a ``sounding_key`` the channel is drawn again instead.

    Examples
    --------
    >>> problem = irs_mimo(0)
    >>> problem.measurements.shape, problem.coefficients.shape
    ((6, 3, 16), (18, 18, 18))
    >>> int((problem.coefficients != 0).sum())
    9
    >>> bool(np.allclose(problem.channel_estimate(problem.coefficients), problem.channels))
    True
    """
    sizes = {
        "mobile_antennas": mobile_antennas,
        "base_antennas": base_antennas,
        "irs_elements": irs_elements,
        "grid": grid,
        "pilots": pilots,
        "patterns": patterns,
        "spread": spread,
    }
    for name, size in sizes.items():
        check_integer(name, size, 1)
    if spread > grid:
        raise ValueError(f"spread: got {spread}; expected at most grid={grid}")
    offset = check_number("offset", offset, -np.finfo(np.float64).max)
    snr_db = check_snr(snr_db)

    sounding_rng, channel_rng = numpy_generator(key).spawn(2)
    if sounding_key is not None:
        sounding_rng = numpy_generator(sounding_key).spawn(2)[0]
    pilot_matrix = _qpsk(sounding_rng, (mobile_antennas, pilots)) / math.sqrt(mobile_antennas)
    signs = _signs(sounding_rng, (irs_elements, patterns)) / math.sqrt(irs_elements)

    for _ in range(_MAX_REDRAWS):
        paths = _draw_paths(channel_rng, grid, spread)
        to_surface, to_base = _hops(
            paths, mobile_antennas, base_antennas, irs_elements, grid, offset
        )
        channels = _cascade(to_base, signs, to_surface)
        blocked = np.linalg.norm(channels, axis=(1, 2)) < _WEAKEST_CHANNEL
        if blocked.any() and sounding_key is None:
            signs[:, blocked] = _signs(sounding_rng, (irs_elements, int(blocked.sum())))
            signs[:, blocked] /= math.sqrt(irs_elements)
            channels = _cascade(to_base, signs, to_surface)
            blocked = np.linalg.norm(channels, axis=(1, 2)) < _WEAKEST_CHANNEL
        if not blocked.any():
            break
    else:
        raise ValueError(
            f"irs_elements: with {irs_elements} no channel was found in {_MAX_REDRAWS} draws that "
            "all patterns let through; expected more elements"
        )

    factors, coefficients = _grid_model(
        paths, signs, mobile_antennas, base_antennas, irs_elements, grid
    )
    dictionaries = (factors[0], pilot_matrix.T @ factors[1], factors[2])
    clean = np.swapaxes(channels @ pilot_matrix, 1, 2)
    noise_variance = noise_variance_of(clean, snr_db)
    noise = gaussian(channel_rng, clean.shape, complex=True)
    return IRSChannelSounding(
        dictionaries=dictionaries,
        measurements=clean + math.sqrt(noise_variance) * noise,
        noise_variance=noise_variance,
        coefficients=coefficients if offset == 0 else None,
        channels=channels,
        channel_factors=factors,
    )


@dataclass(frozen=True)
class _Paths:
    """Grid indices of the angles, and complex gains of the arrivals."""

    mobile_departure: int
    surface_departure: int
    surface_arrivals: np.ndarray
    base_arrivals: np.ndarray
    surface_gains: np.ndarray
    base_gains: np.ndarray


def _draw_paths(rng, grid, spread):
    return _Paths(
        mobile_departure=int(rng.integers(grid)),
        surface_departure=int(rng.integers(grid)),
        surface_arrivals=int(rng.integers(grid - spread + 1)) + np.arange(spread),
        base_arrivals=int(rng.integers(grid - spread + 1)) + np.arange(spread),
        surface_gains=gaussian(rng, (spread,), complex=True),
        base_gains=gaussian(rng, (spread,), complex=True),
    )


def _hops(paths, mobile_antennas, base_antennas, irs_elements, grid, offset):
    spread = len(paths.surface_gains)
    departure = _steering(irs_elements, paths.surface_departure, grid)
    arrivals = _steering(base_antennas, paths.base_arrivals + offset, grid) @ paths.base_gains
    to_base = math.sqrt(base_antennas * irs_elements / spread) * np.outer(
        arrivals, departure.conj()
    )
    departure = _steering(mobile_antennas, paths.mobile_departure + offset, grid)
    arrivals = _steering(irs_elements, paths.surface_arrivals + offset, grid) @ paths.surface_gains
    to_surface = math.sqrt(mobile_antennas * irs_elements / spread) * np.outer(
        arrivals, departure.conj()
    )
    return to_surface, to_base


def _cascade(to_base, signs, to_surface):
    """``H_2 diag(θ_k) H_1`` for each pattern k, (patterns, base, mobile)."""
    return (to_base * signs.T[:, None, :]) @ to_surface


def _grid_model(paths, signs, mobile_antennas, base_antennas, irs_elements, grid):
    angles = np.arange(grid)
    surface = _steering(irs_elements, angles, grid)
    # The response to an arrival i and a departure j has phase increments 2π(i − j)/grid, so all
    # pairs of equal difference share a column: those with departure 0 are enough.
    surface = surface * surface[:, :1].conj()
    factors = (
        signs.T @ surface,
        _steering(mobile_antennas, angles, grid).conj(),
        _steering(base_antennas, angles, grid),
    )
    spread = len(paths.surface_gains)
    gains = [np.zeros(grid, complex) for _ in range(3)]
    gains[0][(paths.surface_arrivals - paths.surface_departure) % grid] = paths.surface_gains
    gains[1][paths.mobile_departure] = 1.0
    gains[2][paths.base_arrivals] = paths.base_gains
    power = math.sqrt(mobile_antennas * base_antennas) * irs_elements / spread
    return factors, power * outer_product(gains)


def _steering(antennas: int, angle: Any, grid: int) -> Complex[np.ndarray, "antennas ..."]:
    """Unit-norm responses of a half-wavelength linear array to angles given in grid bins."""
    cosine = 2 * np.asarray(angle, dtype=float) / grid - 1
    return np.exp(1j * np.pi * np.multiply.outer(np.arange(antennas), cosine)) / math.sqrt(antennas)


def _qpsk(rng, size) -> Complex[np.ndarray, "..."]:
    return (_signs(rng, size) + 1j * _signs(rng, size)) / math.sqrt(2)


def _signs(rng, size) -> Float[np.ndarray, "..."]:
    return 2.0 * rng.integers(0, 2, size) - 1.0
