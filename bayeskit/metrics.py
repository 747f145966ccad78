"""Scores of estimates against a known truth.

All take NumPy or JAX arrays, the truth first, compute in double precision and return a ``float``.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Complex, Float, Inexact
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from bayeskit._random import numpy_generator
from bayeskit.datasets.sparse import check_snr
from bayeskit.errors import ConvergenceWarning
from bayeskit.validation import (
    REAL,
    check_integer,
    check_number,
    check_positive,
    double_array,
)

_MOST_ASSIGNED = 2000
_BLOCK_ROWS = 1000
_SINKHORN_ITERATIONS, _SINKHORN_TOLERANCE = 3000, 1e-6

__all__ = [
    "channel_nmse",
    "clustering_error",
    "distance_to_support",
    "energy_distance",
    "nmse",
    "psnr",
    "sampling_floor",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "support_recovery_rate",
    "symbol_error_rate",
    "wasserstein",
]


def nmse(truth: Any, estimate: Any) -> float:
    """Normalised mean squared error, ``‖estimate − truth‖² / ‖truth‖²``.

    Parameters
    ----------
    truth, estimate : array (...)
        Of the same shape, real or complex.

    Returns
    -------
    float
        0 is perfect, 1 is what an estimate of zero gets.

    Raises
    ------
    TypeError
        If an array is not of numbers.
    ValueError
        If shapes differ, an entry is masked or not finite, or the truth is zero.

    Examples
    --------
    >>> nmse([3.0, 4.0], [3.0, 3.0])
    0.04
    """
    truth, estimate = _pair("truth", truth, "estimate", estimate)
    if not truth.any():
        raise ValueError("truth: got only zeros; expected a non-zero array to normalise by")
    return float(_relative_power(truth, estimate))


def clustering_error(truth: Any, labels: Any) -> float:
    """Share of items outside the best matching of clusters to classes.

    Parameters
    ----------
    truth, labels : array (n,)
        Classes and clusters of the items, by numbers or names; neither need have as many.

    Returns
    -------
    float
        0 is perfect.

    Raises
    ------
    ValueError
        If the arguments have no entries, another number of axes than one, or different lengths,
        or if a label is missing.

    Examples
    --------
    >>> clustering_error(["a", "a", "b", "b"], [1, 1, 1, 0])
    0.25
    """
    pair = {"truth": np.asarray(truth), "labels": np.asarray(labels)}
    for name, values in pair.items():
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"{name}: got shape {values.shape}; expected (n,), n at least one")
        if any(value is None or value != value for value in values.tolist()):
            raise ValueError(f"{name}: got a missing label; expected one for every item")
    counts = [np.unique(values, return_inverse=True)[1] for values in pair.values()]
    if counts[0].size != counts[1].size:
        raise ValueError(
            f"labels: got {counts[1].size} entries; expected {counts[0].size}, as truth has"
        )
    table = np.zeros([each.max() + 1 for each in counts])
    np.add.at(table, tuple(counts), 1.0)
    return float((counts[0].size - table[linear_sum_assignment(-table)].sum()) / counts[0].size)


def channel_nmse(channels_true: Any, channels_estimated: Any) -> float:
    """Normalised mean squared error of channel matrices, averaged over surface patterns.

    Parameters
    ----------
    channels_true, channels_estimated : array (patterns, receive_antennas, transmit_antennas)

    Returns
    -------
    float
        Mean over patterns of ``‖Ĉ_k − C_k‖² / ‖C_k‖²``, Frobenius norms.

    Raises
    ------
    TypeError
        If an array is not of numbers.
    ValueError
        If shapes differ or are not three-dimensional, an entry is masked or not finite, or a true
        channel is zero.

    References
    ----------
    He and Joseph, IEEE Transactions on Signal Processing, 2024 (arXiv:2307.14719).

    Examples
    --------
    >>> import numpy as np
    >>> channels = np.ones((2, 4, 3))
    >>> channel_nmse(channels, np.stack([channels[0], 0 * channels[1]]))
    0.5
    """
    channels_true, channels_estimated = _channels(channels_true, channels_estimated)
    return float(np.mean(_relative_power(channels_true, channels_estimated, axis=(1, 2))))


def symbol_error_rate(
    channels_true: Any,
    channels_estimated: Any,
    snr_db: float,
    key: Any,
    *,
    num_symbols: int = 100_000,
) -> float:
    """Simulate data transmission with beams chosen from estimated channels.

    For each pattern the transmitter sends QPSK symbols s along the leading right singular vector p
    of the estimate, and the receiver combines with the leading left one w. It decides for the
    symbol nearest to ``wᴴ (C p s) + noise`` among those predicted by the estimate, ``wᴴ Ĉ p s``.
    The noise variance is the power received through the true channel, ``|wᴴ C p|²``, over the
    signal-to-noise ratio, so a perfect estimate has the textbook QPSK error rate.

    Parameters
    ----------
    channels_true, channels_estimated : array (patterns, receive_antennas, transmit_antennas)
    snr_db : float
        In decibels, after combining; ``inf`` for no noise.
    key : int or JAX key
        For symbols and noise.
    num_symbols : int
        Symbols sent for each pattern.

    Returns
    -------
    float
        Fraction of wrong decisions over all patterns.

    Raises
    ------
    TypeError
        If an array is not of numbers, ``num_symbols`` no integer, or ``snr_db`` no number.
    ValueError
        If shapes differ or are not three-dimensional, an entry is masked or not finite, a true
        channel is zero, ``num_symbols`` is below one, or ``snr_db`` is out of range.

    References
    ----------
    He and Joseph, IEEE Transactions on Signal Processing, 2024 (arXiv:2307.14719).

    Examples
    --------
    >>> import numpy as np
    >>> channels = np.ones((1, 4, 3), dtype=complex)
    >>> symbol_error_rate(channels, channels, 20.0, key=0)
    0.0
    """
    channels_true, channels_estimated = _channels(channels_true, channels_estimated)
    num_symbols = check_integer("num_symbols", num_symbols, 1)
    snr_db = check_snr(snr_db)
    rng = numpy_generator(key)

    left, values, right = np.linalg.svd(channels_estimated, full_matrices=False)
    combiner, precoder = left[:, :, 0].conj(), right[:, 0, :].conj()
    gain = np.einsum("kr,krt,kt->k", combiner, channels_true, precoder)
    predicted_gain = values[:, 0]  # wᴴ Ĉ p is the singular value itself: real, not negative
    noise_deviation = np.abs(gain) * 10 ** (-snr_db / 20)

    size = (len(gain), num_symbols)
    sent = _quarters(rng, size)
    noise = (rng.standard_normal(size) + 1j * rng.standard_normal(size)) / math.sqrt(2)
    received = gain[:, None] * sent + noise_deviation[:, None] * noise
    # The four symbols have equal modulus: the nearest one lies in the same quadrant. A prediction
    # of zero tells the receiver nothing, and its decision is then always the same symbol.
    received *= predicted_gain[:, None] > 0
    wrong = ((received.real < 0) != (sent.real < 0)) | ((received.imag < 0) != (sent.imag < 0))
    return float(np.mean(wrong))


def psnr(image: Any, estimate: Any, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio, ``10 log₁₀(data_range² / mean squared error)``.

    Parameters
    ----------
    image, estimate : array (...)
        Of the same shape, real.
    data_range : float
        Largest possible difference of two pixels.

    Returns
    -------
    float
        In decibels; ``inf`` if the two are equal.

    Raises
    ------
    TypeError
        If an array is not of numbers, or ``data_range`` is no number.
    ValueError
        If shapes differ, an entry is masked or not finite, or ``data_range`` is not positive and
        finite.

    Examples
    --------
    >>> round(psnr([0.0, 1.0], [0.1, 0.9]), 6)
    20.0
    """
    image, estimate = _pair("image", image, "estimate", estimate)
    data_range = check_positive("data_range", data_range)
    error = float(np.mean(np.abs((estimate - image) / data_range) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def support_recovery_rate(truth: Any, estimate: Any, *, threshold: float = 1e-3) -> float:
    """Agreement of two supports: the size of their intersection over that of their union.

    Parameters
    ----------
    truth : array (...)
        Its support is where it is not zero.
    estimate : array (...)
        Its support is where its modulus exceeds ``threshold`` times its largest; a boolean array
        is taken as the support itself.
    threshold : float
        In [0, 1).

    Returns
    -------
    float
        From 0 to 1; 1 if both supports are empty.

    Raises
    ------
    TypeError
        If an array is not of numbers, or ``threshold`` is no number.
    ValueError
        If shapes differ, an entry is masked or not finite, or ``threshold`` is out of range.

    References
    ----------
    He and Joseph, IEEE Transactions on Signal Processing, 2024 (arXiv:2307.14719), with the
    amplitude threshold of the authors' experiments.

    Examples
    --------
    >>> support_recovery_rate([1.0, 0.0, 2.0], [1.1, 0.1, 0.0])
    0.3333333333333333
    """
    threshold = check_number("threshold", threshold, 0.0, 1.0)
    truth, estimate = _pair("truth", truth, "estimate", estimate)
    modulus = np.abs(estimate)
    found = modulus > threshold * modulus.max(initial=0.0)
    true = truth != 0
    union = np.count_nonzero(found | true)
    return float(np.count_nonzero(found & true) / union) if union else 1.0


def wasserstein(truth: Any, sample: Any) -> float:
    """Wasserstein distance of order one between two samples, exact by linear assignment.

    Parameters
    ----------
    truth, sample : array (m, D)
        Of the same shape, at most 2000 rows.

    Returns
    -------
    float
        The smallest mean Euclidean distance of rows in a matching. Two samples of the same
        distribution have a distance too, which :func:`sampling_floor` tells.

    Raises
    ------
    TypeError
        If an array is not of real numbers.
    ValueError
        If shapes differ or are not two-dimensional, an entry is masked or not finite, or there are
        more rows.

    Notes
    -----
    Cost O(m³).

    Examples
    --------
    >>> wasserstein([[0.0], [1.0]], [[3.0], [2.0]])
    2.0
    """
    truth, sample = _samples(truth, sample)
    if len(truth) != len(sample):
        raise ValueError(
            f"sample: got {len(sample)} rows; expected {len(truth)}, as truth has: leave some out"
        )
    if len(truth) > _MOST_ASSIGNED:
        raise ValueError(
            f"truth: got {len(truth)} rows; expected at most {_MOST_ASSIGNED}: leave some out, or "
            "use sliced_wasserstein or energy_distance"
        )
    cost = cdist(truth, sample)
    return float(np.mean(cost[linear_sum_assignment(cost)]))


def sliced_wasserstein(truth: Any, sample: Any, key: Any, *, num_directions: int = 100) -> float:
    """Mean Wasserstein distance of order one of projections on random directions.

    Parameters
    ----------
    truth : array (m, D)
    sample : array (k, D)
    key : int or JAX key
        Of the directions, uniform on the sphere.
    num_directions : int

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If an array is not of real numbers, or ``num_directions`` no integer.
    ValueError
        If the arrays are not two-dimensional with the same number of columns, an entry is masked or
        not finite, or ``num_directions`` is below one.

    Notes
    -----
    Cost O(L (m + k) (D + log(m + k))) for L directions.

    Examples
    --------
    >>> sliced_wasserstein([[0.0], [1.0]], [[3.0], [2.0]], key=0)
    2.0
    """
    truth, sample = _samples(truth, sample)
    count = check_integer("num_directions", num_directions, 1)
    directions = numpy_generator(key).standard_normal((count, truth.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return float(np.mean([wasserstein_distance(truth @ d, sample @ d) for d in directions]))


def sinkhorn_divergence(truth: Any, sample: Any, *, regularization: float = 0.05) -> float:
    """Entropic optimal transport between two samples, less what each costs with itself.

    Between the distance of Wasserstein, at small regularization, and half the energy distance, at
    large: ``OT(X, Y) - OT(X, X) / 2 - OT(Y, Y) / 2``, by the POT library (``bayeskit[transport]``).

    Parameters
    ----------
    truth : array (m, D)
    sample : array (k, D)
    regularization : float
        Of the plan's entropy, in units of the mean distance between rows of the two samples.

    Returns
    -------
    float
        Of the two empirical distributions: not negative, zero only where they are equal, to about
        1e-6 of the mean distance.

    Raises
    ------
    ImportError
        If POT is not installed.
    TypeError
        If an array is not of real numbers.
    ValueError
        If the arrays are not two-dimensional with the same number of columns, an entry is masked or
        not finite, or ``regularization`` is not positive.

    Warns
    -----
    ConvergenceWarning
        If Sinkhorn's iteration has not converged: at a small regularization.

    Notes
    -----
    Cost O((m + k)² D) and O((m + k)²) an iteration, of which small regularization takes thousands;
    memory O((m + k)²). J. Feydy et al., "Interpolating between Optimal Transport and MMD using
    Sinkhorn Divergences", AISTATS 2019, equation 3.

    Examples
    --------
    >>> bool(1.9 < sinkhorn_divergence([[0.0], [1.0]], [[3.0], [2.0]]) < 2.0)
    True
    """
    truth, sample = _samples(truth, sample)
    share = check_positive("regularization", regularization)
    unit = _mean_distance(truth, sample)
    if unit == 0.0:  # all rows of both are one point
        return 0.0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        between, *alone = (
            _entropic_cost(cdist(first, second) / unit, share)
            for first, second in ((truth, sample), (truth, truth), (sample, sample))
        )
    if any("did not converge" in str(each.message) for each in told):
        warnings.warn(
            f"sinkhorn_divergence: {_SINKHORN_ITERATIONS} iterations did not suffice for "
            f"regularization={share:.3g}; take a larger one, or wasserstein for few rows",
            ConvergenceWarning,
            stacklevel=2,
        )
    divergence = between - 0.5 * sum(alone)
    if not np.isfinite(divergence):
        raise ValueError(f"regularization={share:.3g} is too small for double precision")
    return float(unit * max(0.0, divergence))


def energy_distance(truth: Any, sample: Any) -> float:
    """Energy distance of two samples, ``2 E|X - Y| - E|X - X'| - E|Y - Y'|``.

    Parameters
    ----------
    truth : array (m, D)
    sample : array (k, D)

    Returns
    -------
    float
        Of the two empirical distributions: not negative, zero only where they are equal.

    Raises
    ------
    TypeError
        If an array is not of real numbers.
    ValueError
        If the arrays are not two-dimensional with the same number of columns, or an entry is masked
        or not finite.

    Notes
    -----
    Cost O((m + k)² D), in blocks of rows.

    Examples
    --------
    >>> energy_distance([[0.0], [2.0]], [[1.0], [1.0]])
    1.0
    """
    truth, sample = _samples(truth, sample)
    between = _mean_distance(truth, sample)
    return 2.0 * between - _mean_distance(truth, truth) - _mean_distance(sample, sample)


def distance_to_support(support: Any, sample: Any) -> float:
    """Mean distance of rows from the nearest of many points of a support.

    Parameters
    ----------
    support : array (m, D)
        Points that lie densely on the support.
    sample : array (k, D)

    Returns
    -------
    float
        Too large by about the distance of neighbours in ``support``.

    Raises
    ------
    TypeError
        If an array is not of real numbers.
    ValueError
        If the arrays are not two-dimensional with the same number of columns, or an entry is masked
        or not finite.

    Examples
    --------
    >>> distance_to_support([[0.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [1.0, 1.0]])
    1.5
    """
    support, sample = _samples(support, sample, "support")
    return float(np.mean(KDTree(support).query(sample)[0]))


def sampling_floor(
    score: Callable[[Any, Any], float],
    draw: Callable[[Any, int], Any],
    count: int,
    key: Any,
    *,
    num_repeats: int = 5,
) -> float:
    """What a distance of two samples is where both are of the truth.

    Parameters
    ----------
    score : callable
        Of two arrays (count, D), such as :func:`wasserstein`.
    draw : callable
        Of a key and a number of rows: draws from the truth, such as ``draw`` of
        :func:`bayeskit.datasets.shape`'s result.
    count : int
        Rows of a sample.
    key : int or JAX key
    num_repeats : int

    Returns
    -------
    float
        The mean over pairs of samples.

    Raises
    ------
    TypeError, ValueError
        If ``count`` or ``num_repeats`` is no integer above zero.

    Examples
    --------
    >>> import bayeskit as bk
    >>> circle = bk.datasets.shape(0, "circle", features=3)
    >>> bool(0.01 < sampling_floor(wasserstein, circle.draw, 200, key=0) < 0.3)
    True
    """
    count = check_integer("count", count, 1)
    repeats = check_integer("num_repeats", num_repeats, 1)
    seeds = numpy_generator(key).integers(2**31, size=(repeats, 2))
    pairs = [(draw(int(first), count), draw(int(second), count)) for first, second in seeds]
    return float(np.mean([score(*pair) for pair in pairs]))


def _entropic_cost(cost, regularization):
    """Of uniform weights, with the plan's relative entropy to their product."""
    try:
        import ot
    except ImportError:
        raise ImportError("sinkhorn_divergence needs POT: install bayeskit[transport]") from None
    found = ot.solve(
        cost,
        reg=regularization,
        reg_type="KL",
        max_iter=_SINKHORN_ITERATIONS,
        tol=_SINKHORN_TOLERANCE,
    )
    return float(found.value)


def _mean_distance(first, second):
    blocks = range(0, len(first), _BLOCK_ROWS)
    total = sum(cdist(first[i : i + _BLOCK_ROWS], second).sum() for i in blocks)
    return float(total / (len(first) * len(second)))


def _samples(
    first: Any, second: Any, name: str = "truth"
) -> tuple[Float[np.ndarray, "m features"], Float[np.ndarray, "k features"]]:
    arrays = {name: first, "sample": second}
    checked = [double_array(which, array, REAL) for which, array in arrays.items()]
    for which, array in zip(arrays, checked, strict=True):
        if array.ndim != 2 or array.size == 0:
            raise ValueError(f"{which}: got shape {array.shape}; expected (rows, features)")
    if checked[0].shape[1] != checked[1].shape[1]:
        raise ValueError(
            f"sample: got {checked[1].shape[1]} features; expected {checked[0].shape[1]}, those of "
            f"{name}"
        )
    return checked[0], checked[1]


def _relative_power(truth, estimate, axis=None):
    """Power of the error over that of the truth, both in units in which no square overflows."""
    unit = np.abs(truth).max(axis=axis, keepdims=True)
    unit = np.maximum(unit, np.finfo(np.float64).tiny)  # whose reciprocal is finite
    truth = truth / unit
    with np.errstate(over="ignore", invalid="ignore"):  # an error too large for a number is inf
        error = np.abs(estimate / unit - truth)
        return np.sum(error**2, axis=axis) / np.sum(np.abs(truth) ** 2, axis=axis)


def _pair(
    first_name: str, first: Any, second_name: str, second: Any
) -> tuple[Inexact[np.ndarray, "..."], Inexact[np.ndarray, "..."]]:
    first, second = double_array(first_name, first), double_array(second_name, second)
    if first.shape != second.shape:
        raise ValueError(
            f"{second_name}: got shape {second.shape}; expected {first.shape}, that of {first_name}"
        )
    if first.size == 0:
        raise ValueError(f"{first_name}: got no entries (shape {first.shape})")
    return first, second


def _channels(
    channels_true: Any, channels_estimated: Any
) -> tuple[
    Complex[np.ndarray, "patterns receive transmit"],
    Complex[np.ndarray, "patterns receive transmit"],
]:
    true, estimated = _pair(
        "channels_true", channels_true, "channels_estimated", channels_estimated
    )
    if true.ndim != 3:
        raise ValueError(
            f"channels_true: got shape {true.shape}; expected (patterns, receive_antennas, "
            "transmit_antennas)"
        )
    silent = ~true.any(axis=(1, 2))
    if silent.any():
        raise ValueError(f"channels_true: the channel of pattern {silent.argmax()} is zero")
    return true.astype(np.complex128), estimated.astype(np.complex128)


def _quarters(rng, size):
    """QPSK symbols of unit power, uniformly."""
    signs = 2.0 * rng.integers(0, 2, (2, *size)) - 1.0
    return (signs[0] + 1j * signs[1]) / math.sqrt(2)
