"""Synthetic recovery: the paper's experiment, all M-steps, and peers beside it."""

import functools
import time

import numpy as np
from sklearn.linear_model import ARDRegression

import bayeskit as bk
from bayeskit.inference import EM
from bayeskit.metrics import nmse, support_recovery_rate
from benchmarks.baselines import best_fista, classic_sbl, kronecker_omp, omp
from benchmarks.common import Bar, Options, Report, Table, in_two_processes, median, quantile, share
from benchmarks.kronecker_sbl import published

ORDER = 2
TITLE = "Sparse recovery, 15³ unknowns: M-steps, sweeps, peers"
MINUTES = (8, 90)

CASES = {"independent": False, "rank one": True}
DEFAULT = "default (mackay)"
M_STEPS = {
    DEFAULT: EM(),
    "mackay, 4 restarts": EM("mackay", restarts=4),
    "convex": EM("convex"),
    "alternating": EM("alternating"),
    "alternating, prune 1e-2": EM("alternating", prune=1e-2),
    "svd": EM("svd"),
    "svd, prune 5e-4": EM("svd", prune=5e-4),
}
SWEEPS = {
    "SNR (dB)": {v: {"snr_db": float(v)} for v in (5, 10, 15, 20, 25, 30)},
    "M₁": {v: {"shape": (v, 12, 15)} for v in (6, 8, 10, 12, 14)},
    "K": {v: {"nonzeros": (v, v, v)} for v in (2, 3, 4, 5, 6)},
}
# What a problem has where a sweep says nothing else.
CROSSING = ({"snr_db": 25.0}, {"shape": (8, 12, 15)}, {"nonzeros": (3, 3, 3)})
# Without pruning the alternating step ends far away after hundreds of iterations; not swept.
SWEPT_M_STEPS = {name: method for name, method in M_STEPS.items() if name != "alternating"}
# Which of the authors' algorithms is which option here.
THEIRS = {"SVD-KroSBL": "svd, prune 5e-4", "AM-KroSBL": "alternating, prune 1e-2"}


def run(options: Options) -> Report:
    seeds = options.count(50, 200)
    few = min(seeds, options.count(30, 100))
    slow = {"FISTA": options.at_most(3, 20), "classic SBL": options.at_most(2, 10)}
    slow_swept = {"FISTA": 5, "classic SBL": 3} if options.full else {}
    slow_swept = {name: options.at_most(count) for name, count in slow_swept.items()}
    if options.full:  # dense: minutes a data set
        slow["ARDRegression"] = options.at_most(3)
    report = Report(
        TITLE,
        settings={"seeds": seeds} | {f"seeds of {name}": count for name, count in slow.items()},
    )
    report.notes.append(
        "Normalised mean squared error of the coefficients throughout; 'oracle' is least squares "
        "on the true support. M = (8, 12, 15), K = 3 an axis and 25 dB where nothing else is "
        "said, the noise variance unknown to all our fits and to classic SBL, but told to OMP. "
        "FISTA has the best of nine weights by the truth."
    )
    main_results = {case: main_case(rank_one, seeds) for case, rank_one in CASES.items()}
    for case, found in main_results.items():
        add_main(report, case, found)
    add_bars(report, main_results)
    for case, rank_one in CASES.items():
        ours = main_results[case]["fits"][DEFAULT]
        report.tables.append(peers_table(report, case, rank_one, ours, slow))
    report.tables.append(published_table(report, main_results["rank one"], seeds))
    # Other numbers of rows are other shapes: a process that compiles, and one that computes.
    swept = in_two_processes(
        "benchmarks.kronecker_sbl.recovery:sweeps_of",
        [
            {"sweeps": sweeps, "seeds": few, "slow": slow_swept}
            for sweeps in (["M₁"], ["SNR (dB)", "K"])
        ],
    )
    crossing = {
        case: point(rank_one, few, slow_swept, found=first_seeds(main_results[case], few))
        for case, rank_one in CASES.items()
    }
    found = {case: swept[0][case] | swept[1][case] for case in CASES}
    report.results["sweeps"] = {
        case: {
            sweep: {
                value: crossing[case] if arguments in CROSSING else found[case][sweep][str(value)]
                for value, arguments in SWEEPS[sweep].items()
            }
            for sweep in SWEEPS
        }
        for case in CASES
    }
    for case, sweeps in report.results["sweeps"].items():
        for sweep, points in sweeps.items():
            report.tables += sweep_tables(case, sweep, points, few, slow_swept)
    worst = max(
        entry["÷ best option"]
        for sweeps in report.results["sweeps"].values()
        for points in sweeps.values()
        for entry in points.values()
    )
    report.bars.append(
        Bar("sweeps: largest median ÷ best M-step's, over all points", worst, "<=", 1.25)
    )
    return report


def fit(problem, method=None):
    """One fit's scores."""
    start = time.perf_counter()
    posterior = bk.infer(
        bk.models.KroneckerSBL(problem.dictionaries), problem.measurements, method, key=0
    )
    estimate = posterior.mean["coefficients"]
    seconds = time.perf_counter() - start
    return {
        "nmse": nmse(problem.coefficients, estimate),
        "support recovery": support_recovery_rate(problem.coefficients, estimate),
        "support (95 %)": support_recovery_rate(problem.coefficients, posterior.support()),
        "noise ratio": float(posterior.mean["noise_variance"]) / problem.noise_variance,
        "iterations": int(posterior.convergence.iterations),
        "converged": bool(posterior.convergence.converged),
        "seconds": seconds,
    }


def main_case(rank_one, seeds, methods=M_STEPS, **arguments):
    """Every M-step on every seed, and the oracle."""
    problems = [
        bk.datasets.kronecker_sparse(seed, rank_one=rank_one, **arguments) for seed in range(seeds)
    ]
    oracle = [nmse(p.coefficients, p.oracle()) for p in problems]
    fits = {}
    for name, method in methods.items():
        each = [fit(problem, method) for problem in problems]
        fits[name] = {key: [one[key] for one in each] for key in each[0]}
    return {"oracle": oracle, "fits": fits}


def first_seeds(found, count):
    """What :func:`main_case` gives for fewer seeds."""
    fits = {
        name: {key: values[:count] for key, values in scores.items()}
        for name, scores in found["fits"].items()
    }
    return {"oracle": found["oracle"][:count], "fits": fits}


def add_main(report, case, found):
    oracle = np.array(found["oracle"])
    rows = []
    best = min(median(f["nmse"]) for f in found["fits"].values())
    for name, f in found["fits"].items():
        ratio = np.array(f["nmse"]) / oracle
        rows.append(
            (
                name,
                median(f["nmse"]),
                median(f["nmse"]) / best,
                float(np.mean(f["nmse"])),
                quantile(f["nmse"], 0.9),
                share(ratio <= 3),
                float(ratio.max()),
                float(np.mean(f["support recovery"])),
                float(np.mean(f["support (95 %)"])),
                median(np.abs(np.array(f["noise ratio"]) - 1)),
                median(f["iterations"]),
                share(f["converged"]),
                median(f["seconds"]),
            )
        )
    rows.append(
        (
            "oracle",
            median(oracle),
            median(oracle) / best,
            float(oracle.mean()),
            quantile(oracle, 0.9),
            1.0,
            1.0,
            *((None,) * 6),
        )
    )
    columns = (
        "EM with M-step",
        "median",
        "÷ best option",
        "mean",
        "90 % of seeds below",
        "share ≤ 3 × oracle",
        "worst ÷ oracle",
        "support (1e-3 cut)",
        "support (95 %)",
        "median |σ̂²/σ² − 1|",
        "iterations",
        "converged",
        "seconds",
    )
    title = f"{case}, 25 dB, K = 3, M₁ = 8: EM's M-steps, {len(oracle)} seeds"
    report.tables.append(Table(title, columns, rows))
    report.results[case] = found


def add_bars(report, main_results):
    for case, found in main_results.items():
        fits = found["fits"]
        default = np.array(fits[DEFAULT]["nmse"])
        ratio = default / np.array(found["oracle"])
        report.bars.append(
            Bar(f"{case}: median", median(default), "<=", 3e-4 if case == "independent" else 4e-4)
        )
        if case == "independent":
            report.bars += [
                Bar(f"{case}: share of seeds ≤ 3 × oracle", share(ratio <= 3), ">=", 0.95),
                Bar(f"{case}: worst seed ÷ oracle", float(ratio.max()), "<=", 5.0, target=3.0),
            ]
        else:
            deviation = np.abs(np.array(fits[DEFAULT]["noise ratio"]) - 1)
            report.bars += [
                Bar(f"{case}: share of seeds ≤ 3 × oracle", share(ratio <= 3), ">=", 0.8),
                Bar(f"{case}: median |σ̂²/σ² − 1|", median(deviation), "<=", 0.05),
            ]
        best = min(median(f["nmse"]) for f in fits.values())
        report.bars.append(
            Bar(f"{case}: median ÷ best M-step's", median(default) / best, "<=", 1.25)
        )


# Peers


def classic(problem):
    dense = functools.reduce(np.kron, problem.dictionaries)
    found = classic_sbl(dense, problem.measurements.ravel())
    return found.coefficients.reshape(problem.coefficients.shape)


def ard(problem):
    dense = functools.reduce(np.kron, problem.dictionaries)
    found = ARDRegression(fit_intercept=False, max_iter=300).fit(
        dense, problem.measurements.ravel()
    )
    return found.coef_.reshape(problem.coefficients.shape)


def greedy(problem):
    return omp(
        problem.dictionaries, problem.measurements, noise_variance=problem.noise_variance
    ).coefficients


def kronecker_greedy(problem):
    return kronecker_omp(problem.dictionaries, problem.measurements).coefficients


def oracle_greedy(problem):
    sizes = tuple(len(index) for index in problem.support)
    found = kronecker_omp(
        problem.dictionaries, problem.measurements, max_atoms=sizes, tolerance=0.0
    )
    return found.coefficients


def fista(problem):
    return best_fista(problem.dictionaries, problem.measurements, problem.coefficients)[
        0
    ].coefficients


FAST_PEERS = {"OMP": greedy, "Kronecker OMP": kronecker_greedy, "… sizes known": oracle_greedy}
SLOW_PEERS = {"FISTA": fista, "classic SBL": classic, "ARDRegression": ard}


def timed(function, problem):
    start = time.perf_counter()
    estimate = function(problem)
    return nmse(problem.coefficients, estimate), time.perf_counter() - start


def peers_table(report, case, rank_one, ours, slow):
    counts = dict.fromkeys(FAST_PEERS, min(20, len(ours["nmse"]))) | slow
    table = compare(
        report,
        case,
        ours,
        counts,
        lambda seed: bk.datasets.kronecker_sparse(seed, rank_one=rank_one),
    )
    return Table(f"{case}, 25 dB, K = 3, M₁ = 8: peers, and our default on the same seeds", *table)


def compare(report, label, ours, counts, problem_of):
    """Columns and rows of peers beside our scores."""
    rows, raw = [], {}
    for name, count in counts.items():
        function = (FAST_PEERS | SLOW_PEERS)[name]
        pairs = []
        for seed in range(count):
            pairs.append(timed(function, problem_of(seed)))
        scores, seconds = zip(*pairs, strict=True)
        beside = ours["nmse"][: len(scores)]
        wins = share(np.array(beside) < np.array(scores))
        rows.append(
            (
                name,
                len(scores),
                median(scores),
                median(beside),
                wins,
                median(seconds),
                median(ours["seconds"][: len(scores)]),
            )
        )
        raw[name] = {"nmse": scores, "seconds": seconds}
    report.results.setdefault("peers", {})[label] = raw
    columns = ("peer", "seeds", "median", "our median", "we are nearer", "seconds", "our seconds")
    return columns, rows


def published_table(report, rank_one, seeds):
    """The authors' figures beside ours; ours at M₁ = 10 are run here."""
    fits = {8: rank_one["fits"]}
    wanted = [*THEIRS.values(), DEFAULT]
    each = [
        [fit(problem, M_STEPS[name]) for name in wanted]
        for problem in (
            bk.datasets.kronecker_sparse(seed, rank_one=True, shape=(10, 12, 15))
            for seed in range(seeds)
        )
    ]
    fits[10] = {
        name: {key: [one[i][key] for one in each] for key in each[0][i]}
        for i, name in enumerate(wanted)
    }

    def ours(name, rows):
        f = fits[rows][name]
        return (
            name,
            float(np.mean(f["nmse"])),
            median(f["nmse"]),
            float(np.mean(f["support recovery"])),
            median(f["seconds"]),
        )

    rows = []
    for theirs in published.RECOVERY:
        name = THEIRS.get(theirs.algorithm)
        here = (None,) * 5 if name is None else ours(name, theirs.rows)
        rows.append((theirs.rows, *theirs[:1], *theirs[2:], *here))
    for count in fits:
        rows.append((count, "–", *(None,) * 4, *ours(DEFAULT, count)))
    columns = ("M₁", "authors'", "mean", "median", "support", "s (MATLAB)")
    columns += ("ours", "mean", "median", "support", "s")
    report.results["published M₁ = 10"] = fits[10]
    return Table(
        f"Authors' figures (100 trials) beside ours ({seeds} seeds): rank one, 25 dB, K = 3, "
        "noise unknown",
        columns,
        rows,
        "Support: intersection over union after a cut at 1e-3 of the largest coefficient.",
    )


def sweeps_of(sweeps, seeds, slow):
    """Every point of some sweeps in both cases, where it is not the problem of the main case."""
    return {
        case: {
            sweep: {
                value: point(rank_one, seeds, slow, **arguments)
                for value, arguments in SWEEPS[sweep].items()
                if arguments not in CROSSING
            }
            for sweep in sweeps
        }
        for case, rank_one in CASES.items()
    }


def point(rank_one, seeds, slow, found=None, **arguments):
    """One point of a sweep: errors by seed of our M-steps, of the peers and of the oracle."""
    if found is None:
        found = main_case(rank_one, seeds, SWEPT_M_STEPS, **arguments)
    problems = [
        bk.datasets.kronecker_sparse(seed, rank_one=rank_one, **arguments) for seed in range(seeds)
    ]
    scores = {"ours": found["fits"][DEFAULT]["nmse"], "oracle": found["oracle"]}
    for name, function in FAST_PEERS.items():
        scores[name] = [nmse(p.coefficients, function(p)) for p in problems]
    for name, count in slow.items():
        scores[name] = [nmse(p.coefficients, SLOW_PEERS[name](p)) for p in problems[:count]]
    errors = {name: found["fits"][name]["nmse"] for name in SWEPT_M_STEPS}
    medians = {name: median(each) for name, each in errors.items()}
    worse = medians[DEFAULT] / min(medians.values())
    return {"peers": scores, "M-steps": errors, "÷ best option": worse}


def sweep_tables(case, sweep, points, seeds, slow):
    """Our default beside the peers, and beside the other M-steps."""
    beside_peers, beside_steps = [], []
    for value, found in points.items():
        scores = found["peers"]
        ratio = np.array(scores["ours"]) / np.array(scores["oracle"])
        beside_peers.append((value, *(median(s) for s in scores.values()), share(ratio <= 3)))
        medians = [median(errors) for errors in found["M-steps"].values()]
        beside_steps.append((value, *medians, found["÷ best option"]))
    title = f"{case}: median over {seeds} seeds, sweep over {sweep}"
    few = ", ".join(f"{name} on {count}" for name, count in slow.items())
    note = f"{few} seeds." if few else "Dense peers and FISTA: the sweeps of 10³ unknowns."
    return [
        Table(f"{title}: peers", (sweep, *scores, "ours ≤ 3 × oracle"), beside_peers, note),
        Table(f"{title}: M-steps", (sweep, *SWEPT_M_STEPS, "default ÷ best"), beside_steps),
    ]
