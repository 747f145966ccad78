"""Bad labels given as the start: does the answer depend on them?"""

import numpy as np

import bayeskit as bk
from bayeskit.inference import EM, MessagePassing, SemidefiniteProgram
from benchmarks.common import Bar, Options, Report, Table, median
from benchmarks.gaussian_mixture import clusterings as clusters

ORDER = 3
TITLE = "Adversarial labels to start from"
MINUTES = (12, 60)
_FRESH = 700_200  # no seed of it was looked at while the method was built

CASES = {
    "d = 4": {"features": 4, "separation": 8.0, "condition": 10.0, "spread": 0.5},
    "d = 20": {"features": 20, "separation": 6.0, "condition": 30.0},
}
EM_ALONE, TWO_STARTS = "EM", "EM, 2 restarts"
MESSAGES, PROGRAMS = "MessagePassing", "SemidefiniteProgram"
FAST = {
    EM_ALONE: None,
    TWO_STARTS: EM(tolerance=1e-5, max_iterations=2000, restarts=2),
    MESSAGES: MessagePassing(),
}
# Those that promise to look at the likelihood of what they are given.
PROTECTED = (TWO_STARTS, PROGRAMS)
WORSE = 0.005


def run(options: Options) -> Report:
    seeds = options.count(5, 20)
    programs = options.at_most(1, 5)
    report = Report(TITLE, settings={"data sets": seeds, "for SemidefiniteProgram": programs})
    every = {}
    for case, arguments in CASES.items():
        for kind, spoil in KINDS.items():
            results = [
                one(case, seed, spoil, arguments, programs=seed < programs) for seed in range(seeds)
            ]
            every[f"{case}, {kind}"] = results
    report.results["cases"] = every
    for case, results in every.items():
        names = [n for n in (*FAST, PROGRAMS) if any(n in each["with"] for each in results)]
        report.tables.append(
            Table(
                case,
                ("method", "without", "with", "worst with", "largest rise", "data sets"),
                [(name, *summary(results, name)) for name in names],
                f"The labels given have a median error of "
                f"{median([each['given'] for each in results]):.3f}.",
            )
        )
        for name in names:
            if name in PROTECTED:
                without, given, _, rise, _ = summary(results, name)
                report.bars += [
                    Bar(f"{case}, {name}: median with the labels", given, "<=", without + WORSE),
                    Bar(f"{case}, {name}: largest rise of a data set", rise, "<=", WORSE),
                ]
        report.tables.append(by_data_set(case, results, names))
    report.notes.append(
        "Mixed: the rows of every class are dealt out to all clusters, two fifths of them to one "
        "that is another class's. Merged: two classes are one cluster, and a third is cut in half "
        "across its longest axis. EM and MessagePassing start where they are told to and have no "
        "bars; EM's second restart starts without the labels, and programs compare them with their "
        "own start."
    )
    return report


def mixed(rows, truth, generator):
    """Clusters of all classes, most of each from a class that is not its own."""
    labels = (truth + 1) % 4
    stray = generator.uniform(size=len(rows)) > 0.4
    return np.where(stray, generator.integers(0, 4, len(rows)), labels)


def merged(rows, truth, generator):
    """Two classes in one cluster, one class in two."""
    labels = np.where(truth == 3, 2, truth)
    own = rows[truth == 0] - rows[truth == 0].mean(axis=0)
    longest = np.linalg.svd(own, full_matrices=False)[2][0]
    labels[np.flatnonzero(truth == 0)[own @ longest > 0]] = 3
    return labels


KINDS = {"mixed": mixed, "merged": merged}


def one(case, seed, spoil, arguments, *, programs):
    """Errors of every method with and without the labels."""
    data = bk.datasets.gaussian_clusters(_FRESH + seed, **arguments)
    rows, truth = data.rows, data.labels
    labels = spoil(rows, truth, np.random.default_rng([seed, 1]))
    model = bk.models.GaussianMixture(4)
    known = clusters.fitted(model, rows).prior
    initial = clusters.FromLabels(bk.models.GaussianMixture(4, prior=known), rows, labels)
    found = {"given": clusters.error(labels, truth), "without": {}, "with": {}}
    methods = FAST | ({PROGRAMS: SemidefiniteProgram()} if programs else {})
    for name, method in methods.items():
        for how, start in (("without", None), ("with", initial)):
            posterior = clusters.fitted(model, rows, method, initial=start)
            found[how][name] = clusters.error(posterior.labels, truth)
    return found


def summary(results, name):
    pairs = [(e["without"][name], e["with"][name]) for e in results if name in e["with"]]
    without, given = zip(*pairs, strict=True)
    rise = max(b - a for a, b in pairs)
    return median(without), median(given), max(given), rise, len(pairs)


def by_data_set(case, results, names):
    rows = []
    for number, each in enumerate(results):
        cells = []
        for name in names:
            pair = [each[how].get(name) for how in ("without", "with")]
            cells.append("–" if None in pair else "{:.3f} → {:.3f}".format(*pair))
        rows.append((number, each["given"], *cells))
    return Table(f"{case}: by data set, without → with", ("", "given", *names), rows)
