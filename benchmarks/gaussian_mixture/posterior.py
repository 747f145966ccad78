"""Are the posteriors right: intervals, probabilities of labels, simulation-based calibration."""

import warnings

import numpy as np
from scipy.optimize import linear_sum_assignment

import bayeskit as bk
from bayeskit.inference import EM, MCMC, MessagePassing
from bayeskit.testing import calibrate
from benchmarks.common import Bar, Options, Report, Table, in_two_processes, share

ORDER = 6
TITLE = "Gaussian mixtures: intervals, probabilities of labels, simulation-based calibration"
MINUTES = (12, 25)

COMPONENTS, FEATURES, ROWS = 3, 2, 150
WEIGHTS = (0.5, 0.3, 0.2)
APART, OVERLAPPING = 5.0, (3.0, 2.5)
CHAINS = MCMC(num_warmup=400, num_samples=500, num_chains=1)
METHODS = {"MCMC": CHAINS, "MessagePassing": MessagePassing(), "EM": None}
LEVEL, DRAWS = 0.9, 1000
BINS = 10
LEAST_COVERAGE = 0.85
PARTS = 4

# Simulation-based calibration: what has no labels is ranked.
SMALL_ROWS = 60
POINT = np.array([1.0, 0.0])


def run(options: Options) -> Report:
    seeds = options.count(100)
    report = Report(
        TITLE,
        settings={
            "data sets": seeds,
            "problem": f"{ROWS} rows, {COMPONENTS} components of weights {WEIGHTS} in {FEATURES} "
            "dimensions, covariances at random, default prior",
            "MCMC": repr(CHAINS),
        },
    )
    tasks = [
        {"separation": separation, "seeds": list(range(part, seeds, PARTS))}
        for separation in (APART, *OVERLAPPING)
        for part in range(PARTS)
    ]
    parts = in_two_processes("benchmarks.gaussian_mixture.posterior:fits", tasks)
    for separation in (APART, *OVERLAPPING):
        own = [
            each
            for task, part in zip(tasks, parts, strict=True)
            for each in part
            if task["separation"] == separation
        ]
        intervals(report, separation, own)
        labels(report, separation, own)
    simulations = 200 if options.seeds is None else 10 * options.seeds
    calibration(report, simulations)
    return report


def simulated(separation, seed):
    """Rows, classes and parameters: the nearest centres are ``separation`` deviations apart."""
    generator = np.random.default_rng([int(10 * separation), seed])
    angle = generator.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(COMPONENTS) / COMPONENTS
    # Corners of a triangle of that side.
    centers = separation / np.sqrt(3) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    turns = np.linalg.qr(generator.normal(size=(COMPONENTS, FEATURES, FEATURES)))[0]
    lengths = np.exp(generator.uniform(-0.7, 0.7, size=(COMPONENTS, FEATURES)))
    lengths /= np.exp(np.mean(np.log(lengths), axis=1, keepdims=True))
    classes = generator.choice(COMPONENTS, ROWS, p=WEIGHTS)
    noise = generator.normal(size=(ROWS, FEATURES)) * np.sqrt(lengths[classes])
    rows = centers[classes] + np.einsum("nij,nj->ni", turns[classes], noise)
    return rows, classes, centers


def fits(separation, seeds):
    """Coverage, standardised errors and label probabilities of every method. Run by processes."""
    return [one(separation, seed) for seed in seeds]


def one(separation, seed):
    rows, classes, centers = simulated(separation, seed)
    truth = {"weights": np.array(WEIGHTS), "locations": centers}
    found = {}
    for name, method in METHODS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bk.BayeskitWarning)
            posterior = bk.infer(bk.models.GaussianMixture(COMPONENTS), rows, method, key=seed)
        distances = np.linalg.norm(posterior.mean["locations"][None] - centers[:, None], axis=-1)
        order = linear_sum_assignment(distances)[1]
        draws = posterior.to_datatree(num_draws=DRAWS)["posterior"]
        sites = {}
        for site, true in truth.items():
            drawn = draws[site].values.reshape(-1, *true.shape)[:, order]
            low, high = np.quantile(drawn, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0)
            error = posterior.mean[site][order] - true
            sites[site] = {
                "inside": ((low <= true) & (true <= high)).ravel(),
                "z²": (error**2 / posterior.variance[site][order]).ravel(),
            }
        probabilities = posterior.responsibilities()[:, order]
        best = probabilities.argmax(axis=1)
        found[name] = {
            "sites": sites,
            "probability": probabilities.max(axis=1),
            "right": best == classes,
            "R-hat": posterior.convergence.max_rhat,
        }
    return found


def intervals(report, separation, results):
    rows = []
    for name in METHODS:
        for site in ("locations", "weights"):
            own = [each[name]["sites"][site] for each in results]
            inside = share(np.concatenate([each["inside"] for each in own]))
            errors = float(np.mean(np.concatenate([each["z²"] for each in own])))
            rows.append((name, site, inside, errors))
            if name == "MCMC" and separation == APART:
                title = f"MCMC, separation {separation:g}, {site}"
                report.bars += [
                    Bar(f"{title}: coverage of 90 % intervals", inside, ">=", 0.85),
                    Bar(f"{title}: coverage of 90 % intervals", inside, "<=", 0.95),
                    Bar(f"{title}: mean z²", errors, ">=", 0.5),
                    Bar(f"{title}: mean z²", errors, "<=", 2.0),
                ]
    worst = max(each["MCMC"]["R-hat"] for each in results)
    narrow = [f"{n}, {s} ({c:.2f})" for n, s, c, _ in rows if c < LEAST_COVERAGE]
    report.tables.append(
        Table(
            f"Centres {separation:g} deviations apart: 90 % intervals",
            ("method", "site", "coverage", "mean z²"),
            rows,
            f"Largest R-hat {worst:.3f}. Coverage below {LEAST_COVERAGE:.0%}: "
            f"{', '.join(narrow) or 'none'}. The remedy for EM and messages is MCMC, above.",
        )
    )


def labels(report, separation, results):
    """How often the most probable component is right, by its probability."""
    rows, errors = [], {}
    for name in METHODS:
        probability = np.concatenate([each[name]["probability"] for each in results])
        right = np.concatenate([each[name]["right"] for each in results])
        edges = np.linspace(1 / COMPONENTS, 1.0, BINS + 1)
        index = np.clip(np.digitize(probability, edges) - 1, 0, BINS - 1)
        total = 0.0
        for b in range(BINS):
            inside = index == b
            if inside.any():
                said, true = float(np.mean(probability[inside])), share(right[inside])
                total += abs(said - true) * np.mean(inside)
                rows.append((name, said, true, int(inside.sum())))
        errors[name] = float(total)
        report.results.setdefault("reliability", {})[f"{name}, {separation:g}"] = [
            row[1:] for row in rows if row[0] == name
        ]
    if separation in OVERLAPPING:
        title = f"MCMC, separation {separation:g}: expected calibration error of labels"
        report.bars.append(Bar(title, errors["MCMC"], "<=", 0.02))
    report.tables.append(
        Table(
            f"Centres {separation:g} deviations apart: how often labels are right",
            ("method", "probability of the label", "share that is right", "rows"),
            rows,
            "Expected calibration errors: "
            + ", ".join(f"{name} {error:.4f}" for name, error in errors.items())
            + ".",
        )
    )


def density(parameters, point):
    """Log density of the mixture at rows."""
    terms = []
    for weight, location, covariance in zip(
        parameters["weights"], parameters["locations"], parameters["covariances"], strict=True
    ):
        white = np.linalg.solve(np.linalg.cholesky(covariance), (point - location).T)
        logdet = np.linalg.slogdet(covariance)[1]
        terms.append(np.log(weight) - 0.5 * (np.sum(white**2, axis=0) + logdet))
    return np.logaddexp.reduce(np.stack(terms), axis=0) - np.log(2 * np.pi)


QUANTITIES = {
    "log density at a point": lambda p, data: density(p, POINT[None])[0],
    "mean of the mixture": lambda p, data: p["weights"] @ p["locations"][:, 0],
    "larger weight": lambda p, data: np.max(p["weights"]),
    "distance of the locations": lambda p, data: np.linalg.norm(np.diff(p["locations"], axis=0)),
    "log likelihood": lambda p, data: np.sum(density(p, data)),
}


def calibration(report, simulations):
    """Ranks of quantities that do not depend on the numbering of the components."""
    model = bk.models.GaussianMixture(
        2,
        prior=bk.models.NormalInverseWishart(np.zeros(2), 0.05, 6.0 * np.eye(2), 8.0),
        weights_concentration=4.0,
        num_observations=SMALL_ROWS,
    )
    methods = {
        "MCMC": MCMC(num_warmup=300, num_samples=300, num_chains=1, max_tree_depth=7),
        "MessagePassing": MessagePassing(max_iterations=2000, tolerance=1e-6),
        "EM": EM(max_iterations=2000, tolerance=1e-6),
    }
    rows, reference, tables = [], None, {}
    for name, method in methods.items():
        result = calibrate(
            model,
            method,
            key=0,
            num_simulations=simulations,
            sites=["weights"],
            quantities=QUANTITIES,
            reference=reference,
            batch_size=20,
        )
        reference = reference or result
        # The numbering of weights is a convention: only quantities are judged.
        table = result.table().loc[list(QUANTITIES)]
        tables[name] = table.drop(columns="note").to_dict("index")
        rows += [(name, quantity, *row.values()) for quantity, row in tables[name].items()]
    chains = tables["MCMC"]
    report.bars += [
        Bar(
            "MCMC: smallest p-value of uniform ranks",
            min(min(row["p_ecdf"], row["p_chi2"]) for row in chains.values()),
            ">=",
            1e-3,
        ),
        Bar(
            "MCMC: least coverage of 90 % intervals under the prior",
            min(row["coverage_90"] for row in chains.values()),
            ">=",
            LEAST_COVERAGE,
        ),
    ]
    columns = ("method", "quantity", *next(iter(chains.values())))
    report.tables.append(
        Table(
            f"Simulation-based calibration: {simulations} data sets of {SMALL_ROWS} rows, two "
            "components",
            columns,
            rows,
            "Over the prior, under which components often overlap. Width ratios are to MCMC's.",
        )
    )
    report.results["calibration"] = tables
