"""Clusterings by our methods and by peers: errors beside the truth, seconds, tables, pairs."""

import time
import warnings

import numpy as np
from scipy.spatial.distance import cdist, pdist
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans, SpectralClustering
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

import bayeskit as bk
from bayeskit.inference import MessagePassing, SemidefiniteProgram
from benchmarks.common import Table, median, quantile

error = bk.metrics.clustering_error

DEFAULT = "ours: default (EM)"
PROGRAM = "ours: SemidefiniteProgram"
BARE = "ours: SemidefiniteProgram, finish=None"
METHODS = {DEFAULT: None, "ours: MessagePassing": MessagePassing()}
PROGRAMS = {PROGRAM: SemidefiniteProgram(), BARE: SemidefiniteProgram(finish=None)}
FROM_KMEANS = "same prior and EM, k-means start"
FROM_PROGRAMS = "same prior and EM, programs' start"
KMEANS = "KMeans, 10 starts"
TEN_STARTS = "GaussianMixture, k-means, 10 starts"
NEIGHBOURS = "SpectralClustering, 10 neighbours"
_INITS = {"k-means": "kmeans", "k-means++": "k-means++", "random": "random"}
_WEIGHTS = {"process": "dirichlet_process", "distribution": "dirichlet_distribution"}


def _mixture(init, starts):
    def labels(rows, count, seed):
        model = GaussianMixture(
            count, init_params=init, n_init=starts, max_iter=500, random_state=seed
        )
        return model.fit_predict(rows)

    return labels


def _variational(weights):
    def labels(rows, count, seed):
        model = BayesianGaussianMixture(
            n_components=count,
            weight_concentration_prior_type=weights,
            n_init=10,
            max_iter=500,
            random_state=seed,
        )
        return model.fit_predict(rows)

    return labels


def _kmeans(rows, count, seed):
    return KMeans(count, n_init=10, random_state=seed).fit_predict(rows)


def _spectral_kernel(rows, count, seed):
    # The median distance: the default of one is of no use where there are many features.
    gamma = 0.5 / np.median(pdist(rows, "sqeuclidean"))
    return SpectralClustering(count, gamma=gamma, random_state=seed).fit_predict(rows)


def _spectral_neighbours(rows, count, seed):
    model = SpectralClustering(
        count, affinity="nearest_neighbors", n_neighbors=10, random_state=seed
    )
    return model.fit_predict(rows)


def _ward(rows, count, seed):
    return AgglomerativeClustering(count).fit_predict(rows)


def _density(rows, count, seed):
    """The least cluster size with most nearly K clusters; noise goes with its nearest row."""
    found = [HDBSCAN(min_cluster_size=size, copy=True).fit_predict(rows) for size in (5, 10, 20)]
    labels = min(found, key=lambda each: abs(len(set(each) - {-1}) - count))
    inside = labels >= 0
    if inside.any() and not inside.all():
        nearest = np.argmin(cdist(rows[~inside], rows[inside]), axis=1)
        labels[~inside] = labels[inside][nearest]
    return np.maximum(labels, 0)


LIKELIHOOD = {
    f"GaussianMixture, {name}, {starts} start{'s' * (starts > 1)}": _mixture(init, starts)
    for name, init in _INITS.items()
    for starts in (1, 10)
} | {f"BayesianGaussianMixture, {name}": _variational(w) for name, w in _WEIGHTS.items()}
PEERS = LIKELIHOOD | {
    KMEANS: _kmeans,
    "SpectralClustering, Gaussian kernel": _spectral_kernel,
    NEIGHBOURS: _spectral_neighbours,
    "Ward": _ward,
    "HDBSCAN": _density,
}
PEERS_NOTE = (
    "Peers are scikit-learn's, on the same rows. Mixtures have full covariances and at most 500 "
    "iterations, BayesianGaussianMixture a Dirichlet process or distribution and ten starts, the "
    "Gaussian kernel the median distance; HDBSCAN is not told K: it has the least cluster size of "
    "5, 10 and 20 that gives most nearly K clusters, and noise goes with the nearest row. A "
    "mixture that fails puts all rows into one cluster."
)


class FromLabels(bk.Posterior):
    """What a clustering says of a mixture's parameters under a prior, to start a method from."""

    def __init__(self, model, rows, labels):
        self.model, self.batch = model, None
        prior = model.prior
        share = np.eye(model.num_components)[labels]
        counts = share.sum(axis=0)
        strength = prior.location_strength + counts
        sums = prior.location_strength * prior.location + share.T @ rows
        locations = sums / strength[:, None]
        covariances = []
        for k, location in enumerate(locations):
            away = rows[labels == k] - location
            moved = prior.location - location
            scale = prior.scale + away.T @ away
            scale = scale + prior.location_strength * np.outer(moved, moved)
            covariances.append(scale / (prior.degrees_of_freedom + counts[k] - rows.shape[1] - 1))
        self._mean = {
            "weights": (1.0 + counts) / np.sum(1.0 + counts),
            "locations": locations,
            "covariances": np.stack(covariances),
        }

    @property
    def mean(self):
        return self._mean


def from_labels(prior, rows, labels, method=None):
    """A method's posterior under a known prior, started from a clustering."""
    model = bk.models.GaussianMixture(int(labels.max()) + 1, prior=prior)
    return fitted(model, rows, method, initial=FromLabels(model, rows, labels))


def fitted(model, rows, method=None, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        return bk.infer(model, rows, method, key=0, **arguments)


def compare(rows, truth, seed, *, programs):
    """Errors and seconds of everything on one data set, and what the default found.

    Our methods are compiled before they are timed if :func:`compile_for` was called.
    """
    count = len(np.unique(truth))
    errors, seconds = {}, {}

    def record(name, solve):
        start = time.perf_counter()
        result = solve()
        seconds[name] = time.perf_counter() - start
        labels = result if isinstance(result, np.ndarray) else result.labels
        errors[name] = error(labels, truth)
        return result

    own = {
        name: record(name, lambda m=method: fitted(bk.models.GaussianMixture(count), rows, m))
        for name, method in (METHODS | PROGRAMS if programs else METHODS).items()
    }
    best = own[DEFAULT]
    found = {}
    for name, solve in PEERS.items():
        found[name] = record(name, lambda s=solve: _or_one_cluster(s, rows, count, seed))
    record(FROM_KMEANS, lambda: from_labels(best.prior, rows, found[KMEANS]))
    if programs:
        record(FROM_PROGRAMS, lambda: from_labels(best.prior, rows, own[BARE].labels))
    return {
        "errors": errors,
        "seconds": seconds,
        "shares": np.bincount(best.labels, minlength=count) / len(rows),
        "degrees of freedom": float(best.prior.degrees_of_freedom),
        "bound": best.log_evidence,
        "gap": own[BARE].certificate.gap if programs else None,
    }


def _or_one_cluster(solve, rows, count, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return solve(rows, count, seed)
        except ValueError:
            return np.zeros(len(rows), int)


def compile_for(rows, count, *, programs):
    """Fit once, so that seconds later are not the compiler's."""
    for method in (METHODS | PROGRAMS if programs else METHODS).values():
        fitted(bk.models.GaussianMixture(count), rows, method)


def paired(results, name, other):
    """Data sets on which ``name`` is better than, like and worse than ``other``."""
    both = [r["errors"] for r in results if name in r["errors"] and other in r["errors"]]
    # Shares of a number of rows: equal to rounding.
    gains = np.array([each[other] - each[name] for each in both])
    better, worse = int(np.sum(gains > 1e-9)), int(np.sum(gains < -1e-9))
    return f"{better}/{len(both) - better - worse}/{worse}"


def errors_of(results, name):
    return [each["errors"][name] for each in results if name in each["errors"]]


COLUMNS = ("method", "median", "quartiles", "worst", "default w/t/l", "seconds", "data sets")
COLUMNS_NOTE = (
    "Error: share of rows outside the best matching of clusters to classes. w/t/l: data sets on "
    "which the default is better, like and worse. Seconds: median, compiled before."
)


def summary(title, results, note=COLUMNS_NOTE):
    """One row a method, ours first, over several data sets of a kind."""
    names = dict.fromkeys(name for each in results for name in each["errors"])
    rows = []
    for name in sorted(names, key=lambda each: not each.startswith("ours")):
        errors = errors_of(results, name)
        low, high = (quantile(errors, level) for level in (0.25, 0.75))
        pairs = None if name == DEFAULT else paired(results, DEFAULT, name)
        seconds = median([r["seconds"][name] for r in results if name in r["seconds"]])
        row = (median(errors), f"{low:.3f}–{high:.3f}", max(errors), pairs, seconds, len(errors))
        rows.append((name, *row))
    return Table(title, COLUMNS, rows, note)


def ablation(title, groups):
    """Only the start differs: pairs of the programs', the default's and k-means'."""
    rows = []
    for name, results in groups.items():
        rows.append(
            (
                name,
                *(_median_or_none(results, each) for each in (DEFAULT, FROM_KMEANS)),
                _median_or_none(results, FROM_PROGRAMS),
                paired(results, DEFAULT, FROM_KMEANS),
                paired(results, FROM_PROGRAMS, FROM_KMEANS),
            )
        )
    columns = (
        "",
        "default",
        "k-means start",
        "programs' start",
        "default against k-means, w/t/l",
        "programs against k-means, w/t/l",
    )
    note = (
        "The prior that the data chose and EM are the same; only the labels that EM starts from "
        "differ. Medians of all data sets that the start was tried on."
    )
    return Table(title, columns, rows, note)


def _median_or_none(results, name):
    errors = errors_of(results, name)
    return median(errors) if errors else None


def best_likelihood(results):
    """The likelihood peer with the least median error."""
    return min(LIKELIHOOD, key=lambda name: median(errors_of(results, name)))
