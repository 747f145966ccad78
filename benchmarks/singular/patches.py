"""Patches of two photographs: networks at every level beside rows and a Gaussian mixture."""

import warnings

import numpy as np
from sklearn.datasets import load_sample_images

import bayeskit as bk
from bayeskit.metrics import energy_distance, sampling_floor, wasserstein
from benchmarks.common import Options, Report, Table, in_two_processes
from benchmarks.singular.digits import kernels, mixture

ORDER = 6
TITLE = "Patches of photographs: whether perturbing them helps"
MINUTES = (3, 8)

SIDE, ROWS, LATENTS = 8, 2000, 8
METHOD = bk.inference.VariationalInference(num_particles=5, max_iterations=8000)


def run(options: Options) -> Report:
    seeds = options.count(1, 5)
    report = Report(
        TITLE,
        settings={"seeds": seeds, "rows": ROWS, "latents": LATENTS, "method": repr(METHOD)},
    )
    runs = [{"seed": seed} for seed in range(seeds)]
    found = in_two_processes("benchmarks.singular.patches:compared", runs)
    report.results["scores"] = found
    names = list(found[0]["Wasserstein"])
    report.tables.append(
        Table(
            f"distances from other patches, {seeds} choices of patches",
            ("drawn from", "Wasserstein", "smallest", "largest", "energy"),
            [
                (
                    name,
                    f"{np.mean([each['Wasserstein'][name] for each in found]):.3f}",
                    f"{min(each['Wasserstein'][name] for each in found):.3f}",
                    f"{max(each['Wasserstein'][name] for each in found):.3f}",
                    f"{np.mean([each['energy'][name] for each in found]):.4f}",
                )
                for name in names
            ],
            "Brightness from 0 to 1, 8 × 8 pixels, 2000 draws each. Two samples of patches are "
            f"{np.mean([each['floor'] for each in found]):.3f} apart. Networks without noise.",
        )
    )
    report.notes.append(
        "auto chose the levels " + ", ".join(f"{each['chosen']:.3g}" for each in found) + "."
    )
    return report


def patches(key, count):
    """Random ones (count, 64) of both photographs, grey."""
    generator = np.random.default_rng(key)
    chosen = []
    for picture in load_sample_images().images:
        grey = picture.mean(axis=2) / 255.0
        rows = generator.integers(0, grey.shape[0] - SIDE, count // 2)
        columns = generator.integers(0, grey.shape[1] - SIDE, count // 2)
        chosen += [
            grey[row : row + SIDE, column : column + SIDE].ravel()
            for row, column in zip(rows, columns, strict=True)
        ]
    return np.array(chosen)


def compared(seed):
    """Distances of draws of all models from patches that were not fitted."""
    train, test = patches(seed, ROWS), patches(1000 + seed, ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        model = bk.models.SingularDistribution(LATENTS, decoder=(128, 2))
        posterior = bk.infer(model, train.astype(np.float32), METHOD, key=seed)
    drawn, table = {}, posterior.selection
    for index, level in enumerate(table["level"]):
        drawn[f"networks, level {level:.3g}"] = posterior.at_level(index).generate(seed, ROWS)
    drawn["networks, auto"] = posterior.generate(seed, ROWS)
    drawn["Gaussian mixture, full covariances"] = mixture(train, seed).sample(ROWS)[0]
    drawn["kernel density"] = kernels(train).sample(ROWS, random_state=seed)
    drawn["training rows"] = train
    return {
        "Wasserstein": {name: wasserstein(test, draws) for name, draws in drawn.items()},
        "energy": {name: energy_distance(test, draws) for name, draws in drawn.items()},
        "floor": sampling_floor(wasserstein, patches, ROWS, key=seed),
        "chosen": float(table["level"][table["chosen"]].iloc[0]),
    }
