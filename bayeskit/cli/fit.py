"""``bayeskit fit``: a family, a file, a result."""

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import rich.box
import typer
import xarray as xr
from gpjax.kernels import Matern12, Matern32, Matern52
from rich.table import Table

from bayeskit import inference
from bayeskit.cli.console import InputError, input_checked, make_console, warnings_in_one_line
from bayeskit.inference.driver import infer
from bayeskit.models import (
    FunctionalTucker,
    GaussianMixture,
    KroneckerSBL,
    Mode,
    SingularDistribution,
)
from bayeskit.validation import check_integer

fit_app = typer.Typer(help="Fit a model to the data in a file.", no_args_is_help=True)

METHODS = {
    "em": inference.EM,
    "messages": inference.MessagePassing,
    "mcmc": inference.MCMC,
}
_MIXTURE_METHODS = METHODS | {"sdp": inference.SemidefiniteProgram}
_SINGULAR_METHODS = METHODS | {"variational": inference.VariationalInference}
_SURE = 0.95
_KERNELS = {"matern12": Matern12, "matern32": Matern32, "matern52": Matern52}


# What several commands take.
TableFile = Annotated[Path, typer.Argument(help="Table: .csv, or .parquet with pyarrow installed.")]
OutFile = Annotated[Path, typer.Option(help="NetCDF to write the result tree to.")]
OptionalOutFile = Annotated[
    Path | None, typer.Option(help="NetCDF to write the result tree to; none by default.")
]
Seed = Annotated[int, typer.Option(help="Seed.")]
Draws = Annotated[int, typer.Option(help="Draws of a closed-form posterior; MCMC keeps its own.")]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        help="NAME=VALUE for the method, e.g. max_iterations=1000, restarts=4. Repeatable.",
    ),
]


def _model_options(example):
    return typer.Option(help=f"NAME=VALUE for the model, e.g. {example}. Repeatable.")


@fit_app.command("sbl")
def fit_sbl(
    data: Annotated[Path, typer.Argument(help="NetCDF with y, dictionary_0, dictionary_1, ….")],
    out: OutFile,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "em",
    noise_variance: Annotated[
        float | None, typer.Option(help="Known noise variance; learned if left out.")
    ] = None,
    key: Seed = 0,
    draws: Draws = 1000,
    option: MethodOptions = None,
    model_option: Annotated[list[str] | None, _model_options("coupling=[0.8,0,0.8]")] = None,
) -> None:
    """Kronecker-structured sparse Bayesian learning of y = (H_0 ⊗ H_1 ⊗ …) x + noise.

    The file has the measurements y, one dimension a dictionary (snapshots may come first), the
    matrices dictionary_0, dictionary_1, … of dimensions (measurement, atom), and no other
    variables. Names and coordinates of dimensions reach the result. Complex variables are compound
    numbers, as h5netcdf writes them, or have a last dimension "part" of real and imaginary parts.
    """
    with input_checked(), warnings_in_one_line():
        chosen = _method(method, option)
        settings = _settings("--model-option", model_option, KroneckerSBL)
        if "noise_variance" in settings or "dictionaries" in settings:
            raise InputError("--model-option: give --noise-variance, and dictionaries in the file")
        check_integer("--draws", draws, 1)
        _check_out(out, data)
        measurements, dictionaries = _read_problem(data)
        model = KroneckerSBL(dictionaries, noise_variance=noise_variance, **settings)
        posterior: Any = infer(model, measurements, chosen, key=key, progress=sys.stderr.isatty())
        _save(posterior, out, draws)

        table = Table(show_header=False, box=rich.box.SIMPLE)
        mean = posterior.mean
        found = int(posterior.support().sum())
        table.add_row("coefficients", " × ".join(map(str, mean["coefficients"].shape)))
        table.add_row("differ from zero", f"{found}, by their 95 % intervals")
        if noise_variance is None:
            table.add_row("noise variance", _noise_of(posterior))
        _finish(table, posterior, out)


def _method(name, options, methods=METHODS):
    if name not in methods:
        raise InputError(f"--method {name!r} is not one of {', '.join(methods)}")
    return methods[name](**_settings("--option", options, methods[name]))


def _check_out(out, data):
    """Refuse, before the fit, a result that cannot be written or would destroy the data."""
    folder = out.resolve().parent
    if not folder.is_dir():
        raise InputError(f"--out {out}: the folder {folder} does not exist")
    if out.exists() and not out.is_file():
        raise InputError(
            f"--out {out}: expected the name of a file, and this is a folder or device"
        )
    # The result is first written to the second.
    for written in (out, out.with_name(out.name + ".part")):
        if written.exists() and data.exists() and written.samefile(data):
            raise InputError(f"--out {out}: would overwrite the data in {data}")


def _save(posterior, out, draws):
    """Write the posterior, with no draws at all if so many are too large."""
    try:
        tree = posterior.to_datatree(num_draws=draws)
    except ValueError as error:
        posterior.save(out)
        raise InputError(f"--draws {draws}: {error}; wrote {out} without draws") from error
    posterior.save(out, tree)


def _noise_of(posterior):
    noise = f"{float(posterior.mean['noise_variance']):.6g}"
    if "noise_variance" not in posterior.plugged_in:
        noise += f" ± {float(np.sqrt(posterior.variance['noise_variance'])):.2g}"
    return noise


def _finish(table, posterior, out):
    """Add how the fit ended, and print."""
    console = make_console()
    console.print(_with_status(table, posterior))
    console.print(f"wrote {out}", soft_wrap=True)


def _with_status(table, posterior):
    status = posterior.convergence
    if posterior.log_evidence is not None:
        table.add_row("log evidence", f"{posterior.log_evidence:.6g} nats")
    table.add_row("converged", f"{'yes' if status.converged else 'NO'}: {status.reason}")
    table.add_row("iterations", f"{status.iterations} in {status.seconds:.1f} s")
    return table


@fit_app.command("tucker")
def fit_tucker(
    data: TableFile,
    out: OutFile,
    value: Annotated[str, typer.Option(help="Column of the observed values.")],
    mode: Annotated[
        list[str],
        typer.Option(
            help="Index column: NAME, NAME:categorical, or NAME:KERNEL[:LENGTHSCALE] with the "
            "kernel matern12, matern32 or matern52. Repeatable, one for each mode."
        ),
    ],
    rank: Annotated[
        list[int], typer.Option(help="Functions of every mode: one number, or one for each.")
    ],
    core: Annotated[str, typer.Option(help="tucker or cp.")] = "tucker",
    method: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(METHODS)}; em with a small tolerance.")
    ] = None,
    key: Seed = 0,
    draws: Draws = 200,
    option: MethodOptions = None,
) -> None:
    """Functional Tucker decomposition of a column by the columns of its indices.

    Dates are days since the first. A lengthscale (where learning starts) that is left out is a
    fifth of the column's range.
    """
    with input_checked(), warnings_in_one_line():
        chosen = None if method is None and not option else _method(method or "em", option)
        check_integer("--draws", draws, 1)
        _check_out(out, data)
        table = _read_table(data)
        modes = [_mode(text, table) for text in mode]
        model = FunctionalTucker(
            modes, ranks=rank[0] if len(rank) == 1 else rank, core=core, value=value
        )
        posterior: Any = infer(model, table, chosen, key=key, progress=sys.stderr.isatty())
        _save(posterior, out, draws)

        summary = Table(show_header=False, box=rich.box.SIMPLE)
        summary.add_row("observations", str(len(table)))
        for each in modes:
            found = posterior.effective_ranks[each.name]
            points = len(posterior.names.coords[each.name])
            summary.add_row(f"mode {each.name}", f"{points} points, {found} functions that matter")
        summary.add_row("noise variance", _noise_of(posterior))
        _finish(summary, posterior, out)


@fit_app.command("mixture")
def fit_mixture(
    data: TableFile,
    components: Annotated[int, typer.Option(help="Number of components.")],
    out: OptionalOutFile = None,
    covariance: Annotated[str, typer.Option(help="full, diagonal, tied or spherical.")] = "full",
    method: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(_MIXTURE_METHODS)}; em by default.")
    ] = None,
    key: Seed = 0,
    draws: Draws = 1000,
    option: MethodOptions = None,
) -> None:
    """Gaussian mixture of a table's rows: clusters, their shapes, labels with probabilities.

    Columns that are no numbers are left out, and named. Missing values stay missing.
    """
    with input_checked(), warnings_in_one_line():
        given = method is not None or option
        chosen = _method(method or "em", option, _MIXTURE_METHODS) if given else None
        check_integer("--draws", draws, 1)
        if out is not None:
            _check_out(out, data)
        numbers, left_out = _numbers(data)
        model = GaussianMixture(components, covariance=covariance)
        posterior: Any = infer(model, numbers, chosen, key=key, progress=sys.stderr.isatty())
        if out is not None:
            _save(posterior, out, draws)

        console = make_console()
        console.print(_clusters(posterior, numbers.columns))
        summary = _summary_of(numbers, left_out)
        sure = posterior.responsibilities().max(axis=1) > _SURE
        summary.add_row("rows whose component is clear", f"{sure.mean():.1%} (over {_SURE:.0%})")
        console.print(_with_status(summary, posterior))
        if out is not None:
            console.print(f"wrote {out}", soft_wrap=True)


@fit_app.command("singular")
def fit_singular(
    data: TableFile,
    latent_dim: Annotated[int, typer.Option(help="Dimension of the set; below the columns'.")],
    out: OptionalOutFile = None,
    decoder: Annotated[
        str, typer.Option(help="Width and depth of a network, as in 64x2, or linear.")
    ] = "64x2",
    perturbation: Annotated[
        str, typer.Option(help="In units of the data's deviation: auto, 0.1, or several 0,0.1,0.2.")
    ] = "auto",
    method: Annotated[
        str | None,
        typer.Option(help="em, messages, mcmc or variational; of networks variational by default."),
    ] = None,
    key: Seed = 0,
    draws: Draws = 200,
    option: MethodOptions = None,
    model_option: Annotated[list[str] | None, _model_options("noise_scale=0.1")] = None,
) -> None:
    """Distribution on or near a set of low dimension, by likelihood of perturbed rows.

    Columns that are no numbers are left out, and named.
    """
    with input_checked(), warnings_in_one_line():
        default = "em" if decoder == "linear" else "variational"
        given = method is not None or option
        chosen = _method(method or default, option, _SINGULAR_METHODS) if given else None
        check_integer("--draws", draws, 1)
        if out is not None:
            _check_out(out, data)
        settings = _settings("--model-option", model_option, SingularDistribution)
        stated = {"latent_dim", "decoder", "perturbation"} & set(settings)
        if stated:
            raise InputError(f"--model-option {min(stated)}: there is an option of that name")
        model = SingularDistribution(
            latent_dim, decoder=_decoder(decoder), perturbation=_levels(perturbation), **settings
        )
        numbers, left_out = _numbers(data)
        posterior: Any = infer(model, numbers, chosen, key=key, progress=sys.stderr.isatty())
        if out is not None:
            _save(posterior, out, draws)

        console, summary = make_console(), _summary_of(numbers, left_out)
        unit = float(np.sqrt(numbers.var(ddof=0).mean()))
        level = posterior.perturbation
        summary.add_row("perturbation", f"{level:.4g}, {level / unit:.3g} of the data's deviation")
        summary.add_row("noise, perturbation included", f"{posterior.noise_scale:.4g}")
        console.print(_with_status(summary, posterior))
        if out is not None:
            console.print(f"wrote {out}", soft_wrap=True)


def _decoder(text):
    """Width and depth, or ``"linear"``."""
    found = re.fullmatch(r"([0-9]+)x([0-9]+)", text)
    if found is None and text != "linear":
        raise InputError(f"--decoder {text!r}: expected WIDTHxDEPTH such as 64x2, or linear")
    return text if found is None else (int(found[1]), int(found[2]))


def _levels(text):
    """One number, several, or ``"auto"``."""
    if text == "auto":
        return text
    try:
        levels = [float(each) for each in text.split(",")]
    except ValueError:
        raise InputError(
            f"--perturbation {text!r}: expected auto, a number, or several such as 0,0.1,0.2"
        ) from None
    return levels[0] if len(levels) == 1 else levels


def _clusters(posterior, columns):
    """Sizes, weights and locations of the components, with standard deviations."""
    table = Table(title="components", box=rich.box.SIMPLE_HEAD, title_style="bold")
    mean = posterior.mean
    deviation = {name: np.sqrt(value) for name, value in posterior.variance.items()}
    rows = np.bincount(posterior.labels, minlength=len(mean["weights"]))
    for name in ("", "rows", "weight", *map(str, columns)):
        table.add_column(name, justify="right")
    for k, count in enumerate(rows):
        places = zip(mean["locations"][k], deviation["locations"][k], strict=True)
        weight = f"{mean['weights'][k]:.3f} ± {deviation['weights'][k]:.3f}"
        table.add_row(str(k), str(count), weight, *(f"{a:.4g} ± {b:.2g}" for a, b in places))
    return table


def _numbers(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Columns of numbers of a table, and the names of the others."""
    table = _read_table(path)
    numbers = table.select_dtypes("number")
    if numbers.empty:
        raise InputError(f"{path}: no numbers; the columns are {', '.join(table.columns)}")
    return numbers, [name for name in table.columns if name not in numbers.columns]


def _summary_of(numbers, left_out) -> Table:
    """A table of what was fitted, to be continued."""
    summary = Table(show_header=False, box=rich.box.SIMPLE)
    if left_out:
        summary.add_row("columns left out, no numbers", ", ".join(left_out))
    missing = int(numbers.isna().to_numpy().sum())
    summary.add_row("rows", f"{len(numbers)}, {missing} missing values")
    return summary


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    if path.suffix not in readers:
        raise InputError(f"{path}: expected a file that ends with {' or '.join(readers)}")
    try:
        return _with_numpy_types(readers[path.suffix](path))
    except ImportError:
        raise InputError(f"{path}: Parquet needs pyarrow, install bayeskit[parquet]") from None
    except Exception as error:  # whatever the readers make of what is no table
        raise InputError(f"{path}: cannot be read ({error})") from error


def _with_numpy_types(table):
    """Columns of pandas' own numbers as NumPy's; integers with missing entries as floats."""
    kinds = {}
    for name, column in table.items():
        kind = getattr(column.dtype, "numpy_dtype", None)
        if kind is not None and kind.kind in "iufb":
            kinds[name] = np.dtype(float) if column.hasnans else kind
    return table.astype(kinds)


def _mode(text, table) -> Mode:
    """A mode from NAME, NAME:categorical or NAME:KERNEL[:LENGTHSCALE]."""
    name, *rest = text.split(":")
    if name not in table.columns:
        raise InputError(f"--mode {name!r}: the table's columns are {', '.join(table.columns)}")
    if rest == ["categorical"]:
        return Mode(name, categorical=True)
    if not pd.api.types.is_numeric_dtype(table[name]):
        _make_dates(name, table)
    if not rest:
        return Mode(name)
    if rest[0] not in _KERNELS or len(rest) > 2:
        raise InputError(
            f"--mode {text!r}: expected NAME:categorical or NAME:KERNEL[:LENGTHSCALE] with one of "
            f"{', '.join(_KERNELS)}"
        )
    lengthscale = _lengthscale(text, rest[1]) if len(rest) == 2 else _fifth_of_range(table[name])
    return Mode(name, kernel=_KERNELS[rest[0]](lengthscale=lengthscale))


def _lengthscale(text, given):
    try:
        lengthscale = float(given)
    except ValueError:
        raise InputError(f"--mode {text!r}: {given!r} is no number") from None
    if not 0 < lengthscale < np.inf:
        raise InputError(
            f"--mode {text!r}: the lengthscale must be positive and finite, got {given}"
        )
    return lengthscale


def _make_dates(name, table):
    """Turn a column of texts into datetimes, where that is what they are."""
    try:
        dates = pd.to_datetime(table[name], format="ISO8601")
        table[name] = dates if dates.dt.tz is None else dates.dt.tz_convert(None)
    except (ValueError, TypeError):
        raise InputError(
            f"--mode {name}: the column has neither numbers nor ISO dates; write {name}:categorical"
        ) from None


def _fifth_of_range(column):
    width = np.ptp(column.to_numpy())
    days = width / np.timedelta64(1, "D") if column.dtype.kind == "M" else float(width)
    return 0.2 * days if days > 0 else 1.0


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
        if name in settings:
            raise InputError(f"{flag} {name}: given more than once")
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
    count = sum(re.fullmatch(r"dictionary_(0|[1-9][0-9]*)", name) is not None for name in names)
    wanted = ["y", *(f"dictionary_{i}" for i in range(max(count, 1)))]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(f"{path}: no variable {missing[0]!r}; it has {', '.join(names) or 'none'}")
    unknown = [name for name in names if name not in wanted]
    if unknown:
        raise InputError(
            f"{path}: unknown variables {', '.join(unknown)}; expected only {', '.join(wanted)}"
        )
    variables = [complex_of(dataset[name]) for name in wanted]
    return variables[0], variables[1:]


def complex_of(array: xr.DataArray) -> xr.DataArray:
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
