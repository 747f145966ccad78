"""Speed and memory against the paper's algorithm index by index, and size."""

import tempfile
import time
import warnings

import jax
import numpy as np
from gpjax.kernels import Matern12

import bayeskit as bk
from bayeskit.inference import MessagePassing
from benchmarks.baselines.conditional_ep import conditional_ep
from benchmarks.common import (
    Bar,
    Options,
    Report,
    Table,
    in_subprocess,
    median,
    stopwatch,
)

ORDER = 5
TITLE = "Speed and memory against the paper's algorithm index by index; ten million rows"
MINUTES = (6, 12)

GIBIBYTE = 2**30
LENGTHSCALE = 0.1
# Name: core, rank, sweeps that are timed in a round (ours, the baseline's), settings of authors.
CASES = {
    "CP, R = 2": ("cp", 2, (100, 6), {"variances": 5.0}),
    "Tucker, R = 5": (
        "tucker",
        5,
        (20, 2),
        {"damping": 0.5, "core_damping": 0.9, "noise_damping": 0.6},
    ),
}
BARS = {"CP, R = 2": (30, 80), "Tucker, R = 5": (8, None)}
FEW_ROWS = 200
FIT_SWEEPS = 2000
POINTS, SIZES = 1000, (10**4, 10**5, 10**6, 10**7)
SWEEPS = 10


def run(options: Options) -> Report:
    rounds = options.at_most(3, 9)
    report = Report(
        TITLE,
        settings={"rounds": rounds, "table": "PM2.5, temperature × pressure × day, fold 0"},
    )
    report.notes.append(
        "The baseline is conditional expectation propagation as the authors compute it: messages "
        "stored for every row, loops over unique indices in Python, the body compiled. "
        "Hyper-parameters are fixed in its sweeps and in ours."
    )
    sweep = sweeps(report, rounds)
    memory(report)
    whole_fit(report, rounds, sweep)
    scaling(report)
    return report


def beijing():
    """Training and test rows of three modes, indices scaled to [0, 10] as the paper has them."""
    air = bk.datasets.beijing_air()
    table, train = air.table, air.train["pm25"][0]
    indices = table[["temperature", "pressure", "day"]].to_numpy(float, copy=True)
    indices[:, :2] = np.round(indices[:, :2], 1)
    indices = 10 * (indices - indices.min(axis=0)) / np.ptp(indices, axis=0)
    values = table["pm25"].to_numpy()
    return (indices[train], values[train]), (indices[~train], values[~train])


def our_model(core, rank):
    modes = [
        bk.models.Mode(name, kernel=Matern12(lengthscale=LENGTHSCALE))
        for name in ("temperature", "pressure", "day")
    ]
    return bk.models.FunctionalTucker(modes, ranks=rank, core=core)


def fit(model, data, method=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        return bk.infer(model, data, method, key=0)


def baseline(data, core, rank, settings, count):
    return conditional_ep(
        *data, rank=rank, core=core, lengthscales=LENGTHSCALE, sweeps=count, **settings
    )


def sweeps(report, rounds):
    """Seconds of a sweep, in turn; ours as the slope between a short and a long run."""
    data, test = beijing()
    rows, ours_per_sweep = [], {}
    for name, (core, rank, (long, short), settings) in CASES.items():
        model = our_model(core, rank)

        def ours(count, model=model):
            return stopwatch(
                lambda: fit(model, data, MessagePassing(max_iterations=count, tolerance=0.0))
            )

        ours(2)
        seconds, peer = [], None
        for _ in range(rounds):
            few, _ = ours(2)
            many, posterior = ours(2 + long)
            # The first sweeps of every run compile or find what was compiled.
            peer = baseline(data, core, rank, settings, 3 + short)
            seconds.append(((many - few) / long, median(peer.seconds[3:])))
        ratio = median([theirs / own for own, theirs in seconds])
        own, theirs = (median([pair[i] for pair in seconds]) for i in (0, 1))
        errors = [
            float(np.sqrt(np.mean((mean - test[1]) ** 2)))
            for mean in (posterior.predict(test[0]).mean, peer.predict(test[0])[0])
        ]
        rows.append((name, 1e3 * own, 1e3 * theirs, ratio, *errors))
        ours_per_sweep[name] = own, theirs
        limit, target = BARS[name]
        report.bars.append(Bar(f"{name}: baseline ÷ ours, a sweep", ratio, ">=", limit, target))
        report.results[f"{name}: seconds of sweeps"] = seconds
    report.tables.append(
        Table(
            f"A sweep over {len(data[1])} rows and "
            f"{sum(len(np.unique(c)) for c in data[0].T)} unique indices",
            ("", "ours (ms)", "baseline (ms)", "ratio", "our error", "baseline's error"),
            rows,
            "Errors on test rows after the few sweeps that were timed, for the record: ours after "
            f"{2 + CASES['CP, R = 2'][2][0]} and {2 + CASES['Tucker, R = 5'][2][0]}, the "
            f"baseline's after {3 + CASES['CP, R = 2'][2][1]} and "
            f"{3 + CASES['Tucker, R = 5'][2][1]}.",
        )
    )
    return ours_per_sweep["CP, R = 2"]


def memory(report):
    """Peak memory of a few sweeps in processes of their own."""
    rows = []
    for name in CASES:
        found, base = {}, {}
        for who in ("ours", "baseline"):
            for count in (None, FEW_ROWS):
                peaks = compiled_peaks(name=name, who=who, count=count)
                found[who, count], base[who] = (each / GIBIBYTE for each in peaks)
        grown = {who: found[who, None] - found[who, FEW_ROWS] for who in ("ours", "baseline")}
        share = grown["ours"] / grown["baseline"]
        above = {who: found[who, None] - base[who] for who in ("ours", "baseline")}
        rows.append((name, *found.values(), share, above["ours"] / above["baseline"]))
        report.results[f"{name}: memory"] = rows[-1]
        if name == "Tucker, R = 5":
            title = f"{name}: our memory ÷ the baseline's, above that for {FEW_ROWS} rows"
            report.bars.append(Bar(title, share, "<=", 0.1))
    columns = [
        f"{who}, {what}"
        for who in ("ours", "baseline")
        for what in ("all rows", f"{FEW_ROWS} rows")
    ]
    report.tables.append(
        Table(
            "Peak memory of a process that makes three sweeps (GiB)",
            ("", *columns, "ratio of the differences", "ratio above the imports"),
            rows,
            "Programs were compiled by another process before: a compiler takes more than our "
            "sweeps. What is left for few rows are the imports and the programs.",
        )
    )


def compiled_peaks(**arguments):
    """Peak bytes, and those of the imports, of a process that finds its programs compiled."""
    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for _ in range(2):
            found = in_subprocess(
                "benchmarks.functional_tucker.speed:few_sweeps", cache, **arguments
            )
    return found["peak_bytes"], found["base_bytes"]


def few_sweeps(name, who, count):
    """Run in a process of its own."""
    data = tuple(array[:count] for array in beijing()[0])
    core, rank, _, settings = CASES[name]
    if who == "ours":
        method = MessagePassing(max_iterations=3, tolerance=0.0)
        jax.block_until_ready(fit(our_model(core, rank), data, method).approximation)
    else:
        baseline(data, core, rank, settings, 3)


def whole_fit(report, rounds, sweep):
    """A default fit, compiled before, in sweeps."""
    data, test = beijing()
    model = bk.models.FunctionalTucker(["temperature", "pressure", "day"], ranks=2, core="cp")
    fit(model, data)
    found = [stopwatch(lambda: fit(model, data)) for _ in range(rounds)]
    seconds, posterior = median([each for each, _ in found]), found[0][1]
    error = float(np.sqrt(np.mean((posterior.predict(test[0]).mean - test[1]) ** 2)))
    ours, theirs = sweep
    report.tables.append(
        Table(
            "CP, R = 2: a default fit by EM, kernels and noise learned, its starts included",
            (
                "seconds",
                "iterations",
                "converged",
                "in our sweeps",
                "in the baseline's sweeps",
                "test error",
            ),
            [
                (
                    seconds,
                    posterior.convergence.iterations,
                    "yes" if posterior.convergence.converged else "no, all it may make",
                    seconds / ours,
                    seconds / theirs,
                    error,
                )
            ],
        )
    )
    report.bars.append(
        Bar("CP, R = 2: a default fit, in our sweeps", seconds / ours, "<=", FIT_SWEEPS)
    )


def scaling(report):
    """Fits of equally many sweeps to more and more rows."""
    rows = []
    for size in SIZES:
        found = in_subprocess("benchmarks.functional_tucker.speed:large_fit", rows=size)
        rows.append((size, found["result"]["seconds"], found["peak_bytes"] / GIBIBYTE))
        report.results[f"{size} rows"] = found
    sizes, seconds = np.log([row[0] for row in rows]), np.log([row[1] for row in rows])
    exponents = np.diff(seconds) / np.diff(sizes)
    report.tables.append(
        Table(
            f"Synthetic rows, three modes of {POINTS} points, CP, R = 2: {SWEEPS} sweeps after the "
            "search for a start",
            ("rows", "seconds", "exponent since the row above", "peak memory (GiB)"),
            [
                (size, time, exponent, peak)
                for (size, time, peak), exponent in zip(rows, [None, *exponents], strict=True)
            ],
            "Seconds from the table to the posterior, compiled before, sorting of indices "
            "included. Memory is the process's, with the table.",
        )
    )
    slope = float(np.polyfit(sizes, seconds, 1)[0])
    report.bars += [
        Bar("exponent of time by rows", slope, "<=", 1.1),
        Bar(f"exponent from {SIZES[-2]:.0e} to {SIZES[-1]:.0e} rows", exponents[-1], "<=", 1.1),
        Bar(f"peak memory at {SIZES[-1]:.0e} rows (GiB)", rows[-1][2], "<=", 8),
    ]


def large_fit(rows):
    """Run in a process of its own."""
    generator = np.random.default_rng(0)
    position = generator.integers(0, POINTS, size=(rows, 3))
    places = np.sort(generator.uniform(size=(3, POINTS)), axis=1)
    values = np.zeros(rows)
    for r in range(2):
        product = np.ones(rows)
        for k in range(3):
            product *= (1.5 + np.sin(2 * np.pi * (places[k] + 0.3 * r * k)))[position[:, k]]
        values += (-1) ** r * product
    values += 0.1 * generator.normal(size=rows)
    indices = np.take_along_axis(places.T, position, axis=0)
    del position
    model = bk.models.FunctionalTucker(["x", "y", "z"], ranks=2, core="cp")
    seconds = []
    for count in (1, SWEEPS):
        start = time.perf_counter()
        method = MessagePassing(max_iterations=count, tolerance=0.0)
        posterior = fit(model, (indices, values), method)
        jax.block_until_ready(posterior.approximation)
        seconds.append(time.perf_counter() - start)
    noise = float(posterior.mean["noise_variance"])
    return {"seconds": seconds[-1], "noise deviation": float(np.sqrt(noise))}
