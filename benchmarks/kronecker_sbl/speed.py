"""Speed against dense sparse Bayesian learning, against the products themselves, and size."""

import functools
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import bayeskit as bk
from bayeskit.inference import EM
from bayeskit.linalg import kronecker_multiply
from bayeskit.metrics import nmse
from bayeskit.models.kronecker_sbl.approximation import Conditional
from bayeskit.precision import double_precision
from benchmarks.baselines import classic_sbl
from benchmarks.common import (
    Bar,
    Options,
    Report,
    Table,
    Timings,
    in_subprocess,
    median,
    share,
    side_by_side,
    stopwatch,
)

ORDER = 3
TITLE = "Speed against dense SBL and bare Kronecker products; ten million unknowns"
MINUTES = (2, 10)

GIBIBYTE = 2**30
DENSE_ITERATIONS = 5
STRUCTURED_ITERATIONS = 450
E_STEP = ((60, 60, 60), (100, 100, 100))
LARGE = ((128, 128, 128), (216, 216, 216))
HUGE = ((278, 278, 278), (464, 464, 464))


def run(options: Options) -> Report:
    seeds = options.at_most(3, 15)
    rounds = options.at_most(9, 25)
    report = Report(TITLE, settings={"seeds": seeds, "rounds": rounds})
    report.notes.append(
        "Ratios of times taken in turn in one process, everything compiled before; medians. "
        "The dense peer is our own classic SBL in NumPy and LAPACK (Cholesky in the smaller of "
        "the two spaces), with the authors' settings."
    )
    iteration = per_iteration(report, seeds)
    fit, ours, theirs = whole_fits(report, seeds)
    products = e_step(report, rounds)
    large = ten_million(report)
    if jax.default_backend() != "cpu":
        hundred_million(report)
    report.bars += [
        Bar("dense ÷ structured, an iteration (no pruning)", iteration, ">=", 300),
        Bar("dense ÷ structured, a default fit", fit, ">=", 100, target=300),
        Bar("our median NMSE ÷ dense SBL's", ours / theirs, "<", 1),
        Bar("E-step at N = 10⁶ ÷ its bare Kronecker products", products, "<=", 4),
        Bar("peak memory at N = 10⁷ (GiB)", large["peak_bytes"] / GIBIBYTE, "<=", 24),
    ]
    return report


def per_iteration(report, seeds):
    """An iteration of either, as the slope between a short and a long run of the same sizes."""
    ratios, rows = [], []
    for seed in range(seeds):
        problem = bk.datasets.kronecker_sparse(seed)
        dense = functools.reduce(np.kron, problem.dictionaries)
        model = bk.models.KroneckerSBL(problem.dictionaries)

        def structured(count, model=model, problem=problem):
            method = EM(max_iterations=count, tolerance=0.0)
            return bk.infer(model, problem.measurements, method).approximation

        def classic(count, dense=dense, problem=problem):
            return classic_sbl(
                dense,
                problem.measurements.ravel(),
                max_iterations=count,
                tolerance=0.0,
                prune=0.0,
            ).coefficients

        timings = side_by_side(
            {
                "long": lambda s=structured: s(50 + STRUCTURED_ITERATIONS),
                "short": lambda s=structured: s(50),
                "dense long": lambda c=classic: c(1 + DENSE_ITERATIONS),
                "dense short": lambda c=classic: c(1),
            },
            rounds=1 if seed else 2,
        )
        ours = (timings.median("long") - timings.median("short")) / STRUCTURED_ITERATIONS
        theirs = (timings.median("dense long") - timings.median("dense short")) / DENSE_ITERATIONS
        ratios.append(theirs / ours)
        rows.append((seed, 1e3 * ours, 1e3 * theirs, theirs / ours))
    report.tables.append(
        Table(
            "N = 3375, M = 1440: one iteration, no pruning",
            ("seed", "structured (ms)", "dense (ms)", "ratio"),
            rows,
            "A structured iteration renews all three factors and the noise, each with its own "
            "E-step; a dense one is one E-step and one update.",
        )
    )
    report.results["per iteration"] = rows
    return median(ratios)


def whole_fits(report, seeds):
    """Default fits from measurements to mean and variance."""
    rows, ratios = [], []
    for seed in range(seeds):
        problem = bk.datasets.kronecker_sparse(seed, rank_one=True)
        dense = functools.reduce(np.kron, problem.dictionaries)
        model = bk.models.KroneckerSBL(problem.dictionaries)

        def fit(model=model, problem=problem):
            posterior = bk.infer(model, problem.measurements)
            posterior.variance["coefficients"]
            return posterior.mean["coefficients"], posterior.convergence

        fit()
        ours = median([stopwatch(lambda f=fit: f()[0])[0] for _ in range(3)])
        theirs, found = stopwatch(lambda d=dense, p=problem: classic_sbl(d, p.measurements.ravel()))
        again = median([stopwatch(lambda f=fit: f()[0])[0] for _ in range(3)])
        mean, convergence = fit()
        seconds = (ours + again) / 2
        ratios.append(theirs / seconds)
        truth = problem.coefficients
        rows.append(
            (
                seed,
                seconds,
                convergence.iterations,
                nmse(truth, mean),
                theirs,
                found.iterations,
                nmse(truth, found.coefficients.reshape(truth.shape)),
                theirs / seconds,
            )
        )
    columns = ("seed", "ours (s)", "iterations", "NMSE")
    columns += ("dense (s, pruned)", "iterations", "NMSE", "ratio")
    ours, theirs = median([row[3] for row in rows]), median([row[6] for row in rows])
    report.tables.append(
        Table(
            "N = 3375, M = 1440, rank one, 25 dB, noise learned: default fits",
            columns,
            rows,
            f"Median NMSE {ours:.3g} against {theirs:.3g}; ours is lower in "
            f"{100 * share([row[3] < row[6] for row in rows]):.0f} % of the seeds. Ours includes "
            "posterior mean and variance of all coefficients, as the dense fit does.",
        )
    )
    report.results["fits"] = rows
    return median(ratios), ours, theirs


def e_step(report, rounds):
    """Mean and variance at N = 10⁶ against as many Kronecker products of the same sizes."""
    target = "benchmarks.kronecker_sbl.speed:e_step_seconds"
    found = {
        "as installed": in_subprocess(target, rounds=rounds)["result"],
        "LAPACK on one thread": in_subprocess(target, {"OPENBLAS_NUM_THREADS": "1"}, rounds=rounds)[
            "result"
        ],
    }
    timings = {name: Timings(seconds) for name, seconds in found.items()}
    rows, columns = E_STEP
    flops = 2 * sum(rows[0] ** i * columns[0] ** (4 - i) for i in range(1, 4))
    flops += 6 * (rows[0] ** 4 + columns[0] ** 4)
    ratios = {name: t.ratio("E-step", "products") for name, t in timings.items()}
    report.tables.append(
        Table(
            "N = 10⁶, M = 60³, float64: posterior mean and variance of all coefficients",
            ("", "E-step (s)", "its three products (s)", "ratio", "10⁹ operations a second"),
            [
                (
                    name,
                    t.median("E-step"),
                    t.median("products"),
                    ratios[name],
                    flops / 1e9 / t.median("products"),
                )
                for name, t in timings.items()
            ],
            "Operations a second are those of the products alone. The E-step's small singular "
            "value decompositions use LAPACK, whose threads wait for each other where other "
            "processes keep the cores busy; the products do not use it.",
        )
    )
    report.results["E-step"] = found
    return ratios["as installed"]


def e_step_seconds(rounds):
    """Seconds of the E-step and of its products; run in a process of its own."""
    rows, columns = E_STEP
    rng = np.random.default_rng(0)
    dictionaries = tuple(
        rng.standard_normal(size) / np.sqrt(size[0]) for size in zip(rows, columns, strict=True)
    )
    model = bk.models.KroneckerSBL(dictionaries, noise_variance=1e-2)
    with double_precision():
        prepared = model.prepare(rng.standard_normal(rows))
        scales = tuple(jnp.asarray(10.0 ** rng.uniform(-3, 0, n)) for n in columns)
        approximation = Conditional(scales, prepared.data.noise_variance)
        tensor = jnp.asarray(rng.standard_normal((1, *rows)))
        wide = tuple(
            jnp.asarray(rng.standard_normal((n, m)) / n) for m, n in zip(*E_STEP, strict=True)
        )
        square = tuple(jnp.asarray(rng.standard_normal((m, m)) / m) for m in rows)
        squares = tuple(jnp.asarray(rng.uniform(size=(n, n)) / n) for n in columns)
        full = jnp.asarray(rng.uniform(size=columns))

        @eqx.filter_jit
        def mean_and_variance(approximation, model, data):
            mean, variance = approximation.moments(model, data)
            return mean["coefficients"], variance["coefficients"]

        @jax.jit
        def products(square, wide, squares, tensor, full):
            # Measurements to the eigenbasis, that to the coefficients, and the variances.
            mean = kronecker_multiply(wide, kronecker_multiply(square, tensor))
            return mean, kronecker_multiply(squares, full)

        timings = side_by_side(
            {
                "E-step": lambda: mean_and_variance(approximation, prepared.model, prepared.data),
                "products": lambda: products(square, wide, squares, tensor, full),
            },
            rounds,
        )
    return timings.seconds


def ten_million(report):
    outcome = in_subprocess(
        "benchmarks.kronecker_sbl.speed:large_fit", rows=LARGE[0], columns=LARGE[1]
    )
    report.tables.append(large_table("N = 10⁷ (216³), M = 128³", outcome))
    report.results["N = 10⁷"] = outcome
    return outcome


def hundred_million(report):
    outcome = in_subprocess(
        "benchmarks.kronecker_sbl.speed:large_fit",
        rows=HUGE[0],
        columns=HUGE[1],
        precision="float32",
    )
    report.tables.append(large_table("N = 10⁸ (464³), M = 278³, float32", outcome))
    report.results["N = 10⁸"] = outcome


def large_table(title, outcome):
    found = outcome["result"]
    rows = [
        ("unknowns", found["unknowns"]),
        ("measurements", found["measurements"]),
        ("EM iterations", found["iterations"]),
        ("seconds an iteration", found["seconds_an_iteration"]),
        ("mean and variance (s, compilation included)", found["moments_seconds"]),
        ("NMSE", found["nmse"]),
        ("peak memory of the process (GiB)", outcome["peak_bytes"] / GIBIBYTE),
        ("of it before the problem was made (GiB)", outcome["base_bytes"] / GIBIBYTE),
    ]
    return Table(
        f"{title}: a fit of a few iterations in a process of its own",
        ("", "value"),
        rows,
        "Peak memory includes making the problem.",
    )


def large_fit(rows, columns, precision="float64", iterations=5):
    """Fit a large problem; run in a process of its own."""
    problem = bk.datasets.kronecker_sparse(
        0, shape=rows, atoms=columns, nonzeros=(10,) * len(rows), snr_db=25.0
    )
    model = bk.models.KroneckerSBL(tuple(H.astype(precision) for H in problem.dictionaries))
    measurements = problem.measurements.astype(precision)
    # The same compiled program once before: its length is not the number of iterations made.
    first = EM(max_iterations=iterations, tolerance=1e30)
    bk.infer(model, measurements, first)
    start = time.perf_counter()
    posterior = bk.infer(model, measurements, EM(max_iterations=iterations, tolerance=0.0))
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    mean, variance = posterior.mean["coefficients"], posterior.variance["coefficients"]
    moments = time.perf_counter() - start
    if not np.isfinite(mean).all() or variance.min() < 0:
        raise ArithmeticError("a mean is not finite, or a variance is negative")
    return {
        "unknowns": int(np.prod(columns)),
        "measurements": int(np.prod(rows)),
        "iterations": int(posterior.convergence.iterations),
        "seconds_an_iteration": seconds / iterations,
        "moments_seconds": moments,
        "nmse": nmse(problem.coefficients, mean),
    }
