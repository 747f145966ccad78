"""The command line: what it prints, what it writes, and how it refuses."""

import re
import sys

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from bayeskit import __version__, cli, datasets, inference, load
from bayeskit.cli import digits, fit
from bayeskit.cli.console import InputError
from bayeskit.reproduce import EXPERIMENTS

runner = CliRunner()


def problem_dataset(complex_valued=False):
    problem = datasets.kronecker_sparse(
        0, shape=(5, 6), atoms=(7, 8), nonzeros=(2, 2), complex=complex_valued
    )
    first, second = problem.dictionaries
    data = xr.Dataset(
        {
            "y": (("antenna", "time"), problem.measurements),
            "dictionary_0": (("antenna", "angle"), first),
            "dictionary_1": (("time", "delay"), second),
        },
        coords={"angle": np.linspace(-1, 1, 7), "time": np.arange(6) * 0.1},
    )
    return problem, data


def in_parts(data):
    return xr.Dataset(
        {
            name: xr.concat(
                [array.real, array.imag], xr.Variable("part", ["real", "imag"])
            ).transpose(..., "part")
            for name, array in data.data_vars.items()
        }
    )


def refused(*arguments):
    result = runner.invoke(cli.app, list(map(str, arguments)))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


def test_info_names_versions_and_devices():
    result = runner.invoke(cli.app, ["info"])
    assert result.exit_code == 0
    for word in ("bayeskit", "jax", "device", "float64"):
        assert word in result.output


def test_version_is_printed():
    result = runner.invoke(cli.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"bayeskit {__version__}\n")


@pytest.mark.parametrize("form", ["real", "compound", "parts"])
def test_fit_writes_the_tree_with_the_files_dims_and_coords(tmp_path, form):
    problem, data = problem_dataset(complex_valued=form != "real")
    stored = in_parts(data) if form == "parts" else data
    # h5netcdf warns of compound numbers in a file that is called .nc.
    path, out = tmp_path / ("data.h5" if form == "compound" else "data.nc"), tmp_path / "result.nc"
    stored.to_netcdf(path, engine="h5netcdf", invalid_netcdf=form == "compound")
    arguments = ["fit", "sbl", str(path), "--out", str(out), "--draws", "16"]
    arguments += ["--option", "m_step=convex", "--option", "max_iterations=800"]
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    tree = xr.load_datatree(out, engine="h5netcdf")
    mean = tree["moments"]["coefficients_mean"]
    assert mean.dims == ("angle", "delay") + ("part",) * (form != "real")
    np.testing.assert_array_equal(tree["posterior"]["angle"], data["angle"])
    np.testing.assert_array_equal(tree["observed_data"]["time"], data["time"])
    values = mean.values if form == "real" else mean.values @ [1, 1j]
    error = np.linalg.norm(values - problem.coefficients) / np.linalg.norm(problem.coefficients)
    assert error < 0.1
    assert "convex" in tree.attrs["settings"]
    assert sorted(tmp_path.iterdir()) == sorted([path, out])


def test_fit_takes_a_known_noise_variance_and_model_options(tmp_path):
    problem, data = problem_dataset()
    data.to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    out = tmp_path / "result.nc"
    arguments = ["fit", "sbl", str(tmp_path / "data.nc"), "--out", str(out), "--draws", "16"]
    arguments += ["--noise-variance", str(problem.noise_variance)]
    arguments += ["--model-option", "scales=[[0, 1]]"]
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    tree = xr.load_datatree(out, engine="h5netcdf")
    assert "noise_variance_mean" not in tree["moments"]
    assert "scales_1_mean" not in tree["moments"]


def test_bad_input_is_told_in_one_line_with_exit_code_2(tmp_path):
    _, data = problem_dataset()
    good, out = tmp_path / "good.nc", tmp_path / "result.nc"
    data.to_netcdf(good, engine="h5netcdf")

    def stored(name, dataset):
        dataset.to_netcdf(tmp_path / name, engine="h5netcdf")
        return tmp_path / name

    (tmp_path / "text.nc").write_text("not NetCDF")
    no_y = stored("no_y.nc", data.drop_vars("y"))
    gap = stored("gap.nc", data.rename(dictionary_1="dictionary_2"))
    hole = stored("hole.nc", data.assign(y=data["y"].where(data["time"] > 0)))
    swapped = stored("swapped.nc", data.assign(y=data["y"].T))
    twice = stored(
        "twice.nc", data.assign(dictionary_01=data["dictionary_1"], Dictionary_2=data["y"])
    )
    cases = {
        (tmp_path / "absent.nc",): "no such file",
        (tmp_path / "text.nc",): "not a NetCDF-4 file",
        (no_y,): "no variable 'y'",
        (gap,): "no variable 'dictionary_1'",
        (hole,): "5 non-finite values",
        (swapped,): "shape (6, 5)",
        (twice,): "unknown variables dictionary_01, Dictionary_2; expected only y, dictionary_0",
        (good, "--draws", 0): "--draws must be at least 1, got 0",
        (good, "--option", "prune=0", "--option", "prune=0.1"): "prune: given more than once",
        (good, "--method", "magic"): "em, messages, mcmc",
        (good, "--noise-variance", -1.0): "noise_variance must be positive",
        (good, "--option", "m_step"): "expected NAME=VALUE",
        (good, "--option", "step=svd"): "EM takes m_step",
        (good, "--option", "m_step=best"): "'best' is not one of",
        (good, "--model-option", "noise_variance=1"): "--noise-variance",
        (good, "--model-option", "coupling=[1]"): "coupling must have 2",
        (good, "--method", "messages", "--model-option", "coupling=[1, 0]"): "MessagePassing",
        (good, "--method", "mcmc", "--option", "num_chains=0"): "num_chains must be at least 1",
    }
    for arguments, message in cases.items():
        told = refused("fit", "sbl", *arguments, "--out", out)
        assert message in told, (arguments, told)
        assert told.startswith("error: ")
        assert told.count("\n") == 1, told
    assert "does not exist" in refused("fit", "sbl", good, "--out", tmp_path / "no" / "result.nc")
    assert not out.exists()


def test_results_that_cannot_be_written_are_refused_before_the_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "infer", None)
    _, data = problem_dataset()
    path, link = tmp_path / "result.nc.part", tmp_path / "link.nc"
    data.to_netcdf(path, engine="h5netcdf")
    before = path.read_bytes()
    link.symlink_to(path)
    # The last is written by way of the file with ".part".
    for out in (path, link, tmp_path / "result.nc"):
        told = refused("fit", "sbl", path, "--out", out)
        assert re.match(r"error: --out .*: would overwrite the data", told), told
    for out in (tmp_path, ".", ""):
        told = refused("fit", "sbl", path, "--out", out)
        assert re.match(r"error: --out .*: expected the name of a file", told), told
    assert path.read_bytes() == before


def test_too_many_draws_do_not_cost_the_fit(tmp_path):
    _, data = problem_dataset()
    path, out = tmp_path / "data.nc", tmp_path / "result.nc"
    data.to_netcdf(path, engine="h5netcdf")
    arguments = ["fit", "sbl", path, "--out", out, "--option", "max_iterations=800"]
    told = refused(*arguments, "--draws", 1_000_000_000)
    assert "--draws 1000000000: the draws" in told
    assert told.endswith("without draws\n")
    assert load(out).mean["coefficients"].shape == (7, 8)


def test_wrong_usage_has_exit_code_2(tmp_path):
    assert "--out" in refused("fit", "sbl", tmp_path / "data.nc")
    assert "krosbl-irs" in refused("reproduce", "nothing")
    told = refused("reproduce", "krosbl-irs", "--seeds", 0)
    assert told == "error: --seeds must be at least 1, got 0\n"
    told = refused("quickstart", "--days", 59, "--out", tmp_path / "out")
    assert told == "error: --days must be at least 60, got 59\n"
    assert "divisor" in refused("quickstart", "--size", 100, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_must_be_real_and_imaginary():
    array = xr.DataArray(np.ones((2, 3)), dims=("a", "part"), name="y")
    with pytest.raises(InputError, match="3 entries, not 2"):
        fit.complex_of(array)
    named = xr.DataArray(
        [[1.0, 2.0]], dims=("a", "part"), coords={"part": ["imag", "real"]}, name="y"
    )
    assert complex(fit.complex_of(named)[0]) == 2 + 1j
    with pytest.raises(InputError, match="real"):
        fit.complex_of(named.assign_coords(part=["x", "y"]))


def test_quickstart_writes_pictures_and_trees_that_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["bayeskit.cli.quickstart"], "_FRACTIONS", (0.49,))
    monkeypatch.setattr(digits, "_METHOD", inference.VariationalInference(max_iterations=100))
    out = tmp_path / "quickstart"
    result = runner.invoke(
        cli.app,
        ["quickstart", "--size", "32", "--draws", "32", "--days", "60", "--out", str(out)],
    )
    assert result.exit_code == 0, result.output
    names = [f"mri-49{end}" for end in ("-convergence.png", ".nc", ".png")]
    names += ["beijing.png", "beijing.nc", "waves.png", "waves.nc", "irises.png", "irises.nc"]
    names += ["digits.png", "digits.nc"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert "held-out values inside their 95% interval" in result.output
    held_out = xr.load_datatree(out / "beijing.nc", engine="h5netcdf")["predictions"]["pm25"]
    assert held_out.dims == ("chain", "draw", "observation")
    assert "pixels inside their 90% interval" in result.output
    assert "points inside their 95% interval" in result.output
    assert "irises in the wrong cluster" in result.output
    irises = xr.load_datatree(out / "irises.nc", engine="h5netcdf")["posterior"]
    assert list(irises["feature"].values) == list(datasets.iris().columns[:4])
    assert "other real digits" in result.output
    ink = xr.load_datatree(out / "digits.nc", engine="h5netcdf")
    assert ink["posterior"]["latents"].shape == (1, 32, 1000, 8)
    moments = ink["moments"]
    assert moments["noise_variance_mean"] > moments["perturbation_mean"] ** 2 > 0
    waves = xr.load_datatree(out / "waves.nc", engine="h5netcdf")["moments"]["solution_mean"]
    truth = sum(a * np.sin(f * waves.x) for a, f in ((1.0, 1.0), (0.1, 20.0), (0.05, 100.0)))
    np.testing.assert_allclose(waves, truth, atol=1e-8)
    tree = xr.load_datatree(out / "mri-49.nc", engine="h5netcdf")
    problem = datasets.compressive_image(0, size=32, fraction=0.49)
    np.testing.assert_array_equal(tree["pixels"]["truth"], problem.image)
    draws = problem.reconstruct(tree["posterior"]["coefficients"].values[0])
    np.testing.assert_allclose(tree["pixels"]["standard_deviation"], draws.std(axis=0, ddof=1))
    assert tree["posterior"]["coefficients"].dims[2:] == ("row_frequency", "column_frequency")


def test_quickstart_tells_in_one_line_that_it_cannot_write(tmp_path):
    blocked = tmp_path / "mri-25.png"
    blocked.mkdir()
    told = refused("quickstart", "--size", 16, "--draws", 2, "--days", 60, "--out", tmp_path)
    lines = [line for line in told.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert str(blocked) in lines[0]


def test_reproduce_lists_experiments():
    result = runner.invoke(cli.app, ["reproduce"])
    assert result.exit_code == 0
    assert all(name in result.output for name in EXPERIMENTS)


def test_reproduce_puts_our_scores_beside_the_authors(monkeypatch):
    monkeypatch.setitem(
        EXPERIMENTS, "krosbl-irs", with_first_method_only(EXPERIMENTS["krosbl-irs"])
    )
    result = runner.invoke(cli.app, ["reproduce", "krosbl-irs", "--seeds", "2"])
    assert result.exit_code == 0, result.output
    assert "authors' MATLAB" in result.output
    assert "ours 2" in result.output


def with_first_method_only(experiment):
    from dataclasses import replace

    from bayeskit.reproduce import Row

    def run(seeds, report):
        report(f"ours {seeds}")
        scores = dict.fromkeys(experiment.published[0].scores, 0.5)
        return [Row("ours", "bayeskit", seeds, scores)]

    return replace(experiment, run=run)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name, each in EXPERIMENTS.items() if each.published])
def test_reproduced_errors_are_no_worse_than_the_published(name):
    experiment = EXPERIMENTS[name]
    rows = experiment.run(2 if name.startswith("funbat") else 5, lambda line: None)
    score = next(each for each in ("median NMSE", "error") if each in rows[0].scores)
    best = min(row.scores[score] for row in rows)
    assert best <= min(row.scores[score] for row in experiment.published)


@pytest.mark.full
def test_clusters_are_found_nearly_as_well_as_with_the_true_components():
    *ours, oracle = EXPERIMENTS["ilasdp-clusters"].run(10, lambda line: None)
    best = min(row.scores["mean error"] for row in ours)
    # Ten sets of 200 rows: a standard deviation of the difference is below 0.005.
    assert oracle.scores["mean error"] - 0.01 <= best <= oracle.scores["mean error"] + 0.02
