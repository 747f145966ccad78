"""The part of ``bayeskit quickstart`` about clusters."""

from typing import Any

import numpy as np

from bayeskit import datasets, inference, metrics
from bayeskit.cli.console import summary_table
from bayeskit.inference.driver import infer
from bayeskit.models import GaussianMixture

_SPECIES = 3
_SHOWN = ("petal_length", "petal_width")
_CLEAR = 0.95


def quickstart_clusters(console, out, draws) -> None:
    """Cluster irises without their species, print, write picture and tree."""
    table = datasets.iris()
    species, features = table["species"], table.drop(columns="species")
    console.print(
        f"[bold]Gaussian mixture[/] of {len(table)} irises by {features.shape[1]} lengths and "
        "widths, species unknown"
    )
    posterior: Any = infer(GaussianMixture(_SPECIES), features, inference.EM(tolerance=1e-5))
    sure = posterior.responsibilities().max(axis=1)
    wrong = metrics.clustering_error(species, posterior.labels)
    path = out / "irises.png"
    _picture(posterior, path)
    posterior.save(out / "irises.nc", posterior.to_datatree(num_draws=draws))

    status = posterior.convergence
    weights, deviations = posterior.mean["weights"], np.sqrt(posterior.variance["weights"])
    rows = {
        "irises in the wrong cluster": f"{round(wrong * len(table))} of {len(table)}",
        "  expected, by the clusters' probabilities": f"{np.sum(1 - sure):.1f}",
        f"irises whose cluster is clear (over {_CLEAR:.0%})": f"{np.mean(sure > _CLEAR):.1%}",
        "weights": ", ".join(
            f"{weight:.2f} ± {deviation:.2f}"
            for weight, deviation in zip(weights, deviations, strict=True)
        ),
        "evidence bound": f"{posterior.log_evidence:.1f} nats",
        "converged": f"{'yes' if status.converged else 'NO'}, {status.iterations} iterations",
    }
    console.print(f"  {status.seconds:.1f} s, compilation included\n    {path.name}, irises.nc")
    console.print(summary_table(rows))


def _picture(posterior, path):
    import matplotlib

    matplotlib.use("Agg")  # files only: no display is needed
    import matplotlib.pyplot as plt

    from bayeskit import plots

    figure = plots.plot_clusters(posterior, _SHOWN)
    figure.savefig(path, dpi=130)
    plt.close(figure)
