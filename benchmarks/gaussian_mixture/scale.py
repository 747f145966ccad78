"""Many rows: error, likelihood, time and memory beside scikit-learn's Gaussian mixture."""

import warnings

import jax
import numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture as PeerMixture

import bayeskit as bk
from benchmarks.common import (
    Bar,
    Report,
    Table,
    in_subprocess,
    median,
    side_by_side,
    stopwatch,
)

ORDER = 5
TITLE = "Gaussian mixtures of many rows beside scikit-learn's"
MINUTES = (3, 6)

COMPONENTS, FEATURES = 4, 20
GIBIBYTE = 2**30
SEPARATION, CONDITION = 4.5, 30.0
# Rows: largest ratio of times, target, and rounds of timing.
SIZES = {10**4: (10.0, 3.0, 5), 10**5: (4.0, 1.5, 5), 10**6: (1.5, 1.0, 3)}


def run(options):
    report = Report(TITLE, settings={"components": COMPONENTS, "features": FEATURES})
    report.notes.append(
        f"{COMPONENTS} components in {FEATURES} dimensions, {SEPARATION:g} deviations apart, "
        f"condition {CONDITION:g}, every component's axes its own. Defaults on both sides: ours "
        "chooses its prior and the best of its starts and ends at a relative change of 1e-5; "
        "scikit-learn's makes one start by k-means and ends when a row's log-likelihood changes by "
        "less than 1e-3. By turns in one process, ours compiled before. The oracle knows all "
        "parameters. Log-likelihoods are at the posterior means. A prior trades that of the rows "
        "seen for that of others, so it is fresh rows that count for the default; that our "
        "optimum is the likelihood's is seen with a flat prior."
    )
    found = {}
    for rows, (_, _, rounds) in SIZES.items():
        found[rows] = in_subprocess(
            "benchmarks.gaussian_mixture.scale:both",
            rows=rows,
            rounds=rounds if options.full else 2,
        )["result"]
        for who in ("ours", "peer"):
            alone = in_subprocess("benchmarks.gaussian_mixture.scale:alone", rows=rows, who=who)
            found[rows][f"{who}, memory"] = alone["peak_bytes"] / GIBIBYTE
        alone = in_subprocess("benchmarks.gaussian_mixture.scale:by_programs", rows=rows)
        found[rows]["programs"] = alone["result"] | {"memory": alone["peak_bytes"] / GIBIBYTE}
        report.results[f"{rows} rows"] = found[rows]
    for rows, (limit, target, _) in SIZES.items():
        each = found[rows]
        gains = {
            name: (each[kind][who] - each[kind]["peer"]) / rows
            for name, kind, who in (
                ("fresh rows' log-likelihood", "fresh", "ours"),
                ("flat prior, log-likelihood", "seen", "flat"),
            )
        }
        excess = each["error"]["ours"] - each["error"]["oracle"]
        report.bars += [
            Bar(f"n = {rows:.0e}: error less the oracle's", excess, "<=", 0.002),
            *(
                Bar(f"n = {rows:.0e}: {name} less the peer's, a row", gain, ">=", -1e-4)
                for name, gain in gains.items()
            ),
            Bar(f"n = {rows:.0e}: seconds ÷ the peer's", each["ratio"], "<=", limit, target),
            Bar(
                f"n = {rows:.0e}: flat prior, seconds ÷ the peer's",
                each["flat prior's ratio"],
                "<=",
                limit,
                target,
            ),
            Bar(
                f"n = {rows:.0e}: SemidefiniteProgram's error less the oracle's",
                each["programs"]["error"] - each["error"]["oracle"],
                "<=",
                0.002,
            ),
        ]
    columns = ("rows", "error", "peer's", "oracle's", "seconds", "peer's", "ratio")
    columns += ("iterations", "peer's", "GiB", "peer's")
    report.tables.append(
        Table(
            "Log-likelihood less the peer's",
            (
                "rows",
                "of the rows seen: ours",
                "flat prior",
                "oracle",
                "of fresh rows: ours",
                "flat prior",
                "oracle",
            ),
            [
                (
                    rows,
                    *(
                        each[kind][who] - each[kind]["peer"]
                        for kind in ("seen", "fresh")
                        for who in ("ours", "flat", "oracle")
                    ),
                )
                for rows, each in found.items()
            ],
            "In nats, over all rows.",
        )
    )
    report.tables.append(
        Table(
            "One fit",
            columns,
            [
                (
                    rows,
                    *each["error"].values(),
                    *(median(each["seconds"][who]) for who in ("ours", "peer")),
                    each["ratio"],
                    *each["iterations"].values(),
                    each["ours, memory"],
                    each["peer, memory"],
                )
                for rows, each in found.items()
            ],
            "Medians over rounds. Memory is the peak of a process that makes one fit, imports, "
            "compiler and table included.",
        )
    )
    report.tables.append(
        Table(
            "SemidefiniteProgram: three sketches of 500 rows, lifted to all, finished by EM",
            (
                "rows",
                "error",
                "seconds, compiled",
                "with compilation",
                "GiB",
                "programs settled",
                "bound less EM's",
            ),
            [
                (
                    rows,
                    *(each["programs"][name] for name in ("error", "seconds", "first", "memory")),
                    "yes" if each["programs"]["settled"] else "no",
                    each["programs"]["bound"] - each["bound"],
                )
                for rows, each in found.items()
            ],
            "Two fits in a process of its own.",
        )
    )
    sizes = np.log(list(SIZES))
    seconds = np.log([median(found[rows]["seconds"]["ours"]) for rows in SIZES])
    report.bars += [
        Bar("exponent of our seconds by rows", np.polyfit(sizes, seconds, 1)[0], "<=", 1.1),
        Bar("the same, over the last step", np.diff(seconds)[-1] / np.diff(sizes)[-1], "<=", 1.1),
    ]
    return report


def truth(seed=0):
    """Weights, locations and covariances: axes at random, lengths from one to the condition."""
    generator = np.random.default_rng(seed)
    locations = np.eye(COMPONENTS, FEATURES) * SEPARATION / np.sqrt(2)
    lengths = np.geomspace(1.0, CONDITION, FEATURES)
    lengths /= np.exp(np.mean(np.log(lengths)))
    turns = np.linalg.qr(generator.normal(size=(COMPONENTS, FEATURES, FEATURES)))[0]
    covariances = (turns * lengths) @ np.swapaxes(turns, 1, 2)
    return np.full(COMPONENTS, 1 / COMPONENTS), locations, covariances


def table_of(rows, seed=0):
    """A table and the components of its rows."""
    generator = np.random.default_rng((rows, seed))
    weights, locations, covariances = truth()
    labels = generator.choice(COMPONENTS, rows, p=weights)
    values = generator.normal(size=(rows, FEATURES))
    for k, lower in enumerate(np.linalg.cholesky(covariances)):
        values[labels == k] = locations[k] + values[labels == k] @ lower.T
    return values, labels


def our_fit(values, prior="empirical", method=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.ConvergenceWarning)
        return bk.infer(bk.models.GaussianMixture(COMPONENTS, prior=prior), values, method, key=0)


def their_fit(values):
    return PeerMixture(COMPONENTS, random_state=0).fit(values)


def both(rows, rounds):
    """Run in a process of its own."""
    values, labels = table_of(rows)
    ours, theirs = our_fit(values), their_fit(values)
    sites = ("weights", "locations", "covariances")
    fits = {
        "ours": [ours.mean[site] for site in sites],
        "flat": [our_fit(values, None).mean[site] for site in sites],
        "peer": (theirs.weights_, theirs.means_, theirs.covariances_),
        "oracle": truth(),
    }
    fresh, _ = table_of(rows, seed=1)
    seen, fresh = (
        {who: log_likelihood(each, *parts) for who, parts in fits.items()}
        for each in (values, fresh)
    )
    error = {
        "ours": bk.metrics.clustering_error(labels, ours.labels),
        "peer": bk.metrics.clustering_error(labels, theirs.predict(values)),
        "oracle": float(np.mean(labels != np.argmax(joint(values, *truth()), axis=1))),
    }
    timings = side_by_side(
        {
            "ours": lambda: our_fit(values).approximation,
            "flat": lambda: our_fit(values, None).approximation,
            "peer": lambda: their_fit(values).means_,
        },
        rounds,
    )
    return {
        "error": error,
        "seen": seen,
        "fresh": fresh,
        "bound": ours.log_evidence,
        "iterations": {"ours": ours.convergence.iterations, "peer": theirs.n_iter_},
        "seconds": timings.seconds,
        "ratio": timings.ratio("ours", "peer"),
        "flat prior's ratio": timings.ratio("flat", "peer"),
    }


def alone(rows, who):
    """Run in a process of its own, for its memory."""
    values, _ = table_of(rows)
    jax.block_until_ready(our_fit(values).approximation if who == "ours" else their_fit(values))


def by_programs(rows):
    """Run in a process of its own, for its memory."""
    values, labels = table_of(rows)
    method = bk.inference.SemidefiniteProgram()
    first, _ = stopwatch(lambda: our_fit(values, method=method).approximation)
    seconds, fit = stopwatch(lambda: our_fit(values, method=method))
    error = bk.metrics.clustering_error(labels, fit.labels)
    return {
        "error": error,
        "bound": fit.log_evidence,
        "first": first,
        "seconds": seconds,
        "settled": fit.convergence.converged,
    }


def joint(values, weights, locations, covariances):
    """Log densities (rows, K), weights included."""
    parts = zip(weights, locations, covariances, strict=True)
    return np.stack([np.log(w) + multivariate_normal(m, c).logpdf(values) for w, m, c in parts], 1)


def log_likelihood(values, *parameters):
    """Log-likelihood of all rows."""
    return float(np.sum(logsumexp(joint(values, *parameters), axis=1)))
