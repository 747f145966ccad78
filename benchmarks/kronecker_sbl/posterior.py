"""Are the posteriors right: ascent, chains, coverage, agreement of the three methods."""

import arviz_stats as azs
import numpy as np
import numpyro.distributions as dist
import xarray as xr
from scipy.stats import norm

import bayeskit as bk
from bayeskit.datasets.sparse import multiply_modes
from bayeskit.inference import EM, MCMC, MessagePassing
from bayeskit.metrics import nmse
from bayeskit.testing import calibrate
from benchmarks.common import (
    Bar,
    Options,
    Report,
    Table,
    compilations,
    in_two_processes,
    median,
    stopwatch,
)

ORDER = 6
TITLE = "Posteriors: ascent, chains, coverage, agreement of the three methods"
MINUTES = (5, 20)

# Rounding moves an objective of size L by about eps · L.
ROUNDING = 1e-10
ITERATIONS = 200
ASCENT = {
    "EM, mackay": (EM("mackay", max_iterations=ITERATIONS, tolerance=0.0), True),
    "EM, convex": (EM("convex", max_iterations=ITERATIONS, tolerance=0.0), True),
    "EM, alternating": (EM("alternating", max_iterations=ITERATIONS, tolerance=0.0), True),
    "EM, svd": (EM("svd", max_iterations=ITERATIONS, tolerance=0.0), False),
    "messages": (MessagePassing(max_iterations=ITERATIONS, tolerance=0.0), True),
}
SHAPE, ATOMS = (6, 8, 10), (10, 10, 10)
CHAINS = MCMC(num_warmup=400, num_samples=600, num_chains=4, dense_mass=True)
METHODS = {"MCMC": CHAINS, "messages": MessagePassing(), "EM": EM()}
LEVEL = 0.9
TAIL = (1 - LEVEL) / 2

CALIBRATED = {
    "MCMC": MCMC(num_warmup=300, num_samples=500, num_chains=1, dense_mass=True),
    "messages": MessagePassing(),
    "EM": EM(),
}


def run(options: Options) -> Report:
    seeds = options.count(10, 50)
    report = Report(
        TITLE,
        settings={
            "seeds": seeds,
            "problem": f"M = {SHAPE}, N = {ATOMS}, K = 3, 25 dB, independent gains, noise learned",
            "MCMC": repr(CHAINS),
        },
    )
    ascent(report, options.at_most(4, 20))
    halves = in_two_processes(
        "benchmarks.kronecker_sbl.posterior:problems",
        [{"seeds": list(range(first, seeds, 2))} for first in range(min(2, seeds))],
    )
    found = sorted((each for half in halves for each in half["problems"]), key=lambda e: e["seed"])
    report.results["problems"] = found
    report.results["compilations of the loop"] = [half["compilations"] for half in halves]
    chains(report, found)
    coverage(report, found)
    agreement(report, found)
    calibration(report, options)
    return report


def ascent(report, seeds):
    """The largest fall of the objective in one step, over its size."""
    problems = {
        "real": [bk.datasets.kronecker_sparse(seed) for seed in range(seeds)],
        "complex": [
            bk.datasets.kronecker_sparse(seed, complex=True, snr_db=10.0) for seed in range(seeds)
        ],
    }
    rows, worst = [], {}
    for name, (method, guaranteed) in ASCENT.items():
        cells = []
        for field, data in problems.items():
            for known in (False, True):
                drops = [fall(problem, method, known) for problem in data]
                cells.append(max(drops))
                report.results.setdefault("falls", {}).setdefault(name, {})[
                    f"{field}, noise {'known' if known else 'learned'}"
                ] = drops
        rows.append((name, "yes" if guaranteed else "no", *cells))
        worst[name] = max(cells)
    coupled = []
    for seed in range(seeds):
        problem = bk.datasets.irs_mimo(seed)
        coupled.append(fall(problem, ASCENT["EM, mackay"][0], True, coupling=(0.8, 0.0, 0.8)))
    rows.append(("EM, mackay, coupled (IRS)", "yes", None, None, None, max(coupled)))
    worst["EM, mackay, coupled"] = max(coupled)
    columns = ("", "guaranteed", "real, learned", "real, known", "complex, learned")
    report.tables.append(
        Table(
            f"Largest fall of evidence or bound in a step, over its size; {seeds} seeds, "
            f"{ITERATIONS} steps, no pruning",
            (*columns, "complex, known"),
            rows,
            "Zero: it never fell. The paper's SVD step has no guarantee and no bar.",
        )
    )
    guaranteed = [v for name, v in worst.items() if name not in ("EM, svd", "messages")]
    report.bars += [
        Bar("largest relative fall of the evidence", max(guaranteed), "<=", ROUNDING),
        Bar("largest relative fall of the bound", worst["messages"], "<=", ROUNDING),
    ]


def fall(problem, method, known, coupling=None):
    model = bk.models.KroneckerSBL(
        problem.dictionaries,
        noise_variance=problem.noise_variance if known else None,
        coupling=coupling,
    )
    objective = bk.infer(model, problem.measurements, method).convergence.objective
    if len(objective) < ITERATIONS or not np.isfinite(objective).all():
        return float("nan")
    return float(max(0.0, np.max(-np.diff(objective))) / np.max(np.abs(objective)))


def problems(seeds):
    """All three methods on the data sets of some seeds, and how often the loop was compiled."""
    with compilations("_advance") as compiled:
        found = [one_problem(seed) for seed in seeds]
    return {"problems": found, "compilations": len(compiled)}


def one_problem(seed):
    """All three methods on one data set."""
    problem = bk.datasets.kronecker_sparse(seed, shape=SHAPE, atoms=ATOMS)
    model = bk.models.KroneckerSBL(problem.dictionaries)
    posteriors, seconds = {}, {}
    for name, method in METHODS.items():

        def fitted(method=method):
            posterior = bk.infer(model, problem.measurements, method, key=seed)
            return posterior, posterior.mean, posterior.variance

        seconds[name], (posteriors[name], *_) = stopwatch(fitted)
    on = np.ix_(*problem.support)
    truth = problem.coefficients
    draws = posteriors["MCMC"].to_datatree(key=seed)["posterior"].dataset
    scores = {}
    for name, posterior in posteriors.items():
        low, high = interval(posterior, draws)
        error = truth - posterior.mean["coefficients"]
        scores[name] = {
            "inside": (low <= truth)[on] & (truth <= high)[on],
            "inside everywhere": float(np.mean((low <= truth) & (truth <= high))),
            "z²": (error**2 / posterior.variance["coefficients"])[on],
            "width": float(np.mean((high - low)[on])),
            "nmse": nmse(truth, posterior.mean["coefficients"]),
            "noise ratio": float(posterior.mean["noise_variance"]) / problem.noise_variance,
            "seconds": seconds[name],
        }
    reference = posteriors["MCMC"]
    distances = {}
    for name in ("messages", "EM"):
        distances[name] = {
            site: distance(posteriors[name], reference, site) for site in reference.mean
        }
        distances[name]["coefficients, support"] = distance(
            posteriors[name], reference, "coefficients", on
        )
    return {
        "seed": seed,
        "scores": scores,
        "distances": distances,
        "chains": diagnostics(reference, problem, draws),
    }


def interval(posterior, draws):
    """Central intervals of the coefficients: of the draws where there are chains, else normal."""
    if posterior.convergence.max_rhat is None:
        mean = posterior.mean["coefficients"]
        reach = norm.ppf(1 - TAIL) * np.sqrt(posterior.variance["coefficients"])
        return mean - reach, mean + reach
    return tuple(np.quantile(draws["coefficients"].values, (TAIL, 1 - TAIL), axis=(0, 1)))


def diagnostics(posterior, problem, draws):
    """R-hat and effective sample sizes of hyper-parameters, evidence and likelihood."""
    clean = multiply_modes(problem.dictionaries, draws["coefficients"].values)
    residual = ((clean - problem.measurements) ** 2).sum(axis=(2, 3, 4))
    noise = draws["noise_variance"].values
    size = problem.measurements.size
    likelihood = -0.5 * (size * np.log(2 * np.pi * noise) + residual / noise)
    judged = draws.drop_vars("coefficients").assign(
        log_evidence=(("chain", "draw"), posterior.trace["sample_stats"]["log_evidence"]),
        log_likelihood=(("chain", "draw"), likelihood),
    )
    rhat, bulk = azs.rhat(judged), azs.ess(judged)
    tail = azs.ess(judged, method="tail")

    def extreme(dataset: xr.Dataset, reduce):
        return {name: float(reduce(array.values)) for name, array in dataset.data_vars.items()}

    stats = posterior.trace["sample_stats"]
    return {
        "rhat": extreme(rhat, np.max),
        "ess bulk": extreme(bulk, np.min),
        "ess tail": extreme(tail, np.min),
        "divergences": int(posterior.convergence.divergences),
        "steps a draw": float(np.mean(stats["n_steps"])),
    }


def chains(report, found):
    names = list(found[0]["chains"]["rhat"])
    rows = [
        (
            name,
            max(f["chains"]["rhat"][name] for f in found),
            min(f["chains"]["ess bulk"][name] for f in found),
            min(f["chains"]["ess tail"][name] for f in found),
        )
        for name in names
    ]
    report.tables.append(
        Table(
            f"Four chains, worst entry of {len(found)} seeds",
            ("", "largest R-hat", "smallest bulk ESS", "smallest tail ESS"),
            rows,
            f"{median([f['chains']['steps a draw'] for f in found]):.0f} steps a draw; median "
            f"{median([f['scores']['MCMC']['seconds'] for f in found]):.0f} s a data set, moments "
            "included, two at a time.",
        )
    )
    report.bars += [
        Bar("MCMC: largest R-hat", max(row[1] for row in rows), "<", 1.01),
        Bar("MCMC: smallest bulk ESS", min(row[2] for row in rows), ">", 400),
        Bar("MCMC: divergences", sum(f["chains"]["divergences"] for f in found), "==", 0),
    ]


def coverage(report, found):
    rows, values = [], {}
    for name in METHODS:
        scores = [f["scores"][name] for f in found]
        inside = float(np.mean([s["inside"] for s in scores]))
        z = float(np.mean([s["z²"] for s in scores]))
        values[name] = inside, z
        rows.append(
            (
                name,
                inside,
                z,
                float(np.mean([s["inside everywhere"] for s in scores])),
                median([s["width"] for s in scores]),
                median([s["nmse"] for s in scores]),
                median([s["noise ratio"] for s in scores]),
                median([s["seconds"] for s in scores]),
            )
        )
    count = len(found) * np.size(found[0]["scores"]["EM"]["inside"])
    report.tables.append(
        Table(
            f"Coverage of 90 % intervals on the true support, {count} coefficients",
            (
                "",
                "coverage",
                "mean z²",
                "coverage of all coefficients",
                "width",
                "NMSE",
                "σ̂²/σ²",
                "seconds",
            ),
            rows,
            "EM plugs its estimates in: the uncertainty of scales and noise is not in its "
            "intervals.",
        )
    )
    inside, z = values["MCMC"]
    report.bars += [
        Bar("MCMC: coverage of 90 % intervals on the support", inside, ">=", 0.85),
        Bar("MCMC: coverage of 90 % intervals on the support", inside, "<=", 0.97),
        Bar("MCMC: mean z² on the support", z, ">=", 0.5),
        Bar("MCMC: mean z² on the support", z, "<=", 2.0),
    ]


def distance(posterior, reference, site, where=...):
    """RMS over the entries of (mean − MCMC mean) / MCMC deviation, and the ratio of deviations."""
    spread = np.sqrt(reference.variance[site][where])
    gap = (posterior.mean[site][where] - reference.mean[site][where]) / spread
    ratio = np.sqrt(posterior.variance[site][where]) / spread
    return float(np.sqrt(np.mean(gap**2))), float(np.median(ratio))


def agreement(report, found):
    rows, beyond = [], []
    for name, limit in (("messages", 0.3), ("EM", 0.5)):
        sites = found[0]["distances"][name]
        for site in sites:
            gaps = [f["distances"][name][site][0] for f in found]
            ratios = [f["distances"][name][site][1] for f in found]
            rows.append((name, site, median(gaps), max(gaps), median(ratios)))
            if site.startswith("coefficients"):
                report.bars.append(
                    Bar(f"{name} against MCMC: {site}, worst seed", max(gaps), "<=", limit)
                )
            elif max(gaps) > limit:
                beyond.append(f"{site} by {name} ({max(gaps):.2g}, limit {limit:g})")
    report.tables.append(
        Table(
            "Distance from MCMC: RMS of (mean − MCMC mean) / MCMC deviation",
            ("", "site", "median over seeds", "worst seed", "deviation ÷ MCMC's (median)"),
            rows,
            "EM's scales and noise are single numbers: their deviation is zero. Beyond the limit "
            f"of the coefficients in the worst seed: {', '.join(beyond) or 'no other site'}.",
        )
    )


def calibration(report, options):
    """Simulation-based calibration of the three methods under one proper prior."""
    simulations = 100 if options.seeds is None else 10 * min(options.seeds, 10)
    simulations = 500 if options.full and options.seeds is None else simulations
    generator = np.random.default_rng(0)
    dictionaries = tuple(generator.standard_normal(size) for size in ((5, 4), (4, 5)))
    model = bk.models.KroneckerSBL(
        dictionaries,
        scale_prior=dist.InverseGamma(3.0, 2.0),
        noise_prior=dist.InverseGamma(3.0, 0.5),
    )

    def log_likelihood(parameters, data):
        residual = np.sum((data - multiply_modes(dictionaries, parameters["coefficients"])) ** 2)
        noise = parameters["noise_variance"]
        return -0.5 * (data.size * np.log(2 * np.pi * noise) + residual / noise)

    rows, reference = [], None
    for name, method in CALIBRATED.items():
        result = calibrate(
            model,
            method,
            key=0,
            num_simulations=simulations,
            quantities={"log_likelihood": log_likelihood},
            reference=reference,
        )
        reference = reference or result
        table = result.table()
        columns = [column for column in table.columns if column != "note"]
        for site, row in table.iterrows():
            if row["entries"]:
                rows.append((name, site, *(float(row[column]) for column in columns)))
            else:
                rows.append((name, f"{site} (plugged in)", 0, *(None,) * (len(columns) - 1)))
        if name == "MCMC":
            smallest = min(table["p_ecdf"].min(), table["p_chi2"].min())
            report.bars.append(
                Bar("MCMC: smallest p-value of uniform ranks", float(smallest), ">=", 1e-3)
            )
        report.results.setdefault("calibration", {})[name] = {
            "ranks": result.ranks,
            "not converged": int(np.sum(~result.converged)),
            "not usable": int(np.sum(~result.usable)),
        }
    report.tables.append(
        Table(
            f"Simulation-based calibration, {simulations} data sets, M = (5, 4), N = (4, 5)",
            ("", "site", *columns),
            rows,
            "Width ratios are to MCMC's. EM leaves out the uncertainty of what it plugs in, and "
            "messages the dependence between scales and coefficients: theirs is shown, not barred.",
        )
    )
