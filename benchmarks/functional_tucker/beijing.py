"""Daily air pollution in Beijing, held out, beside simpler predictors: what its studies share."""

import warnings

import numpy as np
import numpyro.distributions as dist
from gpjax.kernels import Matern12, Matern32
from scipy.stats import norm

import bayeskit as bk
from bayeskit.inference import EM
from benchmarks.baselines.additive import additive, day_mean
from benchmarks.baselines.tensor_peers import (
    gradient_boosting,
    masked_tensor,
    sparse_gaussian_process,
)
from benchmarks.common import Bar, Report, Table, in_two_processes, stopwatch

TWO, THREE, FOUR = "time × station", "temperature × pressure × time", "all four"
# Modes, core, and ranks among which the bound chooses.
MODELS = {
    TWO: (("day", "station"), "cp", (8, 10)),
    THREE: (("temperature", "pressure", "day"), "cp", (2, 3)),
    FOUR: (("temperature", "pressure", "day", "station"), "tucker", ((1, 1, 10, 10),)),
}
# The weather acts smoothly: on scales of 4 to 40 degrees or hectopascals (98 %). Functions with
# nearly as many different arguments as rows would else become independent factors of every row,
# which explain noise that grows with the level.
WEATHER, SMOOTH = ("temperature", "pressure"), dist.InverseGamma(5.0, 50.0)
# With all modes, those of the weather are added to a fit without them, nearly constant at first.
ADDED = {FOUR: WEATHER}
CORES = {"cp": "CP", "tucker": "Tucker"}
LIMITS = {"pm25": (0.197, 0.190), "pm10": (0.235, 0.226), "so2": (0.240, 0.231)}
# Means over the authors' folds of the best setting in their logs, which saw the test rows.
AUTHORS = {"pm25": 0.288, "pm10": 0.328, "so2": 0.384}
# Without stations the bound has several maxima of nearly the same height: more starts there.
METHODS = {
    TWO: EM(max_iterations=300),
    THREE: EM(max_iterations=300, restarts=4),
    FOUR: EM(max_iterations=300),
}
LEVEL = 0.95
TENSOR_RANK = 4
EXACT = "gradient boosting, all columns, exact splits"
BOOSTED, PROCESS = "gradient boosting, all columns", "GPJax sparse GP, all columns"


def study(options, title, pollutant, chosen):
    """Fits of some sets of modes and of the peers: one pollutant, one or all folds."""
    folds = 5 if options.full else options.at_most(1)
    methods = {name: METHODS[name] for name in chosen}
    report = Report(title, settings={"folds": folds, "methods": repr(methods)})
    report.notes.append(
        "Matérn 1/2 functions of time (lengthscale 30 days at the start), Matérn 3/2 of "
        "temperature and pressure (a fifth of the range, or 10, at the start; the prior of their "
        "lengthscales is inverse-gamma, 98 % between 4 and 40 degrees or hectopascals) and "
        "independent levels of the 12 stations; kernels and noise by EM, the rank by the bound, "
        "all on training rows. CP; all four modes: a Tucker core with one function of "
        "temperature and one of pressure, which "
        "start nearly constant around a fit without them. Errors "
        "are root mean squares of standardised values; with fewer than five folds the bars are "
        "those of the mean over five, taken at what was run."
    )
    splits = [{"pollutant": pollutant, "fold": fold} for fold in range(folds)]
    tasks = [split | {"modes": modes} for split in splits for modes in chosen]
    found = in_two_processes("benchmarks.functional_tucker.beijing:one_fit", tasks)
    peers = in_two_processes("benchmarks.functional_tucker.beijing:peers_of", splits)
    report.results |= {"fits": found, "peers": peers}
    report.bars += bars_of(pollutant, chosen, found, peers)
    report.tables += [error_table(pollutant, chosen, found, peers), fit_table(found)]
    return report


def bars_of(pollutant, chosen, found, peers):
    """What the issue asks of one pollutant."""
    ours = {name: _of(found, name) for name in chosen}
    errors = {name: [fit["error"] for fit in fits] for name, fits in ours.items()}
    mean = {name: float(np.mean(values)) for name, values in errors.items()}
    bars = []
    if TWO in chosen:
        bars.append(Bar(f"{pollutant}, {TWO}: error", mean[TWO], "<=", *LIMITS[pollutant]))
        density = float(np.mean([fit["log density"] for fit in ours[TWO]]))
        best = max(
            float(np.mean([peer["log densities"][name] for peer in peers]))
            for name in peers[0]["log densities"]
        )
        title = f"{pollutant}, {TWO}: log density less best peer's"
        bars.append(Bar(title, density - best, ">", 0.0))
    if FOUR in chosen:
        share = mean[FOUR] / mean[TWO]
        bars.append(Bar(f"{pollutant}, {FOUR}: error ÷ {TWO}", share, "<=", 1.01))
    if THREE in chosen:
        by_day = float(np.mean([peer["errors"]["day mean"] for peer in peers]))
        if pollutant == "pm25":
            bars.append(Bar(f"{pollutant}, {THREE}: error", mean[THREE], "<=", 0.270, by_day))
        else:
            share = mean[THREE] / by_day
            bars.append(Bar(f"{pollutant}, {THREE}: error ÷ day mean's", share, "<=", 1.02, 1.0))
    worst = max(max(values) / mean[name] for name, values in errors.items())
    bars.append(Bar(f"{pollutant}: worst fold ÷ mean", worst, "<=", 1.15))
    for name, fits in ours.items():
        coverage = float(np.mean([fit["coverage"] for fit in fits]))
        for comparison, edge in ((">=", 0.92), ("<=", 0.97)):
            bars.append(
                Bar(f"{pollutant}, {name}: coverage of 95 % intervals", coverage, comparison, edge)
            )
    return bars


def _of(found, modes):
    return [fit for fit in found if fit["modes"] == modes]


def error_table(pollutant, chosen, found, peers):
    """Mean and worst error by predictor."""
    rows = []
    for name in chosen:
        fits = _of(found, name)
        errors = [fit["error"] for fit in fits]
        density = float(np.mean([fit["log density"] for fit in fits]))
        label = f"functional {CORES[MODELS[name][1]]}, {name}"
        rows.append((label, np.mean(errors), np.max(errors), density))
    for name in peers[0]["errors"]:
        errors = [each["errors"][name] for each in peers]
        densities = [each["log densities"].get(name, np.nan) for each in peers]
        density = float(np.mean(densities)) if np.all(np.isfinite(densities)) else None
        rows.append((name, np.mean(errors), np.max(errors), density))
    rows.append(("authors' best (other shuffles)", AUTHORS[pollutant], None, None))
    columns = ("predictor", "mean error", "worst fold", "mean log density")
    return Table("Held-out error", columns, rows)


def fit_table(found):
    """Every fit with its calibration."""
    columns = ("modes", "fold", "rank", "effective rank", "coverage", "mean z²")
    columns += ("log density", "iterations", "seconds")
    return Table(
        "The fits",
        columns,
        [tuple(fit[name] for name in columns) for fit in found],
        "Seconds of all ranks tried, with compilation, two fits at a time; log density is a mean "
        "over test rows.",
    )


def mode_of(name, added):
    if name == "station":
        return bk.models.Mode(name, categorical=True)
    if name == "day":
        return bk.models.Mode(name, kernel=Matern12(lengthscale=30.0))
    if name in added:
        return bk.models.Mode(name, kernel=Matern32(lengthscale=10.0, variance=1e-4))
    return bk.models.Mode(name)


def fit_of(pollutant, table, modes, rank, key):
    """A fit of some modes; of those that are added, after one without them."""
    names, core, _ = MODELS[modes]
    added, earlier = ADDED.get(modes, ()), None
    for last in [False, True] if added else [True]:
        chosen = [k for k, name in enumerate(names) if last or name not in added]
        model = bk.models.FunctionalTucker(
            [mode_of(names[k], added) for k in chosen],
            ranks=rank if isinstance(rank, int) else tuple(rank[k] for k in chosen),
            core=core,
            value=pollutant,
            kernel_priors={
                f"lengthscale_{names[k]}": SMOOTH for k in chosen if names[k] in WEATHER
            },
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bk.ConvergenceWarning)
            earlier = bk.infer(model, table, METHODS[modes], key=key, initial=earlier)
    return earlier


def one_fit(pollutant, fold, modes):
    """The fit with the best bound on one split."""
    air = bk.datasets.beijing_air()
    table, train = air.table, air.train[pollutant][fold]
    fits, seconds = {}, 0.0
    for rank in MODELS[modes][2]:
        time, fits[rank] = stopwatch(lambda r=rank: fit_of(pollutant, table[train], modes, r, fold))
        seconds += time
    rank = max(fits, key=lambda r: fits[r].log_evidence)
    posterior = fits[rank]
    prediction = posterior.predict(table[~train], include_noise=True)
    truth = table[pollutant][~train].to_numpy()
    deviation = np.sqrt(prediction.variance)
    z = (truth - prediction.mean) / deviation
    return {
        "pollutant": pollutant,
        "modes": modes,
        "fold": fold,
        "rank": str(rank),
        "effective rank": posterior.effective_ranks["day"],
        "bounds": {str(r): fit.log_evidence for r, fit in fits.items()},
        "error": float(np.sqrt(np.mean((truth - prediction.mean) ** 2))),
        "coverage": float(np.mean(np.abs(z) < norm.ppf(0.5 + LEVEL / 2))),
        "mean z²": float(np.mean(z**2)),
        "log density": log_density(truth, prediction),
        "iterations": posterior.convergence.iterations,
        "seconds": seconds,
    }


def peers_of(pollutant, fold):
    """Errors of simpler predictors on one split, and log densities of those that have one."""
    air = bk.datasets.beijing_air()
    table, train = air.table, air.train[pollutant][fold]
    days = (table["day"] - table["day"].min()).astype(int).to_numpy()
    stations = table["station"].to_numpy()
    values = table[pollutant].to_numpy()
    truth = values[~train]
    split = (days[train], stations[train], values[train], days[~train], stations[~train])
    features = np.stack([days, stations, table["temperature"], table["pressure"]], axis=1)
    split_features = (features[train], values[train], features[~train])
    boosted = gradient_boosting(*split_features)
    exact = gradient_boosting(*split_features, exact=True)
    process = sparse_gaussian_process(*split_features, categorical=(1,))
    grid = np.stack([days, stations], axis=1)
    tensor = masked_tensor(
        grid[train], values[train], grid[~train], bins=(None, None), rank=TENSOR_RANK
    )
    means = {
        "day mean": day_mean(*split),
        "day + station": additive(*split),
        "day + station + rank 1": additive(*split, rank=1),
        EXACT: exact.mean,
        BOOSTED: boosted.mean,
        PROCESS: process.mean,
        f"TensorLy CP, rank {TENSOR_RANK}, days × stations": tensor.mean,
    }
    return {
        "pollutant": pollutant,
        "fold": fold,
        "errors": {n: float(np.sqrt(np.mean((truth - m) ** 2))) for n, m in means.items()},
        "log densities": {
            EXACT: log_density(truth, exact),
            BOOSTED: log_density(truth, boosted),
            PROCESS: log_density(truth, process),
        },
    }


def log_density(truth, prediction):
    """Mean over rows, of Gaussian predictions."""
    deviation = np.sqrt(prediction.variance)
    return float(np.mean(norm.logpdf(truth, prediction.mean, deviation)))
