"""The command line: ``bayeskit quickstart | fit | reproduce | info | --version``.

Exit codes: 0 for success, 2 for wrong usage or input, which is told in one line on standard error.
"""

import importlib.metadata
import platform
from typing import Annotated

import rich.box
import typer
from rich.table import Table

from bayeskit._version import __version__
from bayeskit.cli.console import InputError, input_checked, make_console
from bayeskit.cli.fit import fit_app
from bayeskit.cli.quickstart import quickstart
from bayeskit.validation import check_integer

app = typer.Typer(
    help="Structured Bayesian models with calibrated uncertainty.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(fit_app, name="fit")
app.command()(quickstart)

_PACKAGES = ("jax", "jaxlib", "numpyro", "equinox", "lineax", "numpy", "xarray", "arviz-base")


def _versions(names):
    for name in names:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"bayeskit {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


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
    make_console().print(table)


@app.command("reproduce")
def reproduce_command(
    experiment: Annotated[
        str | None, typer.Argument(help="Its name; all are listed if none.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each algorithm, at least 1.")] = 10,
) -> None:
    """Run a small version of a paper's experiment beside the authors' own figures."""
    from bayeskit.reproduce import EXPERIMENTS

    console = make_console()
    with input_checked():
        check_integer("--seeds", seeds, 1)
    if experiment is None:
        table = Table(show_header=False, box=rich.box.SIMPLE)
        for name, entry in EXPERIMENTS.items():
            table.add_row(name, entry.title)
        console.print(table)
        return
    with input_checked():
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
