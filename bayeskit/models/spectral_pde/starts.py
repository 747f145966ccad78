"""Where learning the spectrum begins: sizes of field and equation, peaks of the source's spectrum.

Of the source's Fourier transform, divided by the symbol of the equation with its coefficients'
means: what the solution would be far from the boundary. Nothing of it is more than a start.
"""

from typing import Any, NamedTuple

import numpy as np

_CLEAR = 30.0  # times the median power of a source: more than a peak of white noise has
_CLEAR_SHARE = 1e-4  # of the largest power: what the highest frequency has at least
_SHARE = 0.5  # of the components, at most, that begin at peaks
_FAINT = 1e-4  # share of the power at which the others begin
_WIDTH = 0.5  # of peaks, in cycles per box
_REACH = 3  # bins that a peak under a Hann window takes


class Units(NamedTuple):
    """Typical sizes: of the field, and of the equation's terms."""

    field: Any
    equation: Any


class Peaks(NamedTuple):
    """Components at the start in one dimension: arrays (Q,).

    Attributes
    ----------
    shares : array
        Of the field's power.
    frequencies, widths : arrays
        In cycles per box.
    """

    shares: Any
    frequencies: Any
    widths: Any


def taken_up(kernel, source, by_value, orders, axes, given, highest):
    """Units, peaks for every dimension, and the highest clear frequency as a share of Nyquist's.

    Parameters
    ----------
    source : array (N_1, …, N_d) or None
        On a uniform grid; ``None`` where it is undefined.
    by_value : array (derivatives, points)
        Coefficients of the equation.
    orders : tuple of tuples
    given : array
        Known values of the field.
    highest : sequence of float
        Frequency at which the spectrum ends in every dimension, in cycles per box.
    """
    known = float(np.sqrt(np.mean(given**2))) if given.size else 0.0
    means = [float(np.mean(each)) if np.all(np.isfinite(each)) else 0.0 for each in by_value]
    lengths = [axis.length for axis in axes]
    field = _field_spectrum(source, means, orders, lengths)
    unit = max(known, float(np.sqrt(np.sum(np.abs(field) ** 2)))) or 1.0
    slow = [
        abs(mean) / float(np.prod([length**k for length, k in zip(lengths, each, strict=True)]))
        for mean, each in zip(means, orders, strict=True)
    ]
    size = 0.0 if source is None else float(np.sqrt(np.mean(source**2)))
    units = Units(unit, max(size, unit * max(slow)) or 1.0)
    peaks = tuple(_peaks(kernel, source, field, k, highest[k]) for k in range(len(axes)))
    return units, peaks, _highest_share(source)


def _highest_share(source):
    """Largest clear frequency of a source in any dimension, over what its points resolve."""
    if source is None:
        return 0.0
    shares = [0.0]
    for k, count in enumerate(source.shape):
        power = _power(source, k)
        clear = np.flatnonzero(power > _CLEAR_SHARE * np.max(power)) if np.any(power) else []
        if len(clear):
            shares.append(clear[-1] / (0.5 * (count - 1)))
    return float(max(shares))


def _power(source, k):
    """Power of a source (bins,) at the frequencies of dimension ``k``, under a Hann window."""
    others = tuple(j for j in range(source.ndim) if j != k)
    shape = [1] * source.ndim
    shape[k] = source.shape[k]
    windowed = source * np.hanning(source.shape[k]).reshape(shape)
    return np.sum(np.abs(np.fft.fft(windowed, axis=k)) ** 2, axis=others)[: source.shape[k] // 2]


def _field_spectrum(source, means, orders, lengths):
    """Fourier coefficients of the field, as far as source and symbol tell; zero at zero."""
    if source is None:
        return np.zeros([1] * len(lengths))
    window = np.ones_like(source)
    for k, count in enumerate(source.shape):
        shape = [1] * source.ndim
        shape[k] = count
        window = window * np.hanning(count).reshape(shape)
    transform = np.fft.fftn(source * window) / np.sqrt(np.sum(window**2) * source.size)
    waves = np.meshgrid(
        *[
            2j * np.pi * np.fft.fftfreq(count, 1.0 / count) / length
            for count, length in zip(source.shape, lengths, strict=True)
        ],
        indexing="ij",
    )
    symbol = np.zeros(source.shape, complex)
    floor = 0.0
    for mean, each in zip(means, orders, strict=True):
        term = mean * np.prod([wave**k for wave, k in zip(waves, each, strict=True)], axis=0)
        symbol = symbol + term
        slowest = [(2 * np.pi / length) ** k for length, k in zip(lengths, each, strict=True)]
        floor = max(floor, abs(mean) * float(np.prod(slowest)))
    size = np.maximum(np.abs(symbol), floor)
    found = np.where(size > 0, transform / np.where(size > 0, size, 1.0), 0.0)
    found[(0,) * source.ndim] = 0.0
    # White noise must not count, which the symbol would enlarge where the field is slow.
    power = np.abs(transform) ** 2
    clear = power > _CLEAR * np.median(power)
    return np.where(clear, found, 0.0) if np.any(found[clear]) else found


def _peaks(kernel, source, field, k, highest):
    """Components of one dimension: one at zero, clear peaks, the others spread over the band."""
    count = kernel.num_components
    frequencies, shares = [], []
    if source is not None and count > 1:
        others = tuple(j for j in range(source.ndim) if j != k)
        power = _power(source, k)
        half = power.shape[0]
        own = np.sum(np.abs(field) ** 2, axis=others)[:half]
        total = float(np.sum(own))
        level = _CLEAR * float(np.median(power))
        left = power.copy()
        for _ in range(int(_SHARE * count)):
            top = int(np.argmax(left))
            near = slice(max(top - _REACH + 1, 0), top + _REACH)
            if not left[top] > level or top == 0 or top > highest:
                break
            weights = power[near]
            frequencies.append(float(np.arange(half)[near] @ weights / weights.sum()))
            shares.append(float(own[near].sum()) / total if total > 0 else _FAINT)
            left[max(top - _REACH, 0) : top + _REACH + 1] = 0.0
    begun = len(frequencies)
    slow = min(1, count - begun)
    rest = count - begun - slow
    spread = highest * (np.arange(rest) + 0.5) / max(rest, 1)
    widths = [_WIDTH] * (slow + begun) + [0.5 * highest / max(rest, 1)] * rest
    return Peaks(
        np.maximum(np.array([1.0] * slow + shares + [_FAINT] * rest), _FAINT),
        np.array([0.0] * slow + frequencies + spread.tolist()),
        np.array(widths),
    )
