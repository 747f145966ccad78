"""What all commands share: output, errors in one line, warnings in one line."""

import contextlib
import re
import sys
import warnings

import rich.box
import typer
from rich.console import Console
from rich.table import Table

from bayeskit.errors import BayeskitWarning

# Wide enough for the tables where output goes to a file, whose width is unknown.
_FILE_WIDTH = 100


class InputError(Exception):
    """Input that cannot be used, in one line."""


def make_console() -> Console:
    """A console as wide as the terminal, or fixed where output goes to a file."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)


@contextlib.contextmanager
def input_checked():
    """Turn errors about what the user gave into one line and exit code 2."""
    try:
        yield
    except (InputError, ValueError, TypeError, OSError, FloatingPointError) as error:
        typer.echo(f"error: {one_line(error)}", err=True)
        raise typer.Exit(2) from None


@contextlib.contextmanager
def warnings_in_one_line():
    """Show each warning of the package once, without the place that raised it."""

    def show(message, category, *_, **__):
        typer.echo(f"warning: {category.__name__}: {one_line(message)}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", BayeskitWarning)
        warnings.showwarning = show
        yield


def one_line(message):
    """A message without line breaks."""
    return re.sub(r"\s+", " ", str(message)).strip()


def summary_table(rows) -> Table:
    """What was found, a line each, from texts by name."""
    table = Table(
        title="what was found", box=rich.box.SIMPLE_HEAD, title_style="bold", show_header=False
    )
    for name, value in rows.items():
        table.add_row(name, value)
    return table
