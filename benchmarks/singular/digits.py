"""Handwritten digits: networks fitted to perturbed rows beside plain likelihood and peers."""

import warnings

import numpy as np
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity

import bayeskit as bk
from bayeskit.metrics import energy_distance, sinkhorn_divergence, wasserstein
from benchmarks.common import Bar, Options, Report, Table, in_two_processes, share

ORDER = 3
TITLE = "Digits: perturbed rows beside plain likelihood, mixtures, kernels and a plane"
MINUTES = (3, 10)

TRAINED, LATENTS, SHAPE = 1000, 8, (128, 2)
METHOD = bk.inference.VariationalInference(num_particles=5, max_iterations=6000, tolerance=0.0)
CLUSTERS, FLOORS = (5, 10, 20, 30), (1e-4, 1e-3, 1e-2)
BANDWIDTHS = np.geomspace(0.05, 0.5, 10)
PLAIN, AUTO = "networks, level 0", "networks, auto"
MIXTURE = "Gaussian mixture, full covariances"
SCORES = ("Wasserstein", "energy", "Sinkhorn")


def run(options: Options) -> Report:
    seeds = options.count(1, 5)
    report = Report(
        TITLE,
        settings={
            "seeds": seeds,
            "rows": TRAINED,
            "latents": LATENTS,
            "networks": SHAPE,
            "method": repr(METHOD),
        },
    )
    runs = [{"seed": seed} for seed in range(seeds)]
    found = in_two_processes("benchmarks.singular.digits:compared", runs)
    report.results |= {"scores": found}
    names = list(found[0])
    mean = {
        name: {score: float(np.mean([each[name][score] for each in found])) for score in SCORES}
        for name in names
    }
    report.tables.append(
        Table(
            f"distances from held-out digits, means over {seeds} splits",
            ("drawn from", *SCORES, "Wasserstein: smallest", "largest"),
            [
                (
                    name,
                    *(f"{mean[name][score]:.3f}" for score in SCORES),
                    f"{min(each[name]['Wasserstein'] for each in found):.3f}",
                    f"{max(each[name]['Wasserstein'] for each in found):.3f}",
                )
                for name in names
            ],
            f"Ink in units of 16 steps; {1797 - TRAINED} draws each. Sinkhorn's divergence with "
            "regularization 0.05. Networks and plane without noise. At level 0 pixels have the "
            "uniform noise of their rounding.",
        )
    )
    report.results["levels chosen"] = [each[AUTO]["level"] for each in found]
    report.notes.append(
        "auto chose the levels " + ", ".join(f"{each[AUTO]['level']:.2g}" for each in found) + "."
    )
    unsure = {name: [each[name]["unsure"] for each in found] for name in (AUTO, PLAIN)}
    report.tables.append(
        Table(
            "share of held-out rows whose log density has a Pareto k above 0.7",
            ("split", AUTO, PLAIN),
            [
                (split, f"{first:.3f}", f"{second:.3f}")
                for split, (first, second) in enumerate(zip(*unsure.values(), strict=True))
            ],
            "1000 draws a row, half of them from the prior.",
        )
    )
    report.bars += [
        Bar("auto: Wasserstein ÷ level 0", _ratio(mean, PLAIN, "Wasserstein"), "<=", 0.95, 0.90),
        Bar("auto: energy distance ÷ level 0", _ratio(mean, PLAIN, "energy"), "<=", 0.85),
        Bar("auto: Wasserstein ÷ Gaussian mixture", _ratio(mean, MIXTURE, "Wasserstein"), "<", 1.0),
        Bar("auto: share with Pareto k > 0.7, largest", max(unsure[AUTO]), "<", 0.3),
        Bar(
            "auto: the same less level 0's, largest",
            max(a - b for a, b in zip(*unsure.values(), strict=True)),
            "<",
            0.0,
        ),
    ]
    return report


def _ratio(mean, other, score):
    return mean[AUTO][score] / mean[other][score]


def compared(seed):
    """Distances of draws of all models from the held-out digits of one split."""
    rows = bk.datasets.digits().images.reshape(-1, 64) / 16.0
    rows = rows[:, rows.std(axis=0) > 0]
    order = np.random.default_rng(seed).permutation(len(rows))
    train, test = rows[order[:TRAINED]], rows[order[TRAINED:]]
    count = len(test)
    posterior = networks(train, seed)
    drawn, unsure = {}, {}
    for index, level in enumerate(posterior.selection["level"]):
        each = posterior.at_level(index)
        drawn[f"networks, level {level:.3g}"] = each.generate(seed, count)
        if posterior.selection["chosen"][index]:
            drawn[AUTO], chosen = posterior.generate(seed, count), level
    for name, each in ((AUTO, posterior), (PLAIN, posterior.at_level(0))):
        unsure[name] = share(each.log_likelihood(test.astype(np.float32)).pareto_k > 0.7)
    plane = bk.models.SingularDistribution(LATENTS, decoder="linear", perturbation=0.1)
    drawn["plane (principal components)"] = bk.infer(plane, train).generate(seed, count)
    drawn[MIXTURE] = mixture(train, seed).sample(count)[0]
    drawn["kernel density"] = kernels(train).sample(count, random_state=seed)
    again = np.random.default_rng(seed).choice(TRAINED, count, replace=False)
    drawn["training rows"] = train[again]
    scores = {
        name: {
            "Wasserstein": wasserstein(test, sample),
            "energy": energy_distance(test, sample),
            "Sinkhorn": sinkhorn_divergence(test, sample),
        }
        for name, sample in drawn.items()
    }
    scores[AUTO]["level"] = float(chosen)
    for name, value in unsure.items():
        scores[name]["unsure"] = value
    return scores


def networks(train, seed):
    model = bk.models.SingularDistribution(LATENTS, decoder=SHAPE)
    with warnings.catch_warnings():
        # Of pixels that most images leave empty: their rounding is undone.
        warnings.simplefilter("ignore", bk.ConditioningWarning)
        return bk.infer(model, train.astype(np.float32), METHOD, key=seed)


def mixture(train, seed):
    """The number of clusters and the floor of variances by rows that are held out, refitted."""
    inner, held_out = train[: TRAINED * 4 // 5], train[TRAINED * 4 // 5 :]

    def fitted(clusters, floor, rows):
        return GaussianMixture(clusters, reg_covar=floor, random_state=seed).fit(rows)

    best = max(
        ((clusters, floor) for clusters in CLUSTERS for floor in FLOORS),
        key=lambda each: fitted(*each, inner).score(held_out),
    )
    return fitted(*best, train)


def kernels(train):
    """The bandwidth by cross-validated likelihood."""
    search = GridSearchCV(KernelDensity(), {"bandwidth": BANDWIDTHS}, cv=5)
    return search.fit(train).best_estimator_
