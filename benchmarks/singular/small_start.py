"""Networks whose noise starts small: plain likelihood beside that of perturbed data."""

import warnings

import numpy as np

import bayeskit as bk
from bayeskit.metrics import sampling_floor, wasserstein
from benchmarks.common import Bar, Options, Report, Table, in_two_processes

ORDER = 2
TITLE = "From a small start of the noise, plain likelihood fails and a perturbation rescues it"
MINUTES = (2, 15)

# Latent dimension, and the largest ratio of distances that is allowed on any seed.
SHAPES = {"circle": (2, 0.5), "sphere": (3, 0.65), "moons": (2, 0.65), "swiss_roll": (3, 0.65)}
ROWS, COUNT, STEPS = 500, 1000, 8000
START = 0.003


def run(options: Options) -> Report:
    seeds = options.count(2, 5)
    names = list(SHAPES) if options.full else ["circle", "sphere"]
    report = Report(
        TITLE,
        settings={
            "seeds": seeds,
            "rows": ROWS,
            "D": 10,
            "start of the noise": START,
            "perturbation": "auto",
            "steps": STEPS,
            "draws compared": COUNT,
        },
    )
    for name in names:
        runs = [{"name": name, "seed": seed} for seed in range(seeds)]
        results = in_two_processes("benchmarks.singular.small_start:compared", runs)
        report.results[name] = results
        columns = list(results[0])
        report.tables.append(
            Table(
                f"{name}: exact Wasserstein distance from the truth",
                ("seed", *columns),
                [
                    (seed, *(f"{found[column]:.3f}" for column in columns))
                    for seed, found in enumerate(results)
                ],
                "Noise in units of the data's deviation.",
            )
        )
        ratio = max(found["perturbed"] / found["plain"] for found in results)
        report.bars.append(Bar(f"{name}: worst ratio to plain", ratio, "<=", SHAPES[name][1]))
        worst = max(
            abs(found["noise, perturbed"] - found["level"]) / max(found["level"], START)
            for found in results
        )
        report.bars.append(
            Bar(f"{name}: noise from the perturbation, largest share", worst, "<=", 0.05)
        )
    report.notes.append(
        "Perturbed: at the level that held-out rows chose, of the same training as plain, on four "
        "fifths of the rows. Rows: as many draws of the training rows. Floor: two samples of the "
        "truth. All fits make the same number of steps."
    )
    return report


def compared(name, seed):
    """Distances of generated rows from the truth, and the noise, of one data set."""
    sample = bk.datasets.shape(seed, name, rows=ROWS)
    truth = sample.draw(10_000 + seed, COUNT)
    method = bk.inference.VariationalInference(max_iterations=STEPS, tolerance=0.0)
    model = bk.models.SingularDistribution(SHAPES[name][0], noise_start=START)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        posterior = bk.infer(model, sample.observations.astype(np.float32), method, key=seed)
    table = posterior.selection
    chosen = int(np.argmax(table["chosen"]))
    found, noise = {}, {}
    for kind, index in (("plain", 0), ("perturbed", chosen)):
        each = posterior.at_level(index)
        found[kind] = wasserstein(truth, each.generate(seed, COUNT))
        noise[f"noise, {kind}"] = float(each.noise_scale / each.mean["unit"])
    noise["level"] = float(table["level"][chosen])
    again = np.random.default_rng(seed).integers(0, ROWS, COUNT)
    found["rows"] = wasserstein(truth, sample.observations[again])
    found["floor"] = sampling_floor(wasserstein, sample.draw, COUNT, key=seed)
    return found | noise
