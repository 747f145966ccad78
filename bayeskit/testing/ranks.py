"""Statistics of ranks: shares covered, bands, and tests of uniformity.

T. Säilynoja, P.-C. Bürkner and A. Vehtari, "Graphical test for discrete uniformity and its
applications in goodness-of-fit evaluation and multiple sample comparison", Statistics and
Computing, 2022.
"""

import functools
from typing import Any

import numpy as np
from scipy import stats

_SIMULATIONS = 4000
NULL_SEED = 214


def share_inside(ranks, num_draws, probability):
    """Whether the central interval holds the truth; a rank that straddles its end counts in part.

    The rank r of L stands for the interval (r, r + 1) / (L + 1) of probabilities, so the mean is
    ``probability`` exactly for uniform ranks.
    """
    low, high = (1 - probability) / 2 * (num_draws + 1), (1 + probability) / 2 * (num_draws + 1)
    return np.clip(np.minimum(ranks + 1, high) - np.maximum(ranks, low), 0.0, 1.0)


def clustered_error(values):
    """Standard error of the mean of (simulations, entries), entries of a simulation dependent."""
    return values.mean(axis=1).std(ddof=1) / np.sqrt(values.shape[0])


def coverage_error(shares, probability):
    """Standard error of a coverage, at least that of independent entries."""
    return max(clustered_error(shares), np.sqrt(probability * (1 - probability) / shares.size))


@functools.lru_cache(maxsize=16)
def null_distribution(count, num_draws):
    """Pointwise tail probabilities of ECDF counts, and the null distribution of the smallest one.

    Returns the points (L,), twice the smaller tail for every (count + 1, L), and the smallest of
    them in simulations of uniform ranks.
    """
    points = np.arange(1, num_draws + 1) / (num_draws + 1)
    counts = np.arange(count + 1)[:, None]
    lower = stats.binom.cdf(counts, count, points)
    upper = stats.binom.sf(counts - 1, count, points)
    tails = 2 * np.minimum(lower, upper)
    generator = np.random.default_rng(NULL_SEED)
    bins = generator.multinomial(
        count, np.full(num_draws + 1, 1 / (num_draws + 1)), size=_SIMULATIONS
    )
    below = np.cumsum(bins, axis=1)[:, :-1]
    return points, tails, np.min(tails[below, np.arange(num_draws)], axis=1)


def uniformity_p_value(ranks: Any, num_draws: int) -> float:
    """Probability that uniform ranks have an ECDF as far out of pointwise bands as these.

    Parameters
    ----------
    ranks : integer array (simulations,)
        In {0, …, num_draws}.
    num_draws : int

    Returns
    -------
    float
        From 4000 simulations with a fixed seed, so at least 1 / 4001. Säilynoja et al. 2022.
    """
    _, tails, null = null_distribution(int(ranks.size), int(num_draws))
    counts = np.cumsum(np.bincount(ranks, minlength=num_draws + 1))[:-1]
    observed = np.min(tails[counts, np.arange(num_draws)])
    # Equal tails differ in rounding from point to point.
    return float((1 + np.sum(null <= observed * (1 + 1e-9))) / (1 + null.size))


def chi2_p_value(ranks, num_draws):
    """Pearson's test with at least ten expected ranks a bin, in bins of equally many ranks."""
    wanted = max(2, min(20, ranks.size // 10))
    bins = next(b for b in range(wanted, 0, -1) if (num_draws + 1) % b == 0)
    if bins == 1:
        edges = np.linspace(0, num_draws + 1, wanted + 1).round().astype(int)
    else:
        edges = np.arange(0, num_draws + 2, (num_draws + 1) // bins)
    observed, _ = np.histogram(ranks, edges - 0.5)
    return float(stats.chisquare(observed, ranks.size * np.diff(edges) / (num_draws + 1)).pvalue)
