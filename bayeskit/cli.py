"""The command line: ``bayeskit quickstart | fit | reproduce | info``.

Exit codes: 0 for success, 2 for wrong usage or input, which is told in one line on standard error.
"""

import contextlib
import importlib.metadata
import inspect
import json
import os
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rich.box
import typer
import xarray as xr
from rich.console import Console
from rich.table import Table

from bayeskit import datasets, inference, metrics
from bayeskit._version import __version__
from bayeskit.errors import BayeskitWarning
from bayeskit.inference.driver import infer
from bayeskit.models import KroneckerSBL

app = typer.Typer(
    help="Structured Bayesian models with calibrated uncertainty.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
fit_app = typer.Typer(help="Fit a model to the data in a NetCDF file.", no_args_is_help=True)
app.add_typer(fit_app, name="fit")

# Wide enough for the tables where output goes to a file, whose width is unknown.
_FILE_WIDTH = 100
_METHODS = {
    "em": inference.EM,
    "messages": inference.MessagePassing,
    "mcmc": inference.MCMC,
}
_PACKAGES = ("jax", "jaxlib", "numpyro", "equinox", "lineax", "numpy", "xarray", "arviz-base")
_FRACTIONS = (0.25, 0.49)
_LEVEL = 0.9
_DARK = 0.02  # intensity below which a pixel shows air


class InputError(Exception):
    """Input that cannot be used, in one line."""


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)


@contextlib.contextmanager
def _input_checked():
    """Turn errors about what the user gave into one line and exit code 2."""
    try:
        yield
    except (InputError, ValueError, TypeError, OSError, FloatingPointError) as error:
        typer.echo(f"error: {_one_line(error)}", err=True)
        raise typer.Exit(2) from None


@contextlib.contextmanager
def _warnings_in_one_line():
    """Show each warning of the package once, without the place that raised it."""

    def show(message, category, *_, **__):
        typer.echo(f"warning: {category.__name__}: {_one_line(message)}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", BayeskitWarning)
        warnings.showwarning = show
        yield


def _one_line(message):
    return re.sub(r"\s+", " ", str(message)).strip()


def _versions(names):
    for name in names:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"


@app.command()
def info() -> None:
    """Versions, devices and the default precision."""
    import jax

    table = Table(show_header=False, box=rich.box.SIMPLE)
    table.add_row("bayeskit", __version__)
    table.add_row("Python", f"{platform.python_version()} on {platform.system()}")
    for name, version in _versions(_PACKAGES):
        table.add_row(name, version)
    for device in jax.devices():
        table.add_row("device", f"{device} ({device.device_kind})")
    default = jax.numpy.result_type(float).name
    table.add_row(
        "precision",
        f"JAX's default is {default}; float64 data are fitted in float64 whatever it is",
    )
    _console().print(table)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for pictures and trees.")] = Path(
        "quickstart-output"
    ),
    size: Annotated[int, typer.Option(help="Pixels along each axis; a divisor of 256.")] = 128,
    key: Annotated[int, typer.Option(help="Seed of sampling matrices, noise and draws.")] = 0,
    draws: Annotated[int, typer.Option(help="Posterior draws.", min=2)] = 192,
) -> None:
    """Fit real data, print what was found with its uncertainty, write pictures and trees.

    A magnetic resonance image is measured through random Gaussian matrices along both axes, 25 %
    and 49 % as many measurements as pixels, at 30 dB, and reconstructed by Kronecker-structured
    sparse Bayesian learning of its cosine transform. The noise variance is learned.
    """
    console = _console()
    with _input_checked():
        problems = [
            datasets.compressive_image(key, size=size, fraction=fraction, snr_db=30.0)
            for fraction in _FRACTIONS
        ]
        out.mkdir(parents=True, exist_ok=True)
    with _warnings_in_one_line():
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


@fit_app.command("sbl")
def fit_sbl(
    data: Annotated[Path, typer.Argument(help="NetCDF with y, dictionary_0, dictionary_1, ….")],
    out: Annotated[Path, typer.Option(help="NetCDF to write the result tree to.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(_METHODS)}.")] = "em",
    noise_variance: Annotated[
        float | None, typer.Option(help="Known noise variance; learned if left out.")
    ] = None,
    key: Annotated[int, typer.Option(help="Seed.")] = 0,
    draws: Annotated[
        int, typer.Option(help="Draws of a closed-form posterior; MCMC keeps its own.", min=1)
    ] = 1000,
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE for the method, e.g. m_step=svd, restarts=4. Repeatable."),
    ] = None,
    model_option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE for the model, e.g. coupling=[0.8,0,0.8]. Repeatable."),
    ] = None,
) -> None:
    """Kronecker-structured sparse Bayesian learning of y = (H_0 ⊗ H_1 ⊗ …) x + noise.

    The file has the measurements y, one dimension a dictionary (snapshots may come first), and
    the matrices dictionary_0, dictionary_1, … of dimensions (measurement, atom). Names and
    coordinates of dimensions reach the result. Complex variables are compound numbers, as
    h5netcdf writes them, or have a last dimension "part" of real and imaginary parts.
    """
    console = _console()
    with _input_checked(), _warnings_in_one_line():
        if method not in _METHODS:
            raise InputError(f"--method {method!r} is not one of {', '.join(_METHODS)}")
        chosen = _METHODS[method](**_settings("--option", option, _METHODS[method]))
        settings = _settings("--model-option", model_option, KroneckerSBL)
        if "noise_variance" in settings or "dictionaries" in settings:
            raise InputError("--model-option: give --noise-variance, and dictionaries in the file")
        if not out.resolve().parent.is_dir():
            raise InputError(f"--out {out}: the folder {out.resolve().parent} does not exist")
        measurements, dictionaries = _read_problem(data)
        model = KroneckerSBL(dictionaries, noise_variance=noise_variance, **settings)
        posterior: Any = infer(model, measurements, chosen, key=key, progress=sys.stderr.isatty())
        posterior.save(out, posterior.to_datatree(num_draws=draws))

        status = posterior.convergence
        table = Table(show_header=False, box=rich.box.SIMPLE)
        mean = posterior.mean
        found = int(posterior.support().sum())
        table.add_row("coefficients", " × ".join(map(str, mean["coefficients"].shape)))
        table.add_row("differ from zero", f"{found}, by their 95 % intervals")
        if noise_variance is None:
            noise = f"{float(mean['noise_variance']):.6g}"
            if "noise_variance" not in posterior.plugged_in:
                noise += f" ± {float(np.sqrt(posterior.variance['noise_variance'])):.2g}"
            table.add_row("noise variance", noise)
        if posterior.log_evidence is not None:
            table.add_row("log evidence", f"{posterior.log_evidence:.6g} nats")
        table.add_row("converged", f"{'yes' if status.converged else 'NO'}: {status.reason}")
        table.add_row("iterations", f"{status.iterations} in {status.seconds:.1f} s")
        console.print(table)
        console.print(f"wrote {out}", soft_wrap=True)


def _settings(flag: str, pairs: list[str] | None, target: Any) -> dict[str, Any]:
    """Arguments from NAME=VALUE; a value that is not JSON is a string."""
    known = list(inspect.signature(target).parameters)
    settings = {}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"{flag} {pair!r}: expected NAME=VALUE")
        if name not in known:
            raise InputError(f"{flag} {name}: {target.__name__} takes {', '.join(known)}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        settings[name] = value
    return settings


def _read_problem(path: Path) -> tuple[xr.DataArray, list[xr.DataArray]]:
    """Measurements and dictionaries of a NetCDF file, read into memory."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        dataset = xr.load_dataset(path, engine="h5netcdf")
    except Exception as error:  # whatever the readers make of what is not NetCDF
        raise InputError(f"{path}: not a NetCDF-4 file that can be read ({error})") from error
    names = list(map(str, dataset.data_vars))
    numbers = sorted(int(n.split("_")[1]) for n in names if re.fullmatch(r"dictionary_\d+", n))
    wanted = ["y", *(f"dictionary_{i}" for i in range(max([0, *numbers]) + 1))]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(f"{path}: no variable {missing[0]!r}; it has {', '.join(names) or 'none'}")
    variables = [_complex_of(dataset[name]) for name in wanted]
    return variables[0], variables[1:]


def _complex_of(array: xr.DataArray) -> xr.DataArray:
    """Real and imaginary parts along a last dimension ``part`` as complex numbers."""
    if not array.dims or array.dims[-1] != "part":
        return array
    parts = ["real", "imag"]
    if "part" in array.coords:
        if sorted(map(str, array["part"].values)) != sorted(parts):
            raise InputError(f"{array.name}: dimension 'part' needs the coordinates {parts}")
        array = array.sel(part=parts)
    elif array.sizes["part"] != 2:
        raise InputError(f"{array.name}: dimension 'part' has {array.sizes['part']} entries, not 2")
    return array.isel(part=0, drop=True) + 1j * array.isel(part=1, drop=True)


@app.command("reproduce")
def reproduce_command(
    experiment: Annotated[
        str | None, typer.Argument(help="Its name; all are listed if none.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each algorithm.", min=1)] = 10,
) -> None:
    """Run a small version of a paper's experiment beside the authors' own figures."""
    from bayeskit.reproduce import EXPERIMENTS

    console = _console()
    if experiment is None:
        table = Table(show_header=False, box=rich.box.SIMPLE)
        for name, entry in EXPERIMENTS.items():
            table.add_row(name, entry.title)
        console.print(table)
        return
    with _input_checked():
        if experiment not in EXPERIMENTS:
            raise InputError(f"{experiment!r} is not one of {', '.join(EXPERIMENTS)}")
    entry = EXPERIMENTS[experiment]
    console.print(f"[bold]{experiment}[/]: {entry.title}")
    rows = entry.run(seeds, lambda line: console.print(f"  {line}"))
    scores = list(rows[0].scores)
    table = Table(box=rich.box.SIMPLE_HEAD)
    for column in ("algorithm", "run by", "runs", *scores):
        table.add_column(column, justify="left" if column in ("algorithm", "run by") else "right")
    for row in (*rows, *entry.published):
        values = (f"{row.scores[name]:.2g}" for name in scores)
        table.add_row(row.algorithm, row.source, str(row.runs), *values)
    console.print(table)
    for note in entry.notes:
        console.print(note)
