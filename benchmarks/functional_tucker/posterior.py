"""Are the posteriors right: ascent, simulation-based calibration, agreement with chains."""

import warnings

import numpy as np
import numpyro.distributions as dist
from gpjax.kernels import Matern32

import bayeskit as bk
from bayeskit.inference import EM, MCMC, MessagePassing
from bayeskit.testing import calibrate
from benchmarks.common import Bar, Options, Report, Table, in_two_processes, median

ORDER = 5
TITLE = "Posteriors: ascent of the bound, calibration, agreement of the three methods"
MINUTES = (10, 40)

PLACES, GROUPS = np.linspace(0.0, 3.0, 10), np.arange(5)
# Cells whose noiseless values are ranked: the functions themselves have no signs of their own.
CELLS = ((0, 0), (4, 1), (9, 3))
# Kernels as good as known, for messages, which keep them: the same model for all three.
NARROW, WIDE = 0.01, 0.5
# Deeper trees, along ridges of scale and rotation, take more than an hour for a hundred data sets.
CHAINS = MCMC(num_warmup=400, num_samples=400, num_chains=1, max_tree_depth=7)
METHODS = {
    "MCMC": CHAINS,
    "messages": MessagePassing(max_iterations=2000, tolerance=1e-6),
    "EM": EM(tolerance=1e-6),
}
LEAST_COVERAGE = 0.85
LONG = MCMC(num_warmup=600, num_samples=1000, num_chains=2, max_tree_depth=8)
ROUNDING = 1e-10


def model_of(spread, core):
    """Two modes, ranks of two, proper priors; kernels known to a log deviation of ``spread``."""
    return bk.models.FunctionalTucker(
        [
            bk.models.Mode("place", kernel=Matern32(lengthscale=1.0), points=PLACES),
            bk.models.Mode("group", categorical=True, points=GROUPS),
        ],
        ranks=2,
        core=core,
        offset=0.0,
        scale=1.0,
        noise_prior=dist.InverseGamma(5.0, 0.2),
        kernel_priors={
            "lengthscale": dist.LogNormal(0.0, spread),
            "variance": dist.LogNormal(0.0, spread),
            "constant_variance": dist.LogNormal(0.0, spread),
        },
    )


def fitted(parameters):
    """Noiseless values of all cells (places, groups)."""
    place, group = parameters["mode_place"], parameters["mode_group"]
    core = parameters.get("core", np.eye(place.shape[1]))
    return np.einsum("pa,ab,gb->pg", place, core, group)


def cell(place, group):
    return lambda parameters, data: fitted(parameters)[place, group]


def log_likelihood(parameters, data):
    residual = data[1] - fitted(parameters).reshape(-1)
    noise = parameters["noise_variance"]
    return -0.5 * np.sum(np.log(2 * np.pi * noise) + residual**2 / noise)


QUANTITIES = {f"value at {place}, {group}": cell(place, group) for place, group in CELLS}
QUANTITIES["log likelihood"] = log_likelihood


def run(options: Options) -> Report:
    simulations = 100 if options.seeds is None else 10 * min(options.seeds, 10)
    simulations = 300 if options.full and options.seeds is None else simulations
    seeds = options.count(10, 30)
    report = Report(
        TITLE,
        settings={
            "problem": f"{len(PLACES)} places (Matérn 3/2) × {len(GROUPS)} groups, ranks 2, a "
            "value a cell",
            "simulations": simulations,
            "seeds of agreement": seeds,
            "MCMC": f"{CHAINS!r}; for agreement {LONG!r}",
        },
    )
    ascent(report, seeds)
    cases = [
        {"spread": spread, "core": core, "simulations": simulations}
        for core in ("tucker", "cp")
        for spread in (NARROW, WIDE)
    ]
    found = in_two_processes("benchmarks.functional_tucker.posterior:calibration", cases)
    for case, result in zip(cases, found, strict=True):
        calibration_table(report, case, result)
    halves = in_two_processes(
        "benchmarks.functional_tucker.posterior:distances",
        [{"seeds": list(range(first, seeds, 2))} for first in range(2)],
    )
    agreement(report, [each for half in halves for each in half])
    return report


def ascent(report, seeds):
    """The largest fall of the bound in a step, over its size."""
    falls = {}
    for core in ("tucker", "cp"):
        model = model_of(WIDE, core)
        for name, method in (
            ("messages", MessagePassing(max_iterations=200, tolerance=0.0)),
            ("EM", EM(max_iterations=200, tolerance=0.0)),
        ):
            worst = 0.0
            for seed in range(seeds):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", bk.BayeskitWarning)
                    posterior = bk.infer(model, model.sample_prior(seed)[1], method, key=seed)
                bound = posterior.convergence.objective
                worst = max(worst, float(np.max(-np.diff(bound)) / np.max(np.abs(bound))))
            falls[f"{name}, {core}"] = worst
            report.bars.append(
                Bar(f"{name}, {core}: largest relative fall of the bound", worst, "<=", ROUNDING)
            )
    report.results["falls"] = falls


def calibration(spread, core, simulations):
    """Tables of the three methods on data from one prior."""
    model, reference, tables = model_of(spread, core), None, {}
    for name, method in METHODS.items():
        result = calibrate(
            model,
            method,
            key=0,
            num_simulations=simulations,
            sites=["noise_variance"],
            quantities=QUANTITIES,
            reference=reference,
        )
        reference = reference or result
        table = result.table()
        tables[name] = {
            "rows": table.drop(columns="note").to_dict("index"),
            "not converged": table.attrs["not_converged"],
            "not usable": table.attrs["not_usable"],
        }
    return tables


def calibration_table(report, case, tables):
    spread, core = case["spread"], case["core"]
    known = "kernels known" if spread == NARROW else "kernels learned"
    rows = [
        (name, site, *(value if np.isfinite(value) else None for value in row.values()))
        for name, table in tables.items()
        for site, row in table["rows"].items()
        if row["entries"]  # of those that are plugged in there are none
    ]
    columns = tuple(next(iter(tables["MCMC"]["rows"].values())))
    lost = ", ".join(f"{name} {table['not converged']}" for name, table in tables.items())
    chains = tables["MCMC"]["rows"]
    title = f"MCMC, {core}, {known}"
    report.bars += [
        Bar(
            f"{title}: smallest p-value of uniform ranks",
            min(min(row["p_ecdf"], row["p_chi2"]) for row in chains.values()),
            ">=",
            1e-3,
        ),
        Bar(
            f"{title}: least coverage of 90 % intervals",
            min(row["coverage_90"] for row in chains.values()),
            ">=",
            LEAST_COVERAGE,
        ),
    ]
    narrow = [
        f"{site} by {name} ({row['coverage_90']:.2f})"
        for name, table in tables.items()
        for site, row in table["rows"].items()
        if row["coverage_90"] < LEAST_COVERAGE
    ]
    report.tables.append(
        Table(
            f"Calibration, {core}, {known}, {case['simulations']} data sets",
            ("", "site", *columns),
            rows,
            f"Width ratios are to MCMC's. Fits that did not meet their criterion: {lost}. "
            "Messages keep the kernels at the start values. Coverage of 90 % intervals below "
            f"{LEAST_COVERAGE:.0%}: {', '.join(narrow) or 'none'}; the remedy is MCMC, above.",
        )
    )
    report.results.setdefault("calibration", {})[f"{core}, {known}"] = tables


def distances(seeds):
    """From chains under the same priors, on data from the prior: of fitted values and noise."""
    return [
        found
        for seed in seeds
        for core in ("tucker", "cp")
        for spread, names in ((NARROW, ("messages", "EM")), (WIDE, ("EM",)))
        for found in distances_of(seed, core, spread, names)
    ]


def distances_of(seed, core, spread, names):
    """Of several methods from the same chains, on one data set."""
    model = model_of(spread, core)
    data = model.sample_prior(seed)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        chains = bk.infer(model, data, LONG, key=seed)
        posteriors = {name: bk.infer(model, data, METHODS[name], key=seed) for name in names}
    theirs = chains.predict(data[0])
    deviation = np.sqrt(theirs.variance)
    spread_of_noise = np.sqrt(chains.variance["noise_variance"])
    known = "kernels known" if spread == NARROW else "kernels learned"
    for name, posterior in posteriors.items():
        ours = posterior.predict(data[0])
        noise = posterior.mean["noise_variance"] - chains.mean["noise_variance"]
        yield {
            "seed": seed,
            "core": core,
            "method": f"{name}, {known}",
            "values": float(np.sqrt(np.mean(((ours.mean - theirs.mean) / deviation) ** 2))),
            "ratio": float(np.median(np.sqrt(ours.variance) / deviation)),
            "noise": float(np.abs(noise) / spread_of_noise),
            "R-hat": chains.convergence.max_rhat,
        }


def agreement(report, found):
    rows = []
    for core in ("tucker", "cp"):
        for method in dict.fromkeys(each["method"] for each in found):
            own = [each for each in found if (each["core"], each["method"]) == (core, method)]
            columns = [[each[key] for each in own] for key in ("values", "ratio", "noise", "R-hat")]
            values, ratios, noise, rhats = columns
            limit = 0.3 if method.startswith("messages") else 0.5
            rows.append(
                (
                    f"{core}, {method}",
                    limit,
                    median(values),
                    max(values),
                    float(np.mean(np.array(values) <= limit)),
                    median(ratios),
                    median(noise),
                    max(rhats),
                )
            )
    columns = ("", "limit", "values, median", "values, worst", "within the limit")
    columns += ("deviation ÷ MCMC's", "noise, median", "largest R-hat")
    report.tables.append(
        Table(
            "Distance from MCMC in its deviations: fitted values (RMS over cells) and noise",
            columns,
            rows,
            "Medians over data sets drawn from the prior.",
        )
    )
    report.results["agreement"] = found
