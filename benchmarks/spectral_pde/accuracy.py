"""Errors on the paper's problems, without use of their true solutions."""

import warnings

import numpy as np

import bayeskit as bk
from benchmarks.baselines.chebyshev import chebyshev_collocation
from benchmarks.common import Bar, Options, Report, Table, stopwatch
from benchmarks.spectral_pde.problems import LIMITS, ONE_DIMENSION, PROBLEMS, SEVERAL_DIMENSIONS

ORDER = 1
TITLE = "Poisson, Allen–Cahn, advection, sine–Gordon: error, residual, coverage"
MINUTES = (4, 4)

# Points a dimension, by the number of dimensions.
TESTED = {1: 300, 2: 300, 3: 60}
LIMIT, TARGET = 1e-6, 1e-7
OF_RESIDUAL = 30.0
LEVEL_Z = 1.959964
GAUSSIAN, STUDENT = "Gaussian", "Student-t"
ABLATED = tuple(name for name, p in ONE_DIMENSION.items() if p.points == 400 and not p.allen_cahn)
KERNELS = {
    GAUSSIAN: bk.models.SpectralMixture(30, "gaussian"),
    STUDENT: bk.models.SpectralMixture(30, "student-t"),
}


def run(options: Options) -> Report:
    report = Report(TITLE, settings={"kernel": repr(KERNELS[GAUSSIAN])})
    rows = [one_problem(name, GAUSSIAN) for name in PROBLEMS]
    for row in rows:
        name = row["problem"]
        report.bars += [
            Bar(f"{name}: relative error", row["error"], "<=", *LIMITS.get(name, (LIMIT, TARGET))),
            Bar(f"{name}: error ÷ residual", row["error"] / row["residual"], "<=", OF_RESIDUAL),
        ]
    columns = ("problem", "points", "error", "residual", "coverage", "mean z²", "band", "seconds")
    peer = ("Chebyshev's error", "Chebyshev's seconds")
    for title, names, shown, note in (
        (
            "One dimension",
            ONE_DIMENSION,
            columns + peer,
            "Chebyshev: collocation at as many points, the limit of what a method without "
            "uncertainty reaches.",
        ),
        ("Several dimensions", SEVERAL_DIMENSIONS, columns, "Points are those of a dimension."),
    ):
        chosen = [tuple(row[column] for column in shown) for row in rows if row["problem"] in names]
        report.tables.append(Table(title, shown, chosen, note))
    students = [one_problem(name, STUDENT) for name in ABLATED]
    report.tables.append(
        Table(
            "Student-t spectra",
            columns,
            [tuple(row[column] for column in columns) for row in students],
            "The ablation of the light tails: heavy ones never rule high frequencies out.",
        )
    )
    report.notes.append(
        "Errors are relative, in the 2-norm over a uniform grid of "
        f"{TESTED[1]}, {TESTED[2]}² or {TESTED[3]}³ points. Residual: posterior.residual, which "
        "needs no true solution. Coverage of 95 % intervals. Band: highest frequency of the prior "
        "over that which the points resolve. Seconds of a second solve, compiled, all bands."
    )
    report.results |= {"problems": rows, "Student-t": students}
    return report


def one_problem(name, kernel):
    problem = PROBLEMS[name]
    dims = problem.pde.dims
    model = bk.models.SpectralPDE(
        problem.pde, grid=dict.fromkeys(dims, problem.points), kernel=KERNELS[kernel]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        bk.infer(model, None)
        seconds, posterior = stopwatch(lambda: bk.infer(model, None))
    points = [np.linspace(0.0, length, TESTED[len(dims)]) for length in problem.lengths]
    truth = problem.truth(*np.meshgrid(*points, indexing="ij"))
    found = posterior.predict(dict(zip(dims, points, strict=True)))
    z = (found.mean - truth) / np.sqrt(found.variance)
    nyquist = 0.5 * (problem.points - 1) / problem.lengths[0]
    row = {
        "problem": name,
        "points": problem.points,
        "error": relative(found.mean, truth),
        "residual": posterior.residual,
        "coverage": float(np.mean(np.abs(z) < LEVEL_Z)),
        "mean z²": float(np.mean(z**2)),
        "band": float(np.max(posterior.mean["frequencies_x"]) / nyquist),
        "seconds": seconds,
        "peaks": posterior.spectrum("x").peaks.tolist(),
        "log evidence": posterior.log_evidence,
    }
    if len(dims) == 1:
        (length,) = problem.lengths
        row["Chebyshev's seconds"], reference = stopwatch(
            lambda: chebyshev_collocation(
                problem.source,
                [problem.truth(0.0), problem.truth(length)],
                length,
                problem.points,
                problem.allen_cahn,
            )(points[0])
        )
        row["Chebyshev's error"] = relative(reference, truth)
    return row


def relative(found, truth):
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))
