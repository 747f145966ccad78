"""Real data under one setting: iris, wine, breast cancer, digits; our methods beside peers."""

import numpy as np
from sklearn import datasets
from sklearn.decomposition import PCA

import bayeskit as bk
from benchmarks.common import Bar, Options, Report, Table, median
from benchmarks.gaussian_mixture import clusterings as clusters
from benchmarks.gaussian_mixture.clusterings import DEFAULT

ORDER = 4
TITLE = "Real data, one setting for all: iris, wine, breast cancer, digits"
MINUTES = (10, 60)

TABLES = {"iris": datasets.load_iris, "wine": datasets.load_wine}
CANCER = "breast cancer"
TABLES[CANCER] = datasets.load_breast_cancer
ALLOWED = {"iris": 6, "wine": 6}
BARRED = (0, 1, 3, 7)
DIGITS = (BARRED, (1, 7, 8, 9), (0, 6, 8, 9), (2, 3, 5, 8), (4, 7, 9), (2, 4, 6), (0, 1, 2, 3, 4))
ROWS, COMPONENTS = 300, 10
SHAPES = {"within": 1.0, "half": 0.5, "diagonal": 0.0}
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


def run(options: Options) -> Report:
    subsamples = options.count(5, 20)
    programs = options.at_most(0, 2)
    report = Report(
        TITLE,
        settings={
            "subsamples of digits": subsamples,
            "of them for SemidefiniteProgram": programs,
            "rows of a subsample": ROWS,
            "principal components of digits": COMPONENTS,
        },
    )
    groups = {}
    for name, load in TABLES.items():
        rows, truth = standardised(load)
        heavy = len(rows) < 500 or options.full
        clusters.compile_for(rows, len(np.unique(truth)), programs=heavy)
        groups[name] = [clusters.compare(rows, truth, 0, programs=heavy)]
        if name == CANCER:
            priors = other_priors(rows, truth)
    for digits in DIGITS:
        name = "digits " + " ".join(map(str, digits))
        groups[name] = []
        for seed in range(subsamples):
            rows, truth = subsample(digits, seed)
            if seed == 0:
                clusters.compile_for(rows, len(digits), programs=programs > 0)
            groups[name].append(clusters.compare(rows, truth, seed, programs=seed < programs))
    report.results["data"] = groups
    report.results["priors tried on breast cancer"] = priors
    add_bars(report, groups, priors)
    report.tables.append(overview(groups))
    report.tables += [
        clusters.summary(f"{name}, {len(results)} data sets", results, "")
        for name, results in groups.items()
        if name.startswith("digits")
    ]
    report.tables.append(clusters.ablation("What the start is worth", groups))
    report.tables.append(prior_table(priors))
    report.notes.append(
        "Iris, wine and breast cancer are standardised for all; digits are in the ten leading "
        "principal components of each subsample, not scaled. Subsamples of a data set overlap. "
        + clusters.COLUMNS_NOTE
        + " "
        + clusters.PEERS_NOTE
    )
    return report


def standardised(load):
    rows, truth = load(return_X_y=True)
    return (rows - rows.mean(axis=0)) / rows.std(axis=0), truth


def subsample(digits, seed):
    """Some rows of some digits, in principal components."""
    rows, truth = datasets.load_digits(return_X_y=True)
    kept = np.flatnonzero(np.isin(truth, digits))
    generator = np.random.default_rng([seed, *digits])
    kept = generator.choice(kept, ROWS, replace=False)
    return PCA(COMPONENTS, random_state=0).fit_transform(rows[kept]), truth[kept]


def other_priors(rows, truth):
    """Errors, least shares and bounds under priors that are stated instead of chosen."""
    count, features = len(np.unique(truth)), rows.shape[1]
    share = np.eye(count)[clusters.PEERS[clusters.KMEANS](rows, count, 0)]
    means = share.T @ rows / share.sum(axis=0)[:, None]
    away = rows - share @ means
    within = away.T @ away / len(rows)
    diagonal = np.diag(np.diag(within))
    found = []
    for shape, part in SHAPES.items():
        target = part * within + (1.0 - part) * diagonal
        for strength in STRENGTHS:
            prior = bk.models.NormalInverseWishart(
                rows.mean(axis=0), 0.1, strength * target, features + 1 + strength
            )
            posterior = clusters.fitted(bk.models.GaussianMixture(count, prior=prior), rows)
            labels = posterior.labels
            found.append(
                {
                    "shape": shape,
                    "rows more": strength,
                    "error": clusters.error(labels, truth),
                    "least share": np.bincount(labels, minlength=count).min() / len(rows),
                    "bound": posterior.log_evidence,
                }
            )
    return found


def add_bars(report, groups, priors):
    for name, most in ALLOWED.items():
        result = groups[name][0]
        count = round(result["errors"][DEFAULT] * len(standardised(TABLES[name])[0]))
        report.bars.append(Bar(f"{name}: errors", count, "<=", most))
    cancer = groups[CANCER][0]
    tried = median([each["error"] for each in priors])
    report.bars += [
        Bar(
            f"{CANCER}: error, at most the median over the priors tried",
            cancer["errors"][DEFAULT],
            "<=",
            tried,
            target=0.07,
        ),
        Bar(f"{CANCER}: least share of a cluster", min(cancer["shares"]), ">=", 0.05),
    ]
    name = "digits " + " ".join(map(str, BARRED))
    ours, peer = (
        median(clusters.errors_of(groups[name], each)) for each in (DEFAULT, clusters.TEN_STARTS)
    )
    report.bars.append(
        Bar(
            f"{name}: median error, at most that of {clusters.TEN_STARTS} − 0.010",
            ours,
            "<=",
            peer - 0.010,
            target=peer - 0.030,
        )
    )


def overview(groups):
    names = dict.fromkeys(name for results in groups.values() for name in results[0]["errors"])
    rows = []
    for name in sorted(names, key=lambda each: not each.startswith("ours")):
        errors = [clusters.errors_of(results, name) for results in groups.values()]
        rows.append((name, *(median(each) if each else None for each in errors)))
    return Table("Median errors", ("method", *groups), rows)


def prior_table(priors):
    columns = ("shape", "rows more", "error", "least share", "bound")
    return Table(
        f"{CANCER}: priors that are stated",
        columns,
        [tuple(each[column] for column in columns) for each in priors],
        "Prior covariance: that within the clusters of k-means, its diagonal, or halfway; degrees "
        "of freedom: so many more than the least for which it is the mean. Starts and EM are the "
        "default's. The bound is what an honest choice among these priors would go by.",
    )
