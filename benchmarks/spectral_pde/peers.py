"""Error against time beside plain Gaussian processes, a network, and the paper's algorithm."""

import importlib.util
import warnings

import jax
import numpy as np

import bayeskit as bk
from benchmarks.baselines.chebyshev import chebyshev_collocation
from benchmarks.baselines.collocation_gp import KERNELS, collocation_gp
from benchmarks.baselines.fourier_network import fourier_network
from benchmarks.common import Options, Report, Table, in_subprocess, stopwatch
from benchmarks.spectral_pde.accuracy import LEVEL_Z, TESTED, relative
from benchmarks.spectral_pde.paper import (
    as_parameters,
    as_unknowns,
    baseline_of,
    model_of,
    started,
    structured_loss,
)
from benchmarks.spectral_pde.problems import ONE_DIMENSION, PROBLEMS

ORDER = 4
TITLE = "Error against time: plain Gaussian processes, a Fourier-feature network, the paper's form"
MINUTES = (15, 100)

SUM = "Poisson, sin 6x cos 20x + sin 6y cos 20y"
USUAL = (
    "Poisson, sin 100x",
    "Poisson, sin 500x − 2 (x − ½)²",
    "Allen–Cahn, sin 6x cos 100x",
    SUM,
)
ALL = (
    *ONE_DIMENSION,
    "Poisson, sin 100x sin 100y",
    SUM,
    "Allen–Cahn, product of sin x + 0.1 sin 20x + cos 100x",
)
# Frequencies of the network's features, of which the best by the true error is shown.
SCALES = ((1.0, 10.0), (1.0, 10.0, 100.0), (1.0, 20.0, 200.0))
DENSE = 60  # points a dimension of the dense peers in two dimensions
OURS, CHEBYSHEV = "SpectralPDE, default", "Chebyshev collocation"
NAIVE, STRUCTURED = "the paper's algorithm, entry by entry", "the paper's algorithm, structured"
FAMILY = "gaussian"
NETWORK = "DeepXDE, multi-scale Fourier features"
GIBIBYTE = 2**30


def run(options: Options) -> Report:
    budget = 120 if options.full else 60
    names = ALL if options.full else USUAL
    with_network = importlib.util.find_spec("deepxde") is not None
    report = Report(TITLE, settings={"budget in seconds": budget})
    rows = []
    for name in names:
        ours = alone("solve", name)
        rows += [ours]
        spans = ((NAIVE, ours["seconds"]), (STRUCTURED, ours["seconds"]), (STRUCTURED, budget))
        for form, seconds in spans:
            row = alone("paper", name, form=form, seconds=seconds)
            row["method"] += "" if seconds == budget else ", in our time"
            rows.append(row)
        rows += [alone("plain", name, kernel=kernel) for kernel in KERNELS]
        if name in ONE_DIMENSION:
            rows.append(alone("chebyshev", name))
        if with_network:
            runs = [alone("network", name, scales=s, seconds=budget) for s in SCALES]
            rows += runs
    report.results["runs"] = rows
    columns = ("problem", "method", "error", "seconds", "coverage", "mean z²", "peak (GiB)")
    report.tables.append(
        Table(
            "Error and time",
            columns,
            [tuple(row.get(c) for c in columns) for row in shown(rows)],
            "Warm, compiled before, in a process of its own with all cores; the network's seconds "
            "and the peak of memory hold compilation and imports.",
        )
    )
    report.notes += [
        "Plain Gaussian processes: dense collocation on a uniform grid, one lengthscale, variance "
        f"and nugget by the evidence over a grid of values; in two dimensions at {DENSE}² points, "
        "since the matrices have as many rows as there are points. The paper's algorithm, of our "
        "own writing and compiled, has as many whole iterations as fit in the time of our solve; "
        "before the first its field is zero.",
        f"The network has {budget} seconds for each of {len(SCALES)} sets of frequencies; shown is "
        "the set with the smallest true error at the end, which favours it."
        if with_network
        else "DeepXDE is not installed: the network is left out.",
    ]
    return report


def shown(rows):
    """All but the network's worse runs."""
    best: dict = {}
    for row in rows:
        key = row["problem"], row["method"]
        if key not in best or row["error"] < best[key]["error"]:
            best[key] = row
    return list(best.values())


def alone(who, name, **arguments):
    """One method's row, in a process of its own."""
    found = in_subprocess(f"benchmarks.spectral_pde.peers:{who}", name=name, **arguments)
    return {"problem": name, **found["result"], "peak (GiB)": found["peak_bytes"] / GIBIBYTE}


def test_points(problem):
    """A uniform grid, one array a dimension, and the true values there."""
    tested = TESTED[len(problem.lengths)]
    points = [np.linspace(0.0, length, tested) for length in problem.lengths]
    return points, problem.truth(*np.meshgrid(*points, indexing="ij"))


def scores(method, mean, truth, seconds, variance=None):
    row = {"method": method, "error": relative(mean, truth), "seconds": seconds}
    if variance is not None:
        z = (mean - truth) / np.sqrt(variance)
        row["coverage"] = float(np.mean(np.abs(z) < LEVEL_Z))
        row["mean z²"] = float(np.mean(z**2))
    return row


def solve(name):
    model = model_of(name, FAMILY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        bk.infer(model, None)
        seconds, posterior = stopwatch(lambda: bk.infer(model, None))
    mean, truth, variance = predicted(name, posterior)
    return scores(OURS, mean, truth, seconds, variance)


def predicted(name, posterior):
    """Mean, truth and variance at the test points."""
    points, truth = test_points(PROBLEMS[name])
    found = posterior.predict(dict(zip(PROBLEMS[name].pde.dims, points, strict=True)))
    return found.mean, truth, found.variance


def paper(name, form, seconds):
    """As many iterations of the paper's algorithm as fit in so many seconds."""
    with jax.enable_x64(True):
        baseline, start = baseline_of(name, FAMILY)
        loss = baseline.loss
        if form == STRUCTURED:
            start, loss = (
                as_unknowns(PROBLEMS[name].lengths, FAMILY, start),
                structured_loss(name, FAMILY),
            )
        steps = started(loss, start)
        count = int(seconds / stopwatch(lambda: steps(1))[0])
        spent, found = stopwatch(lambda: steps(count))
        if form == STRUCTURED:
            found = as_parameters(PROBLEMS[name].lengths, FAMILY, found)
        points, truth = test_points(PROBLEMS[name])
        mean = np.asarray(baseline.predict(found, points))
    return scores(form, mean, truth, spent) | {"iterations": count}


def plain(name, kernel):
    problem = PROBLEMS[name]
    count = problem.points if len(problem.lengths) == 1 else DENSE
    seconds, fit = stopwatch(lambda: collocation_gp(kernel, problem, count))
    points, truth = test_points(problem)
    mesh = np.stack([m.reshape(-1) for m in np.meshgrid(*points, indexing="ij")], axis=1)
    blocks = np.array_split(mesh, max(1, len(mesh) // 2000))
    mean, variance = (np.concatenate(each) for each in zip(*map(fit.predict, blocks), strict=True))
    row = scores(f"plain GP, {kernel}", mean, truth.reshape(-1), seconds, variance)
    return row | {"lengthscale": float(fit.prior.scales[0]), "nugget": fit.prior.nugget}


def chebyshev(name):
    problem = PROBLEMS[name]
    (length,) = problem.lengths
    (points,), truth = test_points(problem)
    ends = [problem.truth(0.0), problem.truth(length)]
    arguments = problem.source, ends, length, problem.points, problem.allen_cahn
    seconds, solution = stopwatch(lambda: chebyshev_collocation(*arguments))
    return scores(CHEBYSHEV, solution(points), truth, seconds)


def network(name, scales, seconds):
    problem = PROBLEMS[name]
    found = fourier_network(problem, tuple(scales), seconds, 0, test_points(problem)[0])
    return {
        "method": NETWORK,
        "error": found["errors"][-1],
        "seconds": found["seconds"][-1],
        "frequencies": scales,
        "course": found,
    }
