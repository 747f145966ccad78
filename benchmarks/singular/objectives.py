"""Ways to train: fresh noise or noise that is drawn once, and two bounds on the likelihood."""

import warnings

import numpy as np

import bayeskit as bk
from bayeskit.metrics import wasserstein
from benchmarks.common import Bar, Options, Report, Table, in_two_processes, stopwatch

ORDER = 7
TITLE = "Fresh noise beside noise drawn once; importance-weighted bounds beside the evidence's"
MINUTES = (3, 12)

SHAPES = {"circle": (500, 2), "sphere": (200, 3)}
LEVEL, COUNT, STEPS, PARTICLES = 0.1, 1000, 6000, 10
FRESH, FIXED = "weighted, fresh", "weighted, fixed"
COLUMNS = (FRESH, FIXED, "evidence, equal steps", "evidence, equal time")


def run(options: Options) -> Report:
    seeds = options.count(1, 5)
    report = Report(
        TITLE,
        settings={
            "seeds": seeds,
            "D": 10,
            "perturbation": LEVEL,
            "steps": STEPS,
            "particles": PARTICLES,
        },
    )
    runs = [{"name": name, "seed": seed} for name in SHAPES for seed in range(seeds)]
    found = in_two_processes("benchmarks.singular.objectives:compared", runs)
    for name in SHAPES:
        results = [each for run, each in zip(runs, found, strict=True) if run["name"] == name]
        report.results[name] = results
        means = {c: float(np.mean([each[c]["Wasserstein"] for each in results])) for c in COLUMNS}
        seconds = {c: float(np.median([each[c]["seconds"] for each in results])) for c in COLUMNS}
        rows = [
            (seed, *(f"{each[column]['Wasserstein']:.3f}" for column in COLUMNS))
            for seed, each in enumerate(results)
        ]
        rows.append(("mean", *(f"{means[column]:.3f}" for column in COLUMNS)))
        rows.append(("steps", *(str(results[0][column]["steps"]) for column in COLUMNS)))
        rows.append(("seconds", *(f"{seconds[column]:.1f}" for column in COLUMNS)))
        report.tables.append(
            Table(f"{name}: Wasserstein distance from the truth", ("seed", *COLUMNS), rows)
        )
        report.bars.append(Bar(f"{name}: fresh ÷ fixed", means[FRESH] / means[FIXED], "<=", 1.0))
    report.notes.append(
        "The evidence bound has one draw of the latents a row, the weighted one ten; at equal time "
        "it makes as many more steps as it is faster, which was measured first. Seconds are those "
        "of two runs at a time, compiled before."
    )
    return report


def compared(name, seed):
    """Distances and seconds of four fits of one data set."""
    count, latents = SHAPES[name]
    sample = bk.datasets.shape(seed, name, rows=count)
    truth = sample.draw(10_000 + seed, COUNT)
    rows = sample.observations.astype(np.float32)

    def fitted(fresh, steps, **settings):
        model = bk.models.SingularDistribution(latents, perturbation=LEVEL, fresh=fresh)
        method = bk.inference.VariationalInference(max_iterations=steps, tolerance=0.0, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bk.BayeskitWarning)
            return bk.infer(model, rows, method, key=seed)

    weighted = {"num_particles": PARTICLES}
    evidence = {"objective": "elbo", "num_particles": 1}
    speeds = []
    for settings in (weighted, evidence):
        fitted(True, 50, **settings)
        speeds.append(stopwatch(lambda settings=settings: fitted(True, 1000, **settings))[0])
    longer = int(STEPS * speeds[0] / speeds[1])
    given = {
        FRESH: (True, STEPS, weighted),
        FIXED: (False, STEPS, weighted),
        "evidence, equal steps": (True, STEPS, evidence),
        "evidence, equal time": (True, longer, evidence),
    }
    found = {}
    for label, (fresh, steps, settings) in given.items():
        seconds, posterior = stopwatch(
            lambda fresh=fresh, steps=steps, settings=settings: fitted(fresh, steps, **settings)
        )
        distance = wasserstein(posterior.generate(seed, COUNT), truth)
        found[label] = {"Wasserstein": distance, "seconds": seconds, "steps": steps}
    return found
