"""The authors' noiseless simulation of rank one, everything learned."""

import warnings
from pathlib import Path

import numpy as np

import bayeskit as bk
from benchmarks.baselines.conditional_ep import conditional_ep
from benchmarks.common import Bar, Options, Report, Table, stopwatch

ORDER = 4
TITLE = "The authors' simulation: a product of two functions without noise"
MINUTES = (1, 2)

FILE = Path(__file__).parent / "files" / "simulation_r1.npz"
LIMIT = 5e-4
AUTHORS = 4.2e-3
# Of the authors' code for this data.
SETTINGS = {"rank": 1, "lengthscales": 0.1, "variances": 0.5, "kernels": "matern32"}
DAMPING = {"damping": 0.1, "noise_damping": 0.2}
FITS = {
    "CP, rank 1": {"ranks": 1, "core": "cp"},
    "Tucker, rank 1": {"ranks": 1, "core": "tucker"},
    "CP, rank 2": {"ranks": 2, "core": "cp"},
    "Tucker, rank 2": {"ranks": 2, "core": "tucker"},
}


def run(options: Options) -> Report:
    with np.load(FILE) as stored:
        train = stored["train_index"], stored["train_y"]
        test = stored["test_index"], stored["test_y"]
    sweeps = 100 if options.full else 30
    report = Report(TITLE, settings={"rows": len(train[1]), "baseline's sweeps": sweeps})
    rows, errors = [], {}
    for name, settings in FITS.items():
        found = one_fit(settings, train, test)
        errors[name] = found["error"]
        rows.append((name, *found.values()))
        report.results[name] = found
    baseline = conditional_ep(*train, sweeps=sweeps, **DAMPING, **SETTINGS)
    error = root_mean_square(baseline.predict(test[0])[0] - test[1])
    deviation = np.sqrt(baseline.noise_variance)
    rows += [
        ("conditional EP, CP, rank 1", error, error / np.std(test[1]), None, deviation, None, None),
        ("authors' run", AUTHORS, AUTHORS / np.std(test[1]), None, None, None, None),
    ]
    columns = ("", "error", "÷ deviation of values", "coverage", "noise deviation")
    report.tables.append(
        Table(
            "Root mean square error at the test indices",
            (*columns, "iterations", "seconds"),
            rows,
            "Ours: EM with its defaults, kernels and noise learned; coverage of 95 % intervals; "
            "seconds with compilation. The baseline has the authors' kernels.",
        )
    )
    report.bars.append(Bar("CP, rank 1: test error", errors["CP, rank 1"], "<=", LIMIT))
    report.bars.append(Bar("Tucker, rank 1: test error", errors["Tucker, rank 1"], "<=", LIMIT))
    return report


def one_fit(settings, train, test):
    model = bk.models.FunctionalTucker(["x", "z"], **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        seconds, posterior = stopwatch(lambda: bk.infer(model, train))
    prediction = posterior.predict(test[0])
    error = prediction.mean - test[1]
    return {
        "error": root_mean_square(error),
        "relative": root_mean_square(error) / float(np.std(test[1])),
        "coverage": float(np.mean(np.abs(error) <= 1.96 * np.sqrt(prediction.variance))),
        "noise deviation": float(np.sqrt(posterior.mean["noise_variance"])),
        "iterations": posterior.convergence.iterations,
        "seconds": seconds,
    }


def root_mean_square(error):
    return float(np.sqrt(np.mean(np.square(error))))
