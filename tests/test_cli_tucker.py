"""``bayeskit fit tucker``: tables in, trees out, one line for what cannot be used."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import bayeskit as bk
from bayeskit import cli

runner = CliRunner()
MODES = ["--mode", "day:matern12:4", "--mode", "station:categorical"]


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    day, station = generator.integers(0, 30, 150), generator.integers(0, 3, 150)
    values = 2 * np.sin(day / 4) * np.array([1.0, -0.5, 2.0])[station] + 1
    return pd.DataFrame(
        {
            "day": pd.Timestamp("2013-03-01") + pd.to_timedelta(day, unit="D"),
            "station": np.array(["a", "b", "c"])[station],
            "number": day.astype(float),
            "pm25": values + 0.1 * generator.normal(size=150),
        }
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_is_fitted_as_from_python(table, kind, tmp_path):
    path, out = tmp_path / f"data.{kind}", tmp_path / "result.nc"
    if kind == "csv":
        table.to_csv(path, index=False)
    else:  # pandas' own types and a time zone
        own = {"number": table["number"].astype("Int64"), "pm25": table["pm25"].astype("Float64")}
        own["station"] = table["station"].astype("string")
        table.assign(day=table["day"].dt.tz_localize("UTC"), **own).to_parquet(path)
    arguments = ["fit", "tucker", path, "--value", "pm25", *MODES, "--rank", 1, "--out", out]
    result = runner.invoke(cli.app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "mode station" in result.output
    loaded = bk.load(out)
    expected = bk.infer(loaded.model.with_estimates(None), table)
    np.testing.assert_allclose(loaded.predict().mean, expected.predict().mean, rtol=1e-10)
    tree = xr.load_datatree(out, engine="h5netcdf")
    assert list(tree["moments"]["station"].values) == ["a", "b", "c"]
    assert tree["moments"]["day"].dtype.kind == "M"


def test_what_cannot_be_used_is_told_in_one_line(table, tmp_path):
    good = tmp_path / "data.csv"
    table.to_csv(good, index=False)
    (tmp_path / "data.txt").write_text("a,b")
    holes = tmp_path / "holes.csv"
    table.assign(pm25=table["pm25"].where(table["number"] > 3)).to_csv(holes, index=False)
    cases = [
        ([tmp_path / "absent.csv", *MODES], "no such file"),
        ([tmp_path / "data.txt", *MODES], "ends with .csv or .parquet"),
        ([good, "--mode", "hour"], "the table's columns are day, station"),
        ([good, "--mode", "station"], "write station:categorical"),
        ([good, "--mode", "day:rbf"], "matern12, matern32, matern52"),
        ([good, "--mode", "day:matern12:long"], "'long' is no number"),
        ([good, "--mode", "day:matern12:-1"], "lengthscale must be positive and finite, got -1"),
        ([good, *MODES, "--rank", "2", "--rank", "0"], "ranks must be positive"),
        ([good, *MODES, "--core", "cp", "--rank", 2, "--rank", 1], "equal ranks"),
        ([holes, *MODES], "non-finite values"),
        ([good, *MODES, "--out", good], "would overwrite the data"),
        ([good, *MODES, "--out", tmp_path], "expected the name of a file"),
    ]
    before = good.read_bytes()
    for arguments, message in cases:
        rank = [] if "--rank" in arguments else ["--rank", 1]
        out = [] if "--out" in arguments else ["--out", "result.nc"]
        line = ["fit", "tucker", *arguments, "--value", "pm25", *rank, *out]
        result = runner.invoke(cli.app, list(map(str, line)))
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.stderr, (arguments, result.stderr)
        assert result.stderr.count("\n") == 1
    assert good.read_bytes() == before
