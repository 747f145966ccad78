"""Steps beside NumPyro's own loop, a grid in one compilation, and rows from a file."""

import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np
import optax
from numpyro.infer import SVI, RenyiELBO

import bayeskit as bk
from benchmarks.common import (
    Bar,
    Options,
    Report,
    Table,
    compilations,
    in_subprocess,
    median,
    stopwatch,
)

ORDER = 8
TITLE = "Speed: steps beside a loop over NumPyro's updates, a grid at once, rows from a file"
MINUTES = (3, 6)

SHORT, LONG = 500, 2500
LEVELS = tuple(np.linspace(0.05, 0.4, 8))
RESTARTS = 3
COLUMNS = 64
SIZES = (10**5, 10**6)
MEBIBYTE = 2**20


def run(options: Options) -> Report:
    rounds = options.count(3, 7)
    report = Report(TITLE, settings={"rounds": rounds, "steps": LONG - SHORT, "rows": 500})
    _steps(report, rounds)
    _streaming(report)
    return report


def _steps(report, rounds):
    rows = bk.datasets.shape(0, "circle").observations.astype(np.float32)

    def ours(levels, restarts=1):
        model = bk.models.SingularDistribution(2, perturbation=levels)

        def fit(steps):
            method = bk.inference.VariationalInference(
                max_iterations=steps, tolerance=0.0, restarts=restarts
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", bk.BayeskitWarning)
                return bk.infer(model, rows, method, key=0)

        return fit

    model = bk.models.SingularDistribution(2, perturbation=0.1)
    svi = SVI(
        *model.to_numpyro(rows),
        optax.adam(2e-3),
        RenyiELBO(alpha=0, num_particles=10),
    )
    update = jax.jit(svi.update)

    def theirs(steps):
        state = svi.init(jax.random.key(0), jax.random.key(1))
        keys = jax.random.split(jax.random.key(2), steps)
        for key in keys:
            state, _ = update(state, key)
        return jax.block_until_ready(state)

    one, grid = ours(0.1), ours(LEVELS, RESTARTS)
    fits = {"one fit": one, "NumPyro's loop": theirs, "a grid of 24": grid}
    compiled = {}
    for name, fit in fits.items():
        with compilations("_advance") as programs:
            fit(SHORT)
        compiled[name] = len(programs)
    seconds = {name: [] for name in fits}
    for _ in range(rounds):
        for name, fit in fits.items():
            short, long = (stopwatch(lambda n=n: fit(n))[0] for n in (SHORT, LONG))  # noqa: B023
            seconds[name].append(long - short)
    medians = {name: median(values) for name, values in seconds.items()}
    report.results |= {"seconds": seconds, "compilations of the loop": compiled}
    report.tables.append(
        Table(
            f"{LONG - SHORT} steps of batches of 64 rows, 10 particles",
            ("what", "seconds", "steps a second"),
            [
                (name, f"{value:.2f}", f"{(LONG - SHORT) / value:.0f}")
                for name, value in medians.items()
            ],
            f"Medians of {rounds} rounds, by turns: a run of {LONG} steps less one of {SHORT}, all "
            "compiled before. Ours also average weights, clip gradients, and look at held-out rows "
            "every 50 steps; a grid has 8 levels with 3 restarts each, and trains the chosen level "
            "anew with three times the particles.",
        )
    )
    ratio = medians["NumPyro's loop"] / medians["one fit"]
    report.bars.append(Bar("steps a second ÷ NumPyro's loop", ratio, ">=", 0.8, 1.0))
    ratio = medians["a grid of 24"] / medians["one fit"]
    report.bars.append(Bar("24 fits ÷ one fit, seconds", ratio, "<=", 20.0))
    report.bars.append(Bar("compilations of the grid", compiled["a grid of 24"], "<=", 1.0))


def _streaming(report):
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            path = Path(folder) / f"{size}.npy"
            _write(path, size)
            for streamed in (True, False):
                done = in_subprocess(
                    "benchmarks.singular.speed:alone", path=str(path), streamed=streamed
                )
                found[size, streamed] = done["peak_bytes"] / MEBIBYTE, done["result"]
    report.results["peak memory, MiB"] = {
        f"{size} rows, {'streamed' if streamed else 'in memory'}": each
        for (size, streamed), each in found.items()
    }
    report.tables.append(
        Table(
            f"200 steps of rows of {COLUMNS} numbers in single precision",
            ("rows", "file, MiB", "streamed, MiB", "in memory, MiB"),
            [
                (
                    size,
                    f"{size * COLUMNS * 4 / MEBIBYTE:.0f}",
                    *(f"{found[size, streamed][0]:.0f}" for streamed in (True, False)),
                )
                for size in SIZES
            ],
            "Peak memory of a process that makes one fit, imports and compiler included.",
        )
    )
    small, large = (found[size, True][0] for size in SIZES)
    growth = (large - small) * MEBIBYTE / ((SIZES[1] - SIZES[0]) * COLUMNS * 4)
    report.bars.append(Bar("growth of memory ÷ growth of the file, streamed", growth, "<=", 0.2))


def _write(path, size):
    """Rows near a surface in many dimensions, written in blocks."""
    generator = np.random.default_rng(0)
    table = np.lib.format.open_memmap(path, "w+", np.float32, (size, COLUMNS))
    weights = generator.normal(size=(3, COLUMNS))
    for first in range(0, size, 10**5):
        latents = generator.normal(size=(min(10**5, size - first), 3))
        table[first : first + len(latents)] = np.sin(latents @ weights)
    table.flush()


def alone(path, streamed):
    """Memory of one fit; the noise that it finds."""
    rows = np.load(path, mmap_mode="r" if streamed else None)
    model = bk.models.SingularDistribution(3, perturbation=0.1)
    method = bk.inference.VariationalInference(max_iterations=200, tolerance=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        return float(bk.infer(model, rows, method, key=0).noise_scale)
