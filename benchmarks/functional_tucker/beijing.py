"""Daily air pollution in Beijing, held out, beside simpler predictors: what its studies share."""

import warnings
from typing import NamedTuple

import numpy as np
import numpyro.distributions as dist
from gpjax.kernels import Matern12, Matern32
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import boxcox, inv_boxcox
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
# Noise grows with the level: of what power of the concentration the fit is, the bound says.
# Of the concentrations themselves it is several times wider on bad days than on good ones, which
# functions of the weather then imitate.
POWERS = (1.0, 0.5, 0.25, 0.0)
# The weather acts smoothly: on scales of 4 to 40 degrees or hectopascals (98 %). Functions with
# nearly as many different arguments as rows would else become independent factors of every row.
WEATHER, SMOOTH = ("temperature", "pressure"), dist.InverseGamma(5.0, 50.0)
# Those of the weather are added to a fit without them, nearly constant at first.
ADDED = {THREE: WEATHER, FOUR: WEATHER}
CORES = {"cp": "CP", "tucker": "Tucker"}
LIMITS = {"pm25": (0.197, 0.190), "pm10": (0.235, 0.226), "so2": (0.240, 0.231)}
# Means over the authors' folds of the best setting in their logs, which saw the test rows.
AUTHORS = {"pm25": 0.288, "pm10": 0.328, "so2": 0.384}
METHOD = EM(max_iterations=300)
TRIAL, TRIAL_RANK = EM(max_iterations=100), 8
LEVEL = 0.95
NODES = 40
TENSOR_RANK = 4
EXACT = "gradient boosting, all columns, exact splits"
BOOSTED, PROCESS = "gradient boosting, all columns", "GPJax sparse GP, all columns"


class Scale(NamedTuple):
    """Box and Cox's powers of concentrations, of which ``mean`` and ``deviation`` standardise."""

    power: float
    mean: float
    deviation: float

    def powers(self, values):
        """Of standardised values (N,)."""
        return boxcox(self.mean + self.deviation * values, self.power)

    def log_slopes(self, values):
        """Logarithms (N,) of what densities of powers are multiplied by."""
        raw = self.mean + self.deviation * values
        return (self.power - 1.0) * np.log(raw) + np.log(self.deviation)

    def means(self, prediction):
        """Expectations (N,) of standardised values whose powers are Gaussian; below 0 means 0."""
        nodes, weights = hermegauss(NODES)
        powers = prediction.mean[:, None] + np.sqrt(prediction.variance)[:, None] * nodes
        if self.power > 0:
            powers = np.maximum(powers, -1.0 / self.power)
        raw = inv_boxcox(powers, self.power) @ (weights / weights.sum())
        return (raw - self.mean) / self.deviation

    def log_density(self, values, prediction):
        """Mean over rows, of standardised values whose powers are Gaussian."""
        deviation = np.sqrt(prediction.variance)
        logs = norm.logpdf(self.powers(values), prediction.mean, deviation)
        return float(np.mean(logs + self.log_slopes(values)))


def study(options, title, pollutant):
    """Fits of three sets of modes and of the peers: one pollutant, one or all folds."""
    folds = 5 if options.full else options.at_most(1)
    report = Report(title, settings={"folds": folds, "method": repr(METHOD)})
    report.notes.append(
        "Matérn 1/2 functions of time (lengthscale 30 days at the start), Matérn 3/2 of "
        "temperature and pressure (10 degrees or hectopascals at the start; the prior of their "
        "lengthscales is inverse-gamma, 98 % between 4 and 40) and "
        "independent levels of the 12 stations; kernels and noise by EM, the rank by the bound, "
        "all on training rows. Fits are of Box and Cox's powers of the concentrations; the power "
        f"(1, 1/2, 1/4 or 0, the logarithm) is the one with which {TWO}, rank {TRIAL_RANK}, has "
        "the best bound on the density of the training rows' concentrations. Predictions are "
        "expectations of the concentrations. CP; all four modes: a Tucker core with one function "
        "of temperature and one of pressure. Functions of the weather start nearly constant "
        "around a fit without them. Errors "
        "are root mean squares of standardised values; with fewer than five folds the bars are "
        "those of the mean over five, taken at what was run."
    )
    splits = [{"pollutant": pollutant, "fold": fold} for fold in range(folds)]
    trials = [split | {"power": power} for split in splits for power in POWERS]
    tried = in_two_processes("benchmarks.functional_tucker.beijing:one_power", trials)
    bounds = [tried[at : at + len(POWERS)] for at in range(0, len(tried), len(POWERS))]
    chosen = [POWERS[int(np.argmax(each))] for each in bounds]
    splits = [split | {"power": power} for split, power in zip(splits, chosen, strict=True)]
    tasks = [split | {"modes": modes} for split in splits for modes in MODELS]
    found = in_two_processes("benchmarks.functional_tucker.beijing:one_fit", tasks)
    peers = in_two_processes("benchmarks.functional_tucker.beijing:peers_of", splits)
    report.results |= {"bounds by power": bounds, "fits": found, "peers": peers}
    report.bars += bars_of(pollutant, found, peers)
    report.tables += [error_table(pollutant, found, peers), power_table(bounds), fit_table(found)]
    return report


def bars_of(pollutant, found, peers):
    """What the issue asks of one pollutant."""
    ours = {name: _of(found, name) for name in MODELS}
    errors = {name: [fit["error"] for fit in fits] for name, fits in ours.items()}
    mean = {name: float(np.mean(values)) for name, values in errors.items()}
    density = float(np.mean([fit["log density"] for fit in ours[TWO]]))
    best = max(
        float(np.mean([peer["log densities"][name] for peer in peers]))
        for name in peers[0]["log densities"]
    )
    by_day = float(np.mean([peer["errors"]["day mean"] for peer in peers]))
    bars = [
        Bar(f"{pollutant}, {TWO}: error", mean[TWO], "<=", *LIMITS[pollutant]),
        Bar(f"{pollutant}, {TWO}: log density less best peer's", density - best, ">", 0.0),
        Bar(f"{pollutant}, {FOUR}: error ÷ {TWO}", mean[FOUR] / mean[TWO], "<=", 1.01),
    ]
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


def error_table(pollutant, found, peers):
    """Mean and worst error by predictor."""
    rows = []
    for name in MODELS:
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


def power_table(bounds):
    """What the power is chosen by."""
    return Table(
        "The power by the bound",
        ("fold", *(f"power {power:g}" for power in POWERS)),
        [(fold, *each) for fold, each in enumerate(bounds)],
        f"Of {TWO}, rank {TRIAL_RANK}, after at most {TRIAL.max_iterations} iterations, in nats.",
    )


def fit_table(found):
    """Every fit with its calibration."""
    columns = ("modes", "fold", "power", "rank", "coverage", "mean z²")
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


def split_of(pollutant, fold, power):
    """The table with powers of the pollutant, which rows are for training, and the scale."""
    air = bk.datasets.beijing_air()
    scale = Scale(power, *air.units[pollutant])
    table = air.table.assign(**{pollutant: scale.powers(air.table[pollutant].to_numpy())})
    return table, air.table[pollutant].to_numpy(), air.train[pollutant][fold], scale


def fit_of(pollutant, table, modes, rank, key, method=METHOD):
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
            earlier = bk.infer(model, table, method, key=key, initial=earlier)
    return earlier


def one_power(pollutant, fold, power):
    """Bound on the log density of the training rows' values with one power."""
    table, values, train, scale = split_of(pollutant, fold, power)
    posterior = fit_of(pollutant, table[train], TWO, TRIAL_RANK, fold, TRIAL)
    return posterior.log_evidence + float(np.sum(scale.log_slopes(values[train])))


def one_fit(pollutant, fold, power, modes):
    """The fit with the best bound on one split."""
    table, values, train, scale = split_of(pollutant, fold, power)
    fits, seconds = {}, 0.0
    for rank in MODELS[modes][2]:
        time, fits[rank] = stopwatch(lambda r=rank: fit_of(pollutant, table[train], modes, r, fold))
        seconds += time
    rank = max(fits, key=lambda r: fits[r].log_evidence)
    posterior = fits[rank]
    prediction = posterior.predict(table[~train], include_noise=True)
    truth = values[~train]
    z = (scale.powers(truth) - prediction.mean) / np.sqrt(prediction.variance)
    return {
        "pollutant": pollutant,
        "modes": modes,
        "fold": fold,
        "power": power,
        "rank": str(rank),
        "bounds": {str(r): fit.log_evidence for r, fit in fits.items()},
        "error": float(np.sqrt(np.mean((truth - scale.means(prediction)) ** 2))),
        "coverage": float(np.mean(np.abs(z) < norm.ppf(0.5 + LEVEL / 2))),
        "mean z²": float(np.mean(z**2)),
        "log density": scale.log_density(truth, prediction),
        "iterations": posterior.convergence.iterations,
        "seconds": seconds,
    }


def peers_of(pollutant, fold, power):
    """Errors of simpler predictors on one split, and log densities of those that have one."""
    table, values, train, scale = split_of(pollutant, fold, power)
    days = (table["day"] - table["day"].min()).astype(int).to_numpy()
    stations = table["station"].to_numpy()
    truth = values[~train]
    split = (days[train], stations[train], values[train], days[~train], stations[~train])
    grid = np.stack([days, stations], axis=1)
    tensor = masked_tensor(
        grid[train], values[train], grid[~train], bins=(None, None), rank=TENSOR_RANK
    )
    means = {
        "day mean": day_mean(*split),
        "day + station": additive(*split),
        "day + station + rank 1": additive(*split, rank=1),
        f"TensorLy CP, rank {TENSOR_RANK}, days × stations": tensor.mean,
    }
    densities = {}
    features = np.stack([days, stations, table["temperature"], table["pressure"]], axis=1)
    # Those with a density also in the powers of ours.
    for of, given in (("", Scale(1.0, *scale[1:])), (", powers", scale)):
        fitted = given.powers(values)
        split = (features[train], fitted[train], features[~train])
        for name, prediction in (
            (EXACT, gradient_boosting(*split, exact=True)),
            (BOOSTED, gradient_boosting(*split)),
            (PROCESS, sparse_gaussian_process(*split, categorical=(1,))),
        ):
            means[name + of] = given.means(prediction)
            densities[name + of] = given.log_density(truth, prediction)
    return {
        "pollutant": pollutant,
        "fold": fold,
        "errors": {n: float(np.sqrt(np.mean((truth - m) ** 2))) for n, m in means.items()},
        "log densities": densities,
    }
