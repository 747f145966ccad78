"""Command line: ``python -m benchmarks`` lists, ``python -m benchmarks NAME… | all`` runs."""

import argparse
import sys
import time
import traceback
import warnings
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from bayeskit import BayeskitWarning
from benchmarks import common


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks, families or 'all'; none: list them")
    parser.add_argument("--full", action="store_true", help="all sizes, seeds and peers")
    parser.add_argument("--seeds", type=int, help="this many seeds instead of each study's own")
    parser.add_argument("--out", type=Path, default=common.ROOT / "results", help="folder")
    given = parser.parse_args(arguments)
    if given.seeds is not None and given.seeds < 1:
        parser.error(f"--seeds: got {given.seeds}; expected at least 1")
    console = Console() if sys.stdout.isatty() else Console(width=160)
    known = common.benchmarks()
    if not given.names:
        show_list(console, known)
        return 0
    chosen = choose(given.names, known, given.full)
    unknown = [name for name, found in chosen.items() if not found]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(known)}")
    names = dict.fromkeys(name for found in chosen.values() for name in found)
    options = common.Options(full=given.full, seeds=given.seeds)
    outcomes = {name: run(console, name, known[name], options, given.out) for name in names}
    failed = [name for name, passed in outcomes.items() if not passed]
    console.print(f"{len(names) - len(failed)} of {len(names)} benchmarks passed")
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="bold red")
    return int(bool(failed))


def choose(names, known, full):
    """The benchmarks that each name stands for: its own, or a family's, or all.

    Studies that take no minutes by default are part of a family only under ``--full``.
    """
    usual = [name for name, module in known.items() if full or module.MINUTES[0] > 0]
    return {
        name: [k for k in known if name in (k, k.split(".")[1])]
        or [k for k in usual if name in ("all", k.split(".")[0])]
        for name in names
    }


def show_list(console, known):
    table = RichTable("benchmark", "what it shows", "minutes", "with --full")
    for name, module in known.items():
        table.add_row(name, module.TITLE, *(f"{minutes:g}" for minutes in module.MINUTES))
    console.print(table)
    console.print("python -m benchmarks NAME… | all [--full] [--seeds N] [--out FOLDER]")


def run(console, name, module, options, folder) -> bool:
    """Run one benchmark, print and write what it found; whether all its bars hold."""
    console.rule(f"{name}: {module.TITLE}")
    surroundings = common.environment()
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # Runs that end at their budget are counted in the tables.
            warnings.simplefilter("ignore", BayeskitWarning)
            report = module.run(options)
    except Exception:
        console.print(traceback.format_exc(), style="red", markup=False, highlight=False)
        return False
    seconds = time.perf_counter() - start
    for table in [*report.tables, common.bar_table(report)]:
        if table.rows:
            console.print(as_rich(table))
        if table.note:
            console.print(table.note, markup=False, highlight=False)
    for note in report.notes:
        console.print(note, markup=False, highlight=False)
    report.settings = {"full": options.full, **report.settings}
    common.write(report, name, folder, surroundings, seconds)
    console.print(f"{name}: {'passed' if report.passed else 'FAILED'} in {seconds:.0f} s")
    return report.passed


def as_rich(table):
    shown = RichTable(*(escape(str(column)) for column in table.columns), title=escape(table.title))
    for row in table.rows:
        shown.add_row(*(escape(common.text_of(value)) for value in row))
    return shown


if __name__ == "__main__":
    sys.exit(main())
