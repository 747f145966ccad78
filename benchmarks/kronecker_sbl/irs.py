"""Channel sounding through a reflecting surface: block sparsity, angles off the grid, batches."""

import numpy as np

import bayeskit as bk
from bayeskit.inference import EM
from bayeskit.metrics import channel_nmse, nmse, symbol_error_rate
from benchmarks.baselines import kronecker_omp
from benchmarks.common import (
    Bar,
    Options,
    Report,
    Table,
    compilations,
    median,
    share,
    stopwatch,
)
from benchmarks.kronecker_sbl import published

ORDER = 4
TITLE = "IRS-MIMO channels: block sparsity, off-grid angles, a thousand channels"
MINUTES = (2, 10)

SNR_DB = 12.0
# Arrivals at the surface and at the base station come in blocks: those axes are coupled.
COUPLING = (0.8, 0.0, 0.8)
DEFAULT = "coupled, default (mackay)"
FITS = {
    DEFAULT: (COUPLING, EM()),
    "coupled, mackay, 4 restarts": (COUPLING, EM("mackay", restarts=4)),
    "coupled, convex": (COUPLING, EM("convex")),
    "coupled, alternating": (COUPLING, EM("alternating")),
    "uncoupled, mackay": (None, EM()),
    "uncoupled, convex": (None, EM("convex")),
    "uncoupled, alternating": (None, EM("alternating")),
    "uncoupled, alternating, prune 1e-2": (None, EM("alternating", prune=1e-2)),
    "uncoupled, svd": (None, EM("svd")),
    "uncoupled, svd, prune 1e-3": (None, EM("svd", prune=1e-3)),
}
OFFSETS = (0.0, 0.25, 0.5)


def run(options: Options) -> Report:
    seeds = options.count(30, 100)
    channels = 1000 if options.seeds is None else 20 * options.seeds
    report = Report(
        TITLE,
        settings={
            "seeds": seeds,
            "SNR (dB)": SNR_DB,
            "coupling": str(COUPLING),
            "noise": "known",
            "channels of the batch": channels,
        },
    )
    on_grid = m_steps(report, seeds)
    off_grid(report, seeds)
    if options.full:
        snr_sweep(report, seeds)
    compiled = batch(report, channels)
    default, scores = on_grid[DEFAULT], {name: median(s["nmse"]) for name, s in on_grid.items()}
    coupled = min(value for name, value in scores.items() if name.startswith("coupled"))
    report.bars += [
        Bar("block-sparse median channel NMSE", scores[DEFAULT], "<=", 0.012),
        Bar("block-sparse symbol error rate", float(np.mean(default["ser"])), "<=", 0.003),
        Bar("median ÷ best coupled M-step's", scores[DEFAULT] / coupled, "<=", 1.25),
        Bar(f"compilations for {channels} channels", compiled, "==", 1),
    ]
    return report


def estimate(problem, coupling, method):
    model = bk.models.KroneckerSBL(
        problem.dictionaries, noise_variance=problem.noise_variance, coupling=coupling
    )
    posterior = bk.infer(model, problem.measurements, method, key=0)
    return posterior.mean["coefficients"], posterior.convergence


def scores_of(problem, coefficients, seed, num_symbols=100_000):
    estimated = problem.channel_estimate(coefficients)
    return {
        "nmse": channel_nmse(problem.channels, estimated),
        "ser": symbol_error_rate(
            problem.channels, estimated, SNR_DB, seed, num_symbols=num_symbols
        ),
    }


def kronecker_greedy(problem):
    return kronecker_omp(problem.dictionaries, problem.measurements).coefficients


def oracle_greedy(problem):
    return kronecker_omp(
        problem.dictionaries, problem.measurements, max_atoms=(3, 1, 3), tolerance=0.0
    ).coefficients


def least_norm(problem):
    """The least-squares solution of smallest norm: pseudo-inverses axis by axis."""
    inverses = [np.linalg.pinv(H) for H in problem.dictionaries]
    return bk.datasets.sparse.multiply_modes(inverses, problem.measurements)


PEERS = {
    "Kronecker OMP": kronecker_greedy,
    "Kronecker OMP, sizes known": oracle_greedy,
    "least squares": least_norm,
}


def m_steps(report, seeds):
    problems = [bk.datasets.irs_mimo(seed, snr_db=SNR_DB) for seed in range(seeds)]
    found, rows = {}, []
    for name, (coupling, method) in FITS.items():
        each = []
        for seed, problem in enumerate(problems):
            seconds, (coefficients, convergence) = stopwatch(
                lambda p=problem, c=coupling, m=method: estimate(p, c, m)
            )
            each.append(
                scores_of(problem, coefficients, seed)
                | {
                    "seconds": seconds,
                    "coefficient nmse": nmse(problem.coefficients, coefficients),
                    "iterations": int(convergence.iterations),
                    "converged": bool(convergence.converged),
                }
            )
        found[name] = {key: [one[key] for one in each] for key in each[0]}
    for name, function in PEERS.items():
        each = [
            scores_of(problem, function(problem), seed) for seed, problem in enumerate(problems)
        ]
        found[name] = {key: [one[key] for one in each] for key in each[0]}
    for name, scores in found.items():
        better = share(np.array(found[DEFAULT]["nmse"]) < np.array(scores["nmse"]))
        rows.append(
            (
                name,
                median(scores["nmse"]),
                float(np.mean(scores["nmse"])),
                float(np.mean(scores["ser"])),
                None if name == DEFAULT else better,
                median(scores["iterations"]) if "iterations" in scores else None,
                share(scores["converged"]) if "converged" in scores else None,
                median(scores["seconds"]) if "seconds" in scores else None,
            )
        )
    columns = ("estimator", "median channel NMSE", "mean", "symbol error rate")
    columns += ("default is nearer", "iterations", "converged", "seconds")
    report.tables.append(Table(f"On the grid, {SNR_DB:g} dB, {seeds} seeds", columns, rows))
    rows = [
        (
            entry.algorithm,
            entry.median_nmse,
            entry.mean_nmse,
            published.SYMBOL_ERROR_RATE.get(entry.algorithm),
        )
        for entry in published.CHANNEL
        if entry.snr_db == SNR_DB
    ]
    columns = ("authors' algorithm", "median channel NMSE", "mean", "symbol error rate")
    report.tables.append(Table(f"Authors' figures at {SNR_DB:g} dB, 50 trials", columns, rows))
    report.results["on grid"] = found
    return found


def off_grid(report, seeds):
    rows, raw = [], {}
    estimators = {
        "coupled": lambda problem: estimate(problem, COUPLING, EM())[0],
        "uncoupled": lambda problem: estimate(problem, None, EM())[0],
        **PEERS,
    }
    for offset in OFFSETS:
        scores = {name: [] for name in estimators}
        errors = {name: [] for name in estimators}
        for seed in range(seeds):
            problem = bk.datasets.irs_mimo(seed, snr_db=SNR_DB, offset=offset)
            for name, function in estimators.items():
                found = scores_of(problem, function(problem), seed, num_symbols=10_000)
                scores[name].append(found["nmse"])
                errors[name].append(found["ser"])
        rows.append((offset, *(median(s) for s in scores.values())))
        raw[offset] = {"nmse": scores, "ser": errors}
    report.results["off grid"] = raw
    report.tables.append(
        Table(
            f"Angles off the grid, {SNR_DB:g} dB: median channel NMSE over {seeds} seeds",
            ("offset (bins)", *estimators),
            rows,
        )
    )


def snr_sweep(report, seeds):
    rows, raw = [], {}
    for snr_db in (4.0, 8.0, 12.0, 16.0, 20.0):
        problems = [bk.datasets.irs_mimo(seed, snr_db=snr_db) for seed in range(seeds)]
        scores = {
            name: [
                channel_nmse(p.channels, p.channel_estimate(estimate(p, coupling, EM())[0]))
                for p in problems
            ]
            for name, coupling in (("coupled", COUPLING), ("uncoupled", None))
        }
        for name, function in PEERS.items():
            scores[name] = [
                channel_nmse(p.channels, p.channel_estimate(function(p))) for p in problems
            ]
        theirs = {e.algorithm: e.median_nmse for e in published.CHANNEL if e.snr_db == snr_db}
        rows.append((snr_db, *(median(s) for s in scores.values()), *theirs.values()))
        raw[snr_db] = scores
    report.results["SNR sweep"] = raw
    columns = ("SNR (dB)", *scores, *(f"authors' {name}" for name in theirs))
    report.tables.append(Table(f"Median channel NMSE over {seeds} seeds", columns, rows))


def batch(report, count):
    """Many channels that share pilots and patterns, through one compiled program."""
    problems = [
        bk.datasets.irs_mimo(seed, snr_db=SNR_DB, sounding_key=0) for seed in range(2 * count)
    ]
    # One known noise level must serve all of them: each channel is brought to it.
    noise = problems[0].noise_variance
    tensors = np.stack([p.measurements * np.sqrt(noise / p.noise_variance) for p in problems])
    model = bk.models.KroneckerSBL(
        problems[0].dictionaries, noise_variance=noise, coupling=COUPLING
    )
    with compilations("_run_batch") as names:
        first, _ = stopwatch(lambda: bk.infer_batch(model, tensors[:count], EM()).log_evidence)
        seconds, posterior = stopwatch(lambda: bk.infer_batch(model, tensors[count:], EM()))
    mean = posterior.mean["coefficients"]
    scores = [
        channel_nmse(p.channels, p.channel_estimate(mean[i] * np.sqrt(p.noise_variance / noise)))
        for i, p in enumerate(problems[count:])
    ]
    converged = share(posterior.convergence.converged)
    few = slice(count, count + min(count, 10))
    alone, _ = stopwatch(
        lambda: [bk.infer(model, tensor, EM()).log_evidence for tensor in tensors[few]]
    )
    rows = [
        ("channels", count),
        ("compilations in two calls", len(names)),
        ("share converged", converged),
        ("median channel NMSE", median(scores)),
        ("first call ÷ second (compilation)", first / seconds),
        ("channels a second", count / seconds),
        ("one by one with infer ÷ in a batch", alone / min(count, 10) / (seconds / count)),
    ]
    report.tables.append(Table("Many channels through infer_batch", ("", "value"), rows))
    report.results["batch"] = {"nmse": scores, "compilations": names, **dict(rows)}
    return len(names)
