"""The part of ``bayeskit quickstart`` about a distribution on a surface."""

import warnings
from typing import Any

import numpy as np

from bayeskit import datasets, inference, metrics
from bayeskit.cli.console import summary_table
from bayeskit.errors import ConvergenceWarning
from bayeskit.inference.driver import infer
from bayeskit.models import SingularDistribution

_ROWS = 300
_COUNT = 1000  # of draws that are compared
_LEVEL = 0.1


def quickstart_shapes(console, out, draws) -> None:
    """Learn a distribution on a sphere in ten dimensions, print, write picture and tree."""
    sphere = datasets.shape(0, "sphere", rows=_ROWS)
    console.print(
        f"[bold]Singular distribution[/] of {_ROWS} rows on a sphere in "
        f"{sphere.observations.shape[1]} dimensions, perturbed by noise of {_LEVEL} of their "
        "deviation"
    )
    rows = sphere.observations.astype(np.float32)
    method = inference.VariationalInference(
        num_particles=5, max_iterations=3000, learning_rate=5e-3
    )
    with warnings.catch_warnings():
        # A short training: the last line of the summary says how it ended.
        warnings.simplefilter("ignore", ConvergenceWarning)
        posterior: Any = infer(
            SingularDistribution(3, decoder=(48, 2), perturbation=_LEVEL), rows, method, key=0
        )
    truth, generated = sphere.draw(1, _COUNT), posterior.generate(1, _COUNT)
    again = np.random.default_rng(0).integers(0, _ROWS, _COUNT)
    path = out / "sphere.png"
    _picture(sphere, truth, generated, path)
    posterior.save(out / "sphere.nc", posterior.to_datatree(num_draws=draws))

    status = posterior.convergence
    floor = metrics.sampling_floor(metrics.wasserstein, sphere.draw, _COUNT, key=0)
    found = {
        "distance of generated rows from the truth": f"{metrics.wasserstein(truth, generated):.3f}",
        "  of the rows themselves, drawn again": (
            f"{metrics.wasserstein(truth, sphere.observations[again]):.3f}"
        ),
        "  of two samples of the truth": f"{floor:.3f}",
        "noise, perturbation included": f"{posterior.noise_scale:.4f}",
        "  perturbation": f"{posterior.perturbation:.4f}",
        "converged": f"{'yes' if status.converged else 'NO'}, {status.iterations} iterations",
    }
    console.print(f"  {status.seconds:.1f} s, compilation included\n    {path.name}, sphere.nc")
    console.print(summary_table(found))


def _picture(sphere, truth, generated, path):
    import matplotlib

    matplotlib.use("Agg")  # files only: no display is needed
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, 3, figsize=(12, 4), layout="constrained", sharex=True, sharey=True
    )
    titles = ("rows", "generated", "truth")
    for axis, values, title in zip(
        panels, (sphere.observations, generated, truth), titles, strict=True
    ):
        place = values @ sphere.axes
        axis.scatter(place[:, 0], place[:, 1], c=place[:, 2], s=5, vmin=-1.0, vmax=1.0)
        axis.set(title=f"{title}: {len(values)}", xlabel="first axis", aspect="equal")
    panels[0].set_ylabel("second axis; colour: third")
    figure.savefig(path, dpi=130)
    plt.close(figure)
