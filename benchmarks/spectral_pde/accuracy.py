"""Errors on the paper's problems in one dimension, without use of their true solutions."""

import warnings

import numpy as np

import bayeskit as bk
from benchmarks.baselines.chebyshev import chebyshev_collocation
from benchmarks.common import Bar, Options, Report, Table, stopwatch
from benchmarks.spectral_pde.problems import PROBLEMS

ORDER = 1
TITLE = "Poisson and Allen–Cahn in one dimension: error, residual, coverage"
MINUTES = (3, 3)

TESTED = 300
LIMIT, TARGET = 1e-6, 1e-7
OF_RESIDUAL = 30.0
LEVEL_Z = 1.959964
KERNELS = {
    "Gaussian": bk.models.SpectralMixture(30, "gaussian"),
    "Student-t": bk.models.SpectralMixture(30, "student-t"),
}
DEFAULT = "Gaussian"


def run(options: Options) -> Report:
    report = Report(TITLE, settings={"kernel": repr(KERNELS[DEFAULT])})
    rows = [one_problem(name, kernel) for name in PROBLEMS for kernel in KERNELS]
    for row in rows:
        if row["kernel"] != DEFAULT:
            continue
        title = row["problem"]
        report.bars += [
            Bar(f"{title}: relative error", row["error"], "<=", LIMIT, TARGET),
            Bar(f"{title}: error ÷ residual", row["error"] / row["residual"], "<=", OF_RESIDUAL),
        ]
    columns = ("problem", "kernel", "points", "error", "residual", "coverage", "mean z²")
    columns += ("band", "seconds", "Chebyshev's error", "Chebyshev's seconds")
    report.tables.append(
        Table(
            f"Relative errors on {TESTED} points",
            columns,
            [tuple(row[column] for column in columns) for row in rows],
            "Residual: posterior.residual, which needs no true solution. Coverage of 95 % "
            "intervals. Band: highest frequency of the prior over that which the points resolve. "
            "Seconds of a second solve, compiled, all nine bands. Chebyshev: collocation at as "
            "many points, the limit of what a method without uncertainty reaches.",
        )
    )
    report.results["problems"] = rows
    return report


def one_problem(name, kernel):
    problem = PROBLEMS[name]
    model = bk.models.SpectralPDE(
        problem.statement(), grid={"x": problem.points}, kernel=KERNELS[kernel]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        bk.infer(model, None)
        seconds, posterior = stopwatch(lambda: bk.infer(model, None))
    points = np.linspace(0.0, problem.length, TESTED)
    truth = problem.truth(points)
    found = posterior.predict({"x": points})
    z = (found.mean - truth) / np.sqrt(found.variance)
    ends = [problem.truth(0.0), problem.truth(problem.length)]
    time, chebyshev = stopwatch(
        lambda: chebyshev_collocation(
            problem.source, ends, problem.length, problem.points, problem.allen_cahn
        )(points)
    )
    nyquist = 0.5 * (problem.points - 1) / problem.length
    return {
        "problem": name,
        "kernel": kernel,
        "points": problem.points,
        "error": relative(found.mean, truth),
        "residual": posterior.residual,
        "coverage": float(np.mean(np.abs(z) < LEVEL_Z)),
        "mean z²": float(np.mean(z**2)),
        "band": float(np.max(posterior.mean["frequencies_x"]) / nyquist),
        "peaks": posterior.spectrum("x").peaks.tolist(),
        "log evidence": posterior.log_evidence,
        "seconds": seconds,
        "Chebyshev's error": relative(chebyshev, truth),
        "Chebyshev's seconds": time,
    }


def relative(found, truth):
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))
