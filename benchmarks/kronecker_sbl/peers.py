"""Sweeps beside every peer, the slow dense ones too, on problems that those solve in seconds."""

import numpy as np

import bayeskit as bk
from bayeskit.metrics import nmse
from benchmarks.common import Bar, Options, Report, Table, in_two_processes, median
from benchmarks.kronecker_sbl.recovery import CASES, FAST_PEERS, SLOW_PEERS, fit

ORDER = 2.5
TITLE = "Sparse recovery, 10³ unknowns: sweeps beside dense Bayesian peers and FISTA"
MINUTES = (0, 25)  # by its own name (five minutes), or under --full

PROBLEM = {"shape": (6, 8, 10), "atoms": (10, 10, 10)}
SWEEPS = {
    "SNR (dB)": {v: {"snr_db": float(v)} for v in (5, 10, 15, 20, 25, 30)},
    "M₁": {v: {"shape": (v, 8, 10)} for v in (4, 5, 6, 7, 8)},
    "K": {v: {"nonzeros": (v, v, v)} for v in (2, 3, 4, 5)},
}
PEERS = FAST_PEERS | SLOW_PEERS


def run(options: Options) -> Report:
    seeds = options.count(1, 5)
    report = Report(TITLE, settings={"seeds": seeds})
    report.notes.append(
        "M = (6, 8, 10), K = 3 an axis and 25 dB where nothing else is said. The noise variance is "
        "unknown to our default, to classic SBL and to ARDRegression, but told to OMP. FISTA has "
        "the best of nine weights by the truth. With so few seeds, ratios below two say little."
    )
    found = in_two_processes(
        "benchmarks.kronecker_sbl.peers:sweeps_of",
        [{"case": case, "seeds": seeds} for case in CASES],
    )
    every = dict(zip(CASES, found, strict=True))
    report.results["sweeps"] = every
    for case, sweeps in every.items():
        for sweep, points in sweeps.items():
            rows = [
                (value, *(median(scores) for scores in point.values()))
                for value, point in points.items()
            ]
            title = f"{case}, N = 10³: median NMSE over {seeds} seeds, sweep over {sweep}"
            report.tables.append(Table(title, (sweep, "ours", "oracle", *PEERS), rows))
    for peer in SLOW_PEERS:
        ratios = [
            median(point["ours"]) / median(point[peer])
            for sweeps in every.values()
            for points in sweeps.values()
            for point in points.values()
        ]
        report.bars.append(
            Bar(f"our NMSE ÷ {peer}'s: median over the points", median(ratios), "<", 1.0)
        )
        report.results[f"ratio to {peer}"] = ratios
        report.notes.append(
            f"Our NMSE ÷ {peer}'s: {np.min(ratios):.2g} to {np.max(ratios):.2g} over the points."
        )
    return report


def sweeps_of(case, seeds):
    """Errors by seed of our default, of the oracle and of every peer, at every point."""
    return {
        sweep: {
            value: point(seeds, rank_one=CASES[case], **(PROBLEM | arguments))
            for value, arguments in points.items()
        }
        for sweep, points in SWEEPS.items()
    }


def point(seeds, **arguments):
    problems = [bk.datasets.kronecker_sparse(seed, **arguments) for seed in range(seeds)]
    return {
        "ours": [fit(problem)["nmse"] for problem in problems],
        "oracle": [nmse(p.coefficients, p.oracle()) for p in problems],
        **{
            name: [nmse(p.coefficients, solve(p)) for p in problems]
            for name, solve in PEERS.items()
        },
    }
