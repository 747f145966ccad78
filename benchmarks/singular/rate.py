"""How distances from the truth fall with the number of rows, beside the theory's rate."""

import warnings

import numpy as np

import bayeskit as bk
from bayeskit.metrics import energy_distance, sliced_wasserstein
from benchmarks.common import Options, Report, Table, in_two_processes

ORDER = 5
TITLE = "Errors against the number of rows, on a circle and a sphere"
MINUTES = (3, 12)

SHAPES = {"circle": 2, "sphere": 3}
SIZES = (100, 200, 400, 800, 1600)
FRESH, COMPARED = 100_000, 5000


def run(options: Options) -> Report:
    seeds = options.count(1, 5)
    report = Report(TITLE, settings={"seeds": seeds, "D": 10, "fresh points": FRESH})
    runs = [
        {"name": name, "rows": rows, "seed": seed}
        for name in SHAPES
        for rows in SIZES
        for seed in range(seeds)
    ]
    found = in_two_processes("benchmarks.singular.rate:compared", runs)
    for name, latents in SHAPES.items():
        table, means = [], []
        for rows in SIZES:
            each = [
                result
                for run, result in zip(runs, found, strict=True)
                if run["name"] == name and run["rows"] == rows
            ]
            mean = {key: float(np.mean([result[key] for result in each])) for key in each[0]}
            means.append(mean)
            table.append(
                (
                    rows,
                    f"{mean['sliced']:.4f}",
                    f"{min(result['sliced'] for result in each):.4f}",
                    f"{max(result['sliced'] for result in each):.4f}",
                    f"{mean['rows']:.4f}",
                    f"{mean['energy']:.5f}",
                    f"{mean['level']:.3f}",
                )
            )
        report.results[name] = means
        logs = np.log(SIZES)
        slope = float(np.polyfit(logs, np.log([mean["sliced"] for mean in means]), 1)[0])
        of_rows = float(np.polyfit(logs, np.log([mean["rows"] for mean in means]), 1)[0])
        smooth, dimension = 2.0, latents - 1
        theory = -smooth / (2.0 * (smooth + dimension))
        report.results[f"{name}: exponents"] = {
            "networks": slope,
            "rows": of_rows,
            "theory": theory,
        }
        report.tables.append(
            Table(
                f"{name}: sliced Wasserstein distance from the truth, its floor subtracted",
                ("rows", "networks, auto", "smallest", "largest", "the rows", "energy", "level"),
                table,
                f"Means over {seeds} data sets; floor: two samples of the truth. Exponents: "
                f"networks {slope:.2f}, the rows themselves {of_rows:.2f}, theory {theory:.2f} "
                "(smoothness two).",
            )
        )
    return report


def compared(name, rows, seed):
    """Distances from the truth less those of a second sample of it."""
    sample = bk.datasets.shape(seed, name, rows=rows)
    truth, other = (sample.draw(10_000 + 2 * seed + k, FRESH) for k in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        model = bk.models.SingularDistribution(SHAPES[name])
        posterior = bk.infer(model, sample.observations.astype(np.float32), key=seed)
    drawn = posterior.generate(seed, FRESH)
    again = sample.observations[np.random.default_rng(seed).integers(0, rows, FRESH)]

    def sliced(points):
        return sliced_wasserstein(truth, points, 0, num_directions=200)

    floor = sliced(other)
    energies = [energy_distance(truth[:COMPARED], each[:COMPARED]) for each in (drawn, other)]
    return {
        "sliced": max(sliced(drawn) - floor, 1e-6),
        "rows": max(sliced(again) - floor, 1e-6),
        "floor": floor,
        "energy": energies[0] - energies[1],
        "level": float(posterior.perturbation / posterior.mean["unit"]),
    }
