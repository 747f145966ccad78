"""Speed and memory against the paper's algorithm, entry by entry and structured."""

import jax
import numpy as np

import bayeskit as bk
from benchmarks.common import (
    Bar,
    Options,
    Report,
    Table,
    in_subprocess,
    median,
    relative_error,
    stopwatch,
)
from benchmarks.spectral_pde.accuracy import TESTED, relative
from benchmarks.spectral_pde.paper import (
    COMPONENTS,
    as_unknowns,
    baseline_of,
    model_of,
    started,
    structured_loss,
)
from benchmarks.spectral_pde.problems import PROBLEMS

ORDER = 3
TITLE = "A default solve and our structured form against iterations of the paper's algorithm"
MINUTES = (10, 20)

GIBIBYTE = 2**30
# Problem: iterations of the paper's algorithm that a default solve is compared with, and those of
# the structured form that are timed.
CASES = {"Poisson, sin 100x": (5, 200), "Poisson, sin 100x sin 100y": (1, 8)}
FAMILY = "student-t"
RATIO, RATIO_TARGET = 30, 60
SAME = 1e-6


def run(options: Options) -> Report:
    rounds = options.at_most(2, 5)
    report = Report(TITLE, settings={"rounds": rounds, "spectrum": FAMILY, "Q": COMPONENTS})
    rows, peaks = [], []
    for name, (count, structured_count) in CASES.items():
        row = one_problem(name, count, structured_count, rounds)
        rows.append(row)
        ratio = median([theirs / own for own, theirs in row["iterations"]])
        solves = median([own / theirs for own, theirs in row["solves"]])
        report.bars += [
            Bar(f"{name}: default solve ÷ {count} iterations of the baseline", solves, "<=", 1),
            Bar(f"{name}: relative difference of the losses", row["difference"], "<=", SAME),
        ]
        title = f"{name}: baseline ÷ structured, an iteration"
        report.bars.append(Bar(title, ratio, ">=", RATIO, RATIO_TARGET))
        row["ratio"] = ratio
        peaks.append(
            (
                name,
                *(
                    in_subprocess("benchmarks.spectral_pde.speed:once", name=name, who=who)[
                        "peak_bytes"
                    ]
                    / GIBIBYTE
                    for who in ("solve", "structured", "baseline")
                ),
            )
        )
    report.tables += [
        Table(
            "Medians, in turn in the same rounds",
            (
                "problem",
                "default solve (s)",
                "its error",
                "baseline, an iteration (s)",
                "iterations",
                "its error after them",
                "structured, an iteration (s)",
                "baseline ÷ structured",
                "difference of losses",
            ),
            [
                (
                    row["problem"],
                    median([own for own, _ in row["solves"]]),
                    row["error"],
                    median([theirs for _, theirs in row["iterations"]]),
                    CASES[row["problem"]][0],
                    row["baseline's error"],
                    median([own for own, _ in row["iterations"]]),
                    row["ratio"],
                    row["difference"],
                )
                for row in rows
            ],
            "The difference is relative, at the baseline's parameters after its iterations.",
        ),
        Table(
            "Peak memory of a process (GiB)",
            ("problem", "default solve", "structured, an iteration", "baseline, an iteration"),
            peaks,
            "Imports and the compiler included.",
        ),
    ]
    report.notes.append(
        "The baseline is the paper's algorithm of our own writing: compiled, nested gradients "
        "mapped over all pairs of points, LU decompositions, Adam. The structured form is "
        "Adam on the same loss as MaximumAPosteriori computes it."
    )
    report.results |= {"problems": rows, "peaks": peaks}
    return report


def one_problem(name, count, structured_count, rounds):
    problem, solver = PROBLEMS[name], model_of(name, "gaussian")
    bk.infer(solver, None)
    with jax.enable_x64(True):
        baseline, parameters = baseline_of(name, FAMILY)
        loss = structured_loss(name, FAMILY)
        theirs = started(baseline.loss, parameters)
        ours = started(loss, as_unknowns(PROBLEMS[name].lengths, FAMILY, parameters))
        solves, pairs = [], []
        for _ in range(rounds):
            solve, posterior = stopwatch(lambda: bk.infer(solver, None))
            slow, moved = stopwatch(lambda: theirs(count))
            fast, _ = stopwatch(lambda: ours(structured_count))
            solves.append((solve, slow))
            pairs.append((fast / structured_count, slow / count))
        difference = relative_error(
            jax.jit(loss)(as_unknowns(PROBLEMS[name].lengths, FAMILY, moved)),
            jax.jit(baseline.loss)(moved),
        )
        tested = TESTED[len(problem.lengths)]
        points = [np.linspace(0.0, length, tested) for length in problem.lengths]
        predicted = np.asarray(baseline.predict(moved, points))
    truth = problem.truth(*np.meshgrid(*points, indexing="ij"))
    found = posterior.predict(dict(zip(problem.pde.dims, points, strict=True))).mean
    return {
        "problem": name,
        "solves": solves,
        "iterations": pairs,
        "difference": difference,
        "error": relative(found, truth),
        "baseline's error": relative(predicted, truth),
    }


def once(name, who):
    """Run in a process of its own."""
    if who == "solve":
        bk.infer(model_of(name, "gaussian"), None)
        return
    with jax.enable_x64(True):
        baseline, parameters = baseline_of(name, FAMILY)
        if who == "structured":
            started(
                structured_loss(name, FAMILY),
                as_unknowns(PROBLEMS[name].lengths, FAMILY, parameters),
            )
        else:
            started(baseline.loss, parameters)
