"""Planted Tucker decompositions with an asymmetric core, against knowing all but the functions."""

import warnings

import numpy as np
from gpjax.kernels import Matern32
from scipy.stats import norm

import bayeskit as bk
from bayeskit.inference import MCMC, MessagePassing
from benchmarks.baselines.conditional_ep import conditional_ep
from benchmarks.common import Bar, Options, Report, Table, in_two_processes, median, stopwatch

ORDER = 3
TITLE = "Planted cores: error against an oracle, coverage"
MINUTES = (8, 26)

# By the number of modes: ranks, points of a mode, rows. The small one is for chains too.
PROBLEMS = {
    "K = 2": ((2, 3), 40, 800),
    "K = 3": ((2, 3, 2), 30, 2000),
    "K = 4": ((2, 3, 2, 2), 20, 4000),
    "K = 2, small": ((2, 2), 12, 120),
}
SMALL = "K = 2, small"
LENGTHSCALE = 0.3
NOISE = 0.05
TESTED = 2000
SWEEPS = 200
LEVEL = 0.95
LIMIT = 1.3
CHAINS = MCMC(num_warmup=500, num_samples=500, num_chains=2)
WHERE = {
    "at observed points": "New combinations of points that have observations.",
    "elsewhere": "At least one mode is at a point without observations.",
}
COVERAGE = {"EM": (0.88, 0.98), "messages": (0.88, 0.98), "MCMC": (0.92, 0.97)}


def run(options: Options) -> Report:
    seeds = options.count(6, 20)
    chains = options.at_most(3, 20)
    report = Report(
        TITLE,
        settings={
            "seeds": seeds,
            "seeds of chains": chains,
            "noise": f"{NOISE:.0%} of the values' deviation",
            "MCMC": repr(CHAINS),
        },
    )
    tasks = [
        {"name": name, "seed": seed, "chains": name == SMALL and seed < chains}
        for name in PROBLEMS
        for seed in range(seeds)
    ]
    parts = [[task for task in tasks if task["name"] == name] for name in PROBLEMS]
    found = in_two_processes(
        "benchmarks.functional_tucker.planted:several",
        [{"tasks": half} for part in parts for half in (part[::2], part[1::2]) if half],
    )
    results = sorted((e for half in found for e in half), key=lambda e: (e["name"], e["seed"]))
    report.results["problems"] = results
    for where, note in WHERE.items():
        rows = []
        for name in PROBLEMS:
            own = [each for each in results if each["name"] == name]
            for method in ("oracle", "EM", "messages", "MCMC"):
                kept = [each for each in own if method in each["scores"]]
                if kept:
                    rows.append((name, method, *summary(kept, method, where)))
        columns = ("", "method", "error", "÷ oracle's", "worst ÷ oracle's", "within 1.3")
        columns += ("coverage", "mean z²", "noise ÷ true, worst", "seconds")
        add_bars(report, where, rows)
        title = f"Noiseless values {where}, {seeds} seeds"
        report.tables.append(Table(title, columns, rows, note))
    report.notes.append(
        "Error: median of root mean squares over the deviation of the values; then the median and "
        "the worst of the ratios to the oracle's, and the share of seeds in which it is at most "
        "1.3. The oracle knows core, kernels, offset and noise and starts at the true functions: "
        "conditional expectation propagation without damping. EM learns everything; messages know "
        "the kernels and the scale that their variances are relative to; both otherwise with "
        "their defaults."
    )
    return report


def summary(own, method, where):
    scores = [each["scores"][method][where] for each in own]
    oracle = [each["scores"]["oracle"][where]["error"] for each in own]
    ratios = [score["error"] / best for score, best in zip(scores, oracle, strict=True)]
    noise = [each["diagnostics"][method]["noise ratio"] for each in own if method != "oracle"]
    return (
        median([score["error"] for score in scores]),
        median(ratios),
        max(ratios),
        float(np.mean(np.array(ratios) <= LIMIT)),
        float(np.mean([score["coverage"] for score in scores])),
        float(np.mean([score["z²"] for score in scores])),
        max(noise, default=None),
        median([each["seconds"][method] for each in own]),
    )


def add_bars(report, where, rows):
    """On the median ratio, and on coverage and mean z² over all seeds: the worst problem."""
    for method, (low, high) in COVERAGE.items():
        own = [row[2:] for row in rows if row[1] == method]
        if not own:
            continue
        _, ratios, _, _, coverages, z, _, _ = zip(*own, strict=True)
        title = f"{method}, {where}"
        report.bars += [
            Bar(f"{title}: least coverage of 95 % intervals", min(coverages), ">=", low),
            Bar(f"{title}: largest coverage of 95 % intervals", max(coverages), "<=", high),
            Bar(f"{title}: least mean z²", min(z), ">=", 0.5),
            Bar(f"{title}: largest mean z²", max(z), "<=", 2.0),
        ]
        if method != "MCMC":
            report.bars.append(
                Bar(f"{title}: median error ÷ oracle's, worst problem", max(ratios), "<=", LIMIT)
            )


def several(tasks):
    return [one_problem(**task) for task in tasks]


def planted(name, seed):
    """Functions from their priors, a normal core, noisy rows, and noiseless rows to predict.

    The functions are Matérn 3/2 processes plus standard normal constants.
    """
    ranks, count, rows = PROBLEMS[name]
    generator = np.random.default_rng([seed, len(ranks), count])
    core = generator.normal(size=ranks)
    points, functions = [], []
    for rank in ranks:
        # The second half has no observations.
        place = generator.uniform(size=2 * count)
        distance = np.sqrt(3) * np.abs(place[:, None] - place) / LENGTHSCALE
        covariance = (1 + distance) * np.exp(-distance) + 1.0 + 1e-10 * np.eye(2 * count)
        points.append(place)
        functions.append(np.linalg.cholesky(covariance) @ generator.normal(size=(2 * count, rank)))
    seen = np.stack([generator.integers(0, count, rows) for _ in ranks], axis=1)
    new = np.stack([generator.choice(np.unique(column), TESTED) for column in seen.T], axis=1)
    moved = generator.uniform(size=new[::2].shape) < 0.5
    moved[~moved.any(axis=1), 0] = True
    new[::2] += count * moved

    def values(at):
        result = np.tensordot(functions[0][at[:, 0]], core, axes=1)
        for k in range(1, len(ranks)):
            result = np.einsum("na,na...->n...", functions[k][at[:, k]], result)
        return result

    def indices(at):
        return np.stack([place[i] for place, i in zip(points, at.T, strict=True)], axis=1)

    clean = values(seen)
    deviation = NOISE * np.std(clean)
    noisy = clean + deviation * generator.normal(size=rows)
    start = []
    for k, (place, function) in enumerate(zip(points, functions, strict=True)):
        used = np.unique(seen[:, k])
        order = used[np.argsort(place[used])]
        start.append((function[order], np.zeros((len(order), *function.shape[1:], ranks[k]))))
    return {
        "train": (indices(seen), noisy),
        "test": (indices(new), values(new)),
        "elsewhere": np.arange(TESTED) % 2 == 0,
        "core": core,
        "noise variance": deviation**2,
        "functions": start,
    }


def one_problem(name, seed, chains):
    problem = planted(name, seed)
    ranks = PROBLEMS[name][0]
    seconds, scores, diagnostics = {}, {}, {}
    seconds["oracle"], oracle = stopwatch(lambda: oracle_posterior(problem, ranks))
    scores["oracle"] = score(problem, *oracle.predict(problem["test"][0]))
    names = [f"x{k}" for k in range(len(ranks))]
    known = [bk.models.Mode(each, kernel=Matern32(lengthscale=LENGTHSCALE)) for each in names]
    methods = {"EM": (names, None), "messages": (known, MessagePassing())}
    if chains:
        methods["MCMC"] = (names, CHAINS)
    for method, (modes, settings) in methods.items():
        # Variances of kernels are relative to the scale: known ones are known with theirs.
        scale = 1.0 if method == "messages" else None
        model = bk.models.FunctionalTucker(modes, ranks=ranks, scale=scale)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bk.BayeskitWarning)
            seconds[method], posterior = stopwatch(
                lambda m=model, s=settings: bk.infer(m, problem["train"], s, key=seed)
            )
        prediction = posterior.predict(problem["test"][0])
        scores[method] = score(problem, prediction.mean, prediction.variance)
        convergence = posterior.convergence
        diagnostics[method] = {
            "converged": convergence.converged,
            "iterations": convergence.iterations,
            "noise ratio": float(posterior.mean["noise_variance"]) / problem["noise variance"],
            "offset": float(posterior.mean["offset"]) / float(np.std(problem["train"][1])),
            "bound": posterior.log_evidence,
            "R-hat": convergence.max_rhat,
        }
    return {
        "name": name,
        "seed": seed,
        "scores": scores,
        "seconds": seconds,
        "diagnostics": diagnostics,
    }


def oracle_posterior(problem, ranks):
    return conditional_ep(
        *problem["train"],
        rank=ranks,
        core=problem["core"],
        lengthscales=LENGTHSCALE,
        kernels="matern32",
        constant=1.0,
        # Next to nothing: a known core may leave messages singular, which need an inverse.
        shrinkage=1e6,
        damping=0.0,
        noise_variance=problem["noise variance"],
        initial=problem["functions"],
        sweeps=SWEEPS,
    )


def score(problem, mean, variance):
    """Errors over the deviation of the values, coverage and z² at both kinds of rows."""
    truth = problem["test"][1]
    error = (truth - mean) / np.std(problem["train"][1])
    z = (truth - mean) / np.sqrt(variance)
    inside = np.abs(z) < norm.ppf(0.5 + LEVEL / 2)
    away = problem["elsewhere"]
    return {
        where: {
            "error": float(np.sqrt(np.mean(error[rows] ** 2))),
            "coverage": float(np.mean(inside[rows])),
            "z²": float(np.mean(z[rows] ** 2)),
        }
        for where, rows in zip(WHERE, (~away, away), strict=True)
    }
