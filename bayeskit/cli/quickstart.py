"""``bayeskit quickstart``: every family at work, with pictures and trees."""

import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rich.box
import typer
import xarray as xr
from rich.table import Table

from bayeskit import datasets, inference, metrics
from bayeskit.cli.air import quickstart_air
from bayeskit.cli.clusters import quickstart_clusters
from bayeskit.cli.console import input_checked, make_console, warnings_in_one_line
from bayeskit.cli.digits import quickstart_digits
from bayeskit.cli.waves import quickstart_waves
from bayeskit.inference.driver import infer
from bayeskit.models import KroneckerSBL
from bayeskit.validation import check_integer

_FRACTIONS = (0.25, 0.49)
_LEVEL = 0.9
_DARK = 0.02  # intensity below which a pixel shows air


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for pictures and trees.")] = Path(
        "quickstart-output"
    ),
    size: Annotated[int, typer.Option(help="Pixels along each axis; a divisor of 256.")] = 128,
    key: Annotated[int, typer.Option(help="Seed of sampling matrices, noise and draws.")] = 0,
    draws: Annotated[int, typer.Option(help="Posterior draws, at least 2.")] = 192,
    days: Annotated[
        int, typer.Option(help="Days of the table of air pollution, at least 60.")
    ] = 1461,
) -> None:
    """Fit real data, print what was found with its uncertainty, write pictures and trees.

    A magnetic resonance image is measured through random Gaussian matrices along both axes, 25 %
    and 49 % as many measurements as pixels, at 30 dB, and reconstructed by Kronecker-structured
    sparse Bayesian learning of its cosine transform. The noise variance is learned.

    Daily PM2.5 at twelve stations in Beijing, four fifths of it, is explained by functions of time
    and levels of the stations; the held-out fifth is predicted with intervals.

    A differential equation whose solution has waves on three scales is solved, with what is not
    known of the solution and its spectrum.

    Irises are clustered by their lengths and widths, and compared with their species.

    The distribution of handwritten digits is learned near a surface, and new digits are drawn.
    """
    console = make_console()
    with input_checked(), warnings_in_one_line():
        check_integer("--draws", draws, 2)
        check_integer("--days", days, 60)
        problems = [
            datasets.compressive_image(key, size=size, fraction=fraction, snr_db=30.0)
            for fraction in _FRACTIONS
        ]
        out.mkdir(parents=True, exist_ok=True)
        console.print(
            f"[bold]Kronecker compressive imaging[/] of a real MRI slice, {size} × {size} pixels, "
            "30 dB, noise learned"
        )
        columns = []
        for fraction, problem in zip(_FRACTIONS, problems, strict=True):
            name = f"mri-{fraction:.0%}".rstrip("%")
            columns.append(_quickstart_image(console, problem, fraction, out / name, key, draws))
        console.print(_comparison("what was found", ("samples", *_FRACTIONS), columns))
        console.print(
            "The image is only roughly Kronecker-sparse. What the model misses is counted as "
            "noise: the learned noise is above the simulated one, and intervals hold on average, "
            "too wide on the background and too narrow on the head."
        )
        quickstart_air(console, out, days, draws)
        quickstart_waves(console, out, draws)
        quickstart_clusters(console, out, draws)
        quickstart_digits(console, out, draws)
        console.print(f"Pictures and trees are in {out}{os.sep}", soft_wrap=True)


def _quickstart_image(console, problem, fraction, stem, key, draws) -> dict[str, str]:
    """Fit one problem, write its picture and tree, and return its column of the table."""
    axes = ("row", "column")
    dictionaries = [
        xr.DataArray(matrix, dims=(f"{axis}_sample", f"{axis}_frequency"))
        for axis, matrix in zip(axes, problem.dictionaries, strict=True)
    ]
    posterior: Any = infer(
        KroneckerSBL(dictionaries), problem.measurements, inference.EM(), key=key
    )
    tree = posterior.to_datatree(num_draws=draws)
    # Coefficients are correlated in the posterior: a pixel's spread is that of whole images.
    images = problem.reconstruct(tree["posterior"]["coefficients"].values[0])
    mean = problem.reconstruct(posterior.mean["coefficients"])
    spread = images.std(axis=0, ddof=1)
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(images, [tail, 1 - tail], axis=0)
    covered = (low <= problem.image) & (problem.image <= high)
    dark = problem.image < _DARK
    inverses = [np.linalg.pinv(matrix) for matrix in problem.dictionaries]
    baseline = problem.reconstruct(inverses[0] @ problem.measurements @ inverses[1].T)

    pictures = _quickstart_pictures(posterior, problem, mean, spread, baseline, fraction, stem)
    pixels = ("row", "column")
    tree["pixels"] = xr.DataTree(
        xr.Dataset(
            {
                "truth": (pixels, problem.image),
                "minimum_norm": (pixels, baseline),
                "mean": (pixels, mean),
                "standard_deviation": (pixels, spread),
            }
        )
    )
    posterior.save(stem.with_suffix(".nc"), tree)

    status = posterior.convergence
    deviation = float(np.sqrt(posterior.mean["noise_variance"]))
    simulated = float(np.sqrt(problem.noise_variance))
    left_out = posterior.loo()
    files = ", ".join([*pictures, stem.with_suffix(".nc").name])
    console.print(
        f"  {fraction:.0%} of the samples: {status.iterations} iterations in "
        f"{status.seconds:.1f} s, compilation included\n    {files}"
    )
    return {
        "measurements": " × ".join(map(str, problem.measurements.shape)),
        "PSNR of the minimum-norm image": f"{metrics.psnr(problem.image, baseline):.2f} dB",
        "PSNR of the posterior mean": f"{metrics.psnr(problem.image, mean):.2f} dB",
        "root mean square error": f"{np.sqrt(np.mean((mean - problem.image) ** 2)):.4f}",
        "root mean square posterior sd": f"{np.sqrt(np.mean(spread**2)):.4f}",
        f"pixels inside their {_LEVEL:.0%} interval": f"{np.mean(covered):.1%}",
        "  in the dark background": f"{np.mean(covered[dark]):.1%}",
        "  on the head": f"{np.mean(covered[~dark]):.1%}",
        "noise sd, learned (simulated)": f"{deviation:.4f} ({simulated:.4f})",
        "coefficients that differ from zero": f"{int(posterior.support().sum())}",
        "log evidence": f"{posterior.log_evidence:.1f} nats",
        "leave-one-out log density": f"{left_out.elpd:.1f} ± {left_out.se:.1f} nats",
        "converged": f"{'yes' if status.converged else 'NO'}, {status.iterations} iterations",
    }


def _quickstart_pictures(posterior, problem, mean, spread, baseline, fraction, stem) -> list[str]:
    import matplotlib

    matplotlib.use("Agg")  # files only: no display is needed
    import matplotlib.pyplot as plt

    from bayeskit import plots

    figures = {
        "": plots.plot_image_posterior(
            mean,
            spread,
            truth=problem.image,
            baseline=baseline,
            title=f"Kronecker compressive imaging of an MRI slice: {fraction:.0%} of the samples",
            data_range=1.0,
        ),
        "-convergence": plots.plot_convergence(posterior),
    }
    names = []
    for suffix, figure in figures.items():
        path = stem.with_name(f"{stem.name}{suffix}.png")
        figure.savefig(path, dpi=130)
        plt.close(figure)
        names.append(path.name)
    return names


def _comparison(title, header, columns) -> Table:
    table = Table(title=title, box=rich.box.SIMPLE_HEAD, title_style="bold")
    table.add_column(header[0])
    for fraction in header[1:]:
        table.add_column(f"{fraction:.0%}", justify="right")
    for row in columns[0]:
        table.add_row(row, *(column[row] for column in columns))
    return table
